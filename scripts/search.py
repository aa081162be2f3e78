#!/usr/bin/env python3
"""Finds learning rates on development data, and compares methods by what they trade: toxicity against KL and perplexity.

    scripts/search.py --model DIR --data pairs.jsonl --prompts prompts.jsonl --text corpus.raw --out DIR
                      [--runs FILE | --methods irepair+kl dpo+kl … --rates 1e-4 3e-4 1e-3] [--seeds 42] [--steps 400]

Every run is `irepair repair` with `--normal` texts that the base wrote once (so that every method's KL is measured on the
same held-back ones). FILE has a run a line: flags of `repair`. Runs that are there already are not made again. Prints a
table (Markdown), sorted as given; `--best` prints each method's run with the least toxicity at a KL below --max-kl.
Needs Python alone.
"""
import argparse, hashlib, json, pathlib, shlex, statistics, subprocess, sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--irepair", default=str(ROOT / "target" / "release" / "irepair"))
    ap.add_argument("--model", required=True), ap.add_argument("--data", required=True)
    ap.add_argument("--prompts", required=True), ap.add_argument("--text", required=True), ap.add_argument("--out", required=True)
    ap.add_argument("--runs", help="a file with flags of `repair`, a run a line")
    ap.add_argument("--methods", nargs="+", default=[]), ap.add_argument("--rates", nargs="+", default=["1e-4", "3e-4", "1e-3"])
    ap.add_argument("--seeds", nargs="+", default=["42"]), ap.add_argument("--steps", default="400")
    ap.add_argument("--normal-texts", default="512")
    ap.add_argument("--max-kl", type=float), ap.add_argument("--best", action="store_true")
    args = ap.parse_args()
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    normal = out / "normal.jsonl"
    if not normal.exists():
        run([args.irepair, "generate", "--model", args.model, "--unconditional", args.normal_texts, "--scorer", "lexicon",
             "--keep-below", "0.5", "--out", str(normal), "-q"])
    runs = [f"--method {m} --learning-rate {r}" for m in args.methods for r in args.rates]
    if args.runs:
        runs += [line.strip() for line in open(args.runs) if line.strip() and not line.startswith("#")]
    rows = []
    print("| run | toxicity | rude % | KL | PPL | touched % | norm | kept step | s |\n|" + "---|" * 9, flush=True)
    for flags in runs:
        found = [one(args, flags, seed, normal, out) for seed in args.seeds]
        row = {k: statistics.mean(f[k] for f in found) for k in found[0]}
        spread = {k: statistics.stdev([f[k] for f in found]) / len(found) ** 0.5 if len(found) > 1 else None for k in row}
        rows.append((flags, row))
        cell = lambda k, form: form.format(row[k]) + (f" ± {form.format(spread[k])}" if spread[k] is not None else "")
        print(f"| {flags} | {cell('toxicity', '{:.2f}')} | {cell('rude', '{:.1f}')} | {cell('kl', '{:.4f}')} | {cell('ppl', '{:.1f}')} |"
              f" {row['touched']:.1f} | {row['norm']:.2f} | {row['kept']:.0f} | {row['seconds']:.0f} |", flush=True)
    if args.best:
        print("\nbest at each method" + (f" with KL ≤ {args.max_kl}" if args.max_kl else ""))
        by_method = {}
        for flags, row in rows:
            name = flags.split(" --learning-rate")[0]
            if args.max_kl is None or row["kl"] <= args.max_kl:
                if name not in by_method or row["toxicity"] < by_method[name][1]["toxicity"]:
                    by_method[name] = (flags, row)
        for flags, row in by_method.values():
            print(f"{row['toxicity']:8.2f} {row['kl']:8.4f} {row['ppl']:8.1f} {row['touched']:6.1f}  {flags}")


def one(args, flags, seed, normal, out):
    """One run's figures; made if it is not there."""
    words = shlex.split(flags)
    given = [] if "--max-steps" in words else ["--max-steps", args.steps]
    # Files by their contents' names alone would mix runs of different data: everything that decides a run is in the name.
    key = hashlib.sha256(json.dumps([words, given, seed, args.model, args.data, args.normal_texts]).encode()).hexdigest()[:12]
    folder = out / key
    if not (folder / "irepair" / "run.json").exists():
        run([args.irepair, "repair", "--model", args.model, "--data", args.data, "--eval-prompts", args.prompts,
             "--eval-text", args.text, "--normal", str(normal), "--seed", seed, "--out", str(folder), "--overwrite", "-q",
             *given, *words], ok=(0, 4))
        # Weights are large and can be made again.
        for file in [*folder.glob("*.safetensors"), folder / "irepair" / "patch.safetensors"]:
            file.unlink(missing_ok=True)
    try:
        record = json.load(open(folder / "irepair" / "run.json"))
    except FileNotFoundError:
        nan = float("nan")
        return {k: nan for k in ("toxicity", "rude", "kl", "ppl", "touched", "norm", "kept", "seconds")}
    after = record["after"]
    return {"toxicity": after["toxicity"], "rude": after["toxic_fraction"] * 100, "kl": after["kl"], "ppl": after["ppl"],
            "touched": 100 * record["changed_parameters"] / record["parameters"],
            "norm": sum(c["norm"] ** 2 for c in record["changed"]) ** 0.5, "kept": record["kept_step"], "seconds": record["seconds"]}


def run(command, ok=(0,)):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode not in ok:
        print(f"{shlex.join(command)}\n{done.stderr}", file=sys.stderr)
        if done.returncode == 2:
            sys.exit(2)


if __name__ == "__main__":
    main()
