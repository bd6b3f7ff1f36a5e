//! The programs of this workspace, as `cargo build --workspace --bins` leaves them beside the tests.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// The top of the workspace.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests is a folder of the workspace")
        .to_owned()
}

/// One of the programs.
pub fn program(name: &str) -> Command {
    let tests = std::env::current_exe().expect("a test program has a path");
    let path = tests
        .parent()
        .and_then(Path::parent)
        .expect("tests lie in a folder below the programs")
        .join(name);
    assert!(
        path.is_file(),
        "{} is missing: run `make test`, or cargo build --workspace --bins first",
        path.display()
    );
    Command::new(path)
}
