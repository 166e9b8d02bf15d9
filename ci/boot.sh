#!/usr/bin/env bash
# MMUs that others wrote walk our tables: examples/bare-metal booted in QEMU (x86-64 paging and NPT) and in Bochs, once
# as an AMD machine (paging and NPT) and once as an Intel one (paging and EPT). Installs the emulators where it may.
source "$(dirname "$0")/env.sh"
export CARGO_TARGET_DIR="$CARGO_TARGET_DIR/boot"
package=examples/bare-metal
work="$CARGO_TARGET_DIR/run"

[ "$(uname -m)" = x86_64 ] || skip 'the program is for x86-64, and is built with the compiler of the host'
installed() {
    command -v qemu-system-x86_64 && command -v bochs && ls /usr/share/bochs/{BIOS-bochs,VGABIOS-lgpl}-latest
} >/dev/null 2>&1
installed || debian qemu-system-x86 bochs bochs-term bochsbios vgabios ||
    skip 'QEMU and Bochs are not installed, and cannot be'

cargo clippy --quiet --release --manifest-path "$package/Cargo.toml" -- -D warnings -D clippy::incompatible_msrv
cargo build --release --manifest-path "$package/Cargo.toml"
mkdir -p "$work"

# Prints the checks, and what follows a failure; a run must end with the MMUs that the machine has.
held() {
    tr -d '\r' <"$work/$1" | sed -n '/^\(paging\|NPT\|EPT\|all held\)/p; /FAILED/,+6p'
    tr -d '\r' <"$work/$1" | grep -ax "all held: $2" >/dev/null || { echo "$1: not all held"; exit 1; }
}

in_qemu() {
    local status=0
    printf '\nQEMU\n'
    timeout --kill-after=5 60 qemu-system-x86_64 -machine q35 -accel tcg -cpu max -smp 2 -m 64 -no-reboot \
        -kernel "$CARGO_TARGET_DIR/release/pvh" -display none -monitor none -debugcon stdio \
        -device isa-debug-exit,iobase=0xf4,iosize=4 </dev/null >"$work/qemu" || status=$?
    held qemu "$1"
    [ $status = 33 ] || { echo "QEMU ended with $status"; exit 1; }
}

# Its exit status says nothing, it wants a terminal, and as Debian builds it, it starts in a debugger.
in_bochs() {
    export CPU_MODEL=$1 DISK="$work/$1.img" LOG="$work/$1.log"
    printf '\nBochs, %s\n' "$1"
    rm -f "$DISK"*
    objcopy -O binary "$CARGO_TARGET_DIR/release/mbr" "$DISK"
    truncate --size=$((20 * 16 * 63 * 512)) "$DISK"
    echo continue >"$work/debugger"
    TERM=xterm timeout --kill-after=5 60 script --quiet --return --flush --log-out "$work/$1" --command \
        "bochs -q -f $package/boot/bochsrc -rc $work/debugger" </dev/null >/dev/null || true
    held "$1" "$2"
}

in_qemu 'paging, NPT'
in_bochs ryzen 'paging, NPT'
in_bochs corei7_haswell_4770 'paging, EPT'
