#!/usr/bin/env python3
"""A checkpoint of random weights in the shape of a large model, sharded, for measuring memory and time.

    python scripts/make_random.py NAME|CONFIG.json OUT [--dtype bfloat16] [--shard-mib 2000]

NAME is one of tests/golden/hub.json (Llama-3.2-3B-Instruct, Qwen3-8B, …) or llama-7b (Llama 2's shape). Tensors are drawn
one at a time (normal, 0.02; norms 1), so a 7B model takes little memory to make, and its size on disk. The tokenizer
is the little one of the tests, so its ids are the first of the vocabulary. Needs torch, transformers, safetensors.
"""
import argparse
import json
import pathlib

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

import make_golden as golden

OWN = {
    "llama-7b": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 32, "hidden_size": 4096,
        "num_attention_heads": 32, "num_key_value_heads": 32, "intermediate_size": 11008, "max_position_embeddings": 4096,
        "vocab_size": 32000, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "hidden_act": "silu",
    }
}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("name"), ap.add_argument("out", type=pathlib.Path)
    ap.add_argument("--dtype", default="bfloat16")
    ap.add_argument("--shard-mib", type=int, default=2000)
    args = ap.parse_args()
    hub = json.loads(pathlib.Path(__file__).parent.parent.joinpath("tests/golden/hub.json").read_text())
    if args.name in OWN:
        config = dict(OWN[args.name])
    elif args.name in hub:
        config = {key: value for key, value in hub[args.name]["config"].items() if key != "auto_map"}
    else:
        config = json.loads(pathlib.Path(args.name).read_text())
    config |= {"bos_token_id": 0, "eos_token_id": 0, "torch_dtype": args.dtype}
    args.out.mkdir(parents=True)
    (args.out / "config.json").write_text(json.dumps(config, indent=2))
    golden.make_tokenizer().save_pretrained(args.out)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(args.out))
    tied = set(getattr(model, "_tied_weights_keys", None) or ()) if config.get("tie_word_embeddings") else set()

    dtype, generator = getattr(torch, args.dtype), torch.Generator().manual_seed(1)
    shards, shard, size, total = [], {}, 0, 0

    def close():
        nonlocal shard, size
        path = args.out / f"shard-{len(shards)}.safetensors"
        save_file(shard, path, metadata={"format": "pt"})
        shards.append(list(shard))
        shard, size = {}, 0

    for name, parameter in model.named_parameters():
        if name in tied:
            continue
        values = torch.ones(parameter.shape, dtype=dtype)
        if parameter.dim() == 2:
            values.normal_(std=0.02, generator=generator)
        bytes = values.numel() * values.element_size()
        if shard and size + bytes > args.shard_mib << 20:
            close()
        shard[name] = values
        size, total = size + bytes, total + bytes
    close()
    index = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05}-of-{len(shards):05}.safetensors"
        (args.out / f"shard-{number}.safetensors").rename(args.out / file)
        index |= dict.fromkeys(names, file)
    whole = {"metadata": {"total_size": total}, "weight_map": index}
    (args.out / "model.safetensors.index.json").write_text(json.dumps(whole, indent=2))
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{args.out}: {parameters / 1e9:.2f}e9 parameters, {total >> 20} MiB in {len(shards)} shards")


if __name__ == "__main__":
    main()
