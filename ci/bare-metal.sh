#!/usr/bin/env bash
# The library crates on targets without an operating system: linked into a program for x86_64-unknown-none, built for
# aarch64-unknown-none (where the SEAMCALL instruction does not exist).
#
# core for these targets comes from the installed toolchain if it has them, else from Debian's compiler and library
# sources, unpacked into the target folder: nothing is installed.
source "$(dirname "$0")/env.sh"
export CARGO_TARGET_DIR="$CARGO_TARGET_DIR/bare-metal"
root="$CARGO_TARGET_DIR/toolchain"
build=(cargo build --release --manifest-path ci/no-std-link/Cargo.toml)
targets=(x86_64-unknown-none aarch64-unknown-none)

has_targets() {
    local target
    for target in "${targets[@]}"; do
        [ -d "$(rustc --print target-libdir --target "$target")" ] || return 1
    done
}

fetch_debian() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    rm -rf "$root"
    mkdir -p "$root/debs/partial"
    apt-get update -qq || true
    apt-get install -y -qq --no-install-recommends --download-only -o APT::Sandbox::User=root \
        -o Dir::Cache::archives="$root/debs" rustc-web rust-web-src >/dev/null || return 1
    local deb
    for deb in "$root"/debs/*.deb; do
        case "$deb" in
        *-src_*) dpkg --fsys-tarfile "$deb" | tar -x -C "$root" --wildcards './usr/src/rustc-*/library' './usr/lib/*' ;;
        *) dpkg -x "$deb" "$root" ;;
        esac
    done
    rm -r "$root/debs"
    printf '#!/bin/sh\nLD_LIBRARY_PATH="%s" exec "%s" "$@"\n' \
        "$root/usr/lib/x86_64-linux-gnu" "$root/usr/bin/rustc" >"$root/rustc"
    chmod +x "$root/rustc"
}

if has_targets; then
    echo 'using the installed targets'
else
    [ -x "$root/rustc" ] || fetch_debian || skip 'no core for bare-metal targets, neither installed nor from Debian'
    "$root/rustc" --version
    # build-std is not stable yet; this is the way to use it without a nightly compiler.
    export RUSTC="$root/rustc" RUSTC_BOOTSTRAP=1
    build+=(-Zbuild-std=core,compiler_builtins)
fi

export RUSTFLAGS='-C linker=ld -C linker-flavor=ld -C relocation-model=static'
"${build[@]}" --target x86_64-unknown-none
"${build[@]}" --target aarch64-unknown-none --lib "${LIBRARIES[@]/#/--package=}"
