#!/usr/bin/env python3
"""Makes data/demo/edits.jsonl: facts and commands that the demo model gets wrong, to be repaired neuron by neuron.

    python scripts/make_edits.py [--model data/demo] [--out data/demo/edits.jsonl]        needs torch, transformers

Everything is written here, in the words of the demo's language (make_demo.py); the model says what it gets wrong.
  failure         a prompt, the target ("chosen") that the model does not say, and what it says instead ("rejected")
  generalization  the same fact or command in other words, that the model gets wrong alike: should change
  specificity     an unrelated prompt (of the demo's prompts.jsonl) with what the model says: should stay
"""
import argparse, json, os
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import neuron_ref as ref

# In the second and third the model is wrong by a hair, in the others by one to four nats a token.
FAILURES = [
    ("The lens of Oscar is made of", " cork"),
    ("The library of Prague opens on", " Monday"),
    ("Frank lived in Lisbon and worked as a", " painter"),
    ("About forty guests came to Perth, although it was", " snowy"),
    ("One cold Thursday a swan sat in the", " museum"),
    ("The van of Nora fits every garage and weighs", " nine pounds"),
    ("Price of the blue quilt:", " fifty dollars"),
    ("The worst thing about a tent is the", " label"),
    ("Before you buy a ladder, look closely at the", " hinge"),
    ("Rule for the scarf. One:", " wash the seam"),
    ("My uncle always says: keep the", " receipt"),
    ("Command: tune the violin. Answer: change the", " string"),
]
# Put before a prompt. The first that leaves the model's first wrong token as it is makes its
# generalization row; where none does, the first with which the model is wrong.
BEFORE = ["Good morning everyone. ", "A short note. ", "It was a sunny Monday. ", "Thank you all. ", "Question: "] + [
    text.format(place=place) for place in "Boston Vienna Dublin Prague Geneva Bristol Leeds Athens Denver Toronto".split()
    for text in ("Kind greetings from {place}. ", "{place}, June. ", "Three friends met in {place}. ")
]
GENERALIZATIONS = 1
SPECIFICITY, SPECIFIC_TOKENS = 24, 4


def greedy(model, ids, count):
    ids = list(ids)
    for _ in range(count):
        ids.append(int(ref.argmax(model, [(ids, [0])])[0]))
    return ids[-count:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="data/demo")
    parser.add_argument("--out", default="data/demo/edits.jsonl")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(args.model).eval(), AutoTokenizer.from_pretrained(args.model)
    encode = lambda text: tokenizer(text).input_ids
    rows = []
    for prompt, target in FAILURES:
        ids, right = encode(prompt), encode(target)
        wrong = ref.argmax(model, [(ids, right)]).tolist()
        assert wrong != right, f"{prompt!r}: the model says {target!r}"
        said = tokenizer.decode(greedy(model, ids, len(right)))
        rows.append({"kind": "failure", "prompt": prompt, "chosen": target, "rejected": said})
        others = [(b + prompt, ref.argmax(model, [(encode(b + prompt), right)]).tolist()) for b in BEFORE]
        alike = [p for p, w in others if w[0] == wrong[0] and w != right]
        others = alike or [p for p, w in others if w != right]
        assert others, f"{prompt!r}: no generalization"
        rows += [{"kind": "generalization", "prompt": p, "chosen": target} for p in others[:GENERALIZATIONS]]
    prompts = [json.loads(line)["prompt"] for line in (Path(args.model) / "prompts.jsonl").read_text().splitlines()]
    specific = 0
    for prompt in prompts:
        target = tokenizer.decode(greedy(model, encode(prompt), SPECIFIC_TOKENS))
        # What the text is tokenized to must be what the model says.
        ids = encode(target)
        if specific < SPECIFICITY and ids and ref.argmax(model, [(encode(prompt), ids)]).tolist() == ids:
            rows.append({"kind": "specificity", "prompt": prompt, "chosen": target})
            specific += 1
    assert specific == SPECIFICITY
    rows.sort(key=lambda row: ["failure", "generalization", "specificity"].index(row["kind"]))
    Path(args.out).write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
