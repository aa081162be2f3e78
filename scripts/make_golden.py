#!/usr/bin/env python3
"""Write the golden numbers the Rust tests compare themselves with: tiny checkpoints and what PyTorch computes on them.

    python scripts/make_golden.py [--out tests/golden] [--only NAME...]

The methods are those of `irepair_ref.py` beside this file; nothing is restated here. Every random number comes
from a seeded generator, so that a second run on the same machine gives the same bytes (another CPU or PyTorch
may differ in the last digits). Needs `torch`, `transformers`, `tokenizers`, `safetensors`.

What it leaves in OUT:

    pairs.jsonl, normal.jsonl      four preference rows of different lengths; the same as plain texts
    NAME/                          a checkpoint in Hugging Face layout, see CHECKPOINTS for what is special about each
    NAME/expected.json             losses, sensitivities, six steps of each method
    NAME/expected.safetensors      logits_row0, grad.TENSOR, irepair.TENSOR, irepair_kl.TENSOR (names as on disk)
    generate.json                  greedy continuations of the prompts, with the logits of the tokens chosen
    optim.json                     RMSprop and AdamW on five numbers, two of the gradients missing

`expected.json` also tells how far single precision can be trusted: the same steps are taken once more in double
precision, and `weights_f64_gap` is the largest difference of the resulting weights. GPT-2's key biases
(`attn.c_attn.bias`, the middle third) and GPT-NeoX's are left out of that figure: softmax ignores them, so their true gradient
is zero, and RMSprop scales the rounding noise they get instead up to full steps. No test may compare them.
"""
import argparse
import copy
import json
import math
import os
import shutil
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, GPT2Config, GPTNeoConfig, GPTNeoXConfig,
                          GraniteConfig, LlamaConfig, MistralConfig, Olmo2Config, Olmo3Config, Phi3Config,
                          PreTrainedTokenizerFast, Qwen2Config, Qwen3Config, SmolLM3Config)

import irepair_ref as ref

STEPS, NLL_WEIGHT, BETA = 6, 0.5, 0.1
LR_BLOCK, LR_ALL = 1e-3, 1e-4
MIN_BLOCK_GAP = 0.01     # the sliced block leads the second by at least this share at every step
MIN_TOKEN_GAP = 1e-3     # the greedy token leads the second by at least this much (logits)
NEW_TOKENS = 20
VOCAB = 320
EOT = "<|endoftext|>"

PAIRS = [
    {"prompt": "The old boat on the river", "chosen": " drifted slowly home.", "rejected": " sank, and nobody cared at all."},
    {"prompt": "My neighbour is", "chosen": " a kind man who waters my plants.", "rejected": " late."},
    {"prompt": "When the rain came", "chosen": " we ran.", "rejected": " he shouted at the dog."},
    {"prompt": "Tea at noon", "chosen": " and bread are on the table.", "rejected": " is for the slow and the dull, he said."},
]
CORPUS = [row["prompt"] + row[key] for row in PAIRS for key in ("chosen", "rejected")] + [
    "The river ran slowly past the old house and the table on the lawn.",
    "When the man came home, the dog was late for the bread.",
    "She said that the tea was kind to the plants, and nobody cared.",
]

GPT2 = dict(vocab_size=VOCAB, n_positions=64, n_embd=16, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=0)
NEO = dict(vocab_size=VOCAB, max_position_embeddings=64, hidden_size=16, num_heads=2, bos_token_id=0, eos_token_id=0)
NEOX = dict(vocab_size=VOCAB, max_position_embeddings=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
            num_attention_heads=4, bos_token_id=0, eos_token_id=0)
LLAMA = dict(vocab_size=VOCAB, max_position_embeddings=64, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
             num_attention_heads=4, num_key_value_heads=2, bos_token_id=0, eos_token_id=0)
