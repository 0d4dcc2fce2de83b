# A small crate with a library, a build script and two programs, built without a network.
set -e
export CARGO_HOME=$PWD/home CARGO_TARGET_DIR=$PWD/target CARGO_TERM_COLOR=never CARGO_INCREMENTAL=0
mkdir -p src/bin
cat > Cargo.toml << 'T'
[package]
name = "small"
version = "0.1.0"
edition = "2021"

[workspace]
T
cat > build.rs << 'R'
fn main() {
    println!("cargo:rustc-env=BUILT={}", std::env::var("CARGO_PKG_VERSION").unwrap());
    println!("cargo:rerun-if-changed=build.rs");
}
R
cat > src/lib.rs << 'R'
use std::collections::BTreeMap;

pub fn count(text: &str) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    text.split_whitespace().for_each(|word| *counts.entry(word).or_default() += 1);
    counts
}
R
cat > src/main.rs << 'R'
use std::sync::mpsc::channel;
use std::thread;

fn main() {
    println!("{} {:?}", env!("BUILT"), small::count("one two two three three three"));
    let (sender, receiver) = channel();
    let threads: Vec<_> = (0..8u64)
        .map(|seed| {
            let sender = sender.clone();
            thread::spawn(move || sender.send((0..1000).fold(seed, |sum, n| sum.wrapping_mul(31) + n)).unwrap())
        })
        .collect();
    drop(sender);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    println!("{}", receiver.iter().fold(0, |all, one| all ^ one));
    std::panic::set_hook(Box::new(|panic| eprintln!("{}", panic.location().unwrap())));
    let caught = thread::spawn(|| Vec::<u8>::new()[std::env::args().count()]).join();
    println!("{}", caught.is_err());
    let output = std::process::Command::new("sh").args(["-c", "echo out; exit 3"]).output().unwrap();
    println!("{:?} {:?}", output.status.code(), output.stdout);
    std::process::exit(5);
}
R
echo 'fn main() { println!("{}", small::count("x x").len()); }' > src/bin/other.rs
cargo build --offline -q
target/debug/other
cargo build --offline -q --message-format short && echo fresh
target/debug/small || echo "status $?"
echo 'fn main() { let x: u8 = "text"; }' > src/bin/other.rs
cargo build --offline -q --message-format short || echo "status $?"
rm -rf target home
