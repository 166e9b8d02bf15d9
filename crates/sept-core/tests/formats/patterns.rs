//! One word for each kind of entry, worked out by hand from the manuals.

use sept_core::{
    Entry, Ept, EptConfig, Format, Gpa, Hipas, Hpa, LeafState, Level, Permissions, Ripas, Rtt, RttConfig,
    TdxConfig, TdxMirror, X86, X86Config,
};

const HPA: u64 = 0x0003_4560_0000;

fn leaf(hpa: u64, state: LeafState) -> Entry {
    Entry::Leaf { hpa: Hpa::new(hpa).unwrap(), state, blocked: None }
}

fn table(hpa: u64) -> Entry {
    Entry::Table { hpa: Hpa::new(hpa).unwrap(), blocked: None }
}

/// SDM volume 3, "Format of an EPT Page-Table Entry" and its kin: read 0, write 1, execute 2, memory type 5:3 (6 is
/// write-back), bit 7 a page, suppress #VE 63. Bits 11:9 of an entry that points to a table are ignored.
#[test]
fn ept() {
    let page = leaf(HPA, LeafState::Mapped);
    let words = |config| [Level::L4K, Level::L2M].map(|level| Ept::encode(config, level, page));
    assert_eq!(words(EptConfig::LEVELS_4), [HPA | 0x37, HPA | 0xb7]);
    assert_eq!(words(EptConfig::LEVELS_5.suppress_ve()), [1 << 63 | HPA | 0x37, 1 << 63 | HPA | 0xb7]);
    let large = leaf(0x40_0000_0000, LeafState::Mapped);
    assert_eq!(Ept::encode(EptConfig::LEVELS_4, Level::L1G, large), 0x40_0000_00b7);
    for level in [Level::L2M, Level::L1G, Level::L512G, Level::L256T] {
        let word = Ept::encode(EptConfig::LEVELS_5, level, table(0x7000));
        assert_eq!(word & !(0b111 << 9), 0x7007);
    }
    assert_eq!(Ept::encode(EptConfig::LEVELS_4, Level::L4K, Entry::Free) & 0b111, 0);
    let read = Ept::with_permissions(EptConfig::LEVELS_4, HPA | 0x37, Permissions::READ);
    assert_eq!(read, Some(HPA | 0x31));
    let run = Permissions::READ | Permissions::EXECUTE;
    assert_eq!(Ept::with_permissions(EptConfig::LEVELS_4, HPA | 0x331, run), Some(HPA | 0x335));
    assert_eq!(Ept::with_permissions(EptConfig::LEVELS_4, HPA | 0x37, Permissions::WRITE), None);
}

/// APM volume 2, section 5.3: present 0, writable 1, user 2, page size 7, no execute 63; the C-bit of section 15.34 is an
/// address bit in every entry. Bits 11:9 and 62:52 are available to software.
#[test]
fn x86() {
    let page = leaf(HPA, LeafState::Mapped);
    let words = |config| [Level::L4K, Level::L2M].map(|level| X86::encode(config, level, page));
    assert_eq!(words(X86Config::NESTED_4), [HPA | 0x7, HPA | 0x87]);
    assert_eq!(words(X86Config::SUPERVISOR_5), [HPA | 0x3, HPA | 0x83]);
    let encrypted = X86Config::NESTED_5.with_c_bit(51).unwrap();
    assert_eq!(words(encrypted), [1 << 51 | HPA | 0x7, 1 << 51 | HPA | 0x87]);
    let available = 0b111 << 9;
    assert_eq!(X86::encode(encrypted, Level::L512G, table(0x7000)) & !available, 1 << 51 | 0x7007);
    assert_eq!(X86::encode(X86Config::SUPERVISOR_4, Level::L2M, table(0x7000)) & !available, 0x7003);
    assert_eq!(X86::encode(encrypted, Level::L4K, Entry::Free) & 1, 0);
    let read = X86::with_permissions(X86Config::NESTED_4, HPA | 0x67, Permissions::READ);
    assert_eq!(read, Some(1 << 63 | HPA | 0x65));
    assert_eq!(X86Config::NESTED_4.with_c_bit(31), None);
    assert_eq!(X86Config::NESTED_4.with_c_bit(52), None);
}

