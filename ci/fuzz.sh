#!/usr/bin/env bash
# Every fuzz target for a few seconds each (SECONDS_EACH, 10 by default): ci/fuzz.sh [TARGET]...
# With the address sanitizer on nightly, without it where there is no nightly compiler.
source "$(dirname "$0")/env.sh"
tools="$CARGO_TARGET_DIR/tools"
export PATH="$tools/bin:$PATH" CARGO_TARGET_DIR="$CARGO_TARGET_DIR/fuzz"
command -v c++ >/dev/null || debian g++ || skip 'libFuzzer needs a C++ compiler'
cargo fuzz --version 2>/dev/null || cargo install --quiet --locked --root "$tools" --target-dir "$tools/build" cargo-fuzz@0.13.2

if [ "${FUZZ_STABLE:-0}" = 0 ] && cargo +nightly --version 2>/dev/null; then
    fuzz() { cargo +nightly fuzz "$@"; }
    options=()
else
    echo 'no nightly compiler: fuzzing without a sanitizer'
    fuzz() { cargo fuzz "$@"; }
    options=(--sanitizer none)
fi
[ $# -gt 0 ] || mapfile -t targets < <(cargo fuzz list)
[ $# -eq 0 ] || targets=("$@")

fuzz build "${options[@]}"
for target in "${targets[@]}"; do
    log="$CARGO_TARGET_DIR/$target.log"
    # Sequences of operations: long ones from the start.
    case $target in sept_*) lengths=(-len_control=0 -max_len=640) ;; *) lengths=() ;; esac
    if ! fuzz run "${options[@]}" "$target" -- -max_total_time="${SECONDS_EACH:-10}" -print_final_stats=1 \
        ${lengths[@]+"${lengths[@]}"} >"$log" 2>&1; then
        tail -n 60 "$log"
        echo "$target: failed, see above"
        exit 1
    fi
    echo "$target: $(grep -oE '^Done [0-9]+ runs in [0-9]+ second' "$log")s"
done