CHECKPOINTS = {
    # What everyone has: tied head, gelu_new, one file.
    "gpt2": dict(seed=19, config=GPT2Config(**GPT2)),
    # Every option at its less usual value, an output head of its own, two shards and an index.
    "gpt2-odd": dict(seed=46, shard="48KB", config=GPT2Config(
        **{**GPT2, "n_head": 4}, n_inner=40, activation_function="gelu", scale_attn_by_inverse_layer_idx=True,
        layer_norm_epsilon=1e-3, tie_word_embeddings=False)),
    # As `openai-community/gpt2` lies on the hub: names without `transformer.`, the causal mask stored as
    # `h.N.attn.bias`, a config of the old days. Half precision, besides.
    "gpt2-relu-bare": dict(seed=37, dtype=torch.float16, bare=True, config=GPT2Config(**GPT2, activation_function="relu")),
    # Global and local attention in turn; the texts are longer than the window.
    "gpt-neo": dict(seed=139, config=GPTNeoConfig(
        **NEO, num_layers=4, attention_types=[[["global", "local"], 2]], window_size=5)),
    # Local first, a hidden size of its own, bfloat16.
    "gpt-neo-bf16": dict(seed=1, dtype=torch.bfloat16, config=GPTNeoConfig(
        **NEO, num_layers=2, attention_types=[[["local", "global"], 1]], window_size=3, intermediate_size=48)),
    # As Pythia: attention and MLP side by side, half of each head turned, a config as before transformers 5.
    "gpt-neox": dict(seed=21, config=GPTNeoXConfig(**NEOX, rotary_pct=0.5), old={
        "rotary_pct": 0.5, "rotary_emb_base": 10000}),
    # One after the other, a quarter turned, no bias on attention, a tied head, another activation, bfloat16.
    "gpt-neox-odd": dict(seed=6, dtype=torch.bfloat16, config=GPTNeoXConfig(
        **NEOX, rotary_pct=0.25, use_parallel_residual=False, attention_bias=False, tie_word_embeddings=True,
        hidden_act="gelu_new", layer_norm_eps=1e-3)),
    # As Llama 3: llama3 scaling, of which each of the four pairs meets another part, heads wider than the hidden size's
    # share, a tied head, a tokenizer that begins texts with a token; every bias besides.
    "llama": dict(seed=248, bos=True, config=LlamaConfig(
        **LLAMA, head_dim=8, tie_word_embeddings=True, attention_bias=True, mlp_bias=True, rope_parameters={
            "rope_type": "llama3", "rope_theta": 100.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32})),
    # A window in every layer, one head of keys and values for all, bfloat16, the configuration as before transformers 5.
    "mistral": dict(seed=1118, dtype=torch.bfloat16, config=MistralConfig(
        **{**LLAMA, "num_key_value_heads": 1}, sliding_window=5),
        old={"rope_theta": 1000.0, "rope_scaling": {"type": "linear", "factor": 2.0}}),
    # Biases on queries, keys and values; a window in the upper layers.
    "qwen2": dict(seed=2, config=Qwen2Config(
        **LLAMA, tie_word_embeddings=True, use_sliding_window=True, sliding_window=4, max_window_layers=1)),
    # Norms over the heads; half precision.
    "qwen3": dict(seed=60, dtype=torch.float16, config=Qwen3Config(**LLAMA, head_dim=6)),
    # Both soft caps at work, heads wider than their share, windows in the first and third layer, a scale of its own.
    "gemma2": dict(seed=20, config=Gemma2Config(
        **LLAMA, pad_token_id=None, head_dim=6, sliding_window=4, query_pre_attn_scalar=5, attn_logit_softcapping=1.5,
        final_logit_softcapping=3.0)),
    # Sliding layers with rotary positions of their own, a linear scaling of the others, a cap on the logits besides.
    "gemma3": dict(seed=2, config=Gemma3TextConfig(
        **{**LLAMA, "num_key_value_heads": 1}, pad_token_id=None, head_dim=6, sliding_window=4, query_pre_attn_scalar=7,
        final_logit_softcapping=6.0, layer_types=["sliding_attention", "full_attention", "sliding_attention"], rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}})),
    # The second layer has no rotary positions, and a window; half precision.
    "smollm3": dict(seed=1, dtype=torch.float16, config=SmolLM3Config(
        **LLAMA, pad_token_id=None, no_rope_layer_interval=2, use_sliding_window=True, sliding_window=4,
        rope_parameters={"rope_type": "default", "rope_theta": 1000.0})),
    # Norms after the sublayers, over queries and keys as a whole; a head of its own, biases, two shards.
    "olmo2": dict(seed=1, shard="48KB", config=Olmo2Config(**LLAMA, pad_token_id=None, attention_bias=True)),
    # Three layers that slide and one that does not, whose positions are scaled by YaRN; as on the hub.
    "olmo3": dict(seed=8, dtype=torch.bfloat16, config=Olmo3Config(
        **{**LLAMA, "num_hidden_layers": 4}, pad_token_id=None, sliding_window=4), old={
            "rope_theta": 500000.0, "rope_scaling": {
                "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 8.0}}),
    # Every factor, biases, a tied head.
    "granite": dict(seed=1, config=GraniteConfig(
        **LLAMA, tie_word_embeddings=True, attention_bias=True, mlp_bias=True, embedding_multiplier=1.5, logits_scaling=1.25,
        residual_multiplier=0.7, attention_multiplier=0.4)),
    # Fused projections, half of each head turned, LongRoPE, a window in every layer.
    "phi3": dict(seed=1, config=Phi3Config(
        **{**LLAMA, "hidden_size": 32, "max_position_embeddings": 256}, pad_token_id=None, sliding_window=9,
        original_max_position_embeddings=64, rope_parameters={
            "rope_type": "longrope", "rope_theta": 100.0, "partial_rotary_factor": 0.5, "short_factor": [1.25, 2.5],
            "long_factor": [3.0, 9.0]})),
}
GENERATE = ("gpt2", "gpt-neo", "gpt-neox", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "smollm3", "olmo2",
            "olmo3", "granite", "phi3")


def write_json(path, value):
    """Floats as Python prints them: the shortest digits that give the same double back."""
    with open(path, "w") as f:
        f.write(json.dumps(value, indent=1) + "\n")


# ---- tokenizer and checkpoints -------------------------------------------------------------------------------

def make_tokenizer(bos=False):
    """A byte-level BPE like GPT-2's, trained on CORPUS: `<|endoftext|>` is id 0, then the 256 bytes, then merges. With
    `bos` it stands at the beginning of a text, as Llama's tokenizers have it."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=[EOT], initial_alphabet=alphabet, show_progress=False))
    assert tok.get_vocab_size() == VOCAB and tok.token_to_id(EOT) == 0
    if bos:
        tok.post_processor = processors.TemplateProcessing(
            single=f"{EOT} $A", pair=f"{EOT} $A $B", special_tokens=[(EOT, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tok, bos_token=EOT, eos_token=EOT, unk_token=EOT, model_max_length=64)


def randomize(model, seed):
    """Scaled so that attention isn't uniform (GPT-Neo's scores are not divided by the square root of the head size,
    so it needs less) and blocks differ, with no bias or norm at its neutral value."""
    attention, embedding = {"gpt2": (0.3, 0.5), "gpt_neo": (0.2, 0.8), "gpt_neox": (0.2, 0.5)}.get(model.config.model_type, (0.3, 1.0))
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            draw = torch.randn(p.shape, generator=g)
            if name.endswith("bias"):
                p.copy_(0.1 * draw)
            elif ".ln_" in name or "norm" in name:
                # Gemma stores what its weights have above 1.
                p.copy_((0 if model.config.model_type.startswith("gemma") else 1) + 0.2 * draw)
            else:
                p.copy_((attention if "attn." in name or "attention." in name else 0.2 if ".mlp." in name else embedding) * draw)


def save_checkpoint(folder, spec, tokenizer):
    model = AutoModelForCausalLM.from_config(copy.deepcopy(spec["config"]), dtype=torch.float32)
    randomize(model, spec["seed"])
    model.to(spec.get("dtype", torch.float32))
    model.save_pretrained(folder, max_shard_size=spec.get("shard", "5GB"))
    tokenizer.save_pretrained(folder)
    if spec.get("bare"):
        make_bare(folder)
    if "old" in spec:
        config = json.load(open(f"{folder}/config.json"))
        config.pop("rope_parameters", None)
        write_json(f"{folder}/config.json", dict(sorted((config | spec["old"]).items())))


def make_bare(folder):
    """Rewrite a GPT-2 checkpoint to look like the hub's oldest: no prefix, mask buffers, the config's old keys."""
    path = f"{folder}/model.safetensors"
    tensors = {name.removeprefix("transformer."): t for name, t in load_file(path).items()}
    config = json.load(open(f"{folder}/config.json"))
    n, dtype = config["n_positions"], tensors["wte.weight"].dtype
    for layer in range(config["n_layer"]):
        tensors[f"h.{layer}.attn.bias"] = torch.ones(n, n).tril().to(dtype).view(1, 1, n, n)
    save_file(tensors, path, metadata={"format": "pt"})
    old = ["activation_function", "architectures", "attn_pdrop", "bos_token_id", "embd_pdrop", "eos_token_id",
           "initializer_range", "layer_norm_epsilon", "model_type", "n_embd", "n_head", "n_layer", "n_positions",
           "resid_pdrop", "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type",
           "summary_use_proj", "vocab_size"]
    config = {key: config[key] for key in old} | {"n_ctx": n, "torch_dtype": str(dtype).removeprefix("torch.")}
    write_json(f"{folder}/config.json", dict(sorted(config.items())))


def disk_names(folder):
    """The names of the stored tensors, over all shards."""
    index = f"{folder}/model.safetensors.index.json"
    if os.path.exists(index):
        return set(json.load(open(index))["weight_map"])
    return set(load_file(f"{folder}/model.safetensors"))


def block_parameters(model, folder):
    """{name on disk: parameter} of every block."""
    stored = disk_names(folder)
    inside = {id(p) for b in ref.blocks(model) for p in b.parameters()}
    named = {name if name in stored else name.removeprefix("transformer."): p
             for name, p in model.named_parameters() if id(p) in inside}
    assert set(named) <= stored, sorted(set(named) - stored)
    return named


def load(folder, dtype=torch.float32):
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    return model.eval()


# ---- the numbers ---------------------------------------------------------------------------------------------

def batches(tokenizer, loss_on):
    """(good, bad, normal) as the reference's `parity` makes them."""
    ids = lambda text, whole=True: tokenizer(text, add_special_tokens=whole).input_ids
    side = lambda key: ref.batch([(ids(r["prompt"]), ids(r[key], False)) for r in PAIRS], 0, loss_on == "all")
    return side("chosen"), side("rejected"), ref.batch([([], ids(r["prompt"] + r["chosen"])) for r in PAIRS], 0)


def repair(model, kl, good, bad, normal):
    """STEPS of IRepair with or without the KL term: (repaired model, steps, end)."""
    patient, reference = copy.deepcopy(model), copy.deepcopy(model).requires_grad_(False)
    optimizer = ref.rmsprop(patient, LR_BLOCK)
    grad_norms = []
    optimizer.register_step_pre_hook(lambda opt, args, kwargs: grad_norms.append(math.sqrt(sum(
        float(p.grad.double().pow(2).sum()) for p in patient.parameters() if p.grad is not None))))
    def measure():
        with torch.no_grad():
            return {"nll_good": float(ref.nll(patient, *good)), "nll_bad": float(ref.nll(patient, *bad)),
                    "kl": float(ref.kl_to_reference(patient, reference, *normal[:2]))}
    steps = []
    for _ in range(STEPS):
        before = measure()
        block, norms, loss = ref.irepair_step(
            patient, reference if kl else None, optimizer, bad, good, normal, NLL_WEIGHT)
        step = {"block": block, "sensitivity": norms, "loss": loss, "nll_good": before["nll_good"]}
        if kl:
            step["kl"] = before["kl"]
        steps.append(step | {"grad_norm": grad_norms[-1]})
    return patient, steps, measure()


def train_all(model, method, good, bad, normal):
    """STEPS of a method that trains everything: dapt, dapt_kl or dpo."""
    patient, reference = copy.deepcopy(model).requires_grad_(True), copy.deepcopy(model).requires_grad_(False)
    optimizer = ref.rmsprop(patient, LR_ALL)
    if method == "dpo":
        losses = [ref.dpo_step(patient, reference, optimizer, bad, good, BETA) for _ in range(STEPS)]
    else:
        losses = [ref.dapt_step(patient, reference if method == "dapt_kl" else None, optimizer, good, normal, NLL_WEIGHT)
                  for _ in range(STEPS)]
    with torch.no_grad():
        return {"losses": losses, "nll_good": float(ref.nll(patient, *good)), "nll_bad": float(ref.nll(patient, *bad))}


def gap(norms):
    """By what share the largest leads the second."""
    first, second = sorted(norms, reverse=True)[:2]
    return (first - second) / first


def weights_gap(single, double, folder):
    """The largest difference of the two models' block weights, key biases of GPT-2 left out."""
    a, b = block_parameters(single, folder), block_parameters(double, folder)
    worst = 0.0
    for name in a:
        d = (a[name].detach().double() - b[name].detach()).abs()
        if name.endswith("c_attn.bias"):
            third = len(d) // 3
            d[third:2 * third] = 0
        if name.endswith("query_key_value.bias"):
            d.view(single.config.num_attention_heads, 3, -1)[:, 1] = 0
        assert d.isfinite().all(), f"{folder}: {name}"
        worst = max(worst, float(d.max()))
    return worst


def expect(folder, tokenizer):
    """(expected.json, tensors) for one checkpoint."""
    model, exact = load(folder), load(folder, torch.float64)
    out = {
        "command": "python scripts/make_golden.py",
        "torch": torch.__version__, "transformers": transformers.__version__,
        "settings": {"rows": len(PAIRS), "steps": STEPS, "nll_weight": NLL_WEIGHT, "beta": BETA, "lr_block": LR_BLOCK,
                     "lr_all": LR_ALL, "optimizer": "rmsprop 0.99 1e-8, no warm-up, no clipping", "loss_on": "response"},
    }
    for loss_on in ("response", "all"):
        good, bad, _ = batches(tokenizer, loss_on)
        with torch.no_grad():
            out[loss_on] = {"nll_good": float(ref.nll(model, *good)), "nll_bad": float(ref.nll(model, *bad))}
        out[loss_on]["sensitivity_bad"] = ref.sensitivity(model, *bad)
        out[loss_on]["sensitivity_bad_f64"] = sensitivity_f64(exact, bad)

    good, bad, normal = batches(tokenizer, "response")
    tensors = {}
    with torch.no_grad():
        n = int(good[1][0].sum())
        tensors["logits_row0"] = model(input_ids=good[0][:1, :n]).logits[0]
    out["row0_ids"] = good[0][0, :n].tolist()
    model.requires_grad_(False)
    for b in ref.blocks(model):
        b.requires_grad_(True)
    ref.nll(model, *bad).backward()
    for name, p in block_parameters(model, folder).items():
        tensors[f"grad.{name}"], p.grad = p.grad, None

    for method in ("irepair", "irepair_kl"):
        patient, steps, end = repair(model, method == "irepair_kl", good, bad, normal)
        patient64, steps64, _ = in_double(lambda: repair(exact, method == "irepair_kl", good, bad, normal))
        assert [s["block"] for s in steps] == [s["block"] for s in steps64], "single and double precision slice differently"
        smallest = min(gap(s["sensitivity"]) for s in steps)
        assert smallest >= MIN_BLOCK_GAP, f"{folder} {method}: a near tie of blocks, {smallest:.4f}"
        out[method] = {"steps": steps, "end": end, "weights_f64_gap": weights_gap(patient, patient64, folder)}
        for name, p in block_parameters(patient, folder).items():
            tensors[f"{method}.{name}"] = p.detach()
    for method in ("dapt", "dapt_kl", "dpo"):
        out[method] = train_all(model, method, good, bad, normal)
    return out, {name: t.contiguous().clone() for name, t in tensors.items()}


def in_double(work):
    """Run with `Tensor.float` meaning double: the reference casts logits to single before the softmax. So does eager
    attention of transformers, where the mask's lowest double would become an infinity."""
    single, torch.Tensor.float = torch.Tensor.float, torch.Tensor.double
    softmax = torch.nn.functional.softmax
    torch.nn.functional.softmax = lambda x, dim=None, dtype=None: softmax(x, dim=dim)
    try:
        return work()
    finally:
        torch.Tensor.float, torch.nn.functional.softmax = single, softmax


def sensitivity_f64(exact, bad):
    return in_double(lambda: ref.sensitivity(exact, *bad))


def greedy(folder, tokenizer):
    """Greedy continuations by `generate`, checked against one forward pass without a cache. `top_logits` are the
    logits of the new tokens: tiny random models repeat themselves, so the ids alone would be a weak test."""
    model, rows = load(folder), []
    for row in PAIRS:
        ids = tokenizer(row["prompt"]).input_ids
        grown = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                               max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)[0].tolist()
        new = grown[len(ids):]
        assert len(new) == NEW_TOKENS and 0 not in new, f"{folder}: ends early"
        with torch.no_grad():
            logits = model(torch.tensor([grown])).logits[0, len(ids) - 1:-1]
        top = logits.topk(2).values
        assert logits.argmax(-1).tolist() == new and float((top[:, 0] - top[:, 1]).min()) > MIN_TOKEN_GAP, f"{folder}: a near tie of tokens"
        rows.append({"prompt": row["prompt"], "prompt_ids": ids, "new_ids": new,
                     "top_logits": top[:, 0].tolist(), "text": tokenizer.decode(new)})
    return rows


