#!/usr/bin/env python3
"""Write other people's files of rows, and what is in them: tests/golden/rows.

    python scripts/make_golden_rows.py [--out tests/golden/rows]

The same rows stand in files as pandas, pyarrow and datasets write them. `expected.json` says what is read of each
file: a row of TRL's own extraction of prompts (maybe_convert_to_chatml, maybe_extract_prompt). ShareGPT's speakers
have the names that chat templates know. `names.json` has what torch and peft call the tensors of a model that they
wrap. Needs trl, datasets, pandas, pyarrow, torch, transformers, peft.
"""
import argparse
import json
import pathlib
import shutil

import datasets
import numpy
import pandas
import pyarrow
import pyarrow.parquet
import torch
import transformers
import trl
from transformers import GPT2Config, GPT2LMHeadModel
from trl import maybe_convert_to_chatml, maybe_extract_prompt

ROLES = {"human": "user", "gpt": "assistant"}
CODECS = ["snappy", "zstd", "gzip", "brotli", "lz4"]


def questions():
    """Prompts with what breaks careless readers: quotes of both kinds, new lines, commas, accents, emoji."""
    things = ["tea", "the \"late\" train", "Zoë's cat", "a line\nbreak", "C:\\dir, or not", "🙂 {'a': 1}", "[x]", "§5"]
    return [f"Tell me about {thing}:" for thing in things]


def user(text):
    return {"role": "user", "content": text}


def answer(text):
    return {"role": "assistant", "content": text}


def plain():
    return [{"prompt": q, "chosen": f" it's fine, {i}.", "rejected": f" it\\'s \"dull\", {i}."}
            for i, q in enumerate(questions())]


def explicit():
    return [{"prompt": [user(q)], "chosen": [answer(f"it's fine, {i}.")], "rejected": [answer(f"\"dull\"\n{i}.")]}
            for i, q in enumerate(questions())]


def implicit():
    return [{"chosen": r["prompt"] + r["chosen"], "rejected": r["prompt"] + r["rejected"]} for r in explicit()]


def ultrafeedback():
    return [{"prompt": q, **row, "score_chosen": 8.5, "score_rejected": 3.0}
            for q, row in zip(questions(), implicit())]


def sharegpt():
    back = {role: name for name, role in ROLES.items()}
    turn = lambda m: {"from": back[m["role"]], "value": m["content"]}  # noqa: E731
    return [{"conversations": [turn(r["prompt"][0])], "chosen": turn(r["chosen"][0]), "rejected": turn(r["rejected"][0])}
            for r in explicit()]


def labelled():
    return [{"prompt": r["prompt"], "completion": r[side], "label": side == "chosen"}
            for r in plain() for side in ("chosen", "rejected")]


