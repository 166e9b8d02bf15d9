# Sourced by every script here: strict shell, repository root, one target folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"
# Tools that would download toolchain parts behind our back fail at once instead.
export RUSTUP_DIST_SERVER=http://127.0.0.1:9 RUSTUP_UPDATE_ROOT=http://127.0.0.1:9 RUSTUP_AUTO_INSTALL=0

LIBRARIES=(sept-core seamcall folio-split vmemmap-prealloc gpa-conversion)

# Ends the script as "not possible here", which is neither a pass nor a failure.
skip() {
    echo "skipped: $*"
    exit 77
}

# Installs Debian packages where that is possible.
debian() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}
