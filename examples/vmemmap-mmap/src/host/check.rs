//! Comparing everything that the window shows with a layout.

use super::{MmapHost, OWN};
use crate::State;
use folio_split::{FolioLayout, PageSet};
use vmemmap_prealloc::{VmemmapBackend, VmemmapPage};

impl MmapHost {
    /// Reads every `struct page` of a block through the window and compares it with `layout`; counts the block's own
    /// pages.
    ///
    /// # Errors
    ///
    /// The first difference, in words.
    pub fn check<S: PageSet>(&self, layout: &FolioLayout<S>) -> Result<(), String> {
        let block = layout.block();
        for folio in layout.folios(0) {
            let (start, order) = (self.start(folio), folio.order().raw());
            for number in start..start + folio.pages() {
                let (state, refs) = (self.page(number).state(), self.page(number).refs());
                let want = if number == start { (State::Head(order), OWN) } else { (State::Tail(order), 0) };
                // Only the image of a head looks otherwise.
                let image = self.images() && (state, refs) == (State::Head(order), OWN);
                if (state, refs) != want && !image || self.head(number) != Ok(start) {
                    return Err(format!("page {number:#x} of {folio} is {state:?} with {refs} references"));
                }
            }
        }
        let geometry = self.geometry();
        let all = geometry.vmemmap_pages(block.order());
        let want = if self.is_optimized(block) { geometry.own_pages(&layout.counts()) } else { all };
        let first = self.entry(VmemmapPage { block, index: 0 });
        let books = self.books();
        let have =
            (first..first + all).filter(|&entry| books.own.get(entry as usize).is_some_and(Option::is_some));
        match have.count() as u64 {
            have if have == want => Ok(()),
            have => Err(format!("{block} has {have} vmemmap pages of its own, not {want}")),
        }
    }
}
