//! Bad input on the real binary: each kind gets its exit code, and words that name file, thing and remedy.

use std::path::{Path, PathBuf};

use irepair::model::precision::Precision;

use crate::golden;
use crate::repair::{command, irepair, ok};

pub struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("dir") }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        std::fs::write(&path, bytes).expect("writes");
        path.to_str().expect("utf-8").into()
    }

    /// A copy of the golden gpt2 folder, to break.
    fn model(&self) -> PathBuf {
        self.model_of("gpt2")
    }

    /// A copy of this golden folder, to break.
    pub fn model_of(&self, golden: &str) -> PathBuf {
        let to = self.path("model");
        std::fs::create_dir_all(&to).expect("dir");
        for name in [
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "tokenizer.json",
            "tokenizer_config.json",
        ] {
            std::fs::copy(golden::dir().join(golden).join(name), to.join(name)).expect(name);
        }
        to
    }
}

fn pairs() -> String {
    golden::dir().join("pairs.jsonl").to_str().expect("utf-8").into()
}

fn tiny() -> String {
    golden::dir().join("gpt2").to_str().expect("utf-8").into()
}

#[track_caller]
pub fn refused(arguments: &[&str], code: i32, words: &[&str]) {
    let output = irepair(arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
    for word in words {
        assert!(error.contains(word), "{word:?} is not in: {error}");
    }
    assert!(!error.contains("panicked"), "{error}");
}

/// `sensitivity` of the tiny model on this data is refused.
#[track_caller]
fn bad_data(data: &str, words: &[&str]) {
    refused(&["sensitivity", "--model", &tiny(), "--data", data], 3, words);
}

/// A command on this model folder is refused.
#[track_caller]
pub fn bad_model(model: &Path, words: &[&str]) {
    refused(
        &["sensitivity", "--model", model.to_str().expect("utf-8"), "--data", &pairs()],
        3,
        words,
    );
}

const GOOD: &str = r#"{"prompt": "Say hello", "chosen": " to everyone", "rejected": " to nobody"}"#;

#[test]
fn every_command_has_help_with_an_example() {
    for command in [
        "repair",
        "sensitivity",
        "generate",
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
        let help = ok(&irepair(&[command, "--help"]));
        assert!(help.contains(&format!("irepair {command}")), "{command}");
    }
    assert!(ok(&irepair(&["doctor"])).contains("gpt2"));
    let json: serde_json::Value =
        serde_json::from_str(&ok(&irepair(&["doctor", "--json"]))).expect("json");
    assert_eq!(json["device"], "Cpu");
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
        let script = ok(&irepair(&["completions", shell]));
        assert!(
            script.contains(words)
                && script.contains("sensitivity")
                && script.contains("max-steps"),
            "{shell}"
        );
    }
    refused(&["completions", "tcsh"], 2, &["bash"]);
    let page = ok(&irepair(&["man"]));
    assert!(page.contains(".TH irepair 1") && page.contains("irepair\\-sensitivity(1)"), "{page}");
    let bench = Bench::new();
    let dir = bench.path("man/man1");
    ok(&command(&["man", "--out", dir.to_str().expect("utf-8")])
        .env("IREPAIR_MODEL", "my-own")
        .output()
        .expect("runs"));
    let page = |name: &str| std::fs::read_to_string(dir.join(name)).expect("a page");
    assert!(page("irepair.1").contains(".TH irepair 1"));
    let repair = page("irepair-repair.1");
    assert!(repair.contains("max\\-steps") && repair.contains("IREPAIR_MODEL"), "{repair}");
    assert!(!repair.contains("my-own"), "a user's environment is in the manual: {repair}");
    assert!(page("irepair-patch-apply.1").contains("BASE"));
    let file = bench.file("taken", "");
    refused(&["man", "--out", &file], 3, &["can't write there"]);
}

