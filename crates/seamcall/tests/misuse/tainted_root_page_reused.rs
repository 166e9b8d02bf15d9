//! A page that MNG.CREATE may have written before it failed is no page for another call.

use seamcall::{Hkid, Tdr, Transport, mng};
use sept_core::Frame;

fn again<T: Transport>(t: &T, page: Frame) -> Option<Tdr> {
    match mng::create(t, page, Hkid::new(33)) {
        Ok(td) => Some(td),
        Err(back) => mng::create(t, back.held, Hkid::new(33)).ok(),
    }
}

fn main() {}