/// DDI0487: page descriptor 0b11, block descriptor 0b01, MemAttr 5:2, S2AP 7:6, SH 9:8, AF 10. DEN0137 and TF-RMM's
/// `lib/s2tt`: RIPAS 2:1 (EMPTY 0, RAM 1, DESTROYED 2) and HIPAS 7:5 (UNASSIGNED 0, ASSIGNED 1) of invalid descriptors.
#[test]
fn rtt() {
    let config = RttConfig::LEVELS_4;
    let words = |state| [Level::L4K, Level::L2M].map(|level| Rtt::encode(config, level, leaf(HPA, state)));
    let attributes = 0b0110 << 2 | 0b11 << 6 | 0b11 << 8 | 1 << 10;
    assert_eq!(words(LeafState::Mapped), [HPA | attributes | 0b11, HPA | attributes | 0b01]);
    assert_eq!(words(LeafState::Pending), [HPA | 1 << 5; 2]);
    assert_eq!(words(LeafState::Destroyed), [HPA | 1 << 5 | 2 << 1; 2]);
    assert_eq!(Rtt::encode(config, Level::L512G, table(0x7000)), 0x7003);
    // Unassigned, in each RIPAS.
    let empty = Rtt::encode(config, Level::L4K, Entry::Free);
    let ripas = [Ripas::Empty, Ripas::Ram, Ripas::Destroyed];
    let free = ripas.map(|ripas| Rtt::with_ripas(empty, ripas).unwrap());
    assert_eq!(free, [0, 1 << 1, 2 << 1]);
    for (word, ripas) in free.into_iter().zip(ripas) {
        assert_eq!((Rtt::ripas(word), Rtt::hipas(word)), (Some(ripas), Some(Hipas::Unassigned)));
        assert_eq!(Rtt::decode(config, Level::L4K, word), Entry::Free);
    }
    // RMI_DATA_CREATE on RAM makes the page valid; what was not RAM stays what it is.
    let states = free.map(|word| Rtt::fresh(word, true));
    assert_eq!(states, [LeafState::Pending, LeafState::Mapped, LeafState::Destroyed]);
    // RMI_DATA_DESTROY of a page of RAM leaves DESTROYED; RMI_RTT_DESTROY does too.
    let page = HPA | attributes | 0b11;
    assert_eq!(Rtt::update(config, Level::L4K, page, Entry::Free), 2 << 1);
    assert_eq!(Rtt::update(config, Level::L4K, HPA | 1 << 5, Entry::Free), 0);
    assert_eq!(Rtt::update(config, Level::L2M, 0x7003, Entry::Free), 2 << 1);
}

/// No MMU reads the mirror: only what the table relies on is fixed.
#[test]
fn tdx() {
    let config = TdxConfig::LEVELS_4;
    // A frame of zeroes is a table of free entries.
    assert_eq!(TdxMirror::decode(config, Level::L4K, 0), Entry::Free);
    assert_eq!(TdxMirror::encode(config, Level::L4K, Entry::Free), 0);
    // TDH.MEM.PAGE.AUG leaves the page pending, TDH.MEM.PAGE.ADD does not.
    assert_eq!(
        (TdxMirror::fresh(0, false), TdxMirror::fresh(0, true)),
        (LeafState::Pending, LeafState::Mapped)
    );
    // TDH.EXPORT.BLOCKW takes the permission to write, and only that can be taken.
    let page = TdxMirror::encode(config, Level::L4K, leaf(HPA, LeafState::Mapped));
    let blocked =
        TdxMirror::with_permissions(config, page, Permissions::READ | Permissions::EXECUTE).unwrap();
    assert!(!TdxMirror::permissions(config, blocked).contains(Permissions::WRITE));
    assert_eq!(TdxMirror::with_permissions(config, blocked, Permissions::all()), Some(page));
    assert_eq!(TdxMirror::with_permissions(config, page, Permissions::READ), None);
}

/// TDX module ABI, GPAW: the shared bit is bit 47 or 51. RMM: the upper half of the IPA space is unprotected. EPT and
/// x86-64: what the levels translate, as far as an address reaches.
#[test]
fn where_addresses_end() {
    fn end<F: Format>(config: F::Config) -> u64 {
        let end = F::limit(config);
        assert!(F::covers(config, Gpa::new(end - 1).unwrap()));
        assert!(Gpa::new(end).is_none_or(|gpa| !F::covers(config, gpa)));
        end
    }
    assert_eq!(end::<TdxMirror>(TdxConfig::LEVELS_4), 1 << 47);
    assert_eq!(end::<TdxMirror>(TdxConfig::LEVELS_5_GPAW_48), 1 << 47);
    assert_eq!(end::<TdxMirror>(TdxConfig::LEVELS_5_GPAW_52), 1 << 51);
    assert_eq!((TdxConfig::LEVELS_4.shared_bit(), TdxConfig::LEVELS_5_GPAW_52.shared_bit()), (47, 51));
    assert_eq!(end::<Rtt>(RttConfig::LEVELS_4), 1 << 47);
    assert_eq!(end::<Rtt>(RttConfig::with_ipa_bits(40).unwrap()), 1 << 39);
    assert!(RttConfig::with_ipa_bits(39).is_none() && RttConfig::with_ipa_bits(49).is_none());
    assert_eq!(end::<Ept>(EptConfig::LEVELS_4), 1 << 48);
    assert_eq!(end::<Ept>(EptConfig::LEVELS_5), 1 << 52);
    assert_eq!(end::<X86>(X86Config::NESTED_4), 1 << 48);
    assert_eq!(end::<X86>(X86Config::SUPERVISOR_5), 1 << 52);
    let tops = [
        Ept::top(EptConfig::LEVELS_4),
        X86::top(X86Config::NESTED_4),
        Rtt::top(RttConfig::LEVELS_4),
        TdxMirror::top(TdxConfig::LEVELS_4),
    ];
    assert_eq!(tops, [Level::L512G; 4]);
    let tops = [
        Ept::top(EptConfig::LEVELS_5),
        X86::top(X86Config::NESTED_5),
        TdxMirror::top(TdxConfig::LEVELS_5_GPAW_48),
    ];
    assert_eq!(tops, [Level::L256T; 3]);
}
