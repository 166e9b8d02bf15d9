//! What each verb does.

use convert::report::Outcome;
use convert::scenario::{AcceptLevel, PAGE, Region, Verb};

use super::{Done, Model, No, Page, State, add};
use crate::sept::{Account, Leaf, Populate};

impl Model<'_> {
    pub(super) fn verb(&mut self, verb: Verb, range: Region, account: &mut Account) -> Done {
        let good = self.good(range);
        let any = |state| good.iter().any(|(_, page)| page.state == state);
        let refused_if = |wrong: bool| if wrong { Err(No(Outcome::Refused, None)) } else { Ok(()) };
        let old = self.usage();
        match verb {
            Verb::Image { .. } => {
                refused_if(any(State::Private) || any(State::Shared))?;
                let how = Populate { range, large: false, around: false, split: false, leaf: Leaf::Mapped };
                *account = self.populate(how);
                self.change(range, |page| page.state = State::Private);
            }
            Verb::Accept { level, .. } => {
                refused_if(any(State::Shared))?;
                if !any(State::Unaccepted) {
                    return Ok(Outcome::Noop);
                }
                let large = level != Some(AcceptLevel::Page4K);
                let how = Populate { range, large, around: false, split: true, leaf: Leaf::Pending };
                *account = self.populate(how);
                self.accept(range, account);
            }
            Verb::Touch { .. } => {
                refused_if(any(State::Shared))?;
                if any(State::Unaccepted) {
                    let how =
                        Populate { range, large: true, around: true, split: false, leaf: Leaf::Pending };
                    *account = self.populate(how);
                }
            }
            Verb::Fill { .. } => {
                refused_if(any(State::Unaccepted) || any(State::Private) && self.images_left > 0)?;
            }
            Verb::HostFill { .. } => refused_if(any(State::Unaccepted) || any(State::Private))?,
            Verb::Pin { .. } => {
                refused_if(any(State::Unaccepted) || any(State::Private))?;
                self.change(range, |page| page.pins += 1);
            }
            Verb::Unpin { .. } => {
                refused_if(any(State::Unaccepted) || any(State::Private))?;
                refused_if(good.iter().any(|(_, page)| page.pins == 0))?;
                self.change(range, |page| page.pins -= 1);
            }
            Verb::Share { .. } => {
                if !any(State::Unaccepted) && !any(State::Private) {
                    return Ok(Outcome::Noop);
                }
                self.change(range, |page| page.state = State::Shared);
                self.relay(range);
                *account = self.remove(range);
                self.charge(old, account);
            }
            Verb::Unshare { accept, .. } => {
                if !any(State::Shared) {
                    return Ok(Outcome::Noop);
                }
                if let Some((gpa, _)) = good.iter().find(|(_, page)| page.pins > 0) {
                    return Err(No(Outcome::Again, Some(*gpa)));
                }
                refused_if(accept && self.images_left > 0)?;
                let was_shared = |page: &mut Page| {
                    if page.state == State::Shared {
                        page.state = State::Unaccepted;
                    }
                };
                self.change(range, was_shared);
                self.relay(range);
                let how = Populate { range, large: true, around: false, split: true, leaf: Leaf::Pending };
                *account = self.populate(how);
                if accept {
                    self.accept(range, account);
                } else {
                    let order_at = self.order_at();
                    add(account, self.sept.promote(range, &order_at));
                }
                self.charge(old, account);
            }
            Verb::Punch { .. } => {
                *account = self.remove(range);
                self.change(range, |page| {
                    if page.state == State::Private {
                        page.state = State::Unaccepted;
                    }
                });
            }
            Verb::Poison { gpa, consumed } => {
                let range = Region { start: gpa, len: PAGE };
                if self.page(gpa).bad {
                    return Ok(Outcome::Noop);
                }
                self.poisoned += 1;
                self.fatal = consumed;
                self.change(range, |page| page.bad = true);
                if !consumed {
                    self.relay(range);
                    *account = self.remove(range);
                    self.charge(old, account);
                }
            }
            Verb::Merge => {
                let order_at = self.order_at();
                for (ram, _) in &self.ram {
                    add(account, self.sept.promote(*ram, &order_at));
                }
            }
            Verb::Check => self.verify(),
            Verb::Memory(_) | Verb::Ram { .. } => {}
        }
        Ok(Outcome::Ok)
    }
}
