#!/usr/bin/env python3
"""Repairs the demo's failures with every method and prints what each is worth as a table.

    python scripts/compare_edits.py [--irepair target/release/irepair] [--out edits]        needs Python alone

Each method makes one model in which all failures are repaired (OUT/METHOD, with its settings in irepair/run.json), and
`irepair eval` measures them together (OUT/evaluated). IRepair learns from the same failures as pairs: the target is chosen,
what the model says is rejected.
"""
import argparse, json, os, subprocess, tempfile
from pathlib import Path

RUNS = {
    "star": ["--method", "star"],
    "star, 1/4 of the neurons": ["--method", "star", "--neurons", "1/4"],
    "star, one block": ["--method", "star", "--block-sparsity", "one"],
    "star, iterative": ["--method", "star", "--mode", "iterative"],
    "mint": ["--method", "mint"],
    "sgd": ["--method", "sgd"],
    "sgd, iterative": ["--method", "sgd", "--mode", "iterative"],
    # 4 pairs × 100 steps: each failure is seen 33 times.
    "irepair+kl": ["--method", "irepair+kl", "--batch-size", "4", "--max-steps", "100", "--valid-size", "0", "--eval-steps", "0"],
}
FIGURES = ["targets said, generated (%)", "generalization, generated (%)", "specificity, generated (%)", "perplexity",
           "KL from the base (nats a token)"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--irepair", default="target/release/irepair")
    parser.add_argument("--out", default="edits")
    args = parser.parse_args()
    data, out = Path(__file__).parent.parent / "data/demo", Path(args.out)
    rows = [json.loads(line) for line in (data / "edits.jsonl").read_text().splitlines()]
    failures = [row for row in rows if row["kind"] == "failure"]
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder) / "failures.jsonl"
        pairs.write_text("".join(json.dumps(row) + "\n" for row in failures))
        for name, flags in RUNS.items():
            model = out / "".join(c if c.isalnum() or c == "+" else "-" for c in name.replace(", ", "-"))
            command = [args.irepair, "repair", *flags, "--data", str(pairs), "--out", str(model), "--overwrite", "-q"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 4:
                print(f"{name}: {done.stderr.strip()}")
                continue
            if done.returncode:
                raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
            made[name] = model
    models = [flag for model in ["demo", *made.values()] for flag in ("--model", str(model))]
    command = [args.irepair, "eval", *models, "--edits", "--ppl", str(data / "clean.txt"), "--kl", "demo",
               "--out", str(out / "evaluated"), "--overwrite", "-q", "--json"]
    results = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print("| | " + " | ".join(FIGURES) + " | neurons | seconds a failure |\n|---|" + "---|" * (len(FIGURES) + 2))
    for index, name in enumerate(["before", *made]):
        found = {f["name"]: f["value"] for m in results["measurements"] for on in m["models"] if on["model"] == index
                 for f in on["figures"]}
        cells = [f"{found[figure]:.3g}" if figure.startswith("KL") else f"{found[figure]:.4g}" for figure in FIGURES]
        changed = results["models"][index].get("changed")
        neurons = "" if not changed else "–" if changed["neurons"] is None else str(changed["neurons"])
        seconds = "" if not changed else f"{changed['seconds'] / len(failures):.3f}"
        print("| " + " | ".join([name, *cells, neurons, seconds]) + " |")


if __name__ == "__main__":
    main()
