//! Completion statuses: every value is read without loss, and what is said about it agrees with its bits.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use seamcall::{Detail, Operand, Status};

/// Any value, or a known code with any detail.
#[derive(Arbitrary, Debug)]
struct Input {
    raw: u64,
    code: Option<u8>,
    detail: u32,
}

fuzz_target!(|input: Input| {
    let raw = match input.code {
        Some(index) => Status::ALL[usize::from(index) % Status::ALL.len()].raw() | u64::from(input.detail),
        None => input.raw,
    };
    let status = Status::from_raw(raw);
    assert_eq!(status.raw(), raw);
    assert_eq!(status.code().raw(), raw & 0xffff_ffff_0000_0000);
    assert_eq!(u64::from(status.detail().raw()), raw & 0xffff_ffff);
    assert_eq!(status.code().with_detail(status.detail()), status);
    assert_eq!(u64::from(status.class_number()), raw >> 40 & 0xff);

    // Error, non-recoverable, fatal.
    assert_eq!(status.is_success(), raw >> 61 == 0);
    assert_eq!(status.class().is_none(), status.is_success());
    assert_eq!(status.is_recoverable(), raw >> 62 & 1 == 0);
    assert!(!status.is_informational() || status.is_success());

    if let Detail::Operand(operand) = status.detail() {
        assert_eq!(Operand::new(operand.id()), operand);
        assert_eq!(status.operand(), Some(operand));
    }
    // The number is in the text, whatever else is.
    let text = status.to_string();
    assert!(text.contains(&format!("{raw:#018x}")), "{text}");
    if let Some(name) = status.name() {
        assert!(text.starts_with(name), "{text}");
    }
});
