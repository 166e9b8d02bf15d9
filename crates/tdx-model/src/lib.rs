//! A software TDX module: SEAMCALLs in, the answers of the real module out.
//!
//! A [`Machine`] holds modelled physical memory, the PAMT, the Secure EPTs and the TDs in it. [`Machine::lp`] is one
//! logical processor and implements [`seamcall::Transport`], so a host runs on it unchanged. [`Machine::guest`] is the
//! other side: a vCPU that enters, accepts, reads and writes. What hardware would punish later, or silently, is
//! recorded and told by [`Machine::violations`].
//!
//! A machine is built with its module up and its memory initialised, or [cold](MachineBuilder::cold). Three more choices
//! matter to a host under test:
//!
//! * [`MachineBuilder::contention`]: whether calls of several threads overlap, as they do unless told otherwise. A call that
//!   pauses keeps the locks of the module, and others get OPERAND_BUSY, with host priority left behind, as from the module.
//! * [`MachineBuilder::enforce_tracking`]: whether the module refuses a host that does not fence, or lets a guest show
//!   what such a host has done.
//! * [`MachineBuilder::audit`]: whether the whole state is walked for broken invariants after everything. Debug builds
//!   check, after every call and whatever a guest does, all invariants of all that has changed.
//!
//! Modelled is everything that touches memory, the PAMT, Secure EPTs, TLB tracking, keys, and the state of TDs and vCPUs they
//! depend on: 4 and 5 levels, both guest address widths, Dynamic PAMT, TD partitioning (tables, attributes and pages of
//! L2 VMs), write blocks, debug access, contention with host priority, interrupts, caches under key ids. Not modelled are
//! export and import of TDs, service TDs, code that runs in an L2 VM, measurements beyond a fold of their inputs, and TDX-IO;
//! their leaves answer OPERAND_INVALID for RAX, as unknown ones do.
//!
//! ```
//! use sept_core::{Gpa, Hpa, Level};
//! use tdx_model::{Accept, Machine, Status, boot};
//!
//! let machine = Machine::builder().memory(0x1_0000_0000, 1).build();
//! let mut frames = (0x1_0000_0000..).step_by(4096).map(|page| Hpa::new(page).unwrap());
//! let td = boot::create(&machine.lp(0), &machine, &boot::TdSpec::default(), &mut frames).unwrap();
//! let guest = machine.guest(td.vcpus[0]);
//! let gpa = Gpa::new(0x20_0000).unwrap();
//! boot::map_tables(&machine.lp(0), &td, gpa, Level::L4K, &mut frames).unwrap();
//! boot::aug(&machine.lp(0), &td, gpa, Level::L4K, frames.next().unwrap()).unwrap();
//! guest.enter(0).unwrap();
//! assert_eq!(guest.accept(gpa, Level::L4K), Ok(Accept::Returned(Status::SUCCESS)));
//! guest.write(gpa, 0x1234).unwrap();
//! assert_eq!(guest.read(gpa), Ok(0x1234));
//! assert!(machine.violations().is_empty() && machine.check_invariants().is_empty());
//! ```

#![forbid(unsafe_code)]

mod abi;
mod builder;
mod call;
mod config;
mod digest;
mod enter;
mod faults;
mod foreign;
mod guest;
mod host;
mod invariants;
mod l2;
mod l2_slot;
mod leaf;
mod lock;
mod machine;
mod memory;
mod operand;
mod ordinary;
mod pamt;
mod sept;
mod session;
mod slot;
mod state;
mod stats;
mod td;
mod td_params;
mod translations;
mod violation;
mod watch;

pub mod boot;
pub mod replay;

pub use abi::{Leaf, Lifecycle, NULL_PA, Operand, PageType, Status, op_state, size_of_level};
pub use builder::MachineBuilder;
pub use config::{HkidLayout, ModuleVersion, Profile, Tdmr, UnknownVersion};
pub use enter::RunningLp;
pub use faults::{Fault, FaultPlan, Interrupts, MachineCheck};
pub use foreign::{Access, Hold, TdLock};
pub use guest::{Accept, EPT_VIOLATION, EptViolation, Guest, GuestFault, TdCall, TdExit};
pub use host::{Content, Seen};
pub use machine::{Lp, Machine, PageInfo, RawEntry, TdInfo};
pub use sept::EntryState;
pub use session::{Contention, Pause, PauseHook, Point};
pub use stats::Stats;
pub use violation::{Stale, Violation, ViolationKind};
