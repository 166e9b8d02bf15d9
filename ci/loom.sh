#!/usr/bin/env bash
# The atoms of vmemmap-prealloc against a reader, under every interleaving; LOOM_MAX_PREEMPTIONS=3 for fewer of them.
source "$(dirname "$0")/env.sh"
export CARGO_TARGET_DIR="$CARGO_TARGET_DIR/loom"
RUSTFLAGS="${RUSTFLAGS:-} --cfg loom" cargo test --release -p vmemmap-prealloc --test loom
