//! Physical memory: what each page holds, which key wrote it, and whether a cache may still hold lines of it.
//!
//! Storage is sparse by GiB, then by 2 MiB chunk. A chunk whose pages are all alike is one [`Cell`]; touching one page
//! of it makes 512 of them. S-EPT tables and byte-exact pages live in slabs and are named by the page's cell.

use crate::abi::PAGE;
use crate::pamt::{Fine, PamtEntry};

/// Pages of a chunk, chunks of a GiB, entries of a table.
pub(crate) const FANOUT: usize = 512;
/// Bytes of a chunk.
pub(crate) const CHUNK: u64 = PAGE << 9;

/// 512 entries of an S-EPT page.
pub(crate) type Table = [u64; FANOUT];

/// `Cell::dirty` of a page of which no cache holds a modified line.
const CLEAN: u16 = u16::MAX;
const TABLE: u16 = 1 << 15;
const BYTES: u16 = 1 << 14;

/// Content of one 4 KiB page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Cell {
    value: u64,
    /// Flush generation in which `dirty` was noted.
    generation: u32,
    /// Key id of the last writer, with the two flags above.
    key: u16,
    /// Key id under which a cache may hold modified lines.
    dirty: u16,
}

impl Cell {
    /// A page nobody has written since power-on.
    pub(crate) const UNTOUCHED: Self = Self { value: 0, generation: 0, key: 0, dirty: CLEAN };

    /// The key id that wrote the page.
    pub(crate) const fn key(self) -> u16 {
        self.key & !(TABLE | BYTES)
    }

    /// The pattern, or the handle kept in a control page.
    pub(crate) const fn value(self) -> u64 {
        self.value
    }

    const fn table(self) -> Option<u32> {
        if self.key & TABLE != 0 { Some(self.value as u32) } else { None }
    }
}

/// The pages of a chunk.
#[derive(Clone, Debug)]
pub(crate) enum Store {
    Uniform(Cell),
    Pages(Box<[Cell; FANOUT]>),
}

/// 2 MiB of memory with its PAMT entries.
#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    pub(crate) own: PamtEntry,
    /// The 512 4 KiB PAMT entries, once one of them is needed.
    pub(crate) fine: Option<Box<Fine>>,
    /// Pages that serve as Dynamic PAMT pages.
    pub(crate) pamt_pages: Option<Box<[u64; 8]>>,
    store: Store,
}

/// 1 GiB of memory with its PAMT entry.
#[derive(Clone, Debug)]
pub(crate) struct Gib {
    pub(crate) own: PamtEntry,
    pub(crate) chunks: Box<[Chunk]>,
}

/// What was handed out for writing since the watch looked last. Only debug builds keep it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Touched {
    pub(crate) on: bool,
    pub(crate) tables: Vec<u32>,
    /// Pages with the level of the PAMT entry.
    pub(crate) pages: Vec<(u64, u8)>,
}

impl Touched {
    fn table(&mut self, table: u32) {
        if cfg!(debug_assertions) && self.on && self.tables.last() != Some(&table) {
            self.tables.push(table);
        }
    }

    pub(crate) fn page(&mut self, hpa: u64, level: u8) {
        if cfg!(debug_assertions) && self.on {
            self.pages.push((hpa & !(crate::abi::size_of_level(level) - 1), level));
        }
    }
}

/// All modelled memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    pub(crate) touched: Touched,
    pub(crate) gibs: Vec<Option<Box<Gib>>>,
    tables: Vec<Box<Table>>,
    free_tables: Vec<u32>,
    bytes: Vec<Option<Box<[u8; PAGE as usize]>>>,
    generation: u32,
    /// Last generation whose lines of a key were written back everywhere, by key id.
    flushed: Vec<u32>,
}

const fn split(hpa: u64) -> (usize, usize, usize) {
    ((hpa >> 30) as usize, (hpa >> 21) as usize % FANOUT, (hpa >> 12) as usize % FANOUT)
}

impl Memory {
    pub(crate) fn new() -> Self {
        Self { generation: 1, ..Self::default() }
    }

    pub(crate) fn chunk(&self, hpa: u64) -> Option<&Chunk> {
        let (gib, chunk, _) = split(hpa);
        self.gibs.get(gib)?.as_ref().map(|gib| &gib.chunks[chunk])
    }

