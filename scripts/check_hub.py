#!/usr/bin/env python3
"""Repair models whose configurations are those of models on the hub, and open the results in transformers.

    python scripts/check_hub.py IREPAIR [--only NAME...]

tests/golden/hub.json holds the `config.json` of each, copied by hand. Each must have as many parameters as is written
there, by transformers. Then its sizes are shrunk, and nothing else; transformers makes random weights of it, in its own
dtype and in shards; `irepair repair` takes three steps; and transformers opens the result without a missing tensor and
finds the same sensitivities as irepair, within 1e-4. Needs `torch` and `transformers`.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ["OMP_NUM_THREADS"] = "1"
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import irepair_ref as ref
import make_golden as golden

GOLDEN = pathlib.Path("tests/golden")
BLOCKS = 6  # in which Gemma 3 has a layer that does not slide


def shrunk(config):
    small = dict(config, hidden_size=64, intermediate_size=96, num_hidden_layers=BLOCKS, vocab_size=golden.VOCAB, num_attention_heads=4)
    small["num_key_value_heads"] = max(1, 4 * config["num_key_value_heads"] // config["num_attention_heads"])
    small |= {key: 24 for key in ("head_dim",) if key in config}
    small |= {key: 0 for key in ("pad_token_id", "bos_token_id", "eos_token_id") if config.get(key) is not None}
    small |= {key: config[key][:BLOCKS] for key in ("layer_types", "no_rope_layers") if key in config}
    small |= {key: 5 for key in ("sliding_window",) if config.get(key)}
    scaling = config.get("rope_scaling") or {}
    if "short_factor" in scaling:
        pairs = int(small.get("head_dim", 16) * config.get("partial_rotary_factor", 1.0)) // 2
        small["rope_scaling"] = scaling | {key: [1 + i / 4 for i in range(pairs)] for key in ("short_factor", "long_factor")}
    small.pop("auto_map", None)
    return small


def opened(config, folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return AutoConfig.from_pretrained(folder)


def check(irepair, name, entry, folder):
    config = {key: value for key, value in entry["config"].items() if key != "auto_map"}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(opened(config, folder / "whole"))
    count = sum(p.numel() for p in model.parameters())
    assert count == entry["parameters"], f"{count} parameters, {entry['parameters']} are written down"

    small = shrunk(config)
    dtype = getattr(torch, config.get("torch_dtype", "bfloat16"))
    model = AutoModelForCausalLM.from_config(opened(small, folder / "model"), dtype=torch.float32)
    golden.randomize(model, 3)
    model.to(dtype).save_pretrained(folder / "model", max_shard_size="60KB")
    (folder / "model/config.json").write_text(json.dumps(small))
    tokenizer = golden.make_tokenizer()
    tokenizer.save_pretrained(folder / "model")

    run = lambda *words: subprocess.run([irepair, *words], check=True, capture_output=True, text=True).stdout
    data, out = ["--data", GOLDEN / "pairs.jsonl"], folder / "out"
    run("repair", "-q", "--model", folder / "model", *data, "--normal", GOLDEN / "normal.jsonl", "--out", out, "--max-steps", "3", "--batch-size", "2", "--valid-size", "1", "--learning-rate", "1e-3", "--fail-on", "nothing")
    for place in ("model", "out"):
        ours = json.loads(run("sensitivity", "--json", "--model", folder / place, *data))
        model, info = AutoModelForCausalLM.from_pretrained(folder / place, dtype=torch.float32, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "mismatched_keys", "unexpected_keys")), info
        theirs = ref.sensitivity(model.eval(), *golden.batches(AutoTokenizer.from_pretrained(folder / place), "response")[1])
        pairs = list(zip([block["sensitivity"] for block in ours["blocks"]], theirs, strict=True))
        assert all(abs(a - b) <= 1e-4 * b for a, b in pairs), f"{place}: {pairs}"
    return max(abs(a - b) / b for a, b in pairs)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("irepair")
    ap.add_argument("--only", nargs="+", metavar="NAME")
    args = ap.parse_args()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    entries = json.loads((GOLDEN / "hub.json").read_text())
    failed = 0
    for name in args.only or entries:
        with tempfile.TemporaryDirectory() as folder:
            try:
                print(f"{name}: the same within {check(args.irepair, name, entries[name], pathlib.Path(folder)):.1e}", flush=True)
            except (AssertionError, subprocess.CalledProcessError) as error:
                failed += 1
                print(f"{name}: {error}\n{getattr(error, 'stderr', '')}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
