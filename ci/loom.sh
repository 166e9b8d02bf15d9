#!/usr/bin/env bash
# The page table's changes against each other and against walks, and the atoms of vmemmap-prealloc against a reader, under
# every interleaving; LOOM_MAX_PREEMPTIONS=2 for fewer of them.
source "$(dirname "$0")/env.sh"
export CARGO_TARGET_DIR="$CARGO_TARGET_DIR/loom"
export RUSTFLAGS="${RUSTFLAGS:-} --cfg loom"
for package in sept-core vmemmap-prealloc; do
    cargo test --release -p "$package" --test loom
done
