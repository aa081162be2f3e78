//! Help, completions and manual know every command, and a mistyped one is answered.

use crate::support::command::irepair;
use crate::support::files::{Folder, read};
use crate::support::golden;

#[test]
fn every_command_has_help_with_an_example() {
    for command in [
        "repair",
        "sensitivity",
        "generate",
        "try",
        "eval",
        "compare",
        "score",
        "patch",
        "bench",
        "doctor",
        "report",
        "completions",
        "man",
    ] {
        let help = irepair(command).and("--help").ok();
        assert!(help.contains(&format!("irepair {command}")), "{command}");
    }
    assert!(irepair("doctor").ok().contains("gpt2"));
    assert_eq!(irepair("doctor --json").json()["device"], "Cpu");
}

#[test]
fn shells_and_man_know_every_command() {
    for (shell, words) in [
        ("bash", "complete -F _irepair"),
        ("zsh", "#compdef irepair"),
        ("fish", "complete -c irepair"),
        ("powershell", "Register-ArgumentCompleter"),
        ("elvish", "edit:completion"),
    ] {
        let script = irepair("completions").arg(shell).ok();
        for words in [words, "sensitivity", "max-steps"] {
            assert!(script.contains(words), "{shell}: {words}");
        }
    }
    irepair("completions tcsh").fails(2, &["bash"]);
    let page = irepair("man").ok();
    assert!(page.contains(".TH irepair 1") && page.contains("irepair\\-sensitivity(1)"), "{page}");
    let folder = Folder::new();
    let dir = folder.path("man/man1");
    irepair("man").with("--out", &dir).env("IREPAIR_MODEL", "my-own").ok();
    let page = |name: &str| read(dir.join(name));
    assert!(page("irepair.1").contains(".TH irepair 1"));
    let repair = page("irepair-repair.1");
    assert!(repair.contains("max\\-steps") && repair.contains("IREPAIR_MODEL"), "{repair}");
    assert!(!repair.contains("my-own"), "a user's environment is in the manual: {repair}");
    assert!(page("irepair-patch-apply.1").contains("BASE"));
    irepair("man").with("--out", folder.write("taken", "")).fails(3, &["can't write there"]);
}

#[test]
fn usage_errors_exit_with_2() {
    irepair("repiar").fails(2, &["repair"]);
    irepair("repair --no-such-flag").fails(2, &["--no-such-flag"]);
    irepair("repair --method irepair --kl-weight 1").fails(2, &["--kl-weight", "irepair+kl"]);
    let model = golden::path("gpt2");
    irepair("generate --out x.jsonl")
        .with("--model", &model)
        .fails(2, &["--prompts", "--unconditional"]);
    irepair("sensitivity --revision v2")
        .with("--model", &model)
        .with("--data", golden::path("pairs.jsonl"))
        .fails(2, &["--revision"]);
}
