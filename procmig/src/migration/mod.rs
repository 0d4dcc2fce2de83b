//! Migration of processes between nodes.
//!
//! The node that a process leaves is the *source*, the other one the *target*. The source sends memory while the
//! process runs ([`source`]), stops its threads at clean points ([`crate::kernel::freeze`]), sends the rest
//! and the process's [`image`], and asks the deputy to let the target have it. The deputy is the arbiter: it
//! connects to the target, and from the moment at which it tells it to run the process the source's copy
//! is dead; until then any failure leaves the process at the source.

pub mod adoption;
mod brake;
pub mod cpu;
pub mod faults;
pub mod image;
pub mod packing;
pub mod record;
pub mod source;
mod stripes;
pub mod target;
pub mod wire;

/// The places behind the first `bytes` of `places`.
fn skip(places: &mut [libc::iovec], mut bytes: usize) -> &mut [libc::iovec] {
    let mut whole = 0;
    for place in places.iter_mut() {
        if bytes < place.iov_len {
            place.iov_base = place.iov_base.wrapping_byte_add(bytes);
            place.iov_len -= bytes;
            break;
        }
        bytes -= place.iov_len;
        whole += 1;
    }
    &mut places[whole..]
}
