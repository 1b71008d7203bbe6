//! The program that the repository's documents show is the example that runs.

use std::fs;
use std::path::Path;

#[test]
fn documents_show_the_example() {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let example = fs::read_to_string(crate_folder.join("examples/ten_lines.rs")).expect("the example");
    let program = example.split_once("\n\n").expect("a line about the example, and the program").1;
    let repository = crate_folder.join("../../..");
    if !repository.join("include/foveal/foveal.h").exists() {
        println!("SKIPPED: documents_show_the_example: this is a package, and no clone of the repository");
        return;
    }
    for document in ["README.md", "bindings/rust/README.md"] {
        let text = fs::read_to_string(repository.join(document)).expect(document);
        assert!(
            text.contains(&format!("```rust\n{program}```")),
            "{document} has no block that is examples/ten_lines.rs"
        );
    }
}