#[test]
fn usage_errors_exit_with_2() {
    refused(&["repiar"], 2, &["repair"]);
    refused(&["repair", "--no-such-flag"], 2, &["--no-such-flag"]);
    refused(
        &["repair", "--method", "irepair", "--kl-weight", "1"],
        2,
        &["--kl-weight", "irepair+kl"],
    );
    refused(
        &["generate", "--model", &tiny(), "--out", "x.jsonl"],
        2,
        &["--prompts", "--unconditional"],
    );
    refused(
        &["sensitivity", "--model", &tiny(), "--revision", "v2", "--data", &pairs()],
        2,
        &["--revision"],
    );
}

#[test]
fn a_model_that_is_not_there() {
    refused(
        &["sensitivity", "--model", "no/such/folder", "--data", &pairs()],
        3,
        &["no/such/folder"],
    );
    refused(&["sensitivity", "--model", &tiny()], 3, &["--data"]);
    refused(&["repair", "--model", &tiny()], 3, &["--data"]);
    let bench = Bench::new();
    bad_model(bench.dir.path(), &["config.json"]);
    let model = bench.model();
    std::fs::remove_file(model.join("model.safetensors")).expect("remove");
    bad_model(&model, &["model.safetensors"]);
    std::fs::write(model.join("pytorch_model.bin"), "pickle").expect("write");
    bad_model(&model, &["pytorch_model.bin", "convert"]);
    for (other, line) in [
        ("model.Q8_0.gguf", "GPT2LMHeadModel.from_pretrained(DIR, gguf_file="),
        ("pytorch_model.bin.index.json", "GPT2LMHeadModel.from_pretrained(DIR)"),
        ("pytorch_model-00001-of-00002.bin", "glob.glob(DIR + '/pytorch_model-*.bin')"),
        ("pytorch_model.fp16.bin", "GPT2LMHeadModel.from_pretrained(DIR, variant=\"fp16\")"),
        ("consolidated.00.pth", "convert_llama_weights_to_hf.py"),
        ("best.pth", "[DIR + '/best.pth']"),
        ("best.pt", "GPT2LMHeadModel.from_pretrained(None, config=c, state_dict=s)"),
        ("best.ckpt", "[DIR + '/best.ckpt']"),
    ] {
        let model = bench.model();
        std::fs::remove_file(model.join("model.safetensors")).expect("remove");
        std::fs::rename(model.join("pytorch_model.bin"), model.join(other)).expect("rename");
        bad_model(&model, &[other, "not loaded; convert", line]);
        std::fs::rename(model.join(other), model.join("pytorch_model.bin")).expect("rename");
    }
    // As llama.cpp's files lie: alone, without a config.json.
    let gguf = bench.file("small.gguf", "GGUF");
    bad_model(bench.dir.path(), &["small.gguf", "convert", "gguf_file=\"small.gguf\""]);
    bad_model(gguf.as_ref(), &["small.gguf: a file", "convert", "gguf_file=\"small.gguf\""]);
    let pickle = bench.file("consolidated.00.pth", "pickle");
    bad_model(pickle.as_ref(), &["consolidated.00.pth: a file", "convert_llama_weights_to_hf.py"]);
    let pickle = bench.file("best.pt", "pickle");
    bad_model(
        pickle.as_ref(),
        &["best.pt: a file", "type(AutoModelForCausalLM.from_config(c)).from_pretrained(None"],
    );
    std::fs::write(
        model.join("model.safetensors.index.json"),
        r#"{"weight_map": {"a": "model-1.safetensors"}}"#,
    )
    .expect("write");
    bad_model(&model, &["model-1.safetensors", "missing"]);
    let model = bench.model();
    std::fs::remove_file(model.join("model.safetensors.index.json")).expect("remove");
    std::fs::remove_file(model.join("tokenizer.json")).expect("remove");
    bad_model(&model, &["tokenizer.json"]);
}

