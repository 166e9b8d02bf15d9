//! Readers that take references while everything changes.

use crate::{MmapHost, State};
use folio_split::Pfn;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering, fence},
};

/// Whether a reader is inside an attempt: odd if so.
#[derive(Debug, Default)]
pub(crate) struct Section(AtomicU64);

impl Section {
    fn enter(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    fn leave(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    /// Returns when an attempt that is under way now is over.
    pub(crate) fn wait(&self) {
        fence(Ordering::SeqCst);
        let now = self.0.load(Ordering::SeqCst);
        while now % 2 == 1 && self.0.load(Ordering::SeqCst) == now {
            std::thread::yield_now();
        }
    }
}

/// A thread's right to take references. Made by [`MmapHost::reader`].
#[derive(Debug)]
pub struct Reader<'a> {
    pub(crate) host: &'a MmapHost,
    pub(crate) section: Arc<Section>,
}

/// A reference on the folio of a page: it stays one folio, of the order read, until the reference is put.
#[derive(Debug)]
#[must_use = "dropping it keeps the folio as it is for good"]
pub struct Ref {
    page: u64,
    head: u64,
}

/// What no reader may ever see.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Wrong {
    /// A `struct page` that was given up, or never written.
    #[error("page {page:#x} has the struct page {raw:#x}")]
    Garbage {
        /// Whose.
        page: u64,
        /// Its first word.
        raw: u64,
    },
    /// A reference on a folio that the page does not belong to.
    #[error("a reference for page {page:#x} is on {head:#x}, which is {state:?}")]
    NotCovered {
        /// The page.
        page: u64,
        /// What it got a reference on.
        head: u64,
        /// What is there.
        state: State,
    },
}

impl Reader<'_> {
    fn head(&self, page: u64) -> Result<u64, Wrong> {
        self.host.head(page).map_err(|raw| Wrong::Garbage { page, raw })
    }

    /// Read the head, try to get it, read the head again. `None` if it is frozen or was another one the second time.
    ///
    /// # Errors
    ///
    /// [`Wrong`] if the host broke its word: the reference covers the page, or there is none.
    pub fn try_get(&self, pfn: Pfn) -> Result<Option<Ref>, Wrong> {
        let Some(page) = self.host.number(pfn) else { return Ok(None) };
        self.section.enter();
        let head = self.head(page);
        let got = head.is_ok_and(|head| self.host.page(head).try_get());
        self.section.leave();
        let head = head?;
        if !got {
            return Ok(None);
        }
        let reference = Ref { page, head };
        if self.head(page)? != head {
            self.put(reference);
            return Ok(None);
        }
        self.check(&reference)?;
        Ok(Some(reference))
    }

    /// Looks whether a reference still covers its page.
    ///
    /// # Errors
    ///
    /// [`Wrong`] if it does not.
    pub fn check(&self, reference: &Ref) -> Result<(), Wrong> {
        let &Ref { page, head } = reference;
        let state = self.host.page(head).state();
        match state {
            State::Head(order) if (head..head + (1 << order)).contains(&page) && self.head(page)? == head => {
                Ok(())
            }
            state => Err(Wrong::NotCovered { page, head, state }),
        }
    }

    /// Gives a reference up.
    pub fn put(&self, reference: Ref) {
        self.host.page(reference.head).put();
    }
}
