#!/usr/bin/env python3
"""Write what `neuron_ref.py` computes on golden checkpoints, for tests/parity/neurons.rs.

    python scripts/make_golden_neuron.py [--out tests/golden]

OUT/NAME/neuron.json, OUT/NAME/neuron.safetensors for NAME in CHECKPOINTS (made by make_golden.py). All of it is computed
in double precision; the same in single precision must give the same chosen blocks, neurons and edits, and weights that
are as near as the tests ask.
"""
import argparse
import json
import os
import sys

os.environ["OMP_NUM_THREADS"] = "1"
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import neuron_ref as ref

CHECKPOINTS = ("gpt2", "gpt-neo")
# The second is as the model has it already (its greedy continuation is filled in).
ROWS = [
    {"prompt": "The old boat on the river", "target": " drifted home."},
    {"prompt": "Tea at noon", "target": None},
    {"prompt": "My neighbour is", "target": " a kind man."},
    {"prompt": "When the rain came", "target": " we ran."},
]
SHARE, FRACTION = 0.5, 1 / 16
# MINT's steps are small: it also gets this many tokens that the model misses by little.
NEAR = 3
# Of STAR token by token over all rows. In 10 a token, some gradient that matters comes within 4e-8 of the largest one of zero,
# and its sign is a matter of rounding; in 3, none within 1e-6.
TOKEN_STEPS = 3
# Those that go token by token call `after` after each of them.
VARIANTS = {
    "batch": lambda m, rows, after: ref.batch(m, rows),
    "iterative": lambda m, rows, after: ref.iterative(m, rows, steps=TOKEN_STEPS, after=after),
    "sparse": lambda m, rows, after: ref.batch(m, rows, share=SHARE, fraction=FRACTION),
    "one": lambda m, rows, after: ref.iterative(m, rows, share="one", fraction=0.25, steps=TOKEN_STEPS, after=after),
    "sgd": lambda m, rows, after: ref.batch(m, rows, direction="sgd"),
    "sgd_sparse": lambda m, rows, after: ref.iterative(m, rows, direction="sgd", share=SHARE, fraction=FRACTION, after=after),
    "mint": lambda m, rows, after: ref.mint(m, rows, after=after),
}
TOLERANCE = 1e-5
# Of the sums over changes, which are small beside the weights.
SUM_TOLERANCE = 5e-5


def load(folder, dtype):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def rows_of(folder):
    tokenizer, model = AutoTokenizer.from_pretrained(folder), load(folder, torch.float64)
    rows, texts = [], []
    for row in ROWS:
        prompt = tokenizer(row["prompt"]).input_ids
        if row["target"] is None:
            ids = list(prompt)
            for _ in range(3):
                ids.append(int(ref.argmax(model, [(ids, [0])])[0]))
            target = ids[len(prompt):]
        else:
            target = tokenizer(row["target"]).input_ids
        rows.append((prompt, target))
        texts.append({"prompt": prompt, "target": target})
    return rows, texts


def near_misses(folder, rows):
    """Prefixes whose second likeliest token is the target, those first that it is the nearest to."""
    model, found = load(folder, torch.float64), {}
    for prompt, target in rows:
        ids = prompt + target
        for end in range(1, len(ids)):
            with torch.no_grad():
                top = ref.forward(model, [(ids[:end], [0])])[0][0].softmax(-1).topk(2)
            found[tuple(ids[:end])] = (float(top.values[0] - top.values[1]), int(top.indices[1]))
    nearest = sorted(found.items(), key=lambda item: item[1][0])[:NEAR]
    return [(list(ids), [token]) for ids, (_, token) in nearest]


def weights(model):
    return {b: ref.w_out(model, b).detach().clone() for b in range(len(ref.blocks(model)))}


def run(folder, variant, rows, dtype):
    """What a variant returns, the weights after it, and after each token the sums over rows and columns of every block's
    change: (tokens, blocks × (C + 4C)). A weight that is off is off in two of them."""
    model, sums = load(folder, dtype), []
    base = weights(model)
    def after():
        change = [w - base[b] for b, w in weights(model).items()]
        sums.append(torch.cat([part for c in change for part in (c.sum(0), c.sum(1))]))
    found = VARIANTS[variant](model, rows, after)
    return found, weights(model), torch.stack(sums) if sums else None


def expect(folder):
    rows, texts = rows_of(folder)
    out = {"command": "python scripts/make_golden_neuron.py", "torch": torch.__version__,
           "transformers": transformers.__version__, "rows": texts, "steps": ref.STEPS, "token_steps": TOKEN_STEPS, "lr": ref.LEARNING_RATE,
           "share": SHARE, "fraction": FRACTION}
    tensors, exact = {}, load(folder, torch.float64)
    failing = ref.failing(exact, rows)
    assert len(failing) == 3, "one row must be right already"
    out["argmax"] = [ref.argmax(exact, [r]).tolist() for r in rows]
    b = ref.basis(exact)
    wrong, right = ref.argmax(exact, failing), [t for _, target in failing for t in target]
    steers = torch.stack([ref.steer(b, y, int(w)) for y, w in zip(right, wrong)])
    tensors |= {"basis": b, "steers": steers, "attribution": ref.attribution(exact, failing)}
    out["block_order"], out["skip_losses"] = ref.block_order(exact, failing)
    kept = ref.scope(exact, failing, SHARE, FRACTION)
    out["scope"] = {str(block): neurons for block, neurons in kept.items()}
    _, zs, loss = ref.gradients(exact, failing, dict.fromkeys(range(len(ref.blocks(exact)))))
    out["loss"] = loss
    for block, z in zs.items():
        tensors[f"delta.{block}"] = ref.delta(z, steers, None)
        tensors[f"delta_sparse.{block}"] = ref.delta(z, steers, kept.get(block, [])) if block in kept else torch.zeros(0)
    mint_rows = near_misses(folder, rows) + rows[:1]
    out["mint_rows"] = [{"prompt": prompt, "target": target} for prompt, target in mint_rows]
    for name in VARIANTS:
        own = mint_rows if name == "mint" else rows
        found, after, sums = run(folder, name, own, torch.float64)
        single, after_single, sums_single = run(folder, name, own, torch.float32)
        out[name] = found if name == "mint" else {"losses": found}
        for block, w in after.items():
            largest, worst = float(w.abs().max()), float((after_single[block].double() - w).abs().max())
            assert worst <= TOLERANCE * largest, f"{folder} {name} block {block}: {worst / largest:.1e} in single precision"
            tensors[f"{name}.{block}"] = w
        if sums is not None:
            worst = float(((sums_single.double() - sums).abs().amax(1) / sums.abs().amax(1).clamp(min=1e-12)).max())
            assert worst <= SUM_TOLERANCE, f"{folder} {name}: {worst:.1e} in single precision"
            tensors[f"{name}.after"] = sums
        if name == "mint":
            assert {m["repaired"] for m in found} == {True, False}, f"{folder}: MINT must repair some and give up on some"
            assert single == found, f"{folder}: MINT edits others in single precision"
    print(folder, out["scope"], out["block_order"], [(m["repaired"], len(m["edits"])) for m in out["mint"]], file=sys.stderr)
    return out, {name: t.detach().float().contiguous().clone() for name, t in tensors.items() if t.numel()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="tests/golden")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in CHECKPOINTS:
        numbers, tensors = expect(f"{args.out}/{name}")
        with open(f"{args.out}/{name}/neuron.json", "w") as f:
            f.write(json.dumps(numbers, indent=1) + "\n")
        save_file(tensors, f"{args.out}/{name}/neuron.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
