//! What TDH.VP.ENTER comes back with: the registers are a guest's, so anything may be in them.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use seamcall::exit::{Exit, ExitReason, MapGpaReply, exit_reason, exit_vm};
use seamcall::{EptViolation, GuestRegs, MapGpa, Regs, Status};
use sept_core::{Gpa, TdxConfig};

#[derive(Arbitrary, Debug)]
struct Input {
    rax: u64,
    likely: u8,
    rcx: u64,
    rdx: u64,
    r8: u64,
    r10: u64,
    r11: u64,
    r12: u64,
    r13: u64,
    config: u8,
}

fuzz_target!(|input: Input| {
    let configs = [TdxConfig::LEVELS_4, TdxConfig::LEVELS_5_GPAW_48, TdxConfig::LEVELS_5_GPAW_52];
    let config = configs[usize::from(input.config) % configs.len()];
    let mut out = Regs {
        rax: input.rax,
        rcx: input.rcx,
        rdx: input.rdx,
        r8: input.r8,
        r10: input.r10,
        r11: input.r11,
        r12: input.r12,
        r13: input.r13,
        ..Regs::new()
    };
    match input.likely % 4 {
        // Any of the upper bits of a reason may come with it.
        0 => out.rax = 48 | out.rax & 0xffff_0000,
        1 => (out.rax, out.r10, out.r11) = (77 | out.rax & 0xffff_0000, 0, MapGpa::LEAF),
        _ => {}
    }
    let violation = EptViolation::decode(&out);
    if let Some(violation) = violation {
        assert_eq!(exit_reason(&out).map(ExitReason::basic), Some(48));
        assert_eq!((violation.qualification, violation.extended), (out.rcx, out.rdx));
        let _ = (violation.kind(), violation.is_shared(config));
        if let Some(details) = violation.details() {
            assert!(matches!(out.rdx & 0xf, 1 | 5));
            assert_eq!(u64::from(details.state.public()), out.rdx >> 38 & 0xff);
            assert_eq!(details.requested.is_some(), violation.wanted().is_some());
            assert!(details.vm < 4);
        }
        if let Some((entry, vm)) = violation.missing_l2() {
            assert!(out.rdx & 0xf == 2 && vm < 4 && entry.range().contains(violation.gpa));
        }
        if let Some(entry) = violation.wanted() {
            assert!(entry.range().contains(violation.gpa));
        }
    }
    let request = MapGpa::decode(&out, config);
    if let Some(request) = request {
        assert_eq!((exit_reason(&out).map(ExitReason::basic), out.r10, out.r11), (Some(77), 0, 0x10001));
        match request {
            // Inside one half of the address space, whole pages, and nothing of what was asked is lost.
            Ok(request) => {
                let shared = u64::from(request.to_shared) << config.shared_bit();
                assert_eq!((request.range.start().raw() | shared, request.range.len()), (out.r12, out.r13));
                assert!(request.range.end() <= 1 << config.shared_bit());
            }
            Err(error) => {
                assert_eq!((error.gpa, error.size), (out.r12, out.r13));
                let status = if error.misaligned { 0x8000_0000_0000_0002 } else { 0x8000_0000_0000_0000 };
                assert_eq!(error.reply().registers(), (status, out.r12));
            }
        }
    }
    match Exit::decode(&out, config) {
        Exit::EptViolation(found) => assert_eq!(violation, Some(found)),
        Exit::MapGpa(found) => assert_eq!(request, Some(Ok(found))),
        Exit::BadMapGpa(found) => assert_eq!(request, Some(Err(found))),
        Exit::HostPriority => assert!(Status::from_raw(out.rax).is(Status::HOST_PRIORITY_BUSY_TIMEOUT)),
        Exit::Other(reason) => assert_eq!(exit_reason(&out), Some(reason)),
        Exit::Status(status) => assert_eq!((status.raw(), exit_reason(&out)), (out.rax, None)),
        other => panic!("{other:?}"),
    }
    assert!(exit_vm(&out) < 4);
    if let Some(reason) = exit_reason(&out) {
        assert_eq!(u64::from(reason.raw()), out.rax);
        assert_eq!(ExitReason::new(reason.raw()), reason);
    }
    let mut reply = MapGpaReply::DONE;
    if let Some(Ok(request)) = request {
        let (next, range) = (Gpa::truncate(out.r8), request.range);
        reply = request.converted_until(next);
        // The guest hears of an address in what it asked for, or that all is done.
        match reply.registers() {
            (1, again) => assert!((out.r12..out.r12 + out.r13).contains(&again) && next.raw() < range.end()),
            other => assert!(other == (0, 0) && next.raw() >= range.end()),
        }
        for (reply, status) in [(request.refused_at(next), 1 << 63), (request.in_use_at(next), 1 << 63 | 1)] {
            let (r10, r11) = reply.registers();
            assert!(r10 == status && (out.r12..out.r12 + out.r13).contains(&r11));
        }
    }
    let (r10, r11) = reply.registers();
    // The answer takes two registers, and leaves what the decoders read of the others.
    let Regs { rax, rcx, rdx, r8, r9, r12, r13, .. } = out;
    let guest =
        GuestRegs { rax, rcx, rdx, rbx: input.r10, rbp: input.r11, r8, r9, r12, r13, ..GuestRegs::new() };
    let next = guest.with_reply(reply);
    assert_eq!(next.regs(), Regs { r10, r11, ..out });
    assert_eq!(GuestRegs { r10: 0, r11: 0, ..next }, guest);
});
