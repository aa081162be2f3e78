#!/usr/bin/env python3
"""Does `transformers` load what irepair wrote, and does it compute the same?

    check_transformers.py OUT [--base BASE] [--text TEXT] [--logits FILE.json]

OUT is loaded with AutoModelForCausalLM and AutoTokenizer. Prints one JSON line: the first 8 logits and the argmax
at the last position of TEXT (single precision). `--base` also compares OUT with the checkpoint it was made from:
the same tensor names, shapes and dtypes, the same token ids for TEXT, and which tensors differ. `--logits` is a
file {"text": ..., "logits": [...]} with the last position's logits over the whole vocabulary; the largest
difference may be 1e-4 of the largest logit. Exit status: 0 all is well, 1 something is not (said on stderr).
"""
import argparse
import json
import os
import sys

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

TOLERANCE = 1e-4


def stored(folder):
    """{name: tensor} of a checkpoint folder, over all shards, as stored."""
    index = f"{folder}/model.safetensors.index.json"
    files = sorted(set(json.load(open(index))["weight_map"].values())) if os.path.exists(index) else ["model.safetensors"]
    tensors = {}
    for file in files:
        with safe_open(f"{folder}/{file}", framework="pt") as f:
            tensors |= {name: f.get_tensor(name) for name in f.keys()}
    return tensors


def compare_with_base(out, base):
    """(problems, names of the tensors that differ)."""
    new, old = stored(out), stored(base)
    problems = [f"tensor {name} is in only one of the two" for name in sorted(set(new) ^ set(old))]
    changed = []
    for name in sorted(set(new) & set(old)):
        a, b = new[name], old[name]
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            problems.append(f"tensor {name} is {tuple(a.shape)} {a.dtype}, in the base {tuple(b.shape)} {b.dtype}")
        elif not torch.equal(a, b):
            changed.append(name)
    return problems, changed


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("out", metavar="OUT")
    ap.add_argument("--base", help="the checkpoint OUT was made from")
    ap.add_argument("--text", help="default: the text in --logits, or a short sentence")
    ap.add_argument("--logits", metavar="FILE.json", help="logits to compare with")
    args = ap.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    expected = json.load(open(args.logits)) if args.logits else None
    if expected and args.text is not None and args.text != expected["text"]:
        ap.error("--text differs from the text in --logits")
    text = expected["text"] if expected else args.text or "The river ran slowly past the house."

    model, info = AutoModelForCausalLM.from_pretrained(args.out, dtype=torch.float32, output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained(args.out)
    problems = [f"{kind}: {sorted(map(str, info[kind]))}" for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if info[kind]]
    ids = tokenizer(text).input_ids
    with torch.no_grad():
        logits = model.eval()(torch.tensor([ids])).logits[0, -1]
    line = {"text": text, "ids": ids, "argmax": int(logits.argmax()), "logits": logits[:8].tolist()}

    if args.base:
        found, line["changed"] = compare_with_base(args.out, args.base)
        problems += found
        if AutoTokenizer.from_pretrained(args.base)(text).input_ids != ids:
            problems.append("the base's tokenizer gives other ids")
    if expected:
        theirs = torch.tensor(expected["logits"])
        if theirs.shape != logits.shape:
            problems.append(f"{len(theirs)} logits given, the vocabulary has {len(logits)}")
        else:
            line["relative_difference"] = float((logits - theirs).abs().max() / logits.abs().max())
            if not line["relative_difference"] <= TOLERANCE:
                problems.append(f"logits differ by {line['relative_difference']:.2e} of the largest, more than {TOLERANCE}")
    print(json.dumps(line))
    for problem in problems:
        print(f"check_transformers: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
