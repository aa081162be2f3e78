//! Where a file is written, with which permissions, and what it never replaces.

use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::support::command::{CommandLine, irepair, ok};
use crate::support::files::{Folder, edit_json, names, read};
use crate::support::golden;
use crate::support::repaired::quick;

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).expect("there").permissions().mode() & 0o777
}

fn sensitivity() -> CommandLine {
    irepair("sensitivity -q")
        .with("--model", golden::path("gpt2"))
        .with("--data", golden::path("pairs.jsonl"))
}

/// Every command that writes a file, without the path that it writes to.
fn writers() -> Vec<CommandLine> {
    let model = golden::path("gpt2");
    let texts = golden::path("normal.jsonl");
    vec![
        sensitivity().arg("--dump"),
        sensitivity().arg("--plot"),
        irepair("generate -q --unconditional 2 --max-new-tokens 2 --overwrite")
            .with("--model", &model)
            .arg("--out"),
        irepair("score --scorer words --overwrite").arg(&texts).arg("--out"),
    ]
}

#[test]
fn new_files_have_the_permissions_of_the_umask() {
    for (umask, of_file, of_folder) in [("077", 0o600, 0o700), ("022", 0o644, 0o755)] {
        let folder = Folder::new();
        for (index, line) in writers().into_iter().enumerate() {
            let path = folder.path(format!("{index}.svg"));
            ok(&line.arg(&path).run_after(&format!("umask {umask}")));
            assert_eq!(mode(&path), of_file, "{index}");
        }
        let out = folder.path("out");
        ok(&quick(&out).run_after(&format!("umask {umask}")));
        for name in names(&out) {
            let path = out.join(&name);
            let wanted = if path.is_dir() { of_folder } else { of_file };
            assert_eq!(mode(&path), wanted, "{}", name.display());
        }
    }
}

/// What is replaced keeps the permissions that the user gave it.
#[test]
fn a_file_that_is_replaced_keeps_its_permissions() {
    let folder = Folder::new();
    let path = folder.write("dump.csv", "old");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).expect("mode");
    sensitivity().with("--dump", &path).ok();
    assert_eq!(mode(&path), 0o640);
    assert_ne!(read(&path), "old");
}

#[test]
fn a_link_stays_and_its_file_is_written() {
    let folder = Folder::new();
    for (index, line) in writers().into_iter().enumerate() {
        let target = folder.write(&format!("there/{index}.svg"), "old");
        let (link, hop) = (folder.path(format!("{index}.svg")), folder.path(format!("h{index}")));
        symlink(format!("there/{index}.svg"), &hop).expect("link");
        symlink(&hop, &link).expect("link");
        line.arg(&link).ok();
        assert!(link.is_symlink() && hop.is_symlink(), "{index}");
        assert!(!target.is_symlink() && read(&target) != "old", "{index}");
    }
    let circle = folder.path("circle");
    symlink("circle", &circle).expect("link");
    sensitivity().with("--dump", &circle).fails(3, &["--dump", "circle"]);
}

