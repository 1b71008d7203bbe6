#!/bin/sh
# `cargo package --workspace` verifies a crate against what its sibling was in an earlier run, not against what it packs.
#
# Versions:  cargo 1.95.0 (the toolchain's; no other package). Seen on 2026-11-30.
# Input:     a workspace of two crates, shop on top of shop-sys 0.1.0 (a path and a version). `cargo package --workspace`; then
#            shop-sys gets a second function, which shop calls, the version stays; `cargo build` and `cargo package --workspace`
#            again, also after `rm -rf target`.
# Behaviour: the build takes the new function, and the package of shop-sys that is written has it. The verification of shop does
#            not find it: cargo unpacks the sibling into its home folder (registry/src/-HASH, the hash of the workspace's path) and
#            never again for the same name and version, and keeps what it compiled of it. Removing target alone changes nothing;
#            removing both does. So a check of packages in CI fails on a machine that is used again, in a fresh clone at the same
#            path too, or passes against code that is no longer there.
#
# Needs cargo 1.90 or newer; no network. Exits 0 if all this is still so, 1 if something has changed.
set -u
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
export CARGO_HOME="$scratch/home" CARGO_TARGET_DIR="$scratch/target"
mkdir -p "$scratch/shop/sys/src" "$scratch/shop/top/src" && cd "$scratch/shop" || exit 1
crate() { printf '[package]\nname = "%s"\nversion = "0.1.0"\nedition = "2021"\nlicense = "MIT"\ndescription = "A crate."\n' "$1"; }
printf '[workspace]\nmembers = ["sys", "top"]\nresolver = "2"\n' >Cargo.toml
crate shop-sys >sys/Cargo.toml
{ crate shop; printf '[dependencies]\nshop-sys = { path = "../sys", version = "0.1.0" }\n'; } >top/Cargo.toml
package() {
    if cargo package --offline --workspace --allow-dirty >"$scratch/log" 2>&1; then echo verified; else
        grep -q 'cannot find function `two`' "$scratch/log" && echo "lacks two()" || echo "fails otherwise"
    fi
}
echo 'pub fn one() -> i32 { 1 }' >sys/src/lib.rs
echo 'pub fn sum() -> i32 { shop_sys::one() }' >top/src/lib.rs
first=$(package)
echo 'pub fn one() -> i32 { 1 } pub fn two() -> i32 { 2 }' >sys/src/lib.rs
echo 'pub fn sum() -> i32 { shop_sys::two() }' >top/src/lib.rs
cargo build --offline >"$scratch/log" 2>&1 && built=yes || built=no
second=$(package)
rm -rf "$CARGO_TARGET_DIR"
third=$(package)
rm -rf "$CARGO_TARGET_DIR" "$CARGO_HOME"/registry/src/-*
fourth=$(package)
echo "$(cargo --version): first: $first; changed: built $built, $second; without target: $third; without registry/src either: $fourth"
[ "$first/$built/$second/$third/$fourth" = "verified/yes/lacks two()/lacks two()/verified" ] ||
    { cat "$scratch/log"; echo "CHANGED: see the lines before"; exit 1; }
echo "still so: cargo package verifies against an earlier run's sibling"
