#!/usr/bin/env bash
# Lints, all denied. `rust-version` in Cargo.toml makes clippy refuse what the oldest supported Rust lacks.
source "$(dirname "$0")/env.sh"
cargo clippy --workspace --all-targets --all-features -- -D warnings -D clippy::incompatible_msrv
