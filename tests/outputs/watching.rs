//! `steps.jsonl` is a protocol: the guide names every key of it.

use std::collections::BTreeSet;

use crate::support::command::irepair;
use crate::support::files::{Folder, read, repository, rows};

#[test]
fn every_key_of_the_log_is_in_the_guide() {
    let folder = Folder::new();
    let prompts = folder.few_prompts();
    let mut keys = BTreeSet::new();
    for (name, flags) in [
        ("max", "--method irepair+kl --max-steps 4 --eval-steps 2 --max-ppl-increase 900"),
        ("trial", "--method trial-dpo+kl --max-steps 2 --trial-steps 1"),
        ("halves", "--method irepair --slice sublayer --max-steps 2"),
        (
            "online",
            "--method online-dpo+kl --kl-budget 0.02 --max-steps 4 --rounds 2 \
             --prompts-per-round 8 --samples-per-prompt 4",
        ),
    ] {
        let out = folder.path(name);
        irepair("repair -q --normal-texts 16 --valid-size 8 --eval-samples 0")
            .and(flags)
            .with("--eval-prompts", &prompts)
            .with("--out", &out)
            .ok();
        let lines = rows(out.join("irepair/steps.jsonl"));
        assert!(!lines.is_empty(), "{name}");
        keys.extend(
            lines.iter().flat_map(|line| line.as_object().expect("an object").keys().cloned()),
        );
    }
    let guide = read(repository("src/guide/outputs.md"));
    let (_, section) = guide.split_once("### `steps.jsonl`").expect("the section");
    let (section, _) = section.split_once("\n## ").expect("its end");
    for key in &keys {
        assert!(section.contains(&format!("`{key}`")), "{key} is not in the guide");
    }
    assert!(keys.contains("round") && keys.contains("trial") && keys.contains("ppl"), "{keys:?}");
}
