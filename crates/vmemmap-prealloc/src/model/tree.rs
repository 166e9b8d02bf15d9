//! A radix tree with 64-slot nodes and multi-order entries, as Linux's XArray.
//!
//! Its root is the group of slots that the block has in the node above, which belongs to the file and is not counted.

use folio_split::PfnBlock;
use std::{boxed::Box, format, string::String, vec, vec::Vec};

const SHIFT: u8 = 6;
const SLOTS: usize = 64;

/// One slot. A multi-order entry fills all its slots; `base` tells its first page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Slot {
    Empty,
    Entry { base: u64, order: u8 },
    Node(usize),
}

/// The index of one block, by page number from its start.
#[derive(Debug)]
pub(super) struct Tree {
    root: Vec<Slot>,
    shift: u8,
    nodes: Vec<Option<Box<[Slot; SLOTS]>>>,
    vacant: Vec<usize>,
}

impl Tree {
    /// A block of `order` with no entries.
    pub(super) fn new(order: u8) -> Self {
        let root = vec![Slot::Empty; 1 << (order % SHIFT)];
        Self { root, shift: order / SHIFT * SHIFT, nodes: Vec::new(), vacant: Vec::new() }
    }

    /// Nodes in use.
    pub(super) fn nodes(&self) -> u64 {
        (self.nodes.len() - self.vacant.len()) as u64
    }

    /// Stores the entry of a folio. Takes nodes from `budget` and returns how many were freed; `Err` if it has none.
    pub(super) fn store(&mut self, base: u64, order: u8, budget: &mut u64) -> Result<u64, ()> {
        let target = order / SHIFT * SHIFT;
        let mut shift = self.shift;
        let mut node = None;
        let mut at = slot_index(base, shift, self.root.len());
        while shift > target {
            let slot = self.slots(node)[at];
            let next = match slot {
                Slot::Node(next) => next,
                // What was there is in every new slot until its own entry comes (xas_split does the same).
                entry => {
                    *budget = budget.checked_sub(1).ok_or(())?;
                    let next = self.add(entry);
                    self.slots(node)[at] = Slot::Node(next);
                    next
                }
            };
            node = Some(next);
            shift -= SHIFT;
            at = slot_index(base, shift, SLOTS);
        }
        let mut freed = 0;
        for i in at..at + (1 << (order % SHIFT)) {
            let old = core::mem::replace(&mut self.slots(node)[i], Slot::Entry { base, order });
            freed += self.free(old);
        }
        Ok(freed)
    }

    fn slots(&mut self, node: Option<usize>) -> &mut [Slot] {
        match node {
            None => &mut self.root,
            Some(node) => self.nodes[node].as_mut().expect("a linked node exists").as_mut_slice(),
        }
    }

    fn add(&mut self, fill: Slot) -> usize {
        let node = Some(Box::new([fill; SLOTS]));
        if let Some(id) = self.vacant.pop() {
            self.nodes[id] = node;
            return id;
        }
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn free(&mut self, slot: Slot) -> u64 {
        let Slot::Node(id) = slot else { return 0 };
        let node = self.nodes[id].take().expect("a linked node exists");
        self.vacant.push(id);
        1 + node.iter().map(|&slot| self.free(slot)).sum::<u64>()
    }

    /// The entry of a page: first page and order of its folio.
    pub(super) fn load(&self, page: u64) -> Option<(u64, u8)> {
        let mut shift = self.shift;
        let mut slot = self.root[slot_index(page, shift, self.root.len())];
        loop {
            match slot {
                Slot::Empty => return None,
                Slot::Entry { base, order } => return Some((base, order)),
                Slot::Node(id) => {
                    shift -= SHIFT;
                    slot = self.nodes[id].as_ref()?[slot_index(page, shift, SLOTS)];
                }
            }
        }
    }

    /// Compares every slot with the folios that should be there.
    pub(super) fn check(
        &self,
        block: PfnBlock,
        folios: &mut dyn Iterator<Item = PfnBlock>,
    ) -> Result<(), String> {
        let mut at = 0;
        let mut folio = folios.next();
        self.visit(&self.root, self.shift, &mut |slot, pages| {
            let want = folio.map(|folio| (folio.base().raw() - block.base().raw(), folio.order().raw()));
            match (slot, want) {
                (Slot::Entry { base, order }, Some(want)) if (base, order) == want => {
                    at += pages;
                    if at == base + (1 << order) {
                        folio = folios.next();
                    }
                    Ok(())
                }
                (slot, want) => Err(format!("index slot of page {at} of {block} is {slot:?}, not {want:?}")),
            }
        })
    }

    fn visit(
        &self,
        slots: &[Slot],
        shift: u8,
        see: &mut dyn FnMut(Slot, u64) -> Result<(), String>,
    ) -> Result<(), String> {
        for &slot in slots {
            match slot {
                Slot::Node(id) => {
                    let node = self.nodes[id].as_ref().ok_or("a linked node was freed")?;
                    self.visit(node.as_slice(), shift - SHIFT, see)?;
                }
                entry => see(entry, 1 << shift)?,
            }
        }
        Ok(())
    }
}

/// The slot of `page` among `slots` (a power of two) of `shift`.
fn slot_index(page: u64, shift: u8, slots: usize) -> usize {
    (page >> shift) as usize & (slots - 1)
}
