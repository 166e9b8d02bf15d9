#!/usr/bin/env bash
# Runs `convert` on its own default scenario, then on each file given.
source "$(dirname "$0")/env.sh"
cargo build --release --bin convert
convert="$CARGO_TARGET_DIR/release/convert"
echo '$ convert'
"$convert"
failed=0
for scenario in "$@"; do
    echo "\$ convert --quiet $(basename "$scenario")"
    "$convert" --quiet "$scenario" || { echo "exit $?"; failed=1; }
done
exit $failed
