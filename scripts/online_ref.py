#!/usr/bin/env python3
"""Plain PyTorch statement of online repair (`irepair repair --prompts P --scorer S`): oracle and peer.

    python scripts/online_ref.py check --model DIR --run OUT/irepair --lr LR --kl-weight W --beta B
    python scripts/online_ref.py bench --model DIR --scorer DIR --prompts FILE [--prompts-per-round 16]

`check` takes a run whose every step saw all pairs of its round (`--max-steps` equal to `--rounds`,
`--batch-size` equal to the number of pairs; constant rate, no warm-up, no clipping) and makes the same
steps from the base with transformers: DPO against the base plus KL on the run's normal texts, RMSProp. It
prints how far the weights are apart: the norm of the difference of all, relative to the norm of the change,
and the largest single one. Steps are made in double precision, or in single with --single, which shows what
rounding alone comes to: RMSProp makes whole steps of the smallest gradients. The pairs are those that the run
wrote (`rounds/*.pairs.jsonl`), and the greedy texts among them are compared with transformers' own.

`bench` times one round as a user of PyTorch writes it: sampling with `generate`, scoring with a
classifier, pairing, and DPO+KL steps; in seconds, part by part. irepair's own are in `steps.jsonl`.
"""
import argparse
import copy
import glob
import json
import random
import time

import torch
from irepair_ref import batch, kl_to_reference, only, rmsprop, sequence_logp
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer


def read(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def step(model, reference, optimizer, pairs, normal, beta, kl_weight):
    """One step of DPO on (prompt, chosen, rejected) ids plus KL(reference || model) on normal texts."""
    good = batch([(p, c) for p, c, _ in pairs], 0, False)
    bad = batch([(p, r) for p, _, r in pairs], 0, False)
    with torch.no_grad():
        ref = sequence_logp(reference, *good) - sequence_logp(reference, *bad)
    policy = sequence_logp(model, *good) - sequence_logp(model, *bad)
    loss = -torch.nn.functional.logsigmoid(beta * (policy - ref)).mean()
    if kl_weight:
        ids, attend, _ = batch([([], text) for text in normal], 0)
        loss = loss + kl_weight * kl_to_reference(model, reference, ids, attend)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return float(loss)


def check(args):
    dtype = torch.float32 if args.single else torch.float64
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype).eval()
    base = copy.deepcopy(model).requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    normal = [tokenizer(row["text"]).input_ids[: args.max_length] for row in read(args.normal)]
    optimizer = rmsprop(model, args.lr)
    if args.block is not None:
        only(model.requires_grad_(False), args.block)
    for path in sorted(glob.glob(f"{args.run}/rounds/[0-9]*.pairs.jsonl")):
        rows = read(path)
        for row in rows:
            for side in ("chosen", "rejected"):
                # The first sample of a round is greedy: transformers must say the same.
                if row[side]["sample"] % args.samples == 0:
                    ids = torch.tensor([row["prompt_ids"]])
                    with torch.no_grad():
                        said = model.generate(
                            ids,
                            attention_mask=torch.ones_like(ids),
                            max_new_tokens=len(row[side]["ids"]),
                            do_sample=False,
                            pad_token_id=0,
                        )
                    said = said[0, ids.shape[1] :].tolist()
                    assert said == row[side]["ids"], f"{path}: greedy {said} and {row[side]['ids']}"
        pairs = [(r["prompt_ids"], r["chosen"]["ids"], r["rejected"]["ids"]) for r in rows]
        # KL is not asked for before anything differs: see the module `step::objective`.
        weight = args.kl_weight if optimizer.state else 0.0
        loss = step(model, base, optimizer, pairs, normal, args.beta, weight)
        print(f"{path}: {len(pairs)} pairs, loss {loss:.6f}")
    repaired = AutoModelForCausalLM.from_pretrained(args.repaired, dtype=dtype)
    largest, worst, change, apart = 0.0, 0.0, 0.0, 0.0
    theirs = dict(repaired.named_parameters())
    before = dict(base.named_parameters())
    for name, value in model.named_parameters():
        largest = max(largest, float((value - before[name]).abs().max()))
        worst = max(worst, float((value - theirs[name]).abs().max()))
        change += float((value - before[name]).double().square().sum())
        apart += float((value - theirs[name]).double().square().sum())
    print(json.dumps({"relative_difference": (apart / change) ** 0.5, "norm_of_change": change**0.5,
                      "largest_change": largest, "largest_difference": worst}))


