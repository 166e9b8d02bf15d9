#!/usr/bin/env bash
# Formatting, of the workspace and of the packages outside it.
source "$(dirname "$0")/env.sh"
cargo fmt --all --check
for package in fuzz ci/no-std-link examples/bare-metal; do
    cargo fmt --manifest-path "$package/Cargo.toml" --check
done
