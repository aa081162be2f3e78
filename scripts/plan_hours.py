#!/usr/bin/env python3
"""How long a comparison would take: every method on every model, without making a run.

    python scripts/plan_hours.py --data PAIRS.jsonl [--prompts PROMPTS.jsonl] [--scorer S] [--seeds 3] [--steps 400] \\
        [--irepair target/release/irepair] [--methods a,b,c] MODEL...

`irepair repair --dry-run` times a step, a few texts and a window of each method on this machine. The table has the hours of
one run, and the last line those of all seeds. What an evaluation takes beside the run's own is not in it.
"""
import argparse
import json
import subprocess
import sys

METHODS = (
    "irepair,irepair+kl,irepair-min+kl,irepair-fixed+kl,dapt,dapt+kl,dpo,dpo+kl,trial-dpo+kl,trial-dpo-ul+kl,"
    "online-dpo+kl,online-dpo-max+kl"
)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("models", nargs="+")
    ap.add_argument("--data", required=True)
    ap.add_argument("--prompts")
    ap.add_argument("--scorer", default="words")
    ap.add_argument("--seeds", type=int, default=3)
    ap.add_argument("--steps", type=int, default=400)
    ap.add_argument("--methods", default=METHODS)
    ap.add_argument("--irepair", default="target/release/irepair")
    args = ap.parse_args()
    models = [model.rstrip("/") for model in args.models]
    print("| hours of a run | " + " | ".join(model.split("/")[-1] for model in models) + " |")
    print("|---|" + "---:|" * len(models))
    total = 0.0
    for method in args.methods.split(","):
        cells = []
        for model in models:
            rows = ["--prompts", args.prompts] if method.startswith("online") else ["--data", args.data]
            if rows[1] is None:
                sys.exit(f"{method}: give --prompts")
            command = [args.irepair, "repair", "--dry-run", "--json", "--model", model, "--method", method, *rows]
            command += ["--scorer", args.scorer, "--max-steps", str(args.steps)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{method} on {model}: {done.stderr.strip().splitlines()[-1]}")
            hours = sum(phase["seconds"] for phase in json.loads(done.stdout)["time"]) / 3600
            total += hours
            cells.append(f"{hours:.2f}")
        print(f"| {method} | " + " | ".join(cells) + " |", flush=True)
    print(f"\n{args.seeds} seeds of all: {args.seeds * total:.0f} hours of this machine")


if __name__ == "__main__":
    main()
