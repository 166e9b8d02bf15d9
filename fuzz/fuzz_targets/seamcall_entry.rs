//! What the module says about an S-EPT entry, alone and in the error of a call.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use seamcall::{Call, EntryInfo, Regs, SeptState, Status, Tdr, Transport, mem};
use sept_core::{Classify, Gpa, GpaEntry, Hpa, Level, Observed};

#[derive(Arbitrary, Debug)]
struct Input {
    rax: u64,
    code: Option<u8>,
    rcx: u64,
    rdx: u64,
    r8: u64,
    level: u8,
}

/// Answers each call with the same registers.
struct Answer(Regs);

impl Transport for Answer {
    fn call(&self, _: Call<'_>) -> Regs {
        self.0
    }
}

fuzz_target!(|input: Input| {
    entry(EntryInfo::new(input.rcx, input.rdx), input.rcx, input.rdx);

    let rax = match input.code {
        Some(index) => Status::ALL[usize::from(index) % Status::ALL.len()].raw() | input.rax & 0xffff_ffff,
        None => input.rax,
    };
    let out = Regs { rax, rcx: input.rcx, rdx: input.rdx, r8: input.r8, ..Regs::new() };
    let td = Tdr::new(Hpa::truncate(0x100_0000)).unwrap();
    let at = GpaEntry::containing(Gpa::truncate(0x4000_0000), Level::ALL[usize::from(input.level) % 5]);
    match mem::sept_rd(&Answer(out), td, at) {
        Ok(found) => {
            assert!(Status::from_raw(rax).is_success());
            entry(found, input.rcx, input.rdx);
        }
        Err(error) => {
            assert_eq!((error.status.raw(), error.at), (rax, Some(at)));
            let text = error.to_string();
            assert!(text.contains(&error.status.to_string()), "{text}");
            let _ = error.class();
            match error.entry() {
                Some(found) => entry(found, input.rcx, input.rdx),
                None => assert!(!error.is_hidden() && !error.is_entry_busy()),
            }
        }
    }
    if let Ok((found, attributes)) = mem::sept_rd_l2(&Answer(out), td, at) {
        entry(found, input.rcx, input.rdx);
        let word =
            (1..).zip(attributes).fold(0, |word, (vm, bits)| word | u64::from(bits.bits()) << (16 * vm));
        assert_eq!(word, input.r8 & !0xffff);
    }
});

fn entry(info: EntryInfo, rcx: u64, rdx: u64) {
    assert_eq!((info.raw(), info.raw_info()), (rcx, rdx));
    assert_eq!(info.level().map(|level| u64::from(level.raw())), Some(rdx & 7).filter(|level| *level < 5));
    assert_eq!(u64::from(info.state().public()), rdx >> 8 & 0xff);
    assert_eq!(SeptState::from_public(info.state().public()), info.state());
    assert_eq!(u64::from(info.vm()), rdx >> 16 & 3);
    assert!(!info.to_string().is_empty());
    let state = info.state();
    if let Some(hpa) = info.hpa() {
        assert!(hpa.is_aligned(info.level().unwrap()));
        assert_eq!(hpa.raw() & !rcx, 0, "an address of bits that were not there");
        assert!(!state.is_free() && !state.is_table());
    }
    match state.observed() {
        Some(Observed::Free) => assert!(state.is_free()),
        Some(Observed::Table) => assert!(state.is_table()),
        Some(Observed::Leaf(_)) => assert!(!state.is_free() && !state.is_table()),
        Some(other) => panic!("{other:?} of an entry"),
        None => assert!(matches!(state, SeptState::Other(_))),
    }
}
