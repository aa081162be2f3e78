//! The cases in the corpus of the fuzz targets: `tests/fuzz/README.md` says what they are.

use crate::support::files::{bytes, repository};

#[path = "../fuzz/targets.rs"]
mod targets;

#[test]
fn every_case_of_the_corpus() {
    for (name, target) in targets::TARGETS {
        let folder = repository("tests/fuzz/corpus").join(name);
        let cases = folder.read_dir().unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let mut count = 0;
        for case in cases.flatten() {
            target(&bytes(case.path()));
            count += 1;
        }
        assert!(count > 0, "{name} has no case");
    }
}
