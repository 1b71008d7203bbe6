//! The committed bindings are those that bindgen makes of the header today.
//!
//! `FOVEAL_BLESS=1 cargo test -p foveal-sys --test bindings` writes them.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn header() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("source/include/foveal/foveal.h")
}

/// The header's enumerations have no names; a typedef stands before each, which its constants get as their type.
fn name_enumerations(text: &str) -> String {
    let mut named = String::new();
    let mut typedef = "";
    for line in text.lines() {
        if line.starts_with("pub type _bindgen_ty_") {
            continue;
        }
        if let Some(alias) = line.strip_prefix("pub type ") {
            typedef = alias.split(' ').next().unwrap_or(alias);
        }
        match line.split_once(": _bindgen_ty_") {
            Some((constant, rest)) => {
                let value = rest.split_once(' ').map_or("", |(_, value)| value);
                named.push_str(&format!("{constant}: {typedef} {value}\n"));
            }
            None => named.push_str(&format!("{line}\n")),
        }
    }
    named
}

fn generated() -> String {
    let text = bindgen::Builder::default()
        .header(header().to_str().expect("a path of valid UTF-8"))
        .allowlist_item("foveal_.*")
        .allowlist_item("FOVEAL_.*")
        .blocklist_item("FOVEAL_API")
        .blocklist_item("FOVEAL_FOVEAL_H")
        .use_core()
        .generate_comments(false)
        .prepend_enum_name(false)
        .derive_default(false)
        .rust_target(bindgen::RustTarget::stable(85, 0).expect("bindgen knows this version"))
        .formatter(bindgen::Formatter::Prettyplease)
        .generate()
        .expect("bindgen understands the header")
        .to_string();
    name_enumerations(&text)
}

#[test]
fn committed_bindings_are_those_of_the_header() {
    if find_libclang().is_err() {
        println!(
            "SKIPPED: committed_bindings_are_those_of_the_header: there is no libclang here (Debian: libclang1-14)"
        );
        return;
    }
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bindings.rs");
    let generated = generated();
    if env::var_os("FOVEAL_BLESS").is_some() {
        fs::write(&committed, &generated).expect("src/bindings.rs can be written");
    }
    let text = fs::read_to_string(&committed).unwrap_or_default();
    if let Some((n, (old, new))) = text.lines().zip(generated.lines()).enumerate().find(|(_, (a, b))| a != b) {
        panic!("src/bindings.rs, line {}: is '{old}', bindgen gives '{new}' (FOVEAL_BLESS=1 writes it)", n + 1);
    }
    assert_eq!(text.len(), generated.len(), "src/bindings.rs ends elsewhere than what bindgen gives");
}

/// Is there a libclang that bindgen can load?
fn find_libclang() -> Result<(), String> {
    std::panic::catch_unwind(bindgen::clang_version).map(|_| ()).map_err(|_| "no libclang".to_string())
}

#[test]
fn the_package_has_the_version_of_the_header() {
    let text = fs::read_to_string(header()).expect("the header");
    let number = |part: &str| {
        let line = text.lines().find(|line| line.starts_with(&format!("#define FOVEAL_VERSION_{part} "))).expect(part);
        line.split_whitespace().nth(2).expect("a number").to_string()
    };
    let version = [number("MAJOR"), number("MINOR"), number("PATCH")].join(".");
    assert_eq!(version, env!("CARGO_PKG_VERSION"));
}
