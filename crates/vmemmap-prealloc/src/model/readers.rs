//! What a reader on another CPU could find at this moment.
//!
//! Such a reader looks at the `struct page` of a page, goes to its head, tries to get a reference, and looks at the
//! page again. Until the flush it may see each entry as it was or as it is.

use super::{HostModel, State, StructPage, block::WRITABLE};
use folio_split::PfnBlock;
use std::{collections::BTreeSet, format, string::String, vec::Vec};

impl HostModel {
    /// Lets a reader try every page of the block, through every mapping it may have, and fails if it could end with
    /// a reference on a head that does not cover the page (I9), or in memory that was given up.
    ///
    /// # Errors
    ///
    /// The first page concerned, in words.
    pub fn check_readers(&self, block: PfnBlock) -> Result<(), String> {
        let state = self.lock();
        let base = block.base().raw();
        for page in 0..block.pages() {
            for head in state.possible_heads(base, page)? {
                for shown in state.possible(base, head)? {
                    if let StructPage::Head { order, refs: 1.., .. } = shown
                        && !(head..head + (1 << order)).contains(&page)
                    {
                        return Err(format!(
                            "a reader of page {page:#x} of {block} gets {head:#x}: {shown:?}"
                        ));
                    }
                }
            }
        }
        Ok(())
    }
}

impl State {
    /// What the `struct page` of a page may look like.
    fn possible(&self, base: u64, page: u64) -> Result<Vec<StructPage>, String> {
        let index = page / self.structs;
        let Some(block) = self.blocks.get(&base).filter(|block| block.is_paged()) else {
            return Ok(self.read(base, page).into_iter().collect());
        };
        let before = self.stale.get(&(base, index)).into_iter().flatten().copied();
        let mut shown = Vec::new();
        for entry in before.chain([block.entries.get(index)]) {
            let held = self.memory.get(&(entry & !WRITABLE));
            let held =
                held.ok_or_else(|| format!("entry {index} of block {base:#x} may show memory given up"))?;
            shown.push(held.content[(page % self.structs) as usize]);
        }
        Ok(shown)
    }

    /// The heads that a reader of a page may go to.
    fn possible_heads(&self, base: u64, page: u64) -> Result<BTreeSet<u64>, String> {
        let mut heads = BTreeSet::new();
        for shown in self.possible(base, page)? {
            match shown {
                StructPage::Head { .. } => {
                    // It may be the image of one (page_fixed_fake_head); the page after it tells.
                    let first = page.is_multiple_of(self.structs);
                    let after =
                        if first { self.possible(base, page + 1).unwrap_or_default() } else { Vec::new() };
                    if after.is_empty() {
                        heads.insert(page);
                    }
                    heads.extend(after.iter().map(|after| match after {
                        StructPage::TailOf { head } => u64::from(*head),
                        _ => page,
                    }));
                }
                StructPage::Tail { order } => drop(heads.insert(page & !((1 << order) - 1))),
                StructPage::TailOf { head } => drop(heads.insert(u64::from(head))),
                StructPage::AnyTail => {
                    heads.extend(
                        self.blocks.get(&base).and_then(|block| block.load_index(page)).map(|entry| entry.0),
                    );
                }
            }
        }
        Ok(heads)
    }
}