def read(row):
    """What TRL takes for prompt, chosen and rejected."""
    row = json.loads(json.dumps(row))
    if "conversations" in row:
        row["prompt"] = row.pop("conversations")
        row["chosen"], row["rejected"] = [row["chosen"]], [row["rejected"]]
    row = maybe_extract_prompt(maybe_convert_to_chatml(row))
    for side in ("prompt", "chosen", "rejected"):
        if isinstance(row[side], list):
            for message in row[side]:
                message["role"] = ROLES.get(message["role"], message["role"])
    return {side: row[side] for side in ("prompt", "chosen", "rejected")}


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def binary(kind):
    """The same type with text as bytes that nobody says are text, as Spark, Impala and Hive write it."""
    if pyarrow.types.is_string(kind):
        return pyarrow.binary()
    if pyarrow.types.is_list(kind):
        return pyarrow.list_(binary(kind.value_type))
    if pyarrow.types.is_struct(kind):
        return pyarrow.struct([(field.name, binary(field.type)) for field in kind])
    return kind


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("tests/golden/rows"))
    out = parser.parse_args().out
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    expected = {}

    shapes = {"trl": plain, "trl-conversations": explicit, "implicit-conversations": implicit,
              "ultrafeedback": ultrafeedback, "sharegpt": sharegpt}
    for name, rows in shapes.items():
        (out / f"{name}.jsonl").write_text(lines(rows()))
        expected[f"{name}.jsonl"] = [read(row) for row in rows()]
    # Each prompt's completion with label true against that with label false.
    (out / "labelled.jsonl").write_text(lines(labelled()))
    expected["labelled.jsonl"] = [read(row) for row in plain()]

    for codec in CODECS:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(plain()), out / f"{codec}.parquet", compression=codec)
        expected[f"{codec}.parquet"] = [read(row) for row in plain()]
    for name, rows in {"binary": plain, "binary-conversations": implicit}.items():
        table = pyarrow.Table.from_pylist(rows())
        schema = pyarrow.schema([(field.name, binary(field.type)) for field in table.schema])
        # A column of no use holds bytes that are no text.
        table = pyarrow.Table.from_pylist(table.to_pylist(), schema=schema)
        table = table.append_column("raw", pyarrow.array([b"\xff\xfe\x00"] * len(table), pyarrow.binary()))
        pyarrow.parquet.write_table(table, out / f"{name}.parquet")
        expected[f"{name}.parquet"] = [read(row) for row in rows()]
    datasets.Dataset.from_list(implicit()).to_parquet(out / "datasets.parquet")
    expected["datasets.parquet"] = [read(row) for row in implicit()]

    # Lists become text in CSV: of Python, of NumPy, of json.dumps.
    pandas.DataFrame(implicit()).to_csv(out / "pandas.csv", index=False)
    arrays = [{key: numpy.array(value, dtype=object) for key, value in row.items()} for row in implicit()]
    pandas.DataFrame(arrays).to_csv(out / "numpy.csv", index=False)
    datasets.Dataset.from_list(implicit()).to_csv(out / "datasets.csv", index=False)
    dumped = [{key: json.dumps(value) for key, value in row.items()} for row in implicit()]
    pandas.DataFrame(dumped).to_csv(out / "dumped.csv", index=False)
    (out / "dumped.jsonl").write_text(lines(dumped))
    for name in ["pandas.csv", "numpy.csv", "datasets.csv", "dumped.csv", "dumped.jsonl"]:
        expected[name] = [read(row) for row in implicit()]
    pandas.DataFrame(sharegpt()).to_csv(out / "sharegpt.csv", index=False)
    expected["sharegpt.csv"] = [read(row) for row in sharegpt()]

    # Python's json writes what is no JSON.
    odd = [{**row, "margin": value, "note": "half \ud83d"}
           for row, value in zip(plain(), [float("nan"), float("inf"), float("-inf")] * 3)]
    (out / "odd.jsonl").write_text(lines(odd))
    (out / "odd.json").write_text(json.dumps(odd, indent=1))
    for name in ["odd.jsonl", "odd.json"]:
        expected[name] = [read(row) for row in plain()]

    # What load_from_disk opens, and no other program.
    datasets.Dataset.from_list(plain()).save_to_disk(out / "saved")
    datasets.DatasetDict({"train": datasets.Dataset.from_list(plain()[:2])}).save_to_disk(out / "saved-splits")

    model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=4, n_embd=4, n_layer=1, n_head=1))
    names = {"plain": list(model.state_dict()), "base alone": list(model.transformer.state_dict())}
    names["torch.compile"] = list(torch.compile(model).state_dict())
    names["DataParallel"] = list(torch.nn.DataParallel(model).state_dict())
    block = model.transformer.h[0]
    model.transformer.h[0] = torch.compile(block)
    names["a compiled block"] = list(model.state_dict())
    model.transformer.h[0] = block
    import peft
    adapter = peft.get_peft_model(model, peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    names["an adapter"] = list(adapter.state_dict())
    merged = adapter.merge_and_unload()
    assert list(merged.state_dict()) == names["plain"]
    names["a merged adapter in its wrapper"] = [f"base_model.model.{name}" for name in names["plain"]]

    versions = {module.__name__: module.__version__ for module in
                (trl, datasets, pandas, pyarrow, numpy, torch, transformers, peft)}
    (out / "expected.json").write_text(json.dumps({"versions": versions, "files": expected}, indent=1) + "\n")
    (out / "names.json").write_text(json.dumps(names, indent=1) + "\n")


if __name__ == "__main__":
    main()
