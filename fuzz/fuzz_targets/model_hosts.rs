//! Two hosts on one machine: where a call of one pauses with its locks held, the other makes calls. What is refused has
//! changed nothing, and the invariants hold between all of them.
#![no_main]

mod model;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use model::{Setup, Step, World};
use seamcall::Regs;
use tdx_model::{Machine, Pause};

#[derive(Arbitrary, Debug)]
struct Input {
    setup: Setup,
    first: Vec<Step>,
    second: Vec<Step>,
    /// How many calls the second host makes at each pause of the first.
    calls: Vec<u8>,
}

const STEPS: usize = 32;

/// What the second host has still to do, and whether anything it did had an effect.
#[derive(Default)]
struct Second {
    calls: VecDeque<Regs>,
    turns: VecDeque<u8>,
    changed: bool,
}

fn take_turn(machine: &Machine, second: &Mutex<Second>) {
    let mut second = second.lock().expect("not poisoned");
    for _ in 0..second.turns.pop_front().unwrap_or(1) % 4 {
        let Some(regs) = second.calls.pop_front() else { return };
        let before = machine.digest();
        let out = machine.lp(1).raw(regs);
        model::judge(machine, before, regs, &out);
        second.changed |= machine.digest() != before;
    }
}

fuzz_target!(|input: Input| {
    let second = Arc::new(Mutex::new(Second::default()));
    let other = Arc::clone(&second);
    let world = World::new(input.setup, |builder| {
        builder.on_pause(move |machine: &Machine, pause: Pause| {
            if pause.lp == 0 {
                take_turn(machine, &other);
            }
        })
    });
    let calls = input.second.iter().take(STEPS).filter_map(|&step| world.regs(step));
    let turns = input.calls.iter().copied();
    *second.lock().expect("not poisoned") =
        Second { calls: calls.collect(), turns: turns.collect(), changed: false };
    let mut hold = None;
    for &step in input.first.iter().take(STEPS) {
        let Some(regs) = world.regs(step) else {
            world.step(2, &mut hold, step);
            continue;
        };
        second.lock().expect("not poisoned").changed = false;
        let before = world.machine.digest();
        let out = world.machine.lp(0).raw(regs);
        if !second.lock().expect("not poisoned").changed {
            model::judge(&world.machine, before, regs, &out);
        }
    }
    world.check();
});
