//! HugeTLB vmemmap optimization across folio splits: exact needs, reserved pages, a remap that cannot fail.
//!
//! A `struct page` exists for every page of memory. Those of a large folio are all alike after the first ones, so a
//! host lets them share a read-only page and saves 1.6 % of its memory (Linux: HVO, mm/hugetlb_vmemmap.c). When the
//! folio is split, each piece needs a head of its own again. Linux then restores all 4,095 pages of a 1 GiB folio,
//! with allocations that may fail half way. This crate takes the pages that the new layout really needs, 518 or 12
//! for one shared page, says so before, and changes the mapping directly from one layout to the other.
//!
//! # The protocol
//!
//! 1. *Once per zone*: [`install_templates`]. Once per block: [`install_tables`], and [`optimize`].
//! 2. *Plan*: [`VmemmapNeeds::plan`], for blocks of one NUMA node. *Reserve*: [`Reservation::fill`], into storage of the
//!    caller's choice. The last point at which memory can be short.
//! 3. *Commit*: [`Commit`] carries out [`Atom`]s, one or several under one freeze and with one flush: freeze, change the
//!    mapping, flush, thaw. It can be cancelled until the flush, and undone ever after. [`split_atom`] and [`merge_atom`]
//!    are commits of one atom.
//! 4. *Release*: replaced pages stay with the backend until [`VmemmapBackend::flush`] has given a proof. [`Thawed::release`]
//!    gives them to their source, [`Thawed::keep`] to the reservation, which can undo everything with them.
//!
//! ```
//! use folio_split::{Empty, FolioBackend, Order, OrderSet, Pfn, PfnBlock, Transition};
//! use sept_core::{FrameKind, Hpa, test_util::{FramePool, VecStore}};
//! use vmemmap_prealloc::{Atom, Commit, Reservation, VmemmapNeeds, install_templates, model::HostModel};
//! # use vmemmap_prealloc::Geometry;
//!
//! let block = PfnBlock::new(Pfn::new(0).unwrap(), Order::HUGE_1G).unwrap();
//! let pool = FramePool::new(Hpa::new(1 << 40).unwrap(), 600);
//! let host = HostModel::new(Geometry::LINUX_X86_64, OrderSet::HUGETLB);
//! install_templates(&host, block, OrderSet::HUGETLB, &pool).unwrap();
//! host.add_block(block, &pool).unwrap();
//!
//! // Plan.
//! let share = Transition::new(block, OrderSet::HUGETLB, Empty, 1000..1001);
//! let counts = share.counts();
//! let needs = VmemmapNeeds::plan(&host, &share, &counts);
//! let nodes = counts.delta(host.index()).needed;
//! assert_eq!((needs.fresh, nodes), (518, 73));
//!
//! // Reserve: the only step that can be short of memory.
//! let mut held = Reservation::new(block, needs.node, VecStore::default());
//! held.fill(&host, &needs, nodes, &pool).unwrap();
//!
//! // Commit.
//! let mut atoms = [Atom::split(share.by_ref(), block)];
//! let commit = Commit::freeze(&host, &host, &mut atoms, held.lend(), 16).unwrap();
//! let done = commit.remap().unwrap().finish().release(&pool);
//! assert_eq!((done.vmemmap.fresh, done.nodes_used, done.flushes), (518, 73, 1));
//! assert!(held.is_empty(&host));
//! host.check(&share.to_layout()).unwrap();
//!
//! // Undo, while nobody has a page or an index node to spare.
//! pool.limit(Some(0));
//! host.limit_nodes(Some(0));
//! let back = share.reversed();
//! let mut atoms = [Atom::merge(back.by_ref(), block)];
//! let commit = Commit::freeze(&host, &host, &mut atoms, held.lend(), 16).unwrap();
//! let done = commit.remap().unwrap().finish().keep(&pool);
//! assert_eq!(done.released, 518);
//! host.check(&back.to_layout()).unwrap();
//! let _ = held.release(&host, &pool);
//! assert_eq!(pool.outstanding()[FrameKind::Vmemmap], 1);
//! ```
//!
//! # Formulas
//!
//! With V(layout) the vmemmap pages that are a layout's own ([`Geometry::own_pages`]), splits take V(between) -
//! V(before) and merges give V(between) - V(after), where *between* is the layout of the union of both page sets. For
//! a 1 GiB block that holds a small page, 64-byte `struct page`s and one page kept per folio:
//!
//! | orders | V | saved |
//! |---|---|---|
//! | 18, 9, 0 | 512 + 7 m_9 | 3584 - 7 m_9 |
//! | all | 1 + sum of m_o, o = 7 to 18 | 4095 - the same sum |
//!
//! # Features
//!
//! `test-util`: [`model`](https://docs.rs/vmemmap-prealloc/latest/vmemmap_prealloc/model/), a host in memory that
//! reads every `struct page` back. Needs std.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(feature = "test-util")]
extern crate std;

mod atom;
mod backend;
mod commit;
mod geometry;
mod needs;
mod numa;
mod optimize;
mod register;
mod reservation;
mod savings;
mod single;
mod walk;

#[cfg(feature = "test-util")]
pub mod model;

pub use atom::{Atom, AtomError, Round};
pub use backend::{NoVmemmap, VmemmapBackend, VmemmapPage};
pub use commit::{AtomDone, Commit, Refused, Remapped, Thawed};
pub use geometry::{Geometry, GeometryError, Tail, TailScheme};
pub use needs::{BlockState, OtherNode, VmemmapNeeds};
pub use numa::NumaNode;
pub use optimize::{optimize, restore};
pub use register::{RegisterError, install_tables, install_templates, templates};
pub use reservation::{Reservation, ReserveError, Reserved};
pub use savings::{RestorePath, Savings};
pub use single::{merge_atom, split_atom};
pub use walk::{Applied, ApplyError};
