//! "Ask again from here" is said to a request: the address carries its shared bit.
use seamcall::exit::MapGpaReply;

fn again(next: u64) -> MapGpaReply {
    MapGpaReply { r10: 1, r11: next }
}

fn main() {}
