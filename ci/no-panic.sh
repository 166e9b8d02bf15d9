#!/usr/bin/env bash
# Nothing that sept-core does to a table can panic, and no layout, plan or commit of folio-split and vmemmap-prealloc: a
# library with every operation, for every format, optimized as a user would, holds no panicking code of core.
source "$(dirname "$0")/env.sh"
target=x86_64-unknown-linux-gnu
export CARGO_TARGET_DIR="$CARGO_TARGET_DIR/no-panic"
export RUSTFLAGS='-C link-arg=-nostartfiles -C link-arg=-nostdlib -C link-arg=-Wl,--unresolved-symbols=ignore-all'
cargo build --release --target "$target" --manifest-path ci/no-panic/Cargo.toml
library="$CARGO_TARGET_DIR/$target/release/libno_panic.so"

names=$(nm --demangle "$library")
for name in tdx_tee rtt_tee ept_direct x86_direct ept_walked x86_walked folio_layouts folio_broken_sets vmemmap_commits; do
    grep -q " T $name$" <<<"$names" || { echo "$name is not in the library"; exit 1; }
done
if grep -E 'core::panicking|panic_fmt|unwrap_failed|expect_failed|slice_(start|end)_index|panic_bounds_check' <<<"$names"; then
    echo 'the names above can panic'
    exit 1
fi
echo "no panicking code in $(stat -c %s "$library") bytes: $(grep -c ' [tT] ' <<<"$names") functions"
