#!/usr/bin/env python3
"""Kills irepair (SIGKILL) at random moments, goes on with the same command, and compares the bytes.

    python scripts/check_kills.py [--irepair target/release/irepair] [--kills 20] [--seed 1]

Five kinds of work, so many kills each: a repair of blocks, one of neurons, `eval`, `generate` and
`compare`, on a tiny model of the tests. A moment is drawn over the whole length of the work; every
third work is killed a second time. A killed work goes on with --resume if there is something to go on
with, and without it if there is not. Everything that does not hold times must then have the bytes of
work that nobody killed. Prints a line a kind, and ends with 1 if anything differs.
"""
import argparse
import contextlib
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
# What says how long something took, or on what machine.
TIMED = re.compile(
    r'"(seconds|seconds_[a-z]+|[a-z_]*_seconds|peak_rss_mib|created|started|operations)":\s*[^,}\n]*'
)
MODEL, PAIRS = "tests/golden/gpt2", "data/demo/pairs.jsonl"
PROMPTS, TEXT = "data/demo/prompts.jsonl", "data/demo/clean.txt"
SHORT = ["--eval-steps", "4", "--save-steps", "3", "--normal-texts", "40", "--valid-size", "16", "--limit", "64"]
WORKS = {
    "repair": ["repair", "-q", "--model", MODEL, "--data", PAIRS, *SHORT, "--max-steps", "30"],
    "neurons": ["repair", "-q", "--model", MODEL, "--data", "data/demo/edits.jsonl", "--method", "star", "--limit", "12"],
    "eval": ["eval", "-q", "--model", MODEL, "--toxicity", "rtp", "--samples", "3", "--prompts", PROMPTS,
             "--ppl", TEXT, "--kl", MODEL, "--normal-texts", "24"],
    "generate": ["generate", "-q", "--model", MODEL, "--unconditional", "2000", "--max-new-tokens", "24",
                 "--scorer", "words"],
    "compare": ["compare", "-q", "--model", MODEL, "--data", PAIRS, "--methods", "irepair,dapt", *SHORT,
                "--max-steps", "8", "--eval-prompts", PROMPTS, "--ppl", TEXT],
}


def contents(out):
    """Hashes of what must not depend on when and how it was made."""
    if out.is_file():
        return {"texts": hashlib.sha256(out.read_bytes()).hexdigest()}
    found = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name = str(path.relative_to(out))
        # Tables of what runs took, marks of a run, and pages that show both.
        if path.name in (".lock", "plan.json") or re.search(r"(cost|compute)[^/]*$", name):
            continue
        data = path.read_bytes()
        if path.suffix in (".json", ".jsonl"):
            data = TIMED.sub("", data.decode()).encode()
        elif path.suffix in (".md", ".tex", ".csv", ".html"):
            continue
        if path.name in ("run.json", "results.json", "compare.json"):
            continue
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def leftovers(out):
    return [p.name for p in out.parent.iterdir() if p.name.startswith(out.name + ".")]


def check(kind, args, folder, draw):
    def command(out, resume=False):
        return [args.irepair, *WORKS[kind], "--out", str(out), *(["--resume"] if resume else [])]

    def env(number):
        # Nothing is kept from work to work: normal text is written anew. That so few steps mend
        # nothing is no failure here.
        own = {"IREPAIR_CACHE": str(folder / f"cache{number}"), "HF_HUB_OFFLINE": "1", "IREPAIR_FAIL_ON": "nothing"}
        return {**os.environ, **own}

    name = "texts.jsonl" if kind == "generate" else "out"
    whole = folder / f"whole-{name}"
    begun = time.monotonic()
    subprocess.run(command(whole), cwd=ROOT, env=env("-whole"), check=True, capture_output=True)
    takes = time.monotonic() - begun
    expected = contents(whole)
    killed = wrong = 0
    for number in range(args.kills):
        out = folder / f"{number}-{name}"
        for _ in range(1 + (number % 3 == 2)):
            resume = can_resume(kind, out)
            child = subprocess.Popen(command(out, resume), cwd=ROOT, env=env(number),
                                     stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
            try:
                child.wait(draw.random() * takes)
            except subprocess.TimeoutExpired:
                # `compare` works in processes of its own, which a full machine kills, too. It is stopped first:
                # a process that it begins after the others were listed would live on.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGSTOP)
                for process in reversed(descendants(child.pid)):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
                killed += 1
            child.wait()
            if is_done(kind, out):
                break
        if not is_done(kind, out):
            done = subprocess.run(command(out, can_resume(kind, out)), cwd=ROOT, env=env(number), capture_output=True)
            if done.returncode:
                print(f"{kind} {number}: {done.stderr.decode()[-500:]}")
                wrong += 1
                continue
        found = contents(out)
        differing = [n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n)]
        if differing or leftovers(out):
            print(f"{kind} {number}: {differing} {leftovers(out)}")
            wrong += 1
        shutil.rmtree(out) if out.is_dir() else out.unlink()
        shutil.rmtree(folder / f"cache{number}", ignore_errors=True)
    print(f"{kind}: {takes:.2f} s, {killed} kills, {wrong} of {args.kills} works differ", flush=True)
    return killed, wrong


def descendants(pid):
    found = [pid]
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            if parent == pid:
                found += descendants(int(entry.name))
    return found


def is_done(kind, out):
    marks = {"repair": "irepair/run.json", "neurons": "irepair/run.json", "eval": "results.json", "compare": "compare.json"}
    return out.exists() if kind == "generate" else (out / marks[kind]).is_file()


def can_resume(kind, out):
    """Whether --resume has something to go on with; `generate` goes on by itself."""
    if kind in ("repair", "neurons"):
        return any(pathlib.Path(f"{out}.partial").glob("irepair/state/*.safetensors"))
    return {"eval": (out / "work").is_dir(), "compare": (out / "plan.json").is_file()}.get(kind, False)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--irepair", default=str(ROOT / "target/release/irepair"))
    ap.add_argument("--kills", type=int, default=20)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--only", nargs="+", choices=sorted(WORKS), default=list(WORKS))
    args = ap.parse_args()
    args.irepair = str(pathlib.Path(args.irepair).resolve())
    kills = wrong = 0
    for kind in args.only:
        with tempfile.TemporaryDirectory() as folder:
            found = check(kind, args, pathlib.Path(folder), random.Random(f"{args.seed} {kind}"))
        kills, wrong = kills + found[0], wrong + found[1]
    print(json.dumps({"kills": kills, "differ": wrong}))
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
