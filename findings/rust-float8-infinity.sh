#!/bin/sh
# The float8 crate, which Candle uses, calls the largest number of each fp8 type its infinity and the next lower one MAX.
#
# Versions:  float8 0.7.0 with half 2.7.1 (crates.io), the current release; Rust 1.95.0. Seen on 2026-11-29.
# Input:     a program that prints constants of F8E4M3 and F8E5M2, and what is_infinite() and is_finite() say of 440 as F8E4M3
#            and of the bytes 0x7b and 0x7c, 57344 and infinity in e5m2.
# Behaviour: e4m3 has numbers up to 448 and no infinity, e5m2 numbers up to 57344 and an infinity, 0x7c:
#
#              F8E4M3: MAX 416,   INFINITY 448,   NEG_INFINITY -448
#              F8E5M2: MAX 49152, INFINITY 57344, NEG_INFINITY -57344
#
#            440 becomes 448, of which is_finite() is false; of the true infinity of e5m2 is_infinite() is false and is_finite()
#            true. So a mask of NEG_INFINITY is a score of -448 or -57344, a check for finite values refuses what
#            saturated by design, and lets through an infinity that a checkpoint holds. The documentation of from_f32() says
#            that what is too large becomes infinity; it becomes 448 or 57344, and so does infinity itself.
#
# Needs cargo and crates.io. Exits 0 if all this is still so, 1 if something has changed.
set -u
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/src"
cat >"$scratch/Cargo.toml" <<'END'
[package]
name = "finding"
version = "0.0.0"
edition = "2021"

[dependencies]
float8 = "=0.7.0"
half = "=2.7.1"
END
cat >"$scratch/src/main.rs" <<'END'
use float8::{F8E4M3, F8E5M2};

fn main() {
    let of_e4m3 = [F8E4M3::MAX, F8E4M3::INFINITY, F8E4M3::NEG_INFINITY].map(|x| x.to_f32());
    let of_e5m2 = [F8E5M2::MAX, F8E5M2::INFINITY, F8E5M2::NEG_INFINITY].map(|x| x.to_f32());
    println!("MAX, INFINITY, NEG_INFINITY: F8E4M3 {of_e4m3:?}, F8E5M2 {of_e5m2:?}");
    let large = F8E4M3::from_f32(440.0);
    println!("440 is {}, infinite {}, finite {}", large.to_f32(), large.is_infinite(), large.is_finite());
    let mut same = of_e4m3 == [416.0, 448.0, -448.0] && of_e5m2 == [49152.0, 57344.0, -57344.0];
    same &= large.to_f32() == 448.0 && large.is_infinite() && !large.is_finite();
    for (byte, number, infinite) in [(0x7b, 57344.0, true), (0x7c, f32::INFINITY, false)] {
        let x = F8E5M2::from_bits(byte);
        println!("{byte:#x} of e5m2 is {}, infinite {}, finite {}", x.to_f32(), x.is_infinite(), x.is_finite());
        same &= x.to_f32() == number && x.is_infinite() == infinite && x.is_finite() != infinite;
    }
    same &= F8E5M2::from_f32(f32::INFINITY).to_f32() == 57344.0;
    std::process::exit(!same as i32);
}
END
(cd "$scratch" && cargo build -q) >"$scratch/log" 2>&1 || { cat "$scratch/log"; echo "cannot build the program"; exit 1; }
"$scratch/target/debug/finding" || { echo "CHANGED: see the lines before"; exit 1; }
echo "still so: float8 calls its largest finite numbers infinity"
