#!/usr/bin/env python3
"""The runs of a comparison with several seeds as one table, with intervals over prompts and seeds.

    python scripts/pool_seeds.py COMPARED [--greedy DIR] [--texts FILE] [--scores FILE] [--draw ROW --count 24]

COMPARED is the folder of `irepair compare … --toxicity rtp`. A value is the mean over the seeds; its 95 %
interval is the bootstrap's, of prompts (texts, windows) and seeds at once, 2,000 times. Perplexities are
changes from the base on the same windows. `--greedy` names a folder of `irepair eval --toxicity` of the base
and of the runs, for a column more.

A further judge: `--texts FILE` writes every continuation to FILE, `irepair score` scores them, and
`--scores FILE` puts what it wrote into a column. `--draw ROW` prints so many continuations of the base and
of that row, of prompts and seeds drawn with seed 1.
"""
import argparse
import json
import os
import random

import numpy as np

TIMES = 2000


def rows(path):
    with open(path, encoding="utf-8") as lines:
        return [row for row in map(json.loads, lines) if "row" in row]


def found(folder, task):
    """Rows of a task of a finished evaluation, by row and sample."""
    names = [name for name in os.listdir(folder) if name.endswith(".jsonl") and f"-{task}" in name]
    kept = rows(os.path.join(folder, names[0])) if names else []
    return {(row["row"], row.get("sample", 0)): row for row in kept}


def interval(values, statistic):
    """`values`: seeds × units (× …); `statistic` gives a number of such an array."""
    values, draw = np.asarray(values, float), np.random.default_rng(1)
    seeds, units = values.shape[:2]
    many = []
    for _ in range(TIMES):
        some = values[draw.integers(seeds, size=seeds)][:, draw.integers(units, size=units)]
        many.append(statistic(some))
    return statistic(values), *np.percentile(many, [2.5, 97.5])


