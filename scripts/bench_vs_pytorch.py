#!/usr/bin/env python3
"""Times irepair against PyTorch on the same mathematics, in turn (A B A B …), and prints a table with ratios.

    scripts/bench_vs_pytorch.py [--irepair target/release/irepair] [--configs gpt2 gpt2-large] [--rounds 3]

The PyTorch side is `scripts/irepair_ref.py` (the reference that the golden numbers are made with; for generation it calls
`transformers`' own `generate`) in a virtual environment that this script makes (`.venv`), unless `--python` names an
interpreter that has torch and transformers. Run it on an otherwise idle machine; quote the ratios, not the seconds.
"""
import argparse, json, os, pathlib, platform, statistics, subprocess, sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
METHODS = {"irepair+kl": "irepair-kl", "irepair": "irepair", "dapt+kl": "dapt-kl", "dpo": "dpo", "generate": "generate"}


def interpreter(given):
    """An interpreter with torch and transformers: the given one, or that of `.venv`, made if need be."""
    if given:
        return given
    venv = ROOT / ".venv"
    python = venv / "bin" / "python"
    # An installation that was cut off leaves an interpreter without them.
    usable = python.exists() and subprocess.run([python, "-c", "import torch, transformers"]).returncode == 0
    if not usable:
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "torch", "transformers"], check=True)
    return str(python)


def processor():
    """What the processor calls itself."""
    try:
        names = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def run(command):
    """The last line of a program's output, as JSON."""
    env = dict(os.environ, OMP_WAIT_POLICY="passive")
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--irepair", default=str(ROOT / "target" / "release" / "irepair"))
    ap.add_argument("--python", help="an interpreter that has torch and transformers")
    ap.add_argument("--configs", nargs="+", default=["gpt2"], help="shapes that `irepair bench` knows")
    ap.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    ap.add_argument("--dtypes", nargs="+", default=["f32", "bf16"], choices=["f32", "bf16"],
                    help="bf16: mixed precision; PyTorch's under autocast")
    ap.add_argument("--rounds", type=int, default=3)
    ap.add_argument("--iterations", type=int, default=5)
    ap.add_argument("--prompts", nargs="+", type=int, default=[16], help="prompts that are continued together; a row for each")
    ap.add_argument("--threads", type=int, default=os.cpu_count())
    ap.add_argument("--device", default="cpu", help="cpu or cuda (an irepair built with it); memory is then still the host's")
    args = ap.parse_args()
    python = interpreter(args.python)
    versions = subprocess.run([python, "-c", "import torch, transformers; print(torch.__version__, transformers.__version__)"],
                              check=True, capture_output=True, text=True).stdout.split()
    print(f"{processor()}, {args.threads} threads; torch {versions[0]}, transformers {versions[1]};"
          f" {args.rounds} rounds of {args.iterations} iterations, 4 × 64 tokens (generation: prompts of 32, 64 new tokens)\n")
    products = run([args.irepair, "doctor", "--json"])["bf16_products"]
    if "bf16" in args.dtypes and args.device == "cpu" and "f32 is used" in products:
        print(f"irepair in mixed precision is left out: {products}\n")
        left_out = {("irepair", "bf16")}
    else:
        left_out = set()
    head = ["config", "method", "irepair", "irepair bf16", "PyTorch", "PyTorch bf16",
            "f32 / f32", "bf16 / f32", "bf16 / bf16", "memory: irepair", "irepair bf16", "PyTorch", "f32 / f32", "bf16 / f32"]
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for config in args.configs:
        rows = [(method, prompts) for method in args.methods for prompts in (args.prompts if method == "generate" else [4])]
        for method, batch in rows:
            # Generation has no mixed form in common use here.
            dtypes = ["f32"] if method == "generate" else args.dtypes
            runs = {(who, dtype): [] for dtype in dtypes for who in ("irepair", "PyTorch")
                    if (who, dtype) not in left_out}
            for _ in range(args.rounds):
                for who, dtype in runs:
                    runs[who, dtype].append(run(command(args, python, who, config, method, dtype, batch)))
            seconds = {k: statistics.median(r["median_s"] for r in v) for k, v in runs.items()}
            memory = {k: max(r["peak_rss_mib"] for r in v) for k, v in runs.items()}

            def ratio(ours, theirs):
                """Median over the rounds of the ratio within a round."""
                if ours not in runs or theirs not in runs:
                    return "–"
                return f"{statistics.median(a['median_s'] / b['median_s'] for a, b in zip(runs[ours], runs[theirs])):.2f}"

            ours, ours16, theirs, theirs16 = [(w, d) for w in ("irepair", "PyTorch") for d in ("f32", "bf16")]
            # 64 new tokens each.
            rate = lambda s: f" ({batch * 64 / s:.0f} tokens/s)" if method == "generate" else ""
            timed = lambda k: f"{seconds[k]:.3f} s{rate(seconds[k])}" if k in seconds else "–"
            name = f"generate, {batch} prompts" if method == "generate" else method
            cells = [config, name, *(timed(k) for k in (ours, ours16, theirs, theirs16)),
                     ratio(ours, theirs), ratio(ours16, theirs), ratio(ours16, theirs16),
                     *(f"{memory[k]} MiB" if k in memory else "–" for k in (ours, ours16, theirs)),
                     *(f"{memory[k] / memory[theirs]:.2f}" if k in memory else "–" for k in (ours, ours16))]
            print("| " + " | ".join(cells) + " |", flush=True)


def command(args, python, who, config, method, dtype, batch):
    """The command line of one measurement."""
    shape = ["--config", config, "--batch", str(batch), "--tokens", "64"]
    common = [*shape, "--iterations", str(args.iterations), "--threads", str(args.threads), "--device", args.device]
    if who == "irepair":
        return [args.irepair, "bench", "--method", method, "--dtype", dtype, *common]
    script = str(ROOT / "scripts" / "irepair_ref.py")
    mixed = ["--bf16"] if dtype == "bf16" else []
    return [python, script, "bench", "--irepair", args.irepair, "--method", METHODS[method], *mixed, *common]


if __name__ == "__main__":
    main()
