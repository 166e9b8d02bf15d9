#!/usr/bin/env bash
# The test command that the README gives to newcomers, word for word.
source "$(dirname "$0")/env.sh"
command='cargo test --workspace --all-features'
grep -qFx "$command" README.md || { echo "README.md does not give the test command: $command"; exit 1; }
$command
# Misuse that must not compile: builds a project of its own, so it is not part of the everyday command.
cargo test -p seamcall --all-features --test misuse -- --ignored
# Where a debug build takes one in so many, this takes each: all pairs of layouts of a small block.
cargo test --release -p folio-split -p vmemmap-prealloc --all-features --lib --test suite
