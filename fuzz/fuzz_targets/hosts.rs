#![no_main]
//! What hosts send each other: frames, messages, rosters. They belong to a program and no library, so its files are
//! taken in here.

#[allow(dead_code)]
#[path = "../../node/src/cluster/frame.rs"]
mod frame;
#[allow(dead_code)]
#[path = "../../node/src/name.rs"]
mod name;
#[allow(dead_code)]
#[path = "../../node/src/cluster/wire/mod.rs"]
mod wire;

use procmig::wire::sealed::{Cipher, DirectionKeys, Opener};
use serde::{Serialize, de::DeserializeOwned};
use std::fmt::Debug;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use wire::message::{self, Greeting, Hello, JoinReply, JoinRequest, Reply, Request};
use wire::roster::{Roster, SignedRoster};

const CAP: usize = 40 << 10;

/// The frames of a stream of bytes, up to the first that is none.
fn frames(mut stream: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    loop {
        let before = stream.len();
        let read = pin!(frame::read(&mut stream, CAP)).poll(&mut Context::from_waker(Waker::noop()));
        let Poll::Ready(result) = read else { panic!("memory is always ready") };
        let Ok(Some(body)) = result else { return frames };
        assert_eq!(before - stream.len(), 4 + body.len(), "no byte too many is taken");
        frames.push(body);
    }
}

fn decoded<T: DeserializeOwned + Serialize + PartialEq + Debug>(body: &[u8]) {
    if let Ok(message) = message::decode::<T>(body) {
        let bytes = message::encode(&message).expect("what was read can be written");
        assert_eq!(message::decode(&bytes[4..]), Ok(message));
    }
}

fn roster(signed: &SignedRoster) {
    if let Ok(roster) = postcard::from_bytes::<Roster>(&signed.bytes) {
        let _ = (roster.is_bounded(), roster.find("abcd"), roster.cpu_level.to_string());
        postcard::to_stdvec(&roster).expect("what was read can be written");
    }
}

/// A connection that was handed over, of which an attacker has no keys.
fn sealed(mut data: &[u8]) {
    let keys = DirectionKeys { cipher: Cipher::Aes128Gcm, key: vec![0; 16], iv: [0; 12], number: 0 };
    let mut opener = Opener::new(keys).expect("keys of the right length");
    let received = opener.receive(&mut data, &mut [0; 100]);
    assert!(received.is_err(), "what nobody has sealed is refused");
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    sealed(data);
    for body in frames(data) {
        decoded::<Hello>(&body);
        decoded::<Greeting>(&body);
        decoded::<Request>(&body);
        decoded::<Reply>(&body);
        decoded::<JoinRequest>(&body);
        decoded::<JoinReply>(&body);
        if let Ok(Request::Update(signed)) = message::decode::<Request>(&body) {
            roster(&signed);
        }
        roster(&SignedRoster { bytes: body, signature: Vec::new() });
    }
});
