//! No symbol of libfoveal can clash with another library's: in one binary with candle's own flash-attention crates, say.

use std::path::PathBuf;
use std::process::Command;

/// A C name that begins with foveal_, or a mangled one with an identifier in it that begins with foveal (its length
/// stands before it): of the namespace foveal, of a type of the C ABI, or made for one (vtables, guards, lambdas' invokers).
fn is_ours(name: &str) -> bool {
    let begins_an_identifier = |at: usize| name[..at].ends_with(|before: char| before.is_ascii_digit());
    name.starts_with("foveal_")
        || (name.starts_with("_Z") && name.match_indices("foveal").any(|(at, _)| begins_an_identifier(at)))
}

/// Kinds of symbols that every object may define, and of which the linker keeps one: instances of C++ templates.
fn is_shared_instance(kind: &str) -> bool {
    matches!(kind, "W" | "V" | "u" | "w" | "v")
}

#[test]
fn every_symbol_is_named_after_foveal() {
    let Some(folder) = option_env!("FOVEAL_LIBDIR").map(PathBuf::from) else {
        println!("SKIPPED: every_symbol_is_named_after_foveal: pkg-config names no folder (a library in /usr)");
        return;
    };
    let archive = folder.join("libfoveal.a");
    let mut nm = Command::new("nm");
    if archive.exists() {
        nm.args(["--defined-only", "--extern-only"]).arg(&archive);
    } else {
        nm.args(["--defined-only", "--extern-only", "--dynamic"]).arg(folder.join("libfoveal.so"));
    }
    let output = match nm.output() {
        Ok(output) => output,
        Err(error) => {
            println!("SKIPPED: every_symbol_is_named_after_foveal: nm: {error}");
            return;
        }
    };
    assert!(output.status.success(), "{nm:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    let symbols: Vec<(&str, &str)> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            Some((words.next()?, words.next()?))
        })
        .collect();
    assert!(symbols.iter().any(|&(_, name)| name == "foveal_forward"), "{nm:?} does not list foveal_forward");
    for (kind, name) in symbols {
        assert!(is_ours(name) || is_shared_instance(kind), "{name} ({kind}) may clash with another library's");
    }
}