    pub(crate) fn gib_mut(&mut self, hpa: u64) -> &mut Gib {
        let (gib, ..) = split(hpa);
        if gib >= self.gibs.len() {
            self.gibs.resize_with(gib + 1, || None);
        }
        self.gibs[gib].get_or_insert_with(|| {
            let empty = Chunk {
                own: PamtEntry::default(),
                fine: None,
                pamt_pages: None,
                store: Store::Uniform(Cell::UNTOUCHED),
            };
            Box::new(Gib { own: PamtEntry::default(), chunks: vec![empty; FANOUT].into_boxed_slice() })
        })
    }

    pub(crate) fn chunk_mut(&mut self, hpa: u64) -> &mut Chunk {
        let (_, chunk, _) = split(hpa);
        &mut self.gib_mut(hpa).chunks[chunk]
    }

    /// The content of the page at `hpa`.
    pub(crate) fn cell(&self, hpa: u64) -> Cell {
        match self.chunk(hpa).map(|chunk| &chunk.store) {
            None => Cell::UNTOUCHED,
            Some(Store::Uniform(cell)) => *cell,
            Some(Store::Pages(cells)) => cells[split(hpa).2],
        }
    }

    fn cell_mut(&mut self, hpa: u64) -> &mut Cell {
        let store = &mut self.chunk_mut(hpa).store;
        if let Store::Uniform(cell) = store {
            *store = Store::Pages(Box::new([*cell; FANOUT]));
        }
        match store {
            Store::Pages(cells) => &mut cells[split(hpa).2],
            Store::Uniform(cell) => cell,
        }
    }

    /// Writes `value` to the page with `key`; the lines stay in the cache.
    pub(crate) fn write(&mut self, hpa: u64, value: u64, key: u16) {
        let generation = self.generation;
        self.replace(hpa, Cell { value, generation, key, dirty: key });
    }

    fn replace(&mut self, hpa: u64, cell: Cell) {
        let old = core::mem::replace(self.cell_mut(hpa), cell);
        self.forget(old);
    }

    /// Frees what `old` named in the slabs.
    fn forget(&mut self, old: Cell) {
        if let Some(table) = old.table() {
            self.free_tables.push(table);
        } else if old.key & BYTES != 0 {
            self.bytes[old.value as usize] = None;
        }
    }

    /// Writes `value` to `pages` pages from `hpa`, whole chunks at once.
    pub(crate) fn fill(&mut self, hpa: u64, pages: u64, value: u64, key: u16, direct: bool) {
        let generation = if direct { 0 } else { self.generation };
        let cell = Cell { value, generation, key, dirty: if direct { CLEAN } else { key } };
        let (mut at, end) = (hpa, hpa + pages * PAGE);
        while at < end {
            if at % CHUNK == 0 && end - at >= CHUNK {
                let old = core::mem::replace(&mut self.chunk_mut(at).store, Store::Uniform(cell));
                if let Store::Pages(cells) = old {
                    cells.iter().for_each(|&cell| self.forget(cell));
                }
                at += CHUNK;
            } else {
                self.replace(at, cell);
                at += PAGE;
            }
        }
    }

    /// Notes that `pages` pages from `hpa` are in use under `key`, content unchanged (what AUG does).
    pub(crate) fn adopt(&mut self, hpa: u64, pages: u64, key: u16) {
        let generation = self.generation;
        let mark = |cell: &mut Cell| (cell.dirty, cell.generation) = (key, generation);
        if pages == 1 {
            return mark(self.cell_mut(hpa));
        }
        for chunk in 0..pages / FANOUT as u64 {
            match &mut self.chunk_mut(hpa + chunk * CHUNK).store {
                Store::Uniform(cell) => mark(cell),
                Store::Pages(cells) => cells.iter_mut().for_each(mark),
            }
        }
    }

    /// Key id under which a cache may hold modified lines of the page.
    pub(crate) fn dirty(&self, hpa: u64) -> Option<u16> {
        self.is_dirty(self.cell(hpa))
    }

    fn is_dirty(&self, cell: Cell) -> Option<u16> {
        let flushed = self.flushed.get(usize::from(cell.dirty)).copied().unwrap_or(0);
        (cell.dirty != CLEAN && cell.generation > flushed).then_some(cell.dirty)
    }

    /// First page among `pages` from `hpa` with modified lines of another key than `key`.
    pub(crate) fn foreign_dirty(&self, hpa: u64, pages: u64, key: u16) -> Option<(u64, u16)> {
        let foreign = |cell: Cell| self.is_dirty(cell).filter(|&dirty| dirty != key);
        if pages == 1 {
            return foreign(self.cell(hpa)).map(|dirty| (hpa, dirty));
        }
        match &self.chunk(hpa)?.store {
            Store::Uniform(cell) => foreign(*cell).map(|dirty| (hpa, dirty)),
            Store::Pages(cells) => (0..)
                .zip(cells.iter())
                .find_map(|(index, cell)| foreign(*cell).map(|dirty| (hpa + index * PAGE, dirty))),
        }
    }

