#!/usr/bin/env bash
# The atoms of vmemmap-prealloc against a reader, under every interleaving with at most LOOM_MAX_PREEMPTIONS (3)
# switches away from a thread that could go on.
source "$(dirname "$0")/env.sh"
export CARGO_TARGET_DIR="$CARGO_TARGET_DIR/loom" LOOM_MAX_PREEMPTIONS="${LOOM_MAX_PREEMPTIONS:-3}"
RUSTFLAGS="${RUSTFLAGS:-} --cfg loom" cargo test --release -p vmemmap-prealloc --test loom
