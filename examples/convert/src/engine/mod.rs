//! Runs a scenario: brings up a machine and a TD, carries every operation out, and holds all of it against the rules.
//!
//! The engine is what a hypervisor would be, and no more: memory changes hands only through the public interfaces of
//! the library crates.

mod convert;
mod errors;
mod guest;
mod host;
mod invariants;
mod machine;
mod notices;
mod ops;
mod oracle;
mod ram;
mod sets;
mod summary;
mod td;
mod teardown;

use std::sync::Arc;
use std::time::Instant;

use folio_split::{Order, OrderSet};
use seamcall::{Td, TdDescription};
use sept_core::test_util::{Arena, FramePool, Kick, VecStore};
use sept_core::{FrameKind, FrameSource, Hpa, Level, SecurePageTable, TdxConfig, TdxMirror};
use tdx_model::Machine;
use vmemmap_prealloc::model::HostModel;
use vmemmap_prealloc::{Geometry, install_templates};

pub use crate::options::Options;
use crate::options::{Merge, Module};
pub use crate::outcome::{RunOutcome, UniformCost, UnmetExpect};
use crate::report::{OpReport, Outcome, Report, Resources};
use crate::scenario::{Op, PAGE, Region, Scenario, Verb};
use host::Host;
use machine::{GLOBAL_HKID, HKID, KEY_ID_BITS, Map, POOL, back_with_pamt, pamt_ledger};
use notices::Notices;
use oracle::Oracle;
use td::{Control, Counted};

/// Work that takes long enough to show how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The guest accepts memory.
    Accept,
    /// Contents are compared.
    Verify,
}

/// Who watches a run.
pub trait Observer {
    /// The run begins.
    fn started(&mut self, _scenario: &Scenario, _options: &Options) {}
    /// Long work is `done_pages` of `total_pages` far.
    fn progress(&mut self, _phase: Phase, _done_pages: u64, _total_pages: u64) {}
    /// An operation is over.
    fn op(&mut self, _op: &Op, _report: &OpReport) {}
    /// An invariant does not hold after the operation on `line`.
    fn violation(&mut self, _line: usize, _text: &str) {}
    /// An operation did not report what the scenario expects.
    fn unmet(&mut self, _unmet: &UnmetExpect) {}
}

/// Runs `scenario` to its end.
pub fn run(scenario: &Scenario, options: &Options, observer: &mut dyn Observer) -> RunOutcome {
    let started = Instant::now();
    observer.started(scenario, options);
    let map = Map::of(scenario);
    let machine = Arc::new(map.build(options.module));
    let notices = Notices::default();
    let mut outcome = match Engine::new(scenario, options, observer, (&machine, &map, &notices)) {
        Ok(mut engine) => {
            for op in &scenario.ops {
                engine.op(op);
            }
            engine.end()
        }
        Err(reason) => RunOutcome { violations: vec![reason], ..RunOutcome::default() },
    };
    let elapsed = started.elapsed().as_nanos();
    outcome.report.totals.elapsed_ns = u64::try_from(elapsed).unwrap_or(u64::MAX);
    outcome
}

/// A run under way.
struct Engine<'m, 'o> {
    scenario: &'m Scenario,
    options: Options,
    observer: &'o mut dyn Observer,
    host: Host<'m>,
    control: Control,
    /// What every page must hold.
    oracle: Oracle,
    outcome: RunOutcome,
    /// RAM declared so far: index of the next region in the machine's map.
    ram_bases: Vec<(Region, Hpa)>,
    /// Whether vCPUs may enter.
    finalized: bool,
    /// Images still to be added; vCPUs enter after the last.
    images_left: usize,
    /// The TD is lost: no further call concerns it.
    fatal: bool,
    /// Number of the last fill.
    fills: u32,
    /// Pages set aside for isolating a memory error when the page source has none.
    emergency: VecStore,
    /// Announced memory errors that could not be isolated yet.
    recorded: Vec<u64>,
    /// What was in use just before the first conversion that was carried out, and what RAM took that came later.
    before: Option<Resources>,
    /// The limit of the page source, and what was out when it was set.
    limit: Option<(u64, u64)>,
    /// Line of the operation under way.
    line: usize,
}

