//! Random operation sequences on every format, against an oracle that knows nothing of tables.

use proptest::prelude::*;
use sept_core::test_util::sequence::{self, Op};

fn ops() -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(any::<[u8; Op::SEED]>().prop_map(Op::from_seed), 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 4096, ..ProptestConfig::default() })]

    #[test]
    fn ept(config: u8, ops in ops()) {
        sequence::ept(config, &ops);
    }

    #[test]
    fn x86(config: u8, ops in ops()) {
        sequence::x86(config, &ops);
    }

    #[test]
    fn rtt(config: u8, ops in ops()) {
        sequence::rtt(config, &ops);
    }

    #[test]
    fn tdx(config: u8, ops in ops()) {
        sequence::tdx(config, &ops);
    }
}
