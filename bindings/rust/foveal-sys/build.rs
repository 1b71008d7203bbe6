//! Links libfoveal: an installed one that pkg-config knows, or, with the feature `build`, one that cmake builds here
//! from the sources in this package. Nothing is fetched.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const MINIMUM_VERSION: &str = "0.1.0";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=FOVEAL_SOURCE_DIR");
    // docs.rs has neither the library nor Highway, and links nothing.
    if env::var_os("DOCS_RS").is_some() {
        return;
    }
    let found = if env::var_os("CARGO_FEATURE_BUILD").is_some() { built() } else { installed() };
    match found {
        Ok(library) => {
            for path in &library.link_paths {
                println!("cargo:libdir={}", path.display()); // DEP_FOVEAL_LIBDIR of crates that link this one
            }
            if let Some(path) = library.link_paths.first() {
                println!("cargo:rustc-env=FOVEAL_LIBDIR={}", path.display()); // for tests/symbols.rs
            }
            for path in &library.include_paths {
                println!("cargo:include={}", path.display());
            }
        }
        Err(reason) => {
            eprintln!("foveal-sys: {reason}");
            std::process::exit(1);
        }
    }
}

fn installed() -> Result<pkg_config::Library, String> {
    pkg_config::Config::new().atleast_version(MINIMUM_VERSION).probe("foveal").map_err(|error| {
        format!(
            "no installed libfoveal is known to pkg-config. Install one (`make install PREFIX=...` in foveal's \
             repository) and set PKG_CONFIG_PATH=.../lib/pkgconfig, or build it here with the feature `build`.\n{error}"
        )
    })
}

/// Builds and installs the library into OUT_DIR, and links it as the installation's pkg-config file says.
fn built() -> Result<pkg_config::Library, String> {
    let source = source_dir()?;
    for part in ["CMakeLists.txt", "cmake", "include", "src"] {
        watch(&source.join(part));
    }
    for name in ["CXX", "CC", "CUDACXX", "CMAKE_PREFIX_PATH", "CMAKE_GENERATOR"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set; cargo sets it")?);
    let (tree, prefix) = (out.join("tree"), out.join("prefix"));
    let cuda = if env::var_os("CARGO_FEATURE_CUDA").is_some() { "ON" } else { "OFF" };
    let mut configure = Command::new("cmake");
    configure.arg("-S").arg(&source).arg("-B").arg(&tree).args([
        "-DBUILD_SHARED_LIBS=OFF",
        "-DCMAKE_BUILD_TYPE=Release",
        "-DCMAKE_INSTALL_LIBDIR=lib",
        "-DFOVEAL_BUILD_TESTS=OFF",
        "-DFOVEAL_BUILD_TOOL=OFF",
    ]);
    configure.arg(format!("-DFOVEAL_CUDA={cuda}"));
    run(&mut configure)?;
    let jobs = env::var("NUM_JOBS").unwrap_or_else(|_| "1".into());
    run(Command::new("cmake").arg("--build").arg(&tree).args(["--target", "foveal", "--parallel", &jobs]))?;
    run(Command::new("cmake").arg("--install").arg(&tree).arg("--prefix").arg(&prefix))?;

    let mut search = vec![prefix.join("lib/pkgconfig")];
    if let Some(paths) = env::var_os("PKG_CONFIG_PATH") {
        search.extend(env::split_paths(&paths));
    }
    let search = env::join_paths(search).map_err(|error| format!("{}: {error}", prefix.display()))?;
    env::set_var("PKG_CONFIG_PATH", search);
    pkg_config::Config::new()
        .statik(true)
        .env_metadata(false)
        .probe("foveal")
        .map_err(|error| format!("pkg-config does not find the library that was just built: {error}"))
}

/// This package's sources; in a clone they are links into the repository.
fn source_dir() -> Result<PathBuf, String> {
    if let Some(path) = env::var_os("FOVEAL_SOURCE_DIR") {
        return Ok(path.into());
    }
    let manifest = env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set; cargo sets it")?;
    let source = Path::new(&manifest).join("source");
    let lists = source.join("CMakeLists.txt");
    // A link is followed once here: cmake names sources by where they really lie.
    match fs::canonicalize(&lists) {
        Ok(real) => Ok(real.parent().unwrap_or(&source).to_path_buf()),
        Err(error) => Err(format!(
            "the C++ sources are not at {} ({error}); FOVEAL_SOURCE_DIR can name a checkout of foveal",
            lists.display()
        )),
    }
}

/// Has cargo run this script again when anything below `path` changes.
fn watch(path: &Path) {
    println!("cargo:rerun-if-changed={}", path.display());
}

fn run(command: &mut Command) -> Result<(), String> {
    let shown = format!("{command:?}");
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!(
            "{shown}: {status}. Building foveal needs cmake 3.25, a C++20 compiler and Highway (Debian: cmake g++ libhwy-dev)"
        )),
        Err(error) => Err(format!("{shown}: {error}. The feature `build` needs cmake (Debian: cmake)")),
    }
}