impl<'m, 'o> Engine<'m, 'o> {
    fn new(
        scenario: &'m Scenario,
        options: &Options,
        observer: &'o mut dyn Observer,
        (machine, map, notices): (&'m Arc<Machine>, &Map, &'m Notices),
    ) -> Result<Self, String> {
        let dynamic_pamt = options.module == Module::V2_0_08;
        let lp = machine.lp(0);
        if dynamic_pamt {
            back_pools(machine, map, scenario)?;
        }
        let config = match (scenario.td.levels, scenario.td.gpaw) {
            (4, _) => TdxConfig::LEVELS_4,
            (_, 48) => TdxConfig::LEVELS_5_GPAW_48,
            _ => TdxConfig::LEVELS_5_GPAW_52,
        };
        let control =
            Control::create(machine, config, scenario.td.vcpus).map_err(|error| error.to_string())?;
        let description = TdDescription::new(control.tdr, HKID, GLOBAL_HKID, KEY_ID_BITS, config)
            .with_dynamic_pamt(dynamic_pamt);
        let vcpus: Vec<Hpa> = control.vcpus.iter().map(|vcpu| vcpu.hpa()).collect();
        let (kicked, inside): (&Machine, _) = (machine, vcpus.clone());
        let kick = Kick::new(
            move || {
                for vcpu in &vcpus {
                    let _ = kicked.guest(*vcpu).exit();
                }
            },
            move || !inside.iter().any(|vcpu| kicked.guest(*vcpu).is_inside()),
        );
        let td = Td::new(Counted::new(lp), kick, (), description).with_observer(notices);
        let scrubbed = Arc::clone(machine);
        let scrub = Box::new(move |hpa, level: Level| scrubbed.host_zero(hpa, level.pages()));
        let arena = Arena::new(POOL, usize::try_from(map.pool_frames).unwrap_or(0), scrub);
        let pool = FramePool::new(POOL, map.pool_frames);
        let root = pool.take(FrameKind::MirrorTable, POOL).ok_or("no frame for the root")?;
        let table = SecurePageTable::<TdxMirror, _, _>::new(config, arena, td, root);
        let order =
            u8::try_from(scenario.backing.order()).ok().and_then(Order::new).ok_or("no such order")?;
        let orders = options.orders.iter().filter_map(|order| Order::new(u8::try_from(order).ok()?));
        let orders = OrderSet::new(orders).map_err(|error| error.to_string())?;
        let mm = HostModel::new(Geometry::LINUX_X86_64, orders);
        let host = Host::new(machine, table, (mm, pool), notices, (orders, order));
        let images = scenario.ops.iter().filter(|op| matches!(op.verb, Verb::Image { .. })).count();
        Ok(Self {
            scenario,
            options: *options,
            observer,
            host,
            control,
            oracle: Oracle::default(),
            outcome: RunOutcome {
                report: Report {
                    scenario: scenario.name.clone(),
                    orders: options.orders.iter().collect(),
                    module: options.module.to_string(),
                    ..Report::default()
                },
                ..RunOutcome::default()
            },
            ram_bases: scenario.ram.iter().copied().zip(map.ram.iter().copied()).collect(),
            finalized: false,
            images_left: images,
            fatal: false,
            fills: 0,
            emergency: VecStore::default(),
            recorded: Vec::new(),
            before: None,
            limit: None,
            line: 0,
        })
    }

    /// One line of the scenario.
    fn op(&mut self, op: &Op) {
        self.line = op.line;
        match op.verb {
            Verb::Memory(pages) => {
                self.limit = pages.map(|pages| (pages, self.frames_out()));
                self.host.pool.limit(pages);
            }
            Verb::Ram { start, len } => self.ram(Region { start, len }),
            _ => self.operation(op),
        }
    }

    /// RAM appears. What its registration takes is the host's own, and neither limited nor part of any conversion.
    fn ram(&mut self, region: Region) {
        let (used, out) = (self.usage(), self.frames_out());
        let left = self.limit.map(|(limit, since)| (limit + since).saturating_sub(out));
        self.host.pool.limit(None);
        self.add_ram(region);
        self.host.pool.limit(left);
        self.limit = left.map(|left| (left, self.frames_out()));
        let took = self.usage() - used;
        if let Some(before) = &mut self.before {
            *before += took;
        }
    }

    /// Frames of the page source that are out.
    fn frames_out(&self) -> u64 {
        let out = self.host.pool.outstanding();
        FrameKind::ALL.into_iter().map(|kind| u64::from(out[kind])).sum()
    }

