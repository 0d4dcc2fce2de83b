#![no_main]
//! The control socket of `skeind`. It belongs to a program and no library, so its files are taken in here.

#[allow(dead_code)]
#[path = "../../node/src/name.rs"]
mod name;
#[allow(dead_code)]
#[path = "../../node/src/hostd/protocol.rs"]
mod protocol;
#[allow(dead_code)]
#[path = "../../node/src/cluster/wire/mod.rs"]
mod wire;

/// As the files name it.
mod cluster {
    pub(crate) use crate::wire;
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(request) = protocol::decode::<protocol::HostRequest>(data) {
        let bytes = protocol::encode(&request).expect("what was read can be written");
        assert_eq!(protocol::decode(&bytes[4..]), Ok(request));
    }
    if let Ok(reply) = protocol::decode::<protocol::HostReply>(data) {
        let bytes = protocol::encode(&reply).expect("what was read can be written");
        assert_eq!(protocol::decode(&bytes[4..]), Ok(reply));
    }
});