def shown(value, digits=1):
    middle, low, high = (f"{v:.{digits}f}" for v in value)
    return f"{middle} [{low}, {high}]"


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("compared")
    ap.add_argument("--greedy")
    ap.add_argument("--texts")
    ap.add_argument("--scores")
    ap.add_argument("--draw")
    ap.add_argument("--count", type=int, default=24)
    args = ap.parse_args()
    evals = os.path.join(args.compared, "eval")
    base = {task: found(os.path.join(evals, "vanilla"), task) for task in ("toxicity", "kl", "ppl", "lambada")}
    prompts = sorted(base["toxicity"])

    methods = {"base": [(None, base)]}
    for name in sorted(os.listdir(evals)):
        row, _, seed = name.rpartition("-seed")
        folder = os.path.join(evals, name)
        if row and seed.isdigit() and os.path.exists(os.path.join(folder, "results.json")):
            tasks = {task: found(folder, task) for task in base}
            methods.setdefault(row, []).append((int(seed), tasks))

    if args.texts:
        with open(args.texts, "w", encoding="utf-8") as file:
            for row, runs in methods.items():
                for seed, tasks in runs:
                    for key in prompts:
                        text = tasks["toxicity"][key]["continuation"]
                        about = {"of": row, "seed": seed, "key": key, "text": text}
                        file.write(json.dumps(about, ensure_ascii=False) + "\n")
    others = {}
    if args.scores:
        with open(args.scores, encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                others[row["of"], row["seed"], tuple(row["key"])] = row["score"]
    greedy = greedy_rows(args.greedy) if args.greedy else {}

    columns = ["", "seeds", "toxic (%)", "toxicity"]
    columns += ["toxic, greedy (%)"] if greedy else []
    columns += ["toxic, other judge (%)"] if others else []
    columns += ["KL", "WikiText-2 (%)", "LAMBADA (%)", "empty", "changed (%)", "texts", "seconds"]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row, runs in sorted(methods.items(), key=lambda item: -level(item[1], prompts)):
        print("| " + " | ".join(cells(args, row, runs, base, prompts, greedy, others)) + " |")

    if args.draw:
        drawn = random.Random(1)
        for _ in range(args.count):
            seed, tasks = drawn.choice(methods[args.draw])
            key = drawn.choice(prompts)
            before, after = base["toxicity"][key], tasks["toxicity"][key]
            one_line = lambda text: " ".join(text.split())
            print(f"\n{one_line(before['prompt'])} …")
            for what, text in (("before", before), (f"after, seed {seed}", after)):
                print(f"- {what} ({text['score']:.2f}): {one_line(text['continuation'])}")


def level(runs, prompts):
    return np.mean([[tasks["toxicity"][key]["score"] >= 0.5 for key in prompts] for _, tasks in runs])


def greedy_rows(folder):
    """Greedy continuations by the sha256 of the weights."""
    with open(os.path.join(folder, "results.json"), encoding="utf-8") as file:
        results = json.load(file)
    by_weights = {}
    for measured in results["measurements"]:
        for on in measured["models"] if measured["task"] == "toxicity" else []:
            scored = rows(os.path.join(folder, on["rows"]))
            by_weights[results["models"][on["model"]]["sha256"]] = [row["score"] for row in scored]
    return by_weights


def cells(args, row, runs, base, prompts, greedy, others):
    share = lambda a: 100 * a.mean()
    scores = [[tasks["toxicity"][key]["score"] for key in prompts] for _, tasks in runs]
    toxic = np.asarray(scores) >= 0.5
    yield row
    yield str(len(runs))
    yield shown(interval(toxic, share))
    yield shown(interval(scores, share))
    if greedy:
        evals = os.path.join(args.compared, "eval")
        folders = ["vanilla" if seed is None else f"{row}-seed{seed}" for seed, _ in runs]
        weights = []
        for folder in folders:
            with open(os.path.join(evals, folder, "results.json"), encoding="utf-8") as file:
                weights.append(json.load(file)["models"][0]["sha256"])
        has = [greedy[sha] for sha in weights if sha in greedy]
        yield shown(interval(np.asarray(has) >= 0.5, share)) if has else "–"
    if others:
        of = [[others[row, seed, key] for key in prompts] for seed, _ in runs]
        yield shown(interval(np.asarray(of) >= 0.5, share))
    kept = sorted(base["kl"])
    kl = [[(tasks["kl"][key]["nats"], tasks["kl"][key]["tokens"]) for key in kept] for _, tasks in runs]
    ratio = lambda a: a[..., 0].sum() / a[..., 1].sum()
    yield shown(interval(kl, ratio), 4) if row != "base" else "0"
    for task in ("ppl", "lambada"):
        units = sorted(base[task])
        nats = lambda r: (r["nats"], r["tokens"]) if "nats" in r else (-r["logp"], 1)
        both = [[(*nats(tasks[task][key]), nats(base[task][key])[0]) for key in units] for _, tasks in runs]
        change = lambda a: 100 * (np.exp((a[..., 0].sum() - a[..., 2].sum()) / a[..., 1].sum()) - 1)
        yield shown(interval(both, change), 2) if row != "base" else "0"
    yield f"{np.mean([[not t['toxicity'][k]['continuation'].strip() for k in prompts] for _, t in runs]):.3f}"
    made = [record(args.compared, row, seed) for seed, _ in runs if seed is not None]
    mean = lambda values: f"{np.mean(values):.0f}"
    yield "–" if not made else f"{np.mean([m[0] for m in made]):.1f}"
    yield "–" if not made else mean([m[1] for m in made])
    yield "–" if not made else mean([m[2] for m in made])


def record(compared, row, seed):
    """Share of the parameters that changed (%), texts that the scorer saw, seconds."""
    run = os.path.join(compared, "runs", f"{row}-seed{seed}", "irepair")
    with open(os.path.join(run, "run.json"), encoding="utf-8") as file:
        made = json.load(file)
    texts = 0
    rounds = os.path.join(run, "rounds")
    if os.path.isdir(rounds):
        names = [name for name in os.listdir(rounds) if name.endswith(".jsonl") and ".pairs" not in name]
        units = [json.loads(line) for name in names for line in open(os.path.join(rounds, name), encoding="utf-8")]
        texts = sum(len(unit.get("rows", [])) for unit in units)
    return 100 * made["changed_parameters"] / made["parameters"], texts, made["seconds"]


if __name__ == "__main__":
    main()
