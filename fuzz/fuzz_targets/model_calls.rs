//! Leaves with nearly valid and with arbitrary registers: the invariants hold after each, and an error changes nothing.
//! (The model itself checks the invariants of what a call has changed, in builds with debug assertions like these; in the end
//! everything is walked.)
#![no_main]

mod model;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use model::{Setup, Step, World};

#[derive(Arbitrary, Debug)]
struct Input {
    setup: Setup,
    steps: Vec<Step>,
}

/// More steps than this find little that fewer do not.
const STEPS: usize = 48;

fuzz_target!(|input: Input| {
    let world = World::new(input.setup, |builder| builder);
    let mut hold = None;
    for &step in input.steps.iter().take(STEPS) {
        world.step(0, &mut hold, step);
    }
    world.check();
});