#[test]
fn damaged_weights() {
    let bench = Bench::new();
    let model = bench.model();
    let weights = model.join("model.safetensors");
    let whole = std::fs::read(&weights).expect("weights");
    for cut in [0, 5, 100, whole.len() - 1] {
        std::fs::write(&weights, &whole[..cut]).expect("write");
        bad_model(&model, &["model.safetensors", "truncated"]);
    }
    let mut longer = whole.clone();
    longer.push(0);
    std::fs::write(&weights, longer).expect("write");
    bad_model(&model, &["header"]);
    let mut lying = whole.clone();
    lying[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    std::fs::write(&weights, lying).expect("write");
    bad_model(&model, &["the header says"]);
    let mut garbage = whole.clone();
    garbage[9..40].fill(b'x');
    std::fs::write(&weights, garbage).expect("write");
    bad_model(&model, &["broken header"]);
    // The last tensor's last value becomes NaN.
    let mut nan = whole.clone();
    let at = nan.len() - 4;
    nan[at..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&weights, nan).expect("write");
    bad_model(&model, &["NaN", "broken"]);
}

#[test]
fn weights_and_configuration_that_disagree() {
    let bench = Bench::new();
    let model = bench.model();
    let text = std::fs::read_to_string(model.join("config.json")).expect("config");
    let config: serde_json::Value = serde_json::from_str(&text).expect("json");
    let with = |key: &str, value: serde_json::Value, words: &[&str]| {
        let mut config = config.clone();
        config[key] = value;
        std::fs::write(model.join("config.json"), config.to_string()).expect("write");
        bad_model(&model, words);
    };
    with("n_layer", 4.into(), &["transformer.h.3", "missing"]);
    with("n_inner", 40.into(), &["shape", "mlp.c_fc.weight"]);
    with("vocab_size", 100.into(), &["vocabulary", "tokenizer"]);
    with("n_head", 3.into(), &["3 heads"]);
    with("n_embd", "wide".into(), &["n_embd"]);
    with("model_type", "mamba".into(), &["mamba", "gpt2", "gpt_neo"]);
    with("activation_function", "snake".into(), &["snake"]);
    with("add_cross_attention", true.into(), &["add_cross_attention"]);
    std::fs::write(model.join("config.json"), "{").expect("write");
    bad_model(&model, &["config.json", "broken JSON"]);
    std::fs::write(model.join("config.json"), &text).expect("write");
    std::fs::write(model.join("tokenizer.json"), "{}").expect("write");
    bad_model(&model, &["tokenizer.json"]);
}

/// As in transformers they are ignored, but the model may not be what was trained.
#[test]
fn weights_that_the_configuration_does_not_ask_for_are_named() {
    for (key, tensor) in
        [("attention_bias", "self_attn.k_proj.bias"), ("mlp_bias", "mlp.down_proj.bias")]
    {
        let bench = Bench::new();
        let model = bench.model_of("llama");
        let mut config = golden::json("llama/config.json");
        config[key] = false.into();
        std::fs::write(model.join("config.json"), config.to_string()).expect("write");
        let output = irepair(&[
            "sensitivity",
            "--model",
            model.to_str().expect("utf-8"),
            "--data",
            &pairs(),
        ]);
        ok(&output);
        let said = String::from_utf8_lossy(&output.stderr);
        let line = said.lines().find(|line| line.starts_with("warning: ")).expect("a warning");
        for words in
            ["model.safetensors: ", &format!("{tensor} is no part"), &format!("{key:?}"), "ignored"]
        {
            assert!(line.contains(words), "{words:?} is not in: {line}");
        }
        assert_eq!(said.matches("warning: ").count(), 1, "{said}");
    }
}

/// What the Llama and Qwen families can be and these models aren't.
#[test]
fn configurations_that_are_not_implemented() {
    let refuse = |golden: &str, changes: &[(&str, serde_json::Value)], words: &[&str]| {
        let bench = Bench::new();
        let model = bench.model_of(golden);
        let mut config = golden::json(&format!("{golden}/config.json"));
        for (key, value) in changes {
            config[*key] = value.clone();
        }
        std::fs::write(model.join("config.json"), config.to_string()).expect("write");
        bad_model(&model, &[&["config.json"], words].concat());
    };
    use serde_json::json;
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0});
    refuse(
        "llama",
        &[("rope_parameters", yarn)],
        &["rotary scaling yarn", "default, linear, llama3"],
    );
    refuse(
        "mistral",
        &[("rope_scaling", json!({"type": "dynamic", "factor": 2.0}))],
        &["rotary scaling dynamic"],
    );
    refuse("mistral", &[("rope_scaling", json!({"type": "linear"}))], &["\"factor\""]);
    refuse("mistral", &[("rope_theta", json!(0))], &["\"rope_theta\" is 0"]);
    // A `rope_scaling` that is not empty goes before `rope_parameters`.
    refuse(
        "llama",
        &[("rope_scaling", json!({"rope_type": "yarn", "factor": 2.0}))],
        &["rotary scaling yarn"],
    );
    refuse(
        "mistral",
        &[("rope_scaling", json!("linear"))],
        &["\"rope_scaling\" is \"linear\"", "object"],
    );
    refuse("mistral", &[("rope_scaling", json!([2.0]))], &["\"rope_scaling\" is [2.0]", "object"]);
    refuse(
        "mistral",
        &[("rope_scaling", json!({"type": null, "factor": 2.0}))],
        &["rotary scaling of no name"],
    );
    refuse("mistral", &[("rope_scaling", json!({"factor": 2.0}))], &["rotary scaling of no name"]);
    let of_kinds =
        json!({"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}});
    refuse(
        "qwen2",
        &[("rope_parameters", of_kinds)],
        &["\"rope_parameters\"", "full_attention", "all layers"],
    );
    let llama3 = json!({"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0,
                        "original_max_position_embeddings": 32});
    refuse("llama", &[("rope_parameters", llama3)], &["low_freq_factor", "high_freq_factor"]);
    refuse("llama", &[("partial_rotary_factor", json!(0.5))], &["part of a head"]);
    refuse("llama", &[("head_dim", json!(7))], &["part of a head's 7"]);
    refuse(
        "llama",
        &[("head_dim", json!(1 << 28))],
        &["268435456", "\"head_dim\"", "at most 65536"],
    );
    refuse(
        "qwen2",
        &[("num_key_value_heads", json!(3))],
        &["num_attention_heads", "4", "num_key_value_heads", "3"],
    );
    refuse("qwen2", &[("hidden_act", json!("mish"))], &["hidden_act", "mish", "silu"]);
    let kinds = json!(["full_attention", "chunked_attention", "full_attention"]);
    refuse("qwen3", &[("layer_types", kinds)], &["chunked_attention", "sliding_attention"]);
    refuse("qwen3", &[("layer_types", json!(["full_attention"]))], &["layer_types", "1", "3"]);
    for golden in ["llama", "mistral"] {
        let blocks = golden::json(&format!("{golden}/config.json"))["num_hidden_layers"]
            .as_u64()
            .expect("blocks");
        let kinds = json!(vec!["linear_attention"; blocks as usize]);
        refuse(golden, &[("layer_types", kinds)], &["linear_attention", "full_attention"]);
    }
    let quantized = json!({"quant_method": "gptq", "bits": 4});
    refuse("llama", &[("quantization_config", quantized)], &["quantized by gptq", "dequantize()"]);
    refuse(
        "llama",
        &[("model_type", json!("llama4"))],
        &["llama4", "llama, mistral, qwen2, qwen3"],
    );
}

#[test]
fn bad_rows_are_named_with_their_line() {
    let bench = Bench::new();
    let mut rows = vec![GOOD; 20];
    rows[16] = "{\"prompt\": \"a\", ";
    bad_data(&bench.file("broken.jsonl", rows.join("\n")), &["broken.jsonl:17", "broken JSON"]);
    rows[16] = r#"{"prompt": "a", "chosen": "b"}"#;
    bad_data(
        &bench.file("missing.jsonl", rows.join("\r\n")),
        &["missing.jsonl:17", "rejected", "prompt, chosen"],
    );
    rows[16] = r#"{"prompt": "a", "chosen": "b", "rejected": "  "}"#;
    bad_data(&bench.file("empty.jsonl", rows.join("\n")), &["empty.jsonl:17", "rejected is empty"]);
    rows[16] = r#"{"prompt": "a", "chosen": 3, "rejected": "c"}"#;
    bad_data(&bench.file("number.jsonl", rows.join("\n")), &["number.jsonl:17", "not a string"]);
    rows[16] = "[1]";
    bad_data(&bench.file("list.jsonl", rows.join("\n")), &["list.jsonl:17", "object"]);
    let mut bytes = rows[..16].join("\n").into_bytes();
    bytes.extend(b"\n{\"prompt\": \"\xff\xfe\"}");
    bad_data(&bench.file("latin.jsonl", bytes), &["latin.jsonl:17", "UTF-8"]);
    bad_data(&bench.file("none.jsonl", ""), &["no rows"]);
    bad_data(&bench.file("table.xlsx", GOOD), &["unknown kind"]);
    bad_data(&bench.file("half.jsonl.gz", b"\x1f\x8b\x08\x00"), &["gzip"]);
    bad_data(bench.path("nowhere.jsonl").to_str().expect("utf-8"), &["nowhere.jsonl"]);
    std::fs::create_dir(bench.path("empty")).expect("dir");
    bad_data(bench.path("empty").to_str().expect("utf-8"), &["no data files"]);
}

#[test]
fn good_rows_in_every_shape_give_the_same_numbers() {
    use std::io::Write;
    let bench = Bench::new();
    let lines = format!("{GOOD}\n{GOOD}\n");
    let numbers =
        |data: &str| ok(&irepair(&["sensitivity", "--model", &tiny(), "--json", "--data", data]));
    let want = numbers(&bench.file("plain.jsonl", &lines));
    assert_eq!(
        numbers(&bench.file("bom.jsonl", format!("\u{feff}{GOOD}\r\n\r\n{GOOD}\r\n"))),
        want,
        "BOM and CRLF"
    );
    assert_eq!(numbers(&bench.file("array.json", format!("[{GOOD},\n{GOOD}]"))), want, "array");
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gz.write_all(lines.as_bytes()).expect("gzip");
    assert_eq!(numbers(&bench.file("packed.jsonl.gz", gz.finish().expect("gzip"))), want, "gzip");
    std::fs::create_dir(bench.path("folder")).expect("dir");
    bench.file("folder/b.jsonl", GOOD);
    bench.file("folder/a.json", format!("[{GOOD}]"));
    bench.file("folder/README.md", "not data");
    assert_eq!(numbers(bench.path("folder").to_str().expect("utf-8")), want, "folder");
    let lee = GOOD
        .replace("\"prompt\"", "\"prompt_text\"")
        .replace("\"chosen\"", "\"unpert_gen_text\"")
        .replace("\"rejected\"", "\"pert_gen_text\"");
    assert_eq!(numbers(&bench.file("lee.jsonl", format!("{lee}\n{lee}"))), want, "Lee's keys");
    let implicit = r#"{"chosen": "Say hello to everyone", "rejected": "Say hello to nobody"}"#;
    // The common beginning is "Say hello to": one word more of prompt.
    assert_ne!(numbers(&bench.file("implicit.jsonl", implicit)), want);
    let renamed = GOOD.replace("\"prompt\"", "\"question\"");
    let renamed = bench.file("renamed.jsonl", format!("{renamed}\n{renamed}"));
    let mapped = [
        "sensitivity",
        "--model",
        &tiny(),
        "--json",
        "--map",
        "prompt=question",
        "--data",
        &renamed,
    ];
    assert_eq!(ok(&irepair(&mapped)), want, "--map");
}

#[test]
fn long_texts_are_cut_and_counted() {
    let bench = Bench::new();
    let long = format!(
        "{{\"prompt\": \"{}\", \"chosen\": \" b\", \"rejected\": \" c\"}}",
        "word ".repeat(200_000)
    );
    let data = bench.file("long.jsonl", format!("{GOOD}\n{long}\n"));
    let output =
        irepair(&["sensitivity", "--model", &tiny(), "--max-prompt-length", "32", "--data", &data]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.contains("1 prompts"), "{error}");
    // No room for a response.
    refused(
        &["sensitivity", "--model", &tiny(), "--max-prompt-length", "64", "--data", &data],
        3,
        &["no room", "--max-prompt-length 64"],
    );
    let prompts = bench.file("prompts.txt", "word ".repeat(300));
    let out = bench.path("out.jsonl");
    let out = out.to_str().expect("utf-8");
    refused(
        &["generate", "--model", &tiny(), "--prompts", &prompts, "--out", out],
        3,
        &["prompts.txt:1", "--max-prompt-length"],
    );
}

#[test]
fn settings_that_cannot_work() {
    let bench = Bench::new();
    let out = bench.path("out");
    let out = out.to_str().expect("utf-8");
    let (model, data) = (tiny(), pairs());
    let repair = |more: &[&str], words: &[&str]| {
        let mut arguments = vec![
            "repair",
            "--model",
            &model,
            "--data",
            &data,
            "--out",
            out,
            "--max-length",
            "64",
            "--max-prompt-length",
            "32",
        ];
        arguments.extend(more);
        refused(&arguments, 3, words);
    };
    repair(&["--batch-size", "5"], &["fewer than a batch", "--batch-size"]);
    repair(&["--batch-size", "0"], &["--batch-size 0"]);
    repair(&["--valid-size", "2", "--batch-size", "4"], &["fewer than a batch"]);
    repair(&["--method", "irepiar"], &["did you mean", "irepair"]);
    for number in ["nan", "inf", "-1"] {
        let rate = format!("--learning-rate={number}");
        refused(&["repair", &rate], 2, &["--learning-rate", "finite"]);
        let config = bench.file("rate.toml", format!("seed = 1\nlearning-rate = {number}\n"));
        repair(&["--config", &config, "--valid-size", "0"], &["finite number"]);
    }
    repair(&["--max-length", "65"], &["64 positions"]);
    repair(&["--device", "cuda"], &["cuda"]);
    repair(&["--device", "tpu"], &["unknown"]);
    repair(&["--resume", "--valid-size", "0"], &["--resume", "no unfinished run"]);
    let config = bench.file("my.toml", "seed = 1\nlerning-rate = 1\n");
    repair(&["--config", &config], &["my.toml:2", "did you mean \"learning-rate\""]);
    let spare = ["--valid-size", "0", "--batch-size", "2"];
    let spared = |more: &[&str], words: &[&str]| repair(&[&spare[..], more].concat(), words);
    spared(
        &["--gradient-accumulation-steps", "9"],
        &["fewer than a step", "--gradient-accumulation-steps"],
    );
    spared(&["--gradient-accumulation-steps", "0"], &["--gradient-accumulation-steps 0"]);
    spared(&["--top-k", "99"], &["--top-k 99"]);
    spared(&["--blocks", "0,77"], &["--blocks 77", "blocks 0 to"]);
    spared(&["--method", "irepair-fixed", "--fixed-sample", "999"], &["--fixed-sample 999"]);
    spared(&["--select", "trial", "--objective", "dpo"], &["trial", "--valid-size"]);
    spared(&["--select", "maxx"], &["did you mean \"max\""]);
    spared(&["--config", "quik"], &["did you mean \"quick\""]);
    spared(&["--dtype", "bf16", "--max-length", "65"], &["64 positions"]);
    let contradictions: [&[&str]; 8] = [
        &["--method", "dapt", "--select", "max"],
        &["--method", "dapt", "--kl-weight", "1"],
        &["--method", "irepair+kl", "--kl-weight", "0"],
        &["--method", "dapt", "--top-k", "2"],
        &["--method", "dpo", "--slice", "sublayer"],
        &["--method", "irepair", "--beta", "0.2"],
        &["--max-ppl-increase", "5", "--eval-steps", "0"],
        &["--max-ppl-increase", "5", "--valid-size", "0"],
    ];
    for contradiction in contradictions {
        refused(&[&["repair"][..], contradiction].concat(), 2, &[contradiction[0]]);
    }
    let normal = bench.file("normal.jsonl", "{\"text\": \"just one text of some words\"}");
    repair(&["--valid-size", "0", "--normal", &normal], &["normal.jsonl", "fewer than a batch"]);
    assert!(!Path::new(out).exists());
}

#[test]
fn thread_counts_that_cannot_be() {
    let commands: [&[&str]; 6] = [
        &["repair"],
        &["sensitivity"],
        &["generate", "--out", "x.jsonl"],
        &["eval"],
        &["compare"],
        &["bench"],
    ];
    for command in commands {
        for count in ["0", "100000"] {
            let words = format!("--threads {count}: this machine has 1 to ");
            refused(&[command, &["--threads", count]].concat(), 3, &[&words]);
        }
    }
    let texts = golden::dir().join("normal.jsonl");
    for command_words in
        [&["sensitivity"][..], &["score", texts.to_str().expect("utf-8"), "--out", "x.jsonl"]]
    {
        for count in ["0", "100000", "two"] {
            let output =
                command(command_words).env("RAYON_NUM_THREADS", count).output().expect("runs");
            let error = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(3), "{command_words:?} {error}");
            assert!(
                error.contains(&format!("RAYON_NUM_THREADS={count}: this machine has 1 to ")),
                "{error}"
            );
        }
    }
}

