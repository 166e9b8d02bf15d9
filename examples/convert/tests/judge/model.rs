//! What a scenario must give, by the rules of the scenario format: one record per page, nothing clever.

mod verbs;

use std::collections::BTreeMap;
use std::rc::Rc;

use convert::options::{Merge, Module, Options};
use convert::report::{FolioState, LayoutRun, LeafRun, Outcome, Resources};
use convert::scenario::{Op, PAGE, Region, Scenario, Verb};

use crate::layout::Layout;
use crate::sept::{Account, Populate, Sept};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Unaccepted,
    Private,
    Shared,
}

#[derive(Clone, Copy)]
struct Page {
    state: State,
    /// Lost to a memory error.
    bad: bool,
    pins: u32,
}

/// What one operation must report.
pub(crate) struct Expected {
    pub(crate) line: usize,
    pub(crate) result: Outcome,
    /// The first obstacle of `again`.
    pub(crate) at: Option<u64>,
    /// Poisoned parts of the range; `None` where nothing is said about them.
    pub(crate) skipped: Option<Vec<(u64, u64)>>,
    pub(crate) account: Account,
}

/// What a run must give.
pub(crate) struct Verdict {
    pub(crate) ops: Vec<Expected>,
    pub(crate) layout: Vec<LayoutRun>,
    pub(crate) leaves: Vec<LeafRun>,
    pub(crate) pages_verified: u64,
    pub(crate) pages_poisoned: u64,
    pub(crate) balance: Resources,
}

#[derive(Clone)]
pub(crate) struct Model<'s> {
    scenario: &'s Scenario,
    orders: Vec<u32>,
    ram: Vec<(Region, Rc<Vec<Page>>)>,
    blocks: BTreeMap<u64, Rc<Layout>>,
    sept: Sept,
    limit: Option<i64>,
    images_left: usize,
    fatal: bool,
    verified: u64,
    poisoned: u64,
}

/// Not granted: how, and for `again` where.
struct No(Outcome, Option<u64>);

type Done = Result<Outcome, No>;

impl<'s> Model<'s> {
    /// Runs `scenario` to its end.
    pub(crate) fn run(scenario: &'s Scenario, options: &Options) -> Verdict {
        assert_eq!(options.merge, Merge::Eager, "the model defers nothing");
        let order = scenario.backing.order();
        let pamt = if options.module == Module::V2_0_08 && order >= 9 { 2 } else { 0 };
        let mut model = Self {
            scenario,
            orders: options.orders.iter().filter(|of| *of <= order).collect(),
            ram: Vec::new(),
            blocks: BTreeMap::new(),
            sept: Sept::new(scenario.td.levels == 5, pamt),
            limit: None,
            images_left: scenario.ops.iter().filter(|op| matches!(op.verb, Verb::Image { .. })).count(),
            fatal: false,
            verified: 0,
            poisoned: 0,
        };
        let mut ops = Vec::new();
        let mut before = None;
        for op in &scenario.ops {
            match op.verb {
                Verb::Memory(pages) => {
                    model.limit = pages.map(|pages| i64::try_from(pages).unwrap_or(i64::MAX))
                }
                Verb::Ram { start, len } => {
                    let now = model.usage();
                    model.add_ram(Region { start, len });
                    // RAM that comes late is no conversion.
                    before = before.map(|before| before + (model.usage() - now));
                }
                _ => {
                    let now = model.usage();
                    let expected = model.operation(op);
                    let converts = matches!(op.verb, Verb::Share { .. } | Verb::Unshare { .. });
                    if converts && expected.result == Outcome::Ok {
                        before.get_or_insert(now);
                    }
                    ops.push(expected);
                }
            }
        }
        model.verify();
        let balance = before.map(|before| model.usage() - before).unwrap_or_default();
        let regions: Vec<Region> = model.ram.iter().map(|(region, _)| *region).collect();
        Verdict {
            ops,
            layout: model.folios(),
            leaves: model.sept.leaves(&regions),
            pages_verified: model.verified,
            pages_poisoned: model.poisoned,
            balance,
        }
    }

    fn add_ram(&mut self, region: Region) {
        let page = Page { state: State::Unaccepted, bad: false, pins: 0 };
        let pages = vec![page; usize::try_from(region.len / PAGE).unwrap()];
        self.ram.push((region, Rc::new(pages)));
        self.ram.sort_by_key(|(region, _)| region.start);
        self.relay(region);
    }

