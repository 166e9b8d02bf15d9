//! Colours. The streams drop them where nobody sees them.

use anstyle::{AnsiColor, Style};

use crate::report::Outcome;

pub(super) const PLAIN: Style = Style::new();
pub(super) const HEAD: Style = PLAIN.bold();
pub(super) const FAINT: Style = PLAIN.dimmed();
pub(super) const GOOD: Style = AnsiColor::Green.on_default();
pub(super) const WARN: Style = AnsiColor::Yellow.on_default();
pub(super) const BAD: Style = AnsiColor::Red.on_default().bold();
pub(super) const MIXED: Style = AnsiColor::Magenta.on_default();
pub(super) const SMALL: Style = AnsiColor::Cyan.on_default();

/// The colour of a result.
pub(super) fn of(result: Outcome) -> Style {
    match result {
        Outcome::Ok => GOOD,
        Outcome::Noop => FAINT,
        Outcome::Again | Outcome::Refused => WARN,
        Outcome::Error => BAD,
    }
}
