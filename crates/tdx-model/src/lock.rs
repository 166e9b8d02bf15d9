//! Lock words of the module: shared/exclusive, with host priority, never spinning.
//!
//! Layout of the "sharex_hp" kind: bit 0 exclusive, bit 1 host priority, 15:2 number of readers. A failed host attempt
//! sets the host-priority bit, a successful one clears it. (TDX module ABI, "Concurrency".) The plain kind of the
//! older modules differs only in a reader count that a failed attempt leaves behind and that the exclusive release
//! wipes out again; no caller can tell the two apart.

/// How a lock is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    Shared,
    Exclusive,
}

const EXCLUSIVE: u16 = 1;
const HOST_PRIORITY: u16 = 2;
const READER: u16 = 4;

/// One lock word.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Lock(pub(crate) u16);

impl Lock {
    /// Takes the lock for the host, or notes that the host wants it.
    pub(crate) fn acquire(&mut self, mode: Mode) -> bool {
        let blocked = match mode {
            Mode::Shared => self.0 & EXCLUSIVE != 0,
            Mode::Exclusive => self.0 & !HOST_PRIORITY != 0,
        };
        if blocked {
            self.0 |= HOST_PRIORITY;
            return false;
        }
        self.0 = match mode {
            Mode::Shared => (self.0 & !HOST_PRIORITY) + READER,
            Mode::Exclusive => EXCLUSIVE,
        };
        true
    }

    /// Gives the lock back. The host-priority bit stays.
    pub(crate) fn release(&mut self, mode: Mode) {
        match mode {
            Mode::Shared => self.0 = self.0.saturating_sub(READER),
            Mode::Exclusive => self.0 &= HOST_PRIORITY,
        }
    }

    /// Number of readers, and whether a writer is in.
    pub(crate) const fn holders(self) -> (u16, bool) {
        (self.0 >> 2, self.0 & EXCLUSIVE != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_exclude_a_writer_and_the_loser_leaves_host_priority() {
        let mut lock = Lock::default();
        assert!(lock.acquire(Mode::Shared) && lock.acquire(Mode::Shared));
        assert_eq!(lock.0, 8);
        assert!(!lock.acquire(Mode::Exclusive));
        assert_eq!(lock.0, 10, "the failed attempt must be remembered");
        assert!(lock.acquire(Mode::Shared));
        assert_eq!(lock.0, 12, "success of any host clears it");
        lock.release(Mode::Shared);
        lock.release(Mode::Shared);
        lock.release(Mode::Shared);
        assert!(lock.acquire(Mode::Exclusive));
        assert!(!lock.acquire(Mode::Shared));
        lock.release(Mode::Exclusive);
        assert_eq!(lock.0, 2, "an exclusive release keeps host priority");
    }
}
