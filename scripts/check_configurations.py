#!/usr/bin/env python3
"""Change the configurations of golden checkpoints at random, and compare irepair with transformers on each.

    python scripts/check_configurations.py IREPAIR [--count 1000] [--seed 7] [--only NAME...]

Each configuration is opened by both. Where both open it, the sensitivities to the rejected responses must be the same
within 1e-4. What irepair refuses must be refused as bad input (code 3), never by a panic. It prints how many were opened
and refused, and what only one of them opened: transformers checks the types of keys that change no number here.
Needs `torch` and `transformers`.
"""
import argparse
import collections
import json
import os
import pathlib
import random
import shutil
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
NAMES = ["gemma2", "gemma3", "smollm3", "olmo2", "olmo3", "granite", "phi3", "llama", "qwen3"]
# What configurations of these families say, beside what a golden one says already.
MORE = {
    "attention_bias": [True, False], "mlp_bias": [True], "tie_word_embeddings": [True, False], "head_dim": [4, 6, 8, 5],
    "partial_rotary_factor": [0.5, 1.0], "rope_theta": [100.0, 5e5], "rope_local_base_freq": [50.0], "sliding_window": [2, 7],
    "use_sliding_window": [True, False], "sliding_window_pattern": [1, 2, 3], "no_rope_layers": [[1, 1, 0], [0, 0, 1], [1]],
    "no_rope_layer_interval": [1, 2, 3], "layer_types": [["full_attention"] * 3, ["sliding_attention"] * 3,
        ["sliding_attention", "full_attention", "full_attention"], ["chunked_attention"] * 3],
    "attn_logit_softcapping": [1.0, 30.0], "final_logit_softcapping": [2.0, 20.0], "query_pre_attn_scalar": [3, 12],
    "hidden_activation": ["gelu", "silu", "gelu_pytorch_tanh"], "hidden_act": ["gelu", "relu", "gelu_new", "mish"],
    "embedding_multiplier": [2.0, 1], "logits_scaling": [0.5, 3.0], "residual_multiplier": [0.3, 1.0],
    "attention_multiplier": [0.2, 1.0], "rms_norm_eps": [1e-3, 0.1], "use_bidirectional_attention": [True, False],
    "original_max_position_embeddings": [48, 64], "max_position_embeddings": [32, 512], "num_key_value_heads": [1, 2, 4],
    "rope_scaling": [
        {"rope_type": "linear", "factor": 2.0}, {"type": "linear", "factor": 2.0}, {"factor": 2.0}, {},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        {"rope_type": "yarn", "factor": 2.0, "beta_fast": 4.0, "beta_slow": 0.5, "truncate": False,
         "original_max_position_embeddings": 32},
        {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.2, "original_max_position_embeddings": 16},
        {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.3, "original_max_position_embeddings": 16},
        {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 16},
        {"rope_type": "longrope", "short_factor": [1.5, 3.0], "long_factor": [2.0, 8.0], "original_max_position_embeddings": 64},
        {"type": "su", "short_factor": [1.5, 3.0], "long_factor": [2.0, 8.0]},
        {"rope_type": "dynamic", "factor": 2.0}],
    "rope_parameters": [
        {"rope_type": "default", "rope_theta": 300.0},
        {"full_attention": {"rope_type": "default", "rope_theta": 90.0}, "sliding_attention": {"rope_theta": 40.0, "rope_type": "default"}},
        {"full_attention": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 90.0, "original_max_position_embeddings": 16,
                            "truncate": False}}, {}],
}
ODD = [None, 0, -1, 1.5, "x", [], {}, True, 2**40, [None], "full_attention"]


def changed(rng, config):
    config = dict(config)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        kind, keys = rng.random(), sorted(set(config) | set(MORE))
        key = rng.choice(keys)
        if key in ("model_type", "architectures", "dtype", "transformers_version"):
            continue
        if kind < 0.2:
            config.pop(key, None)
        elif kind < 0.35:
            config[key] = rng.choice(ODD)
        else:
            config[key] = rng.choice(MORE.get(key, [config.get(key)]))
    return config


def theirs(folder, batch):
    """transformers' sensitivities, or why there are none."""
    try:
        config = AutoConfig.from_pretrained(folder)
        model, info = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32, output_loading_info=True)
        if info["missing_keys"] or info["mismatched_keys"]:
            return "missing or mismatched tensors"
        norms = ref.sensitivity(model.eval(), *batch)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:150]}"
    return norms


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("irepair")
    ap.add_argument("--count", type=int, default=1000)
    ap.add_argument("--seed", type=int, default=7)
    ap.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    args = ap.parse_args()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    rng, counts, wrong = random.Random(args.seed), collections.Counter(), 0
    for number in range(args.count):
        name = args.only[number % len(args.only)]
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder, "model")
            shutil.copytree(GOLDEN / name, folder)
            config = changed(rng, json.loads((folder / "config.json").read_text()))
            (folder / "config.json").write_text(json.dumps(config))
            line = [args.irepair, "sensitivity", "--json", "--model", folder, "--data", GOLDEN / "pairs.jsonl"]
            ours = subprocess.run(line, capture_output=True, text=True, env=os.environ | {"RAYON_NUM_THREADS": "1"})
            batch = golden.batches(AutoTokenizer.from_pretrained(GOLDEN / name), "response")[1]
            them = theirs(folder, batch)
        opened = ours.returncode == 0
        if opened and not isinstance(them, str):
            norms = [block["sensitivity"] for block in json.loads(ours.stdout)["blocks"]]
            near = len(norms) == len(them) and all(abs(a - b) <= 1e-4 * max(abs(b), 1e-3) for a, b in zip(norms, them))
            found = "the same" if near else "OTHER NUMBERS"
        elif opened:
            found = "opened by irepair alone"
        elif ours.returncode != 3 or "panicked" in ours.stderr:
            found = f"NOT A CLEAN ERROR ({ours.returncode})"
        else:
            found = "refused by both" if isinstance(them, str) else "refused by irepair alone"
        counts[found] += 1
        if found != "the same" and found != "refused by both":
            said = ours.stderr.strip().splitlines()[-1:] or [""]
            before = json.loads((GOLDEN / name / "config.json").read_text())
            what = {k: config.get(k, "absent") for k in sorted(set(config) | set(before)) if config.get(k, 0) != before.get(k, 0)}
            print(f"{number} {name} {found}: {json.dumps(what)[:300]}\n    {said[0][:200]}\n    {str(them)[:200]}", flush=True)
        wrong += found[0].isupper()
    print(dict(counts))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
