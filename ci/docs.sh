#!/usr/bin/env bash
# Documentation builds, and every link in it leads somewhere.
source "$(dirname "$0")/env.sh"
RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --no-deps --all-features