    /// Its blocks are registered, and with the first one the templates of the zone.
    fn add_ram(&mut self, region: Region) {
        let joined = self.ram_bases.iter().find(|(all, _)| region.start.wrapping_sub(all.start) < all.len);
        let Some(base) = joined.map(|(all, base)| Hpa::truncate(base.raw() + (region.start - all.start)))
        else {
            return self.violation("RAM without memory behind it".into());
        };
        self.host.add_ram(region, base);
        self.oracle.add_ram(region);
        if self.host.block_order() == Order::PAGE {
            return;
        }
        let blocks: Vec<_> = self.host.blocks(region).map(|block| block.pfn()).collect();
        for pfn in blocks {
            let registered = if self.scenario.backing.hvo {
                let orders = self.host.mm.orders().clipped(pfn.order());
                let templates = install_templates(&self.host.mm, pfn, orders, &self.host.pool);
                templates.and_then(|_| self.host.mm.add_block(pfn, &self.host.pool)).err()
            } else {
                self.host.mm.add_plain_block(pfn);
                None
            };
            if let Some(error) = registered {
                self.violation(format!("block {pfn}: {error}"));
            }
        }
        self.fill_emergency();
    }

    /// An operation: carried out, checked, reported.
    fn operation(&mut self, op: &Op) {
        let (calls, used, recorded) = (self.calls(), self.usage(), self.recorded.len());
        let scope = self.scope(op);
        let before = self.digest(scope);
        if let Verb::Image { .. } = op.verb {
            self.images_left = self.images_left.saturating_sub(1);
        }
        let mut report = self.carry_out(op);
        let converts = matches!(op.verb, Verb::Share { .. } | Verb::Unshare { .. });
        if converts && report.result == Outcome::Ok {
            self.before.get_or_insert(used);
        }
        report.seamcalls = self.calls() - calls;
        self.hold_to_account(&report);
        // A recorded memory error that could be isolated on the way is progress of its own.
        let same = self.recorded.len() >= recorded;
        if same && matches!(report.result, Outcome::Again | Outcome::Refused) && self.digest(scope) != before
        {
            self.violation(format!("I5: `{}` ended {} and changed something", op.text, report.result));
        }
        if report.result == Outcome::Ok && !self.fatal {
            self.verify_edges(&op.verb);
        }
        self.check_invariants(scope, matches!(op.verb, Verb::Check));
        self.observer.op(op, &report);
        if let Some(unmet) = UnmetExpect::of(op, &report) {
            self.observer.unmet(&unmet);
            self.outcome.unmet.push(unmet);
        }
        self.outcome.report.ops.push(report);
    }

    /// What an operation can touch: the 1 GiB pieces and blocks around its range, or all RAM.
    fn scope(&self, op: &Op) -> Region {
        let all = Region { start: 0, len: 1 << 52 };
        let wide = Level::L1G.size();
        op.verb.region().map_or(all, |region| {
            let start = region.start - region.start % wide;
            Region { start, len: (region.start + region.len).div_ceil(wide) * wide - start }
        })
    }

    fn calls(&self) -> u64 {
        self.host.table.external().transport().calls()
    }

    fn violation(&mut self, text: String) {
        self.observer.violation(self.line, &text);
        self.outcome.report.totals.invariant_violations += 1;
        self.outcome.violations.push(text);
    }

    /// Whether folios merge and leaves are promoted as soon as they can be.
    fn is_eager(&self) -> bool {
        self.options.merge == Merge::Eager
    }
}

/// With Dynamic PAMT, memory that the host hands out in 4 KiB pieces gets its page pairs before.
fn back_pools(machine: &Machine, map: &Map, scenario: &Scenario) -> Result<(), String> {
    let (lp, ledger, mut next) = (machine.lp(0), pamt_ledger(), 0);
    back_with_pamt(lp, &ledger, &mut next, machine::CONTROL, machine::CONTROL_PAGES * PAGE)?;
    back_with_pamt(lp, &ledger, &mut next, POOL, map.pool_frames * PAGE)?;
    if scenario.backing.order() == 0 {
        for (region, base) in scenario.ram.iter().zip(&map.ram) {
            back_with_pamt(lp, &ledger, &mut next, *base, region.len)?;
        }
    }
    Ok(())
}
