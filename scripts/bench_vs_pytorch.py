#!/usr/bin/env python3
"""Times irepair against PyTorch on the same mathematics, in turn (A B A B …), and prints a table with ratios.

    scripts/bench_vs_pytorch.py [--irepair target/release/irepair] [--configs gpt2 gpt2-large] [--rounds 3]

The PyTorch side is `scripts/irepair_ref.py` (the reference that the golden numbers are made with) and, for generation,
`transformers`' own `generate`; both run in a virtual environment that this script makes (`.venv`), unless `--python` names
an interpreter that has torch and transformers. Run it on an otherwise idle machine; quote the ratios, not the seconds.
"""
import argparse, json, os, pathlib, platform, statistics, subprocess, sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
METHODS = {"irepair+kl": "irepair-kl", "irepair": "irepair", "dapt+kl": "dapt-kl", "dpo": "dpo"}

GENERATE = """
import json, resource, sys, time, statistics, torch
from transformers import GPT2Config, GPT2LMHeadModel
torch.manual_seed(0); torch.set_num_threads(int(sys.argv[1])); torch.set_flush_denormal(True)
size = {"gpt2": (12, 12, 768), "gpt2-large": (36, 20, 1280)}[sys.argv[2]]
model = GPT2LMHeadModel(GPT2Config(n_layer=size[0], n_head=size[1], n_embd=size[2])).eval()
times = []
for i in range(4):
    ids = torch.randint(0, 50256, (16, 32))
    begun = time.perf_counter()
    with torch.no_grad():
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, min_new_tokens=64, do_sample=False, pad_token_id=50256)
    if i:
        times.append(time.perf_counter() - begun)
print(json.dumps({"median_s": statistics.median(times), "min_s": min(times),
                  "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}))
"""


def interpreter(given):
    """An interpreter with torch and transformers: the given one, or that of `.venv`, made if need be."""
    if given:
        return given
    venv = ROOT / ".venv"
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "torch", "transformers"], check=True)
    return str(python)


def run(command):
    """The last line of a program's output, as JSON."""
    env = dict(os.environ, OMP_WAIT_POLICY="passive")
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--irepair", default=str(ROOT / "target" / "release" / "irepair"))
    ap.add_argument("--python", help="an interpreter that has torch and transformers")
    ap.add_argument("--configs", nargs="+", default=["gpt2"], choices=["gpt2", "gpt2-large"])
    ap.add_argument("--methods", nargs="+", default=[*METHODS, "generate"], choices=[*METHODS, "generate"])
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--iterations", type=int, default=5)
    ap.add_argument("--threads", type=int, default=os.cpu_count())
    args = ap.parse_args()
    python = interpreter(args.python)
    versions = subprocess.run([python, "-c", "import torch, transformers; print(torch.__version__, transformers.__version__)"],
                              check=True, capture_output=True, text=True).stdout.split()
    print(f"{platform.processor() or platform.machine()}, {args.threads} threads; torch {versions[0]}, transformers {versions[1]};"
          f" {args.rounds} rounds of {args.iterations} iterations, 4 × 64 tokens (generation: 16 prompts of 32, 64 new tokens)\n")
    print("| config | method | irepair s | PyTorch s | time ratio | irepair MiB | PyTorch MiB | memory ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for config in args.configs:
        for method in args.methods:
            ours, theirs = [], []
            for _ in range(args.rounds):
                shape = ["--batch", "16", "--tokens", "64"] if method == "generate" else ["--batch", "4", "--tokens", "64"]
                ours.append(run([args.irepair, "bench", "--config", config, "--method", method, *shape,
                                 "--iterations", str(args.iterations), "--threads", str(args.threads)]))
                if method == "generate":
                    theirs.append(run([python, "-c", GENERATE, str(args.threads), config]))
                else:
                    theirs.append(run([python, str(ROOT / "scripts" / "irepair_ref.py"), "bench", "--config", config,
                                       "--method", METHODS[method], "--iterations", str(args.iterations),
                                       "--threads", str(args.threads)]))
            seconds = [statistics.median(r["median_s"] for r in runs) for runs in (ours, theirs)]
            memory = [max(r["peak_rss_mib"] for r in runs) for runs in (ours, theirs)]
            ratio = statistics.median(a["median_s"] / b["median_s"] for a, b in zip(ours, theirs))
            print(f"| {config} | {method} | {seconds[0]:.3f} | {seconds[1]:.3f} | {ratio:.2f} |"
                  f" {memory[0]} | {memory[1]} | {memory[0] / memory[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