#[test]
fn an_output_that_cannot_be_written() {
    let bench = Bench::new();
    let file = bench.file("file", "");
    let out = format!("{file}/out");
    refused(&["repair", "--out", &out, "-q"], 3, &["can't write"]);
    refused(&["generate", "--out", &format!("{file}/x.jsonl"), "-q"], 3, &["can't write"]);
    let taken = bench.file("taken.jsonl", "mine");
    refused(&["generate", "--out", &taken, "-q"], 3, &["exists", "--overwrite"]);
    assert_eq!(std::fs::read_to_string(&taken).expect("still there"), "mine");
}

#[test]
fn sensitivity_writes_table_csv_and_picture() {
    let bench = Bench::new();
    let (csv, svg) = (bench.path("blocks.csv"), bench.path("blocks.svg"));
    let (csv_s, svg_s) = (csv.to_str().expect("utf-8"), svg.to_str().expect("utf-8"));
    let (model, data) = (tiny(), pairs());
    let base = ["sensitivity", "--model", &model, "--data", &data, "--dump", csv_s];
    let said = ok(&irepair(&[&base[..], &["--plot", svg_s]].concat()));
    assert!(said.contains("error density"), "{said}");
    let text = std::fs::read_to_string(&csv).expect("csv");
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("block,sensitivity,share,parameters,density"));
    let expected = golden::json("gpt2/expected.json");
    for (line, want) in lines.zip(golden::numbers(&expected["response"]["sensitivity_bad"])) {
        let fields: Vec<f64> = line.split(',').map(|f| f.parse().expect("number")).collect();
        golden::close(fields[1], want, 1e-4, line);
        assert_eq!(fields[3], (12 * 16 * 16 + 13 * 16) as f64);
    }
    assert!(std::fs::read_to_string(&svg).expect("svg").contains("</svg>"));
    ok(&irepair(&[&base[..], &["--per-batch", "--batch-size", "2"]].concat()));
    let text = std::fs::read_to_string(&csv).expect("csv");
    assert!(text.starts_with("batch,block,") && text.lines().count() == 1 + 2 * 3, "{text}");
}

