//! Tests across crates: a harness that runs a program natively and under `mosrun` and compares
//! everything that can be seen of the two runs.
//!
//! A test says what runs ([`case::Case`]) and calls [`check`]. Where `/dev/kvm` exists a test that
//! could not run fails; where it does not, it says so and passes. `SKEIN_TEST_RUNNER` names a
//! command to use in place of `mosrun` (`env` compares native with native and so tests the cases).
//! With `SKEIN_TEST_REMOTE` the programs run on another host of a cluster on loopback.
//! With `SKEIN_TEST_MOVER`, a number, all processes migrate between two nodes at moments that it decides.

pub mod case;
pub mod compare;
pub mod guest;
pub mod home;
pub mod mishaps;
pub mod mover;
pub mod net;
pub mod pages;
pub mod pty;
pub mod run;
pub mod tree;
pub mod turns;

pub use case::{Case, bash, busybox, dash, exec, perl, python};
pub use compare::check;

/// Makes a test of each `name: case;`.
#[macro_export]
macro_rules! cases {
    ($($name:ident: $case:expr;)*) => {
        $(
            #[test]
            fn $name() {
                $crate::check(stringify!($name), &$case);
            }
        )*
    };
}