    /// Writes back the lines of the page that are modified under `key`.
    pub(crate) fn write_back(&mut self, hpa: u64, key: u16) {
        if self.dirty(hpa) == Some(key) {
            self.cell_mut(hpa).dirty = CLEAN;
        }
    }

    /// Writes back all lines of `keys` everywhere.
    pub(crate) fn write_back_all(&mut self, keys: impl Iterator<Item = u16>) {
        for key in keys {
            let index = usize::from(key);
            if index >= self.flushed.len() {
                self.flushed.resize(index + 1, 0);
            }
            self.flushed[index] = self.generation;
        }
        self.generation += 1;
    }

    /// Makes the page an S-EPT table with every entry `fill`, written with `key`.
    pub(crate) fn new_table(&mut self, hpa: u64, fill: u64, key: u16) -> u32 {
        let index = match self.free_tables.pop() {
            Some(index) => {
                self.tables[index as usize].fill(fill);
                index
            }
            None => {
                self.tables.push(Box::new([fill; FANOUT]));
                self.tables.len() as u32 - 1
            }
        };
        self.touched.table(index);
        let generation = self.generation;
        self.replace(hpa, Cell { value: u64::from(index), generation, key: key | TABLE, dirty: key });
        index
    }

    /// Drops the table in the page: what is left there is noise under the key that wrote it.
    pub(crate) fn drop_table(&mut self, hpa: u64) {
        let cell = self.cell(hpa);
        if cell.table().is_some() {
            self.replace(hpa, Cell { value: !0, key: cell.key(), ..cell });
        }
    }

    /// The table in the page at `hpa`.
    pub(crate) fn table_at(&self, hpa: u64) -> Option<u32> {
        self.cell(hpa).table()
    }

    pub(crate) fn table(&self, index: u32) -> &Table {
        &self.tables[index as usize]
    }

    pub(crate) fn table_mut(&mut self, index: u32) -> &mut Table {
        self.touched.table(index);
        &mut self.tables[index as usize]
    }

    /// Stores `data` at `hpa` byte for byte, with `key`. The page's other bytes are kept.
    pub(crate) fn write_bytes(&mut self, hpa: u64, data: &[u8], key: u16) {
        let page = hpa & !(PAGE - 1);
        let mut bytes = Box::new(self.read_bytes(page));
        let start = (hpa - page) as usize;
        bytes[start..start + data.len()].copy_from_slice(data);
        let index = self.bytes.iter().position(Option::is_none).unwrap_or(self.bytes.len());
        if index == self.bytes.len() {
            self.bytes.push(None);
        }
        self.bytes[index] = Some(bytes);
        let (value, generation) = (index as u64, self.generation);
        self.replace(page, Cell { value, generation, key: key | BYTES, dirty: key });
    }

    /// The bytes of the page that holds `hpa`; a pattern stands for its repetition.
    pub(crate) fn read_bytes(&self, hpa: u64) -> [u8; PAGE as usize] {
        let cell = self.cell(hpa);
        if cell.key & BYTES != 0
            && let Some(Some(bytes)) = self.bytes.get(cell.value as usize)
        {
            return **bytes;
        }
        let mut bytes = [0; PAGE as usize];
        bytes.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&cell.value.to_le_bytes()));
        bytes
    }

    /// Copies a page, whatever it holds, and writes the copy with `key`.
    pub(crate) fn copy(&mut self, from: u64, to: u64, key: u16) {
        if self.cell(from).key & BYTES != 0 {
            let bytes = self.read_bytes(from);
            self.write_bytes(to, &bytes, key);
        } else {
            self.write(to, self.pattern(from), key);
        }
    }

    /// The pattern that stands for the page's bytes.
    pub(crate) fn pattern(&self, hpa: u64) -> u64 {
        let cell = self.cell(hpa);
        if cell.key & BYTES != 0 {
            return self.read_bytes(hpa).chunks_exact(8).fold(0, |hash: u64, word| {
                let word = word.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte));
                fold(hash, word)
            });
        }
        cell.value
    }
}

/// One step of a hash that is not secret and not strong: enough to tell contents apart.
pub(crate) const fn fold(hash: u64, word: u64) -> u64 {
    (hash.rotate_left(5) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}