def bench(args):
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    reference = copy.deepcopy(model).requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    judge = AutoModelForSequenceClassification.from_pretrained(args.scorer).eval()
    words = AutoTokenizer.from_pretrained(args.scorer)
    prompts = [row.get("prompt") or row["text"] for row in read(args.prompts)][: args.prompts_per_round]
    times = {}
    begun = time.perf_counter()
    texts = []
    with torch.no_grad():
        for at in range(0, len(prompts), args.batch // args.samples or 1):
            own = prompts[at : at + (args.batch // args.samples or 1)]
            ids = tokenizer(own, return_tensors="pt", padding=True, truncation=True, max_length=64)
            said = model.generate(
                **ids,
                max_new_tokens=args.new_tokens,
                do_sample=True,
                top_p=0.9,
                top_k=0,
                num_return_sequences=args.samples,
                pad_token_id=tokenizer.pad_token_id,
            )
            said = said[:, ids.input_ids.shape[1] :]
            texts += [tokenizer.decode(row, skip_special_tokens=True) for row in said]
    times["sampling"] = time.perf_counter() - begun
    begun = time.perf_counter()
    scores = []
    with torch.no_grad():
        for at in range(0, len(texts), 64):
            ids = words(texts[at : at + 64], return_tensors="pt", padding=True, truncation=True, max_length=128)
            scores += torch.sigmoid(judge(**ids).logits[:, 0]).tolist()
    times["scoring"] = time.perf_counter() - begun
    pairs = []
    for number, prompt in enumerate(prompts):
        own = range(number * args.samples, (number + 1) * args.samples)
        bad = [texts[i] for i in own if scores[i] >= 0.5]
        good = [texts[i] for i in own if scores[i] <= 0.25 and texts[i].strip()]
        random.shuffle(bad), random.shuffle(good)
        ids = tokenizer(prompt).input_ids[:64]
        for b, g in list(zip(bad, good))[:6]:
            pairs.append((ids, tokenizer(g).input_ids, tokenizer(b).input_ids))
    while pairs and len(pairs) < args.steps * 4:
        pairs += pairs
    normal = [torch.randint(0, 1000, (64,)).tolist() for _ in range(args.steps * 4)]
    model.requires_grad_(True)
    optimizer = rmsprop(model, 1e-5)
    begun = time.perf_counter()
    made = args.steps if pairs else 0
    for i in range(made):
        step(model, reference, optimizer, pairs[4 * i : 4 * i + 4], normal[4 * i : 4 * i + 4], 0.1, 4.0)
    times["steps"] = time.perf_counter() - begun
    toxic = sum(score >= 0.5 for score in scores)
    print(json.dumps({"texts": len(texts), "toxic": toxic, "pairs": len(pairs), "steps": made,
                      **{name: round(seconds, 2) for name, seconds in times.items()},
                      "seconds": round(sum(times.values()), 2)}))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = ap.add_subparsers(dest="verb", required=True)
    c = sub.add_parser("check")
    c.add_argument("--model", required=True)
    c.add_argument("--run", required=True, help="irepair/ of the output")
    c.add_argument("--repaired", required=True, help="the output")
    c.add_argument("--normal", required=True)
    c.add_argument("--block", type=int, help="the block that a run with --blocks changed alone")
    c.add_argument("--single", action="store_true", help="steps in single precision")
    c.add_argument("--lr", type=float, required=True)
    c.add_argument("--kl-weight", type=float, default=4.0)
    c.add_argument("--beta", type=float, default=0.1)
    c.add_argument("--samples", type=int, default=16)
    c.add_argument("--max-length", type=int, default=128)
    b = sub.add_parser("bench")
    b.add_argument("--model", required=True)
    b.add_argument("--scorer", required=True)
    b.add_argument("--prompts", required=True)
    b.add_argument("--prompts-per-round", type=int, default=16)
    b.add_argument("--samples", type=int, default=16)
    b.add_argument("--new-tokens", type=int, default=20)
    b.add_argument("--steps", type=int, default=10)
    b.add_argument("--batch", type=int, default=64)
    b.add_argument("--threads", type=int, default=2)
    args = ap.parse_args()
    {"check": check, "bench": bench}[args.verb](args)


if __name__ == "__main__":
    main()
