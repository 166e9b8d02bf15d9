//! Structures in memory: every word and every byte string is read without loss.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use seamcall::{
    CmrInfo, FatalErrorConfig, FatalInfo, FatalNotification, GpaListEntry, GpaListInfo, GpaListStatus,
    KeyIdBits, PageType, PamtEntry, SeptLayout, SeptState, TdParams, TdmrInfo, pamt_sizes,
};
use sept_core::{Hpa, Level};
use zerocopy::{FromBytes, IntoBytes};

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    word: u64,
    other: u64,
    hpa: u64,
    sizes: [u16; 3],
    dynamic: bool,
    bytes: &'a [u8],
}

fuzz_target!(|input: Input<'_>| {
    sept(input.word, input.hpa);
    pamt(input.word, input.other);
    gpa_list(input.word, input.other);
    structures(input.bytes);
    fatal(input.hpa, input.word);
    if let Some(sizes) = pamt_sizes(input.word, input.sizes, input.dynamic) {
        assert!(sizes.iter().all(|size| size % 4096 == 0));
    }
});

fn sept(raw: u64, hpa: u64) {
    let layouts = [SeptLayout::V1_5_01, SeptLayout::V1_5_28, SeptLayout::V2_0_08];
    for layout in layouts {
        let _ = (layout.is_locked(raw), layout.aliases(raw));
    }
    let state = SeptLayout::state(raw);
    if let Some(state) = state {
        assert_eq!(SeptLayout::state_bits(state).unwrap() & !raw, 0, "bits of a state that are not there");
    }
    // Neither lock nor state bits are shown; of a table only its permissions.
    let keys = KeyIdBits::new(46, 6).unwrap();
    let [v1_5_01, v1_5_28, v2_0_08] = layouts.map(|layout| layout.shown(raw, keys));
    assert_eq!(v1_5_01 & !raw & !(1 << 63), 0);
    assert_eq!(v1_5_01 & 0x7ff0_0000_0000_0f00, 0, "{v1_5_01:#x}");
    // The later two hide the upper address bits too, and nothing else.
    assert_eq!((v1_5_28, v2_0_08), (v1_5_01 & !0x000f_ff00_0000_0000, v1_5_28));
    if let Some(chunks) = SeptLayout::accepted_chunks(raw, Level::L2M) {
        assert!(chunks < 512 && state == Some(SeptState::Pending));
    }
    let page = Hpa::truncate(hpa).align_down(Level::L4K);
    for state in SeptState::ALL {
        if let Some(word) = SeptLayout::encode(*state, page) {
            assert_eq!(SeptLayout::state(word), Some(*state));
            assert!(word & 0b11 != 0b10, "writable and not readable");
            assert!(!SeptLayout::V1_5_01.is_locked(word) && !SeptLayout::has_host_priority(word));
        }
    }
}

fn pamt(control: u64, block_epoch: u64) {
    let entry = PamtEntry { control, block_epoch };
    assert_eq!(PamtEntry::read_from_bytes(entry.as_bytes()).unwrap(), entry);
    assert_eq!(u64::from(entry.page_type().raw()), control >> 16 & 0x1f);
    assert_eq!(PageType::from_raw(entry.page_type().raw()), entry.page_type());
    assert_eq!(entry.owner().raw(), control >> 24 << 12);
    assert_eq!(entry.pair().is_some(), entry.page_type() == PageType::Pamt);
    if let Some((pages, count)) = entry.pair() {
        assert!(
            count < 1024 && pages.iter().all(|page| page.is_aligned(Level::L4K) && page.raw() >> 48 == 0)
        );
    }
}

fn gpa_list(raw: u64, out: u64) {
    let entry = GpaListEntry::from_raw(raw);
    assert_eq!(entry.raw(), raw);
    assert_eq!(entry.gpa().raw(), raw & 0x000f_ffff_ffff_f000);
    assert_eq!(entry.level().map(|level| u64::from(level.raw())), Some(raw & 3));
    assert_eq!(u64::from(entry.status().raw()), raw >> 56 & 0x1f);
    assert_eq!(GpaListStatus::from_raw(entry.status().raw()), entry.status());
    assert_eq!(entry.flags().bits(), raw & 0b11_1000_0100);
    let _ = (entry.operation(), format!("{entry:?}"));

    let info = GpaListInfo::from_raw(raw);
    if raw & 7 == 0 && raw >> 52 & 7 == 0 && info.first() <= info.last() {
        assert_eq!(GpaListInfo::new(info.list(), info.first(), info.last()), Some(info));
    }
    for out in [out, raw & !0xff8 | out & 0xff8] {
        let resumed = info.resumed(out);
        assert_eq!(
            (resumed.list(), resumed.last()),
            (info.list(), info.last()),
            "the module cannot redirect a list"
        );
        let same_list = (out ^ raw) & !0xff8 == 0;
        assert_eq!(resumed, if same_list { GpaListInfo::from_raw(out) } else { info });
    }
}

fn fatal(hpa: u64, word: u64) {
    let [vector, kind, ..] = word.to_le_bytes();
    let notification = match kind & 3 {
        0 => FatalNotification::None,
        1 => FatalNotification::Interrupt(vector),
        2 => FatalNotification::Nmi,
        _ => FatalNotification::Smi,
    };
    let Some(config) = FatalErrorConfig::new(Hpa::new(hpa), notification) else { return };
    let raw = config.raw();
    assert_eq!(raw & 0x003f_ffff_ffff_ffff, if hpa >> 52 == 0 { hpa } else { 0x000f_ffff_ffff_ffc0 });
    assert_eq!(raw >> 54 & 3, u64::from(kind & 3));
    assert!(raw >> 56 == 0 || kind & 3 == 1 && raw >> 56 == u64::from(vector) && vector >= 16);
}

fn structures(bytes: &[u8]) {
    if let Ok((params, _)) = TdParams::read_from_prefix(bytes) {
        assert_eq!(params.as_bytes(), &bytes[..1024]);
        if let Some(config) = params.config() {
            let asked = TdParams::new(config, seamcall::Attributes::empty(), 1);
            assert_eq!(asked.eptp_controls >> 3 & 7, params.eptp_controls >> 3 & 7);
            assert_eq!(asked.config_flags & 1, params.config_flags & 1);
        }
    }
    if let Ok((info, _)) = FatalInfo::read_from_prefix(bytes) {
        assert_eq!(info.as_bytes(), &bytes[..64]);
        assert_eq!((info.state, info.format), (bytes[0], bytes[1]));
    }
    if let Ok((tdmr, _)) = TdmrInfo::read_from_prefix(bytes) {
        assert_eq!(tdmr.as_bytes(), &bytes[..512]);
    }
    if let Ok((cmr, _)) = CmrInfo::read_from_prefix(bytes) {
        assert_eq!(cmr.as_bytes(), &bytes[..16]);
    }
}
