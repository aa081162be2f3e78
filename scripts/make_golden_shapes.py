#!/usr/bin/env python3
"""Write one hundred rows in each of six shapes, and what TRL makes of them: tests/golden/shapes.

    python scripts/make_golden_shapes.py [--out tests/golden/shapes]
    python scripts/make_golden_shapes.py --model DIR --irepair target/release/irepair

Each shape is a file of rows: prompt and responses apart or whole, as text or as messages, as UltraFeedback and
ShareGPT have them. `expected.json` says of each shape, on tokenizers of make_golden_boundary.py, the SHA-256 of what
`DPOTrainer._prepare_dataset` gives: a line of JSON a row, [prompt_ids, chosen_ids, rejected_ids]. The ids of a
conversation, prompt and response together, are asserted to be those of `apply_chat_template`.

With --model the rows are prepared for that model, and compared with `irepair tokens --boundary trl --json`: ids, and
which of them count. Needs trl and transformers.
"""
import argparse
import gzip
import hashlib
import json
import pathlib
import random
import subprocess
import tempfile

import transformers
import trl
from transformers import AutoTokenizer

from make_golden_boundary import CHAT, COLON, prepared, tokenizers
from make_golden_tokenizers import write

ROWS = 100
WORDS = ("the man dog went home late it is tea cat rain 2026 12 3.5 don't it's naïve über café Zoë München 東京 "
         "привет 🙂 x=1 [a] {b} C:\\dir \"so\" (no) — … $5 a_b #1 ok OK I you we they").split()
ENDS = [".", "!", "?", "...", "\n", ":", ".\n\n", ""]
ROLES = {"user": "human", "assistant": "gpt", "system": "system"}


def text(rng, least, most):
    words = [rng.choice(WORDS) for _ in range(rng.randint(least, most))]
    return rng.choice(["", "", "", "\n", "- "]) + rng.choice([" ", " ", "  "]).join(words) + rng.choice(ENDS)


def shapes(seed=20261130):
    """Name and rows of each shape."""
    rng = random.Random(seed)
    message = lambda role, content: {"role": role, "content": content}
    found = {name: [] for name in ["text", "text-whole", "messages", "messages-whole", "ultrafeedback", "sharegpt"]}
    for _ in range(ROWS):
        prompt = text(rng, 2, 12).rstrip() or "the man"
        # What both responses begin with would belong to the prompt where none is given.
        chosen, rejected = " ok " + text(rng, 2, 12), " no " + text(rng, 2, 12)
        found["text"].append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
        found["text-whole"].append({"chosen": prompt + chosen, "rejected": prompt + rejected})
        history = [message("system", text(rng, 2, 6))] if rng.random() < 0.3 else []
        for _ in range(rng.randint(0, 2)):
            history += [message("user", text(rng, 1, 8)), message("assistant", text(rng, 1, 8))]
        history.append(message("user", text(rng, 1, 10)))
        good, bad = message("assistant", "ok " + text(rng, 1, 12)), message("assistant", "no " + text(rng, 1, 12))
        found["messages"].append({"prompt": history, "chosen": [good], "rejected": [bad]})
        whole = {"chosen": history + [good], "rejected": history + [bad]}
        found["messages-whole"].append(whole)
        found["ultrafeedback"].append({"prompt": history[-1]["content"], **whole, "score_chosen": 8.5, "score_rejected": 2.0})
        share = lambda turns: [{"from": ROLES[turn["role"]], "value": turn["content"]} for turn in turns]
        found["sharegpt"].append({"chosen": share(whole["chosen"]), "rejected": share(whole["rejected"])})
    return found


def for_trl(name, rows):
    """A shape's rows, as TRL takes them: it doesn't rename ShareGPT's speakers, and takes UltraFeedback without its
    question as text (as trl-lib/ultrafeedback_binarized has it)."""
    back = {theirs: ours for ours, theirs in ROLES.items()}
    if name == "sharegpt":
        turns = lambda side: [{"role": back[turn["from"]], "content": turn["value"]} for turn in side]
        return [{key: turns(row[key]) for key in ("chosen", "rejected")} for row in rows]
    if name == "ultrafeedback":
        return [{key: row[key] for key in ("chosen", "rejected")} for row in rows]
    return rows


def of_trl(tokenizer, name, rows):
    """[prompt_ids, chosen_ids, rejected_ids] of each row."""
    rows = for_trl(name, rows)
    found = prepared(tokenizer, rows)
    for row, (prompt, *responses) in zip(rows, found):
        if isinstance(row["chosen"], list):
            for key, response in zip(("chosen", "rejected"), responses):
                turns = (row.get("prompt") or []) + row[key]
                assert prompt + response == tokenizer.apply_chat_template(turns, return_dict=False), (name, row)
    return found


def check(model, irepair):
    tokenizer = AutoTokenizer.from_pretrained(model)
    for name, rows in shapes().items():
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
            file.flush()
            command = [irepair, "tokens", "--model", model, "--data", file.name, "--boundary", "trl", "--json", "--quiet",
                       "--max-length", "2000", "--max-prompt-length", "1500"]
            lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
        same = 0
        for line, (prompt, chosen, rejected) in zip(lines, of_trl(tokenizer, name, rows), strict=True):
            found = json.loads(line)
            mask = lambda response: [0] * len(prompt) + [1] * len(response)
            wanted = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected,
                      "chosen_mask": mask(chosen), "rejected_mask": mask(rejected)}
            same += all(found[key] == value for key, value in wanted.items())
        print(f"{name}: {same} of {len(rows)} rows have TRL's ids and mask")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = pathlib.Path(__file__).resolve().parent.parent
    parser.add_argument("--out", default=str(here / "tests" / "golden" / "shapes"))
    parser.add_argument("--model")
    parser.add_argument("--irepair", default=str(here / "target" / "release" / "irepair"))
    args = parser.parse_args()
    if args.model:
        return check(args.model, args.irepair)
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    bases = {path.stem.removeprefix("base-"): json.loads(path.read_text())
             for path in (here / "tests/golden/tokenizers").glob("base-*.json")}
    for name, rows in shapes().items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (out / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    wanted = {"bytes": CHAT, "bytes between two ends": COLON, "Llama's class": CHAT, "Metaspace first": CHAT, "Unigram": COLON, "words": CHAT}
    cases = []
    for wish in tokenizers():
        if wish["name"] not in wanted:
            continue
        with tempfile.TemporaryDirectory() as folder:
            write(wish, bases, pathlib.Path(folder))
            tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.chat_template = wanted[wish["name"]]
        digests = {}
        for name, rows in shapes().items():
            lines = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in of_trl(tokenizer, name, rows))
            digests[name] = hashlib.sha256(lines.encode()).hexdigest()
        cases.append(wish | {"template": wanted[wish["name"]], "sha256": digests})
    versions = {"trl": trl.__version__, "transformers": transformers.__version__}
    head = {"command": "python scripts/make_golden_shapes.py", "versions": versions, "rows": ROWS}
    (out / "expected.json").write_text(json.dumps(head | {"cases": cases}, ensure_ascii=False, indent=1) + "\n")
    print(len(cases), "tokenizers")


if __name__ == "__main__":
    main()