    fn find(&self, gpa: u64) -> Option<(usize, usize)> {
        let ram = self.ram.iter().position(|(ram, _)| ram.start <= gpa && gpa < ram.end())?;
        Some((ram, usize::try_from((gpa - self.ram[ram].0.start) / PAGE).unwrap()))
    }

    fn page(&self, gpa: u64) -> Page {
        let (ram, at) = self.find(gpa).unwrap();
        self.ram[ram].1[at]
    }

    /// Pages of `range` that have no error, by address.
    fn good(&self, range: Region) -> Vec<(u64, Page)> {
        let all = gpas(range).map(|gpa| (gpa, self.page(gpa)));
        all.filter(|(_, page)| !page.bad).collect()
    }

    fn change(&mut self, range: Region, change: impl Fn(&mut Page)) {
        for gpa in gpas(range) {
            let (ram, at) = self.find(gpa).unwrap();
            let page = &mut Rc::make_mut(&mut self.ram[ram].1)[at];
            if !page.bad {
                change(page);
            }
        }
    }

    fn block_of(&self, gpa: u64) -> u64 {
        gpa - gpa % self.scenario.backing.size
    }

    /// Every block that `range` touches, whole.
    fn blocks_of(&self, range: Region) -> Region {
        let start = self.block_of(range.start);
        Region { start, len: range.end().next_multiple_of(self.scenario.backing.size) - start }
    }

    /// Lays the blocks of `range` out anew.
    fn relay(&mut self, range: Region) {
        let size = self.scenario.backing.size;
        if size == PAGE {
            return;
        }
        let range = self.blocks_of(range);
        for block in (range.start..range.end()).step_by(usize::try_from(size).unwrap()) {
            let (ram, at) = self.find(block).unwrap();
            let pages = &self.ram[ram].1[at..at + usize::try_from(size / PAGE).unwrap()];
            let small: Vec<bool> = pages.iter().map(|page| page.bad || page.state == State::Shared).collect();
            let layout = Layout::new(self.scenario.backing.order(), &self.orders, &small);
            self.blocks.insert(block, Rc::new(layout));
        }
    }

    fn order_at(&self) -> impl Fn(u64) -> u8 + use<> {
        let (size, orders) = (self.scenario.backing.size, self.blocks.clone());
        move |gpa| {
            let layout = orders.get(&(gpa - gpa % size));
            layout.map_or(0, |layout| layout.order_at[usize::try_from(gpa % size / PAGE).unwrap()])
        }
    }

    fn usage(&self) -> Resources {
        let mut usage = self.sept.usage();
        for layout in self.blocks.values() {
            usage.vmemmap_pages += if self.scenario.backing.hvo { layout.vmemmap } else { 0 };
            usage.index_nodes += layout.nodes;
        }
        usage
    }

    fn operation(&mut self, op: &Op) -> Expected {
        let mut expected = Expected {
            line: op.line,
            result: Outcome::Refused,
            at: None,
            skipped: None,
            account: Account::default(),
        };
        if self.fatal {
            return expected;
        }
        if matches!(op.verb, Verb::Image { .. }) {
            self.images_left -= 1;
        }
        let done = match op.verb.region() {
            Some(range) if !matches!(op.verb, Verb::Poison { .. }) => {
                let bad: Vec<u64> = gpas(range).filter(|gpa| self.page(*gpa).bad).collect();
                expected.skipped = Some(runs(&bad));
                if bad.len() as u64 == range.len / PAGE {
                    expected.result = Outcome::Noop;
                    return expected;
                }
                let before = self.clone();
                let done = self.verb(op.verb, range, &mut expected.account);
                let done = self.within_limit(done, op.verb, range, &expected.account, &before);
                if done.is_err() {
                    *self = before;
                    expected.account = Account::default();
                }
                done
            }
            _ => self.verb(op.verb, Region { start: 0, len: 0 }, &mut expected.account),
        };
        (expected.result, expected.at) = match done {
            Ok(result) => (result, None),
            Err(No(result, at)) => (result, at),
        };
        expected
    }