#[test]
fn generated_texts_do_not_depend_on_the_batch() {
    let bench = Bench::new();
    let texts = |name: &str, more: &[&str]| {
        let out = bench.path(name);
        let mut arguments = vec![
            "generate",
            "-q",
            "--limit",
            "12",
            "--samples",
            "2",
            "--out",
            out.to_str().expect("utf-8"),
        ];
        arguments.extend(more);
        ok(&irepair(&arguments));
        std::fs::read_to_string(&out).expect("texts")
    };
    let all = texts("a.jsonl", &[]);
    assert_eq!(all.lines().count(), 24);
    assert_eq!(texts("b.jsonl", &["--batch-size", "5"]), all);
    assert_eq!(texts("c.jsonl", &["--batch-size", "1", "--threads", "1"]), all);
    assert_ne!(texts("d.jsonl", &["--seed", "1"]), all);
    // Many texts: a last bit of a product that depended on the batch would turn one of them.
    let many = |name: &str, batch: &str| {
        let out = bench.path(name);
        ok(&irepair(&[
            "generate",
            "-q",
            "--unconditional",
            "150",
            "--batch-size",
            batch,
            "--out",
            out.to_str().expect("utf-8"),
        ]));
        std::fs::read_to_string(&out).expect("texts")
    };
    assert_eq!(many("g.jsonl", "1"), many("h.jsonl", "32"));
    assert_eq!(texts("e.jsonl", &["--greedy"]), texts("f.jsonl", &["--temperature", "0"]));
    let out = bench.path("normal.jsonl");
    let said = ok(&irepair(&[
        "generate",
        "--unconditional",
        "20",
        "--scorer",
        "lexicon",
        "--keep-below",
        "0.5",
        "--out",
        out.to_str().expect("utf-8"),
    ]));
    assert!(said.contains("removed"), "{said}");
    let kept = std::fs::read_to_string(&out).expect("texts");
    assert!(
        kept.lines().count() > 3
            && kept.lines().all(|l| l.contains("\"text\"") && l.contains("\"score\""))
    );
}

