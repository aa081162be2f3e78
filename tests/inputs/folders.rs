//! Folders of rows that other programs wrote: clones of data sets, their splits, what
//! `save_to_disk` writes, and large files that were not fetched.

use crate::support::command::{CommandLine, irepair};
use crate::support::files::{Folder, bytes};
use crate::support::golden;
use std::path::Path;

fn sensitivity(data: impl AsRef<Path>) -> CommandLine {
    irepair("sensitivity --json")
        .with("--model", golden::path("gpt2"))
        .with("--data", data.as_ref())
}

const ROW: &str = r#"{"prompt": "Say hello", "chosen": " to everyone", "rejected": " to nobody"}"#;
const OTHER: &str = r#"{"prompt": "Say no", "chosen": " thanks to him", "rejected": " never"}"#;

#[test]
fn a_clone_of_a_data_set_gives_its_split() {
    let folder = Folder::new();
    let rows = bytes(golden::path("rows/zstd.parquet"));
    folder.write("clone/README.md", "---\nlicense: mit\n---\n");
    folder.write("clone/.gitattributes", "");
    folder.write("clone/LICENSE.txt", "not rows");
    folder.write("clone/dataset_infos.json", "{}");
    folder.write("clone/data/train-00000-of-00001.parquet", &rows);
    let clone = folder.path("clone");
    let want = sensitivity(golden::path("rows/trl.jsonl")).ok();
    assert_eq!(sensitivity(&clone).ok(), want, "one split");
    folder.write("clone/data/test-00000-of-00001.parquet", "not read");
    assert_eq!(sensitivity(&clone).ok(), want, "the split train");
    let said = sensitivity(&clone).warns();
    assert!(said.contains("only the split train is read (it has: test, train)"), "{said}");
    folder.write("clone/data/test-00000-of-00001.parquet", &rows);
    let test = format!("{}:test", clone.display());
    assert_eq!(sensitivity(&test).ok(), want, "the split test");
    sensitivity(format!("{}:valid", clone.display()))
        .fails(3, &["no split \"valid\"", "it has: test, train"]);
    folder.remove("clone/data/train-00000-of-00001.parquet");
    folder.write("clone/data/train_sft-00000-of-00001.parquet", &rows);
    sensitivity(&clone).fails(3, &["several splits", ":SPLIT (it has: test, train_sft)"]);
}

#[test]
fn splits_are_told_by_names_of_files_and_folders() {
    let folder = Folder::new();
    let want = sensitivity(folder.write("row.jsonl", ROW)).ok();
    folder.write("files/train.jsonl", ROW);
    folder.write("files/test.jsonl", OTHER);
    assert_eq!(sensitivity(folder.path("files")).ok(), want);
    folder.write("folders/train/0.jsonl", ROW);
    folder.write("folders/valid/0.jsonl", OTHER);
    assert_eq!(sensitivity(folder.path("folders")).ok(), want);
    folder.write("inner/data/train/0.jsonl", ROW);
    folder.write("inner/data/test/0.jsonl", OTHER);
    assert_eq!(sensitivity(folder.path("inner")).ok(), want);
    // Beside a split that is not to be learned from.
    folder.write("beside/rows.jsonl", ROW);
    folder.write("beside/rows-test.jsonl", OTHER);
    let beside = sensitivity(folder.path("beside"));
    assert_eq!(beside.ok(), want);
    let said = beside.warns();
    assert!(said.contains("only the split train is read (it has: test, train)"), "{said}");
    // Two configurations, and no way to tell which is meant.
    folder.write("both/one/train.jsonl", ROW);
    folder.write("both/two/train.jsonl", OTHER);
    sensitivity(folder.path("both")).fails(3, &["no data files", "give one of", "one", "two"]);
}

#[test]
fn what_save_to_disk_writes_is_refused_with_the_line_that_converts_it() {
    let line = "datasets.load_from_disk(";
    let saved = golden::path("rows/saved");
    sensitivity(&saved).fails(3, &["save_to_disk", line, ").to_parquet(\"rows.parquet\")"]);
    let splits = golden::path("rows/saved-splits");
    sensitivity(&splits).fails(3, &["save_to_disk", line, ")[\"train\"].to_parquet("]);
    let arrow = saved.join("data-00000-of-00001.arrow");
    sensitivity(&arrow).fails(3, &["an Arrow file", "datasets.Dataset.from_file("]);
    let folder = Folder::new();
    folder.write("cache/rows.arrow", bytes(&arrow));
    sensitivity(folder.path("cache")).fails(3, &["rows.arrow: an Arrow file"]);
}

#[test]
fn a_pointer_of_git_lfs_is_not_the_file() {
    let folder = Folder::new();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n";
    let words = ["a pointer of Git LFS", "git lfs pull"];
    sensitivity(folder.write("rows.parquet", pointer)).fails(3, &words);
    for name in ["model.safetensors", "tokenizer.json", "config.json"] {
        let model = folder.model("gpt2");
        folder.write(&format!("model/{name}"), pointer);
        let line = irepair("sensitivity").with("--model", &model);
        line.with("--data", golden::path("pairs.jsonl")).fails(3, &[name, words[0], words[1]]);
    }
}
