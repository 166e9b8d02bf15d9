#!/usr/bin/env bash
# Replays recorded calls into a TDX module on the model; each file given must match register for register.
source "$(dirname "$0")/env.sh"
[ -f crates/tdx-model/src/bin/replay.rs ] || skip 'tdx-model has no replay program yet'
[ $# -gt 0 ] || skip 'no traces here'
cargo run --release -p tdx-model --bin replay -- "$@"