#[test]
fn bench_prints_the_references_keys() {
    let said = ok(&irepair(&[
        "bench",
        "--config",
        "gpt2",
        "--tokens",
        "2",
        "--batch",
        "1",
        "--iterations",
        "1",
    ]));
    let json: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(&said).expect("one JSON line");
    let keys: Vec<&str> = json.keys().map(String::as_str).collect();
    let shared = [
        "impl",
        "config",
        "method",
        "batch",
        "tokens",
        "threads",
        "median_s",
        "min_s",
        "peak_rss_mib",
    ];
    assert_eq!(keys, [&shared[..], &["gflop", "gflop_kaplan"]].concat());
}

/// The estimate that `--dry-run` and the check of memory go by, for a slice and for everything, at the shape of gpt2.
#[test]
fn the_estimate_is_within_15_percent_of_the_peak() {
    let mixed = if Precision::Bf16.unavailable().is_none() { "bf16" } else { "f32" };
    for (method, dtype) in [("irepair+kl", "f32"), ("dapt+kl", mixed)] {
        let bench = [
            "bench",
            "--config",
            "gpt2",
            "--method",
            method,
            "--dtype",
            dtype,
            "--iterations",
            "1",
            "--profile",
        ];
        let output = irepair(&bench);
        ok(&output);
        let said = String::from_utf8_lossy(&output.stderr);
        let line = said.lines().find(|line| line.starts_with("memory: ")).expect("the estimate");
        let numbers: Vec<f64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        golden::close(numbers[1], numbers[0], 0.15, &format!("{method} {dtype}: {line}"));
    }
}