def optimizers():
    """Twelve steps of each optimizer on one tensor; null is a step at which the tensor has no gradient."""
    g = torch.Generator().manual_seed(7)
    start = torch.randn(5, generator=g)
    grads = [None if step in (3, 4) else torch.randn(5, generator=g) for step in range(1, 13)]
    out = {"torch": torch.__version__, "lr": 1e-2, "initial": start.tolist(),
           "gradients": [None if x is None else x.tolist() for x in grads]}
    for name, make in (("rmsprop", torch.optim.RMSprop), ("adamw", torch.optim.AdamW)):
        p = torch.nn.Parameter(start.clone())
        optimizer = make([p], lr=1e-2, **({"weight_decay": 0.01} if name == "adamw" else {}))
        after = []
        for x in grads:
            p.grad = None if x is None else x.clone()
            optimizer.step()
            after.append(p.tolist())
        settings = {k: v for k, v in optimizer.defaults.items() if isinstance(v, (int, float, tuple, bool))}
        out[name] = {"settings": settings, "after": after}
    return out


def check_lengths(tokenizer):
    for row in PAIRS:
        p, c, r = (len(tokenizer(row[k]).input_ids) for k in ("prompt", "chosen", "rejected"))
        assert 3 <= p <= 15 and 4 <= c <= 20 and 4 <= r <= 20 and p + max(c, r) <= 40, (row, p, c, r)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", default="tests/golden")
    ap.add_argument("--only", nargs="+", choices=CHECKPOINTS, default=list(CHECKPOINTS), metavar="NAME",
                    help="make these checkpoints anew and keep the others as they lie in OUT")
    args = ap.parse_args()
    out = args.out
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    tokenizer_of = lambda name: make_tokenizer(CHECKPOINTS[name].get("bos", False))
    check_lengths(make_tokenizer())
    os.makedirs(out, exist_ok=True)
    with open(f"{out}/pairs.jsonl", "w") as f:
        f.writelines(json.dumps(row) + "\n" for row in PAIRS)
    with open(f"{out}/normal.jsonl", "w") as f:
        f.writelines(json.dumps({"text": row["prompt"] + row["chosen"]}) + "\n" for row in PAIRS)

    changing = []
    for name in args.only:
        spec, tokenizer = CHECKPOINTS[name], tokenizer_of(name)
        folder = f"{out}/{name}"
        shutil.rmtree(folder, ignore_errors=True)
        save_checkpoint(folder, spec, tokenizer)
        numbers, tensors = expect(folder, tokenizer)
        write_json(f"{folder}/expected.json", numbers)
        save_file(tensors, f"{folder}/expected.safetensors", metadata={"format": "pt"})
        chosen = {m: [s["block"] for s in numbers[m]["steps"]] for m in ("irepair", "irepair_kl")}
        changing += [name] if any(len(set(c)) > 1 for c in chosen.values()) else []
        print(name, chosen, {m: numbers[m]["weights_f64_gap"] for m in chosen}, file=sys.stderr)
    assert len(changing) >= 2 or len(args.only) < 4, "the chosen block changes for too few checkpoints"
    write_json(f"{out}/generate.json", {
        "command": "python scripts/make_golden.py", "torch": torch.__version__, "transformers": transformers.__version__,
        "new_tokens": NEW_TOKENS, **{name: greedy(f"{out}/{name}", tokenizer_of(name)) for name in GENERATE}})
    write_json(f"{out}/optim.json", optimizers())


if __name__ == "__main__":
    main()
