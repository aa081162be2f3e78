#!/usr/bin/env python3
"""From pairs, prompts and scored texts to what a study of online repairs needs, with nothing seen twice.

    python scripts/make_study_data.py --pairs PAIRS.jsonl --prompts PROMPTS.jsonl --scored SCORED.jsonl \\
        --text TEXT OUT

OUT gets `prompts.jsonl` (to sample from), `pairs.jsonl` (of the same prompts, for the offline methods),
`test.jsonl` (prompts to judge on: 150 of the pairs' and all of --prompts), `ppl.txt` (the first 120 kB of
--text), and three scorers made by `make_scorer.py`: `development` and `held` from disjoint halves of the
scored texts, `third` from all of them with another seed; that one is to be asked once, at the end. The
split has seed 11 (prompts) and 7 (texts). About ten minutes on two cores.
"""
import argparse
import json
import os
import random
import subprocess
import sys


def rows(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def write(path, found):
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
    print(f"{path}: {len(found)} rows")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("pairs", "prompts", "scored", "text"):
        ap.add_argument(f"--{name}", required=True)
    ap.add_argument("out")
    args = ap.parse_args()
    os.makedirs(args.out, exist_ok=True)
    at = lambda name: os.path.join(args.out, name)

    pairs = rows(args.pairs)
    prompts = sorted({pair["prompt"] for pair in pairs})
    random.Random(11).shuffle(prompts)
    held = set(prompts[:150])
    write(at("prompts.jsonl"), [{"prompt": prompt} for prompt in prompts[150:]])
    write(at("pairs.jsonl"), [pair for pair in pairs if pair["prompt"] not in held])
    others = [{"prompt": row["prompt"]} for row in rows(args.prompts)]
    write(at("test.jsonl"), [{"prompt": prompt} for prompt in prompts[:150]] + others)
    with open(args.text, encoding="utf-8") as text, open(at("ppl.txt"), "w", encoding="utf-8") as cut:
        cut.write(text.read(120_000))

    scored = rows(args.scored)
    random.Random(7).shuffle(scored)
    half = len(scored) // 2
    parts = {"development": (scored[:half], 1), "held": (scored[half:], 2), "third": (scored, 3)}
    maker = os.path.join(os.path.dirname(os.path.abspath(__file__)), "make_scorer.py")
    for name, (texts, seed) in parts.items():
        if os.path.exists(at(f"{name}/scorer.json")):
            continue
        write(at(f"{name}.jsonl"), texts)
        command = [sys.executable, maker, at(f"{name}.jsonl"), at(name), "--seed", str(seed)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
