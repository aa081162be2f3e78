#!/usr/bin/env python3
"""Does peft open an adapter of `irepair patch export`, and is it what irepair says?

    python scripts/check_peft.py BASE REPAIRED [--rank 64] [--irepair target/release/irepair]

BASE and REPAIRED are folders. An adapter of the highest rank must make the repaired model of the base, but for what irepair
left out: the matrices after `merge_and_unload` are compared with REPAIRED's. An adapter of --rank is opened, switched off (the
base's logits, to the bit), merged, and its KL from the repaired model measured over texts that REPAIRED samples here.
Needs torch, transformers, peft.
"""
import argparse
import json
import subprocess
import sys
import tempfile

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("base"), ap.add_argument("repaired")
    ap.add_argument("--rank", type=int, default=64)
    ap.add_argument("--irepair", default="target/release/irepair")
    args = ap.parse_args()
    torch.manual_seed(0)

    def export(rank):
        out = tempfile.mkdtemp()
        command = [args.irepair, "patch", "export", args.repaired, "--base", args.base, "--peft", "--rank", str(rank)]
        told = subprocess.run(command + ["--out", out + "/adapter", "--json"], check=True, capture_output=True, text=True)
        return out + "/adapter", json.loads(told.stdout)

    repaired = load(args.repaired)
    names = dict(repaired.named_parameters())
    changed = {name for name, p in load(args.base).named_parameters() if not torch.equal(p, names[name])}
    highest = max(min(names[name].shape) for name in changed if names[name].dim() == 2)

    folder, told = export(highest)
    merged = PeftModel.from_pretrained(load(args.base), folder).merge_and_unload()
    worst = 0.0
    for name, p in merged.named_parameters():
        module = name.removesuffix(".weight")
        if any(matrix["module"] == module for matrix in told["matrices"]):
            change = next(matrix["norm"] for matrix in told["matrices"] if matrix["module"] == module)
            worst = max(worst, ((p - names[name]).norm() / change).item())
    print(f"rank {highest}: {len(told['matrices'])} matrices, off by {worst:.1e} of their change")

    folder, told = export(args.rank)
    base = load(args.base)
    adapted = PeftModel.from_pretrained(load(args.base), folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.repaired)
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else repaired.config.eos_token_id
    with torch.no_grad():
        ids = repaired.generate(torch.full((32, 1), begin), attention_mask=torch.ones(32, 1, dtype=torch.long), do_sample=True,
                                top_p=0.9, top_k=0, max_new_tokens=48, pad_token_id=begin)
        with adapted.disable_adapter():
            off = (adapted(ids).logits - base(ids).logits).abs().max().item()
        apart = adapted(ids).logits
        joined = adapted.merge_and_unload()(ids).logits
        p = repaired(ids).logits.log_softmax(-1)
        kl = (p.exp() * (p - joined.log_softmax(-1))).sum(-1).mean().item()
        whole = (p.exp() * (p - base(ids).logits.log_softmax(-1))).sum(-1).mean().item()
    print(
        f"rank {args.rank}: {100 * told['captured']:.1f} % of the norm; switched off {off:.1e} from the base; merged "
        f"{(apart - joined).abs().max().item():.1e} from apart; KL from the repaired model {kl:.5f} here, "
        f"{told['kl_from_patched']:.5f} by irepair on other texts; the base's {whole:.5f}"
    )
    if worst > 1e-4 or off != 0.0 or (apart - joined).abs().max() > 1e-3:
        sys.exit("not what irepair says")


if __name__ == "__main__":
    main()
