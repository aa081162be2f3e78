//! `tune`: every try is a repair as a user would make it, the chosen one is the best within the
//! limit, and its file makes it again.

use serde_json::Value;

use crate::support::command::{CommandLine, irepair};
use crate::support::files::{Folder, bytes, json};
use crate::support::process::{kill, until};

/// A search on the demo whose tries take a moment.
fn tune(folder: &Folder, out: &str) -> CommandLine {
    irepair("tune --max-steps 8 --warmup-steps 0 --normal-texts 24 --valid-size 8 --limit 60")
        .and("--batch-size 2 --eval-steps 0 -q")
        .with("--eval-prompts", folder.few_prompts())
        .with("--out", folder.path(out))
}

/// The tries without what depends on the clock.
fn tries(record: &Value) -> Vec<Value> {
    let mut tries = record["tries"].as_array().expect("tries").clone();
    for made in &mut tries {
        made["seconds"] = Value::Null;
    }
    tries
}

#[test]
fn the_best_try_within_the_limit_is_chosen_and_can_be_made_again() {
    let folder = Folder::new();
    let record = tune(&folder, "out").and("--budget 5 --max-kl 2 --json").json();
    assert_eq!(record, json(folder.path("out/tune.json")));
    let all = tries(&record);
    assert_eq!(all.len(), 5);
    let figure = |made: &Value, id: &str| made["figures"][id].as_f64().expect("a figure");
    let within: Vec<&Value> = all.iter().filter(|made| figure(made, "kl") <= 2.0).collect();
    let least = within.iter().map(|made| figure(made, "toxicity")).fold(f64::MAX, f64::min);
    let chosen: Vec<&&Value> = within.iter().filter(|made| made["chosen"] == true).collect();
    assert_eq!((chosen.len(), figure(chosen[0], "toxicity")), (1, least));
    // The first try has the method's own rate, the whole budget of KL, and all parameters.
    let first = &all[0]["settings"];
    assert_eq!((&first["select"], first["kl-budget"].as_f64()), (&"all".into(), Some(2.0)));
    let selects: Vec<&str> =
        all.iter().filter_map(|made| made["settings"]["select"].as_str()).collect();
    assert!(["all", "max", "trial"].iter().all(|name| selects.contains(name)), "{selects:?}");
    // What the figures say is what the run says.
    let number = chosen[0]["number"].as_u64().expect("a number");
    let run = folder.path(format!("out/runs/{number:04}"));
    assert_eq!(json(run.join("irepair/run.json"))["after"]["kl"], chosen[0]["figures"]["kl"]);
    let again = folder.path("again");
    irepair("repair -q")
        .with("--config", folder.path("out/chosen.toml"))
        .with("--out", &again)
        .ok();
    let weights = |dir: &std::path::Path| bytes(dir.join("model.safetensors"));
    assert!(weights(&again) == weights(&run));
    let text = folder.read("out/README.md");
    assert!(text.contains("| chosen |"), "{text}");
}

/// A search that was killed goes on to the same tries.
#[test]
fn a_killed_search_goes_on() {
    let folder = Folder::new();
    let line = |out: &str| tune(&folder, out).and("--budget 4 --max-kl 2 --method dpo+kl");
    line("whole").ok();
    let mut child = line("out").start();
    until(&mut child, || folder.path("out/runs/0002/irepair/run.json").exists());
    kill(&mut child);
    // The try that was under way is a process of its own, and ends by itself.
    let third = folder.path("out/runs/0003.partial/.lock");
    while third.exists() && std::fs::File::open(&third).is_ok_and(|lock| lock.try_lock().is_err()) {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    line("out").fails(3, &["--resume"]);
    line("out").and("--resume --max-kl 1").fails(3, &["another max-kl"]);
    line("out").and("--resume --max-steps 4").fails(3, &["another max-steps"]);
    let resumed = line("out").and("--resume");
    folder.write("few.jsonl", folder.read("few.jsonl").lines().next().expect("a line"));
    resumed.fails(3, &["another", "few.jsonl"]);
    line("out").and("--resume").ok();
    let [whole, out] = ["whole", "out"].map(|name| json(folder.path(name).join("tune.json")));
    assert_eq!(tries(&whole), tries(&out));
    // Units are not searched where a method is named.
    assert!(whole["tries"][0]["settings"].get("select").is_none());
}

/// Two devices make two tries at a time, and which of them ends first changes nothing.
#[test]
fn a_search_spreads_over_devices() {
    let folder = Folder::new();
    let line = |out: &str| tune(&folder, out).and("--budget 5 --max-kl 2 --method dpo+kl");
    // Without GPUs both names mean the CPU.
    line("two").and("--device cpu,auto").ok();
    line("jobs").and("--jobs 2").ok();
    line("two").and("--resume").fails(3, &["another jobs"]);
    let [two, jobs] = ["two", "jobs"].map(|name| json(folder.path(name).join("tune.json")));
    assert_eq!((tries(&two).len(), tries(&two)), (5, tries(&jobs)));
    let device = |number: usize| {
        let run = json(folder.path(format!("two/runs/{number:04}/irepair/run.json")));
        run["settings"]["device"].as_str().expect("a device").to_owned()
    };
    let mut first = [device(1), device(2)];
    first.sort();
    assert_eq!(first, ["auto", "cpu"]);
}

#[test]
fn what_cannot_be_searched_is_refused() {
    let folder = Folder::new();
    let line = || tune(&folder, "out");
    line().and("--budget 0").fails(2, &["--budget", "1 to 1000"]);
    line().and("--budget soon").fails(2, &["like 12", "90m"]);
    line().and("--max-kl 0").fails(3, &["--max-kl 0"]);
    line().and("--max-kl NaN").fails(3, &["--max-kl NaN"]);
    irepair("tune --method star").with("--out", folder.path("out")).fails(2, &["repairs neurons"]);
    line()
        .and("--method dapt --learning-rate 1e-4")
        .fails(2, &["everything that tune searches is given"]);
    // What measures no KL can't be held to one.
    line().and("--method dapt").fails(2, &["--max-kl goes by", "dapt+kl"]);
    line().and("--method dpo+kl --kl-weight 4").fails(2, &["--max-kl goes by", "--eval-steps 0"]);
    line().and("--model demo --data none.jsonl").fails(3, &["none.jsonl"]);
    line().and("--jobs 0").fails(3, &["--jobs 0"]);
    line().and("--device cpu,cpu").fails(3, &["given twice", "--jobs"]);
    line().and("--resume").fails(3, &["no search in"]);
    folder.write("out/mine.txt", "mine");
    line().fails(3, &["no search of irepair"]);
    assert_eq!(folder.read("out/mine.txt"), "mine");
    // A rate at which nothing changes helps nobody.
    let error = tune(&folder, "worse")
        .and("--budget 1 --method dpo+kl --learning-rate 1e-12")
        .fails(4, &["no try is less toxic", "README.md"]);
    assert!(!error.contains("panicked"));
    assert!(folder.path("worse/tune.json").exists());
    // What fails at every setting does not use up an hour.
    tune(&folder, "failing")
        .and("--budget 1h --method dapt+kl --learning-rate 1e30")
        .fails(1, &["all 4 tries failed", "at step"]);
    assert!(folder.read("failing/README.md").contains("Try 4 failed"));
}