/// They stay what they are, and nobody waits for one.
#[test]
fn pipes_and_devices_are_not_replaced() {
    for (index, line) in writers().into_iter().enumerate() {
        let folder = Folder::new();
        let pipe = folder.path("pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().expect("runs").success());
        line.clone().arg(&pipe).fails(3, &["pipe", "only a file can be replaced"]);
        assert!(std::fs::metadata(&pipe).expect("there").file_type().is_fifo(), "{index}");
        let link = folder.path("device");
        symlink("/dev/null", &link).expect("link");
        line.clone().arg(&link).fails(3, &["device", "only a file can be replaced"]);
        line.arg("/dev/stdout").fails(3, &["/dev/stdout", "only a file can be replaced"]);
        assert!(Path::new("/dev/null").metadata().expect("there").file_type().is_char_device());
        assert_eq!(folder.count(), 2, "something was left beside them");
    }
}

/// A copy inside of what is copied would be a copy of itself.
#[test]
fn no_output_lies_in_its_model() {
    let folder = Folder::new();
    let model = folder.model("gpt2");
    let base = folder.path("base");
    symlink(&model, &base).expect("link");
    quick(folder.path("out")).with("--model", &model).and("-q").ok();
    let patch = folder.path("out/irepair/patch.safetensors");
    for out in [model.join("out"), model.join("a/b"), base.join("x"), folder.path("out/../model/y")]
    {
        let words = ["--out", "lies in it; choose another"];
        quick(&out).with("--model", &model).and("-q").fails(3, &words);
        quick(&out).with("--model", &model).and("--dry-run").fails(3, &words);
        irepair("patch apply").arg(&model).arg(&patch).with("--out", &out).fails(3, &words);
    }
    assert_eq!(model.read_dir().expect("folder").count(), 5, "{:?}", names(&model));
}

/// Links of a model folder that lead out of it are named and left out, unless the model is read
/// from them; those that the hub's cache is made of are followed.
#[test]
fn what_a_model_folder_only_points_to_is_not_copied() {
    let folder = Folder::new();
    let secret = folder.write("secret.txt", "secret");
    let model = folder.model("gpt2");
    let weights = folder.path("weights");
    std::fs::rename(model.join("model.safetensors"), &weights).expect("moves");
    symlink(&weights, model.join("model.safetensors")).expect("link");
    const READ: [&str; 3] = ["tokenizer.json", "tokenizer_config.json", "generation_config.json"];
    for name in READ {
        let elsewhere = folder.path(format!("their-{name}"));
        std::fs::rename(model.join(name), &elsewhere).expect("moves");
        symlink(&elsewhere, model.join(name)).expect("link");
    }
    let blob = folder.write("models--org--tiny/blobs/0123", "of the hub");
    folder.write("model/own.txt", "own");
    for (name, target) in [
        ("notes.txt", secret.as_path()),
        ("up.txt", Path::new("../secret.txt")),
        ("nowhere.txt", Path::new("nowhere")),
        ("loop", Path::new(".")),
        ("all", folder.root()),
        ("zero", Path::new("/dev/zero")),
        ("hub.txt", blob.as_path()),
        ("alias.txt", Path::new("own.txt")),
    ] {
        symlink(target, model.join(name)).expect(name);
    }
    let pipe = model.join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("runs").success());
    let out = folder.path("out");
    let said = quick(&out).with("--model", &model).and("-q").warns();
    for name in ["notes.txt", "up.txt", "nowhere.txt", "loop", "all", "zero", "pipe"] {
        assert!(said.contains(&format!("/{name} is not copied: ")), "{name}: {said}");
        assert!(std::fs::symlink_metadata(out.join(name)).is_err(), "{name}");
    }
    assert_eq!(read(out.join("hub.txt")), "of the hub");
    assert_eq!(read(out.join("alias.txt")), "own");
    for name in READ.into_iter().chain(["model.safetensors"]) {
        assert!(out.join(name).is_file() && !out.join(name).is_symlink(), "{name}");
    }
}

/// A part's results name files of the part alone, whatever stands in them.
#[test]
fn merging_follows_no_path() {
    let folder = Folder::new();
    let part = folder.path("part");
    irepair("eval -q")
        .with("--model", golden::path("gpt2"))
        .with("--ppl", golden::path("eval/corpus.txt"))
        .with("--out", &part)
        .ok();
    let results = part.join("results.json");
    let good = read(&results);
    let rows = serde_json::from_str::<serde_json::Value>(&good).expect("JSON")["measurements"][0]
        ["models"][0]["rows"]
        .clone();
    let secret = folder.path("secret.jsonl");
    std::fs::copy(part.join(rows.as_str().expect("a name")), &secret).expect("copies");
    let merge = || irepair("eval -q --merge").arg(&part).with("--out", folder.path("merged"));
    for evil in ["../secret.jsonl", secret.to_str().expect("utf-8"), "..", ".", "", "a/../b.jsonl"]
    {
        edit_json(&results, |r| r["measurements"][0]["models"][0]["rows"] = json!(evil));
        merge().fails(3, &["results.json", &format!("{evil:?} is not the name of a file")]);
    }
    for (path, value) in [
        ("/shard/of", json!(u64::MAX)),
        ("/shard/index", json!(7)),
        ("/measurements/0/models/0/model", json!(99)),
        ("/measurements/0/models", json!([])),
    ] {
        std::fs::write(&results, &good).expect("writes");
        edit_json(&results, |r| *r.pointer_mut(path).expect(path) = value);
        let said = merge().fails(3, &[]);
        assert!(said.contains("results.json") || said.contains("is missing"), "{path}: {said}");
    }
    assert!(!folder.path("merged").exists());
    std::fs::write(&results, &good).expect("writes");
    merge().ok();
}
