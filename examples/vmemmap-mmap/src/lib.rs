//! A vmemmap in user space: `struct page`s in real pages, mapped by a real MMU, read by other threads.
//!
//! The pages of memory are those of one memfd. A *window* of addresses is the vmemmap: page i of it is mapped, with
//! `mmap`, to whichever page of the memfd entry i stands for; a page of tails is mapped read-only, so that a stray
//! store to a tail ends the program. A second, fixed mapping of the whole memfd is what a kernel calls its direct map:
//! fresh pages are filled there before anybody can see them.
//!
//! [`MmapHost`] implements both traits of the libraries on it, [`FolioBackend`](folio_split::FolioBackend) and
//! [`VmemmapBackend`](vmemmap_prealloc::VmemmapBackend). [`Reader`]s take references as a kernel does: read the head,
//! try to get it, read the head again.
//!
//! # A reader that is slow
//!
//! Getting a reference is a load of the count and then an exchange if it was not 0. Between the two the page of that
//! count may have become a read-only page of tails; the exchange would fail, but on x86 it faults first. So a host must not
//! map tails over a head while an attempt is under way that saw the head alive. Here, each reader says when it is
//! inside an attempt, and [`freeze`](folio_split::FolioBackend::freeze) waits for those that began before, once every count
//! is 0. It is a wait for a few instructions; in a kernel, attempts with interrupts off and one round of interrupts.
//! Splits do not need it, they map no tail over a head.
//!
//! With [`TailScheme::SharedWithHead`](vmemmap_prealloc::TailScheme) it is done as Linux did before it had templates: tails
//! are images of the page of their head, a merge takes two rounds, and [`MmapHost::grace_period`] comes between them,
//! with nothing frozen.
//!
//! # What it asks of the machine
//!
//! Each entry is a mapping: 4,096 of them for 1 GiB of memory, of which Linux allows a process 65,530 by default
//! (`vm.max_map_count`). [`MmapHost::new`] counts those in use and those that other
//! hosts of the process may still take, and refuses what would not fit.
//!
//! Linux with 64-bit addresses only. Run `cargo test -p vmemmap-mmap` for the readers, `cargo bench -p vmemmap-mmap` for the times.

mod host;
mod memory;
mod page;
mod reader;

pub use host::{Call, Flushed, Fresh, Frozen, MmapHost};
pub use memory::SetupError;
pub use page::{State, StructPage};
pub use reader::{Reader, Ref, Wrong};
