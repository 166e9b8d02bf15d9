#!/usr/bin/env bash
# The library crates link into a program without std, libc or allocator, and that program runs.
# What fails where is said in no-std-link/src/main.rs; here the objects are looked at as well.
source "$(dirname "$0")/env.sh"
target=x86_64-unknown-linux-gnu
export CARGO_TARGET_DIR="$CARGO_TARGET_DIR/no-std"
export RUSTFLAGS='-C relocation-model=static -C link-arg=-nostartfiles -C link-arg=-nostdlib -C link-arg=-static'
build=(cargo build --release --target "$target" --manifest-path ci/no-std-link/Cargo.toml)
out="$CARGO_TARGET_DIR/$target/release"

"${build[@]}"
"$out/no-std-link" || { echo "no-std-link ended with $?"; exit 1; }
if readelf --dynamic --wide "$out/no-std-link" | grep NEEDED; then
    echo 'the program asks for a shared library'
    exit 1
fi

# Each library as a whole, not only what the program uses of it.
"${build[@]}" --lib "${LIBRARIES[@]/#/--package=}"
for library in "${LIBRARIES[@]}"; do
    archive="$out/lib${library//-/_}.rlib"
    # nm complains about the metadata member, which is no object.
    names=$(nm --demangle "$archive" 2>/dev/null || true)
    if grep -E '(^|[^:[:alnum:]_])(std|alloc)::|__rust_(alloc|dealloc|realloc)' <<<"$names"; then
        echo "$library: names above belong to std or alloc"
        exit 1
    fi
    echo "$library: nothing of std or alloc"
done
