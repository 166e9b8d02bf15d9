//! How the two images are linked: no C runtime, no library, each at the addresses its linker script names.

fn main() {
    let boot = format!("{}/boot", std::env::var("CARGO_MANIFEST_DIR").unwrap());
    println!("cargo:rerun-if-changed={boot}");
    for arg in ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none"] {
        println!("cargo:rustc-link-arg-bins={arg}");
    }
    for image in ["pvh", "mbr"] {
        println!("cargo:rustc-link-arg-bin={image}=-Wl,-T,{boot}/{image}.ld");
    }
}
