//! Feature words, metadata field ids and leaf selectors: no bit is lost, and names lead back to their numbers.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use seamcall::{
    Features0, FieldContext, FieldId, FieldValue, Hkid, Leaf, LifecycleState, OpState, mem::L2Attributes,
};

#[derive(Arbitrary, Debug)]
struct Input {
    word: u64,
    known: Option<u8>,
    index: u16,
}

fuzz_target!(|input: Input| {
    let features = Features0::from_bits_retain(input.word);
    assert_eq!(features.bits(), input.word);
    assert_eq!(Features0::from_bits_truncate(input.word), features, "unknown bits are kept");
    let named = features.iter_names().fold(0, |bits, (_, flag)| bits | flag.bits());
    assert_eq!(named & !input.word, 0);
    let low = input.word.to_le_bytes();
    let attributes = u16::from_le_bytes([low[0], low[1]]);
    assert_eq!(L2Attributes::from_bits_truncate(attributes).bits(), attributes);

    let field = match input.known {
        Some(index) => FieldId::ALL[usize::from(index) % FieldId::ALL.len()],
        None => FieldId::new(input.word),
    };
    assert_eq!(FieldId::new(field.raw()), field);
    assert_eq!(u64::from(field.element_size()), 1 << (field.raw() >> 32 & 3));
    assert_eq!(u64::from(field.class()), field.raw() >> 56 & 0x3f);
    let context = field.raw() >> 52 & 7;
    match field.context() {
        FieldContext::Platform => assert_eq!(context, 0),
        FieldContext::Td => assert_eq!(context, 1),
        FieldContext::Vcpu => assert_eq!(context, 2),
        FieldContext::Other(other) => assert!(u64::from(other) == context && context > 2),
        other => panic!("{other:?}"),
    }
    assert_eq!(field.element(input.index).raw(), field.raw().wrapping_add(u64::from(input.index)));
    assert!(!format!("{field:?}").is_empty());

    // A value is the low bytes of the register, whatever stands above them.
    let [b0, b1, b2, b3, ..] = low;
    let half = u32::from_le_bytes([b0, b1, b2, b3]);
    assert_eq!((u8::from_register(input.word), u16::from_register(input.word)), (b0, attributes));
    assert_eq!((u32::from_register(input.word), u64::from_register(input.word)), (half, input.word));
    assert_eq!(bool::from_register(input.word), input.word != 0);
    assert_eq!(Hkid::from_register(input.word).raw(), attributes);
    assert_eq!(Features0::from_register(input.word), features);
    let (op_state, lifecycle) =
        (OpState::from_register(input.word), LifecycleState::from_register(input.word));
    assert_eq!((op_state.raw(), lifecycle.raw()), (half, half));
    assert_eq!(OpState::ALL.contains(&op_state), half < 11);
    assert_eq!(LifecycleState::ALL.contains(&lifecycle), half < 4);
    assert!(!op_state.is_tracked() || matches!(half, 2 | 3 | 9));

    let leaf = Leaf::from_rax(input.word);
    assert_eq!(leaf.rax(), input.word & 0xff_ffff);
    assert_eq!((leaf.number(), leaf.interface()), (attributes, low[2]));
    assert_eq!(leaf.name().is_some(), Leaf::ALL.contains(&leaf.version(0)));
    assert!(!leaf.to_string().is_empty());
});
