//! Building a machine: unless it is to be cold, all of its TDMRs are initialised and the module is ready.

use std::sync::Arc;

use crate::config::{Config, HkidLayout, ModuleVersion, Profile, Tdmr};
use crate::faults::FaultPlan;
use crate::machine::Machine;
use crate::session::{Contention, Pause};
use crate::state::State;

/// Says what a [`Machine`] is made of.
#[derive(Clone, Debug)]
pub struct MachineBuilder {
    config: Config,
    contention: Contention,
    faults: FaultPlan,
}

impl Default for MachineBuilder {
    fn default() -> Self {
        let hkid = HkidLayout { start_bit: 46, bits: 6, private_min: 32, private_max: 63, global: 32 };
        Self {
            config: Config {
                profile: Profile::of(ModuleVersion::default()),
                max_pa_bits: 52,
                hkid,
                seamrr: (0x8000_0000, 0x200_0000),
                tdmrs: Vec::new(),
                convertible: None,
                packages: 1,
                logical_processors: 1,
                cache_sub_blocks: 16,
                audit: false,
                tracking_enforced: true,
                cold: false,
                host_priority_patience: None,
            },
            contention: Contention::Yield,
            faults: FaultPlan::new(),
        }
    }
}

impl MachineBuilder {
    /// A machine without convertible memory, module 1.5.28, 52 address bits of which the upper six are key ids 32 to
    /// 63 for TDs (32 is the module's own).
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The module version, with all its switches.
    #[must_use]
    pub const fn version(mut self, version: ModuleVersion) -> Self {
        self.config.profile = Profile::of(version);
        self
    }

    /// The switches one by one.
    #[must_use]
    pub const fn profile(mut self, profile: Profile) -> Self {
        self.config.profile = profile;
        self
    }

    /// Enables Dynamic PAMT, or not, where the version is capable of it (2.0.08 has it enabled from the start).
    #[must_use]
    pub const fn dynamic_pamt(mut self, enabled: bool) -> Self {
        self.config.profile = self.config.profile.with_dynamic_pamt(enabled);
        self
    }

    /// Physical address bits and where key ids sit in them.
    #[must_use]
    pub const fn addresses(mut self, max_pa_bits: u32, hkid: HkidLayout) -> Self {
        self.config.max_pa_bits = max_pa_bits;
        self.config.hkid = hkid;
        self
    }

    /// The range of the module itself.
    #[must_use]
    pub const fn seamrr(mut self, base: u64, size: u64) -> Self {
        self.config.seamrr = (base, size);
        self
    }

    /// A completely initialised region of convertible memory: `gib` GiB from `base`.
    #[must_use]
    pub fn memory(self, base: u64, gib: u64) -> Self {
        let size = gib << 30;
        self.tdmr(Tdmr { base, size, initialized_end: base + size, reserved: Vec::new() })
    }

    /// A region with all its details.
    #[must_use]
    pub fn tdmr(mut self, tdmr: Tdmr) -> Self {
        self.config.tdmrs.push(tdmr);
        self
    }

    /// Number of packages, 1 to 32: KEY.CONFIG and CACHE.WB are needed on each.
    #[must_use]
    pub fn packages(mut self, packages: u32) -> Self {
        self.config.packages = packages.clamp(1, 32);
        self
    }

    /// Number of logical processors that LP.INIT must have been made on before SYS.CONFIG: 1 if not said.
    #[must_use]
    pub const fn logical_processors(mut self, processors: u32) -> Self {
        self.config.logical_processors = processors;
        self
    }

    /// A convertible memory range: `size` bytes from `base`, ascending. Without any all memory is convertible.
    /// SYS.CONFIG refuses regions and PAMT areas that lie outside.
    #[must_use]
    pub fn convertible(mut self, base: u64, size: u64) -> Self {
        self.config.convertible.get_or_insert_default().push((base, size));
        self
    }

    /// Pieces of the cache that CACHE.WB writes back one after the other (16 if not said): between two of them it can be
    /// interrupted.
    #[must_use]
    pub const fn cache_sub_blocks(mut self, pieces: u64) -> Self {
        self.config.cache_sub_blocks = if pieces == 0 { 1 } else { pieces };
        self
    }

    /// Checks every invariant after everything that is done and panics when one is broken. Slow.
    #[must_use]
    pub const fn audit(mut self, audit: bool) -> Self {
        self.config.audit = audit;
        self
    }

    /// The module is loaded and nothing more: SYS.INIT to SYS.TDMR.INIT are the host's to make.
    #[must_use]
    pub const fn cold(mut self) -> Self {
        self.config.cold = true;
        self
    }

    /// A vCPU exits with HOST_PRIORITY_BUSY_TIMEOUT when host priority has refused that many ACCEPTs in a row. The module
    /// counts time; here it never passes unless this is set.
    #[must_use]
    pub const fn host_priority_patience(mut self, refusals: u32) -> Self {
        self.config.host_priority_patience = Some(refusals);
        self
    }

    /// `false`: the module no longer refuses work on pages that were not blocked and tracked. The machine then shows
    /// whether a host fences by itself: where it does not, a guest uses a page it no longer owns, and
    /// [`ViolationKind::StaleTranslation`](crate::ViolationKind::StaleTranslation) says which.
    #[must_use]
    pub const fn enforce_tracking(mut self, enforced: bool) -> Self {
        self.config.tracking_enforced = enforced;
        self
    }

    /// Whether calls of several threads overlap, and so find each other's locks taken: [`Contention::Yield`] if not said.
    #[must_use]
    pub fn contention(mut self, contention: Contention) -> Self {
        self.contention = contention;
        self
    }

    /// [`Contention::Hook`] with `hook`.
    #[must_use]
    pub fn on_pause(self, hook: impl Fn(&Machine, Pause) + Send + Sync + 'static) -> Self {
        self.contention(Contention::Hook(Arc::new(hook)))
    }

    /// Faults that are ordered from the start.
    #[must_use]
    pub fn faults(mut self, plan: FaultPlan) -> Self {
        self.faults.add(plan);
        self
    }

    /// The machine, ready for TDs.
    #[must_use]
    pub fn build(self) -> Machine {
        let contention = self.contention.clone();
        let mut state = self.build_state();
        state.start_watch();
        Machine::new(state, contention)
    }

    pub(crate) fn build_state(self) -> State {
        let mut state = State::new(self.config);
        state.faults.order(self.faults);
        state
    }
}

impl Machine {
    /// Says what the machine is made of.
    #[must_use]
    pub fn builder() -> MachineBuilder {
        MachineBuilder::new()
    }
}