    /// Takes what was used from the page source, if it has that much.
    fn within_limit(&mut self, done: Done, verb: Verb, range: Region, account: &Account, old: &Self) -> Done {
        let Some(limit) = self.limit else { return done };
        if account.used.pages() > limit {
            let first = old.good(range).into_iter().find(|(_, page)| match verb {
                Verb::Share { .. } => page.state != State::Shared,
                Verb::Unshare { .. } => page.state == State::Shared,
                Verb::Accept { .. } | Verb::Touch { .. } => page.state == State::Unaccepted,
                _ => true,
            });
            return Err(No(Outcome::Again, first.map(|(gpa, _)| gpa)));
        }
        self.limit = Some(limit - account.used.pages() + account.released.pages());
        done
    }

    /// What the change of layout took or gave back.
    fn charge(&self, old: Resources, account: &mut Account) {
        let change = self.usage() - old;
        for (change, of) in [
            (change.vmemmap_pages, (|all| &mut all.vmemmap_pages) as fn(&mut Resources) -> &mut i64),
            (change.index_nodes, |all| &mut all.index_nodes),
        ] {
            *of(&mut account.used) += change.max(0);
            *of(&mut account.released) += (-change).max(0);
        }
    }

    fn remove(&mut self, range: Region) -> Account {
        let (order_at, area) = (self.order_at(), self.blocks_of(range));
        self.sept.remove(range, area, &order_at)
    }

    fn populate(&mut self, how: Populate) -> Account {
        let (order_at, old) = (self.order_at(), self.clone());
        let wanted = |gpa| {
            old.find(gpa).is_some() && {
                let page = old.page(gpa);
                !page.bad && page.state == State::Unaccepted
            }
        };
        self.sept.populate(how, &order_at, &wanted)
    }

    /// The guest accepts what of `range` waits for it; then what can be promoted is.
    fn accept(&mut self, range: Region, account: &mut Account) {
        let old = self.clone();
        let waiting = |gpa| {
            let page = old.page(gpa);
            !page.bad && page.state == State::Unaccepted
        };
        add(account, self.sept.accept(range, &waiting));
        self.change(range, |page| {
            if page.state == State::Unaccepted {
                page.state = State::Private;
            }
        });
        let order_at = self.order_at();
        add(account, self.sept.promote(range, &order_at));
    }

    /// Contents are compared: of everything that the guest may read, unless it is dead, and of everything shared.
    fn verify(&mut self) {
        let readable = |page: &&Page| match page.state {
            State::Unaccepted => false,
            State::Private => !page.bad && !self.fatal,
            State::Shared => !page.bad,
        };
        let pages = self.ram.iter().flat_map(|(_, pages)| pages.iter()).filter(readable);
        self.verified += pages.count() as u64;
    }

    fn folios(&self) -> Vec<LayoutRun> {
        let mut runs: Vec<LayoutRun> = Vec::new();
        let mut add = |start: u64, order: u8, page: Page| {
            let state = match page {
                Page { bad: true, .. } => FolioState::Poisoned,
                Page { state: State::Shared, .. } => FolioState::Shared,
                _ => FolioState::Private,
            };
            let order = u32::from(order);
            match runs.last_mut() {
                Some(run)
                    if (run.order, run.state) == (order, state)
                        && run.start + ((run.count * PAGE) << order) == start =>
                {
                    run.count += 1;
                }
                _ => runs.push(LayoutRun { start, order, count: 1, state }),
            }
        };
        for (region, pages) in &self.ram {
            if self.scenario.backing.size == PAGE {
                gpas(*region).zip(pages.iter()).for_each(|(gpa, page)| add(gpa, 0, *page));
            }
        }
        for (block, layout) in &self.blocks {
            for (page, order) in &layout.folios {
                let gpa = block + page * PAGE;
                add(gpa, *order, self.page(gpa));
            }
        }
        runs
    }
}

fn gpas(range: Region) -> impl Iterator<Item = u64> {
    (range.start..range.end()).step_by(4096)
}

fn add(to: &mut Account, more: Account) {
    to.used += more.used;
    to.released += more.released;
    to.demotes += more.demotes;
    to.promotes += more.promotes;
}

/// Consecutive pages as address and length.
fn runs(gpas: &[u64]) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for gpa in gpas {
        match runs.last_mut() {
            Some((start, len)) if *start + *len == *gpa => *len += PAGE,
            _ => runs.push((*gpa, PAGE)),
        }
    }
    runs
}
