#!/usr/bin/env python3
"""Makes tests/golden/*/methods.json: what six steps of the methods that expected.json has no weights of come to.

    python scripts/make_golden_methods.py [--out tests/golden] [--only NAME...] [--methods METHOD...]

With --methods these alone are made, and the others stay as they are.
Needs torch, transformers and (for KTO's loss) trl, and the checkpoints that scripts/make_golden.py made. Steps are those of
scripts/irepair_ref.py; of the pairs that it has no function for (DPO with the KL term, on all or on one block), they are
written here from its parts (with the unlikelihood of telltale tokens, too). Of every tensor that moved: the norm of its change, and the change's product with
sin(0.37·i), i counted over the tensor as it lies on disk. Key biases are left out: softmax does not see them, and RMSProp
blows their rounding noise up. Where all is trained, also the gradients of all tensors away from the reference.
"""
import argparse, collections, copy, json, pathlib, sys, types

import torch
import torch.nn.functional as F
import transformers

import irepair_ref as ref
import make_golden as golden

# (block or all, KL weight, whether telltale tokens are made unlikely)
DPO_KL = {"dpo_kl": (None, 1.0, False), "block_dpo_kl": (1, 2.0, False), "dpo_ul_kl": (None, 10.0, True), "block_dpo_ul_kl": (1, 10.0, True)}
# Tensors that key biases are in.
KEY_BIASES = ("c_attn.bias", "query_key_value.bias", "k_proj.bias")
TELLTALE_COPIES = 20  # of the golden pairs, which are too few for any token to be telltale


def telltale_weights(good, bad, vocabulary):
    """2P - 1 of each token (V) that comes from a rejected response with a probability P of 0.9 or more, were both kinds as
    long, and is in them ten times or more; 0 of the others. Half an occurrence a token is added."""
    count = lambda ids, counts: TELLTALE_COPIES * torch.bincount(ids[counts == 1], minlength=vocabulary).double()
    chosen, rejected = count(good[0], good[2]), count(bad[0], bad[2])
    share = lambda of: (of + 0.5) / (of.sum() + 0.5 * vocabulary)
    sure = share(rejected) / (share(rejected) + share(chosen))
    weights = torch.where((sure >= 0.9) & (rejected >= 10), 2 * sure - 1, 0)
    assert (weights > 0).any(), "no token is telltale"
    return weights


def unlikelihood(model, ids, attend, counts, weights):
    """-log(1 - the weighted probability of the tokens with weights) before each counted token, summed over all."""
    p = model(input_ids=ids, attention_mask=attend).logits[:, :-1].softmax(-1)
    return -(torch.log1p(-(p * weights.to(p.dtype)).sum(-1)) * counts[:, 1:]).sum()


def dpo_kl_step(model, reference, optimizer, bad, good, normal, beta, weight, suppress=False):
    with torch.no_grad():
        base = ref.sequence_logp(reference, *good) - ref.sequence_logp(reference, *bad)
    policy = ref.sequence_logp(model, *good) - ref.sequence_logp(model, *bad)
    loss = -F.logsigmoid(beta * (policy - base)).mean() + weight * ref.kl_to_reference(model, reference, *normal[:2])
    if suppress:
        weights = telltale_weights(good, bad, model.config.vocab_size)
        loss = loss + sum(unlikelihood(model, *batch, weights) for batch in (good, bad)) / len(good[0])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def strangers(good, bad):
    """Prompts with a response to another prompt: of each response, chosen ones first, the next one of another prompt."""
    texts = [([int(i) for i, a in zip(ids, attend) if a], int(counts.sum())) for batch in (good, bad) for ids, attend, counts in zip(*batch)]
    texts = [(ids[: len(ids) - n], ids[len(ids) - n :]) for ids, n in texts]
    found = []
    for i, (prompt, _) in enumerate(texts):
        others = [texts[(i + 1 + j) % len(texts)] for j in range(len(texts))]
        found.append((prompt, next(response for other, response in others if other != prompt)))
    return ref.batch(found, 0, False)


class ForTrl:
    """A model as TRL's KTO calls it: log-probabilities of the counted tokens, 0 elsewhere."""

    training, is_gradient_checkpointing, _modules = True, False, {}

    def __init__(self, model):
        self.model = model

    def __call__(self, input_ids, attention_mask, labels, **_):
        logp = self.model(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1].log_softmax(-1)
        counted = labels[:, 1:] >= 0
        found = logp.gather(-1, labels[:, 1:].clamp(min=0).unsqueeze(-1)).squeeze(-1) * counted
        nothing = torch.zeros_like(found)
        return types.SimpleNamespace(log_probs=found, entropy=nothing, mean_logits=nothing)


def kto_step(model, reference, optimizer, bad, good, beta):
    """KTO by TRL's own code. Its KL is that of prompts with responses to other prompts."""
    from trl import KTOTrainer

    width = max(good[0].shape[1], bad[0].shape[1])
    wide = lambda part: F.pad(part, (0, width - part.shape[1]))
    both = [torch.cat([wide(g), wide(b)]) for g, b in zip(good, bad)]
    other = strangers(good, bad)
    keys = ("input_ids", "attention_mask", "completion_mask")
    batch = dict(zip(keys, both)) | {f"KL_{key}": part for key, part in zip(keys, other)}
    batch["label"] = torch.tensor([True] * len(good[0]) + [False] * len(bad[0]))
    trainer = types.SimpleNamespace(
        model=ForTrl(model), ref_model=ForTrl(reference), beta=beta, loss_type="kto", calculate_KL=True, desirable_weight=1.0,
        undesirable_weight=1.0, aux_loss_enabled=False, precompute_ref_logps=False, _total_train_tokens=0, _tp_size=1,
        args=types.SimpleNamespace(gradient_checkpointing_kwargs=None), _metrics={"train": collections.defaultdict(list)},
        accelerator=types.SimpleNamespace(device="cpu", gather_for_metrics=lambda value: value))
    trainer._compute_kl_logps = types.MethodType(KTOTrainer._compute_kl_logps, trainer)
    loss = KTOTrainer._compute_loss(trainer, trainer.model, batch, False)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def steps_of(method, patient, reference, good, bad, normal):
    """(loss, block or None) of every step."""
    everything = method.startswith(("dapt", "dpo", "kto"))
    optimizer = ref.rmsprop(patient.requires_grad_(True), golden.LR_ALL if everything else golden.LR_BLOCK)
    fixed = None
    if "fixed" in method:
        norms = ref.sensitivity(patient, *bad)
        fixed = norms.index(max(norms))
    for _ in range(golden.STEPS):
        if method in DPO_KL:
            block, weight, suppress = DPO_KL[method]
            if block is not None:
                ref.only(patient.requires_grad_(False), block)
            yield dpo_kl_step(patient, reference, optimizer, bad, good, normal, golden.BETA, weight, suppress), block
        elif method == "kto":
            yield kto_step(patient, reference, optimizer, bad, good, golden.BETA), None
        elif method == "dpo":
            yield ref.dpo_step(patient, reference, optimizer, bad, good, golden.BETA), None
        elif everything:
            kl = reference if method == "dapt_kl" else None
            yield ref.dapt_step(patient, kl, optimizer, good, normal, golden.NLL_WEIGHT), None
        else:
            pick = min if "min" in method else max
            kl = reference if method.endswith("_kl") else None
            block, norms, loss = ref.irepair_step(patient, kl, optimizer, bad, good, normal, golden.NLL_WEIGHT, pick, fixed)
            if fixed is None:
                first, second = sorted(norms, reverse=pick is max)[:2]
                assert abs(first - second) / first >= 1e-3, f"{method}: a near tie of blocks, {abs(first - second) / first:.1e}"
            yield loss, block


class Capture:
    """Keeps the gradients that an optimizer would take, and takes no step."""

    def __init__(self, model):
        self.model = model

    def step(self):
        self.gradients = {n: p.grad.detach().double().flatten() for n, p in self.model.named_parameters() if p.grad is not None}

    def zero_grad(self, set_to_none=True):
        self.model.zero_grad(set_to_none=set_to_none)


def gradients_of(folder, method, batches):
    """Of a method that trains everything, where the patient's matrices are 1.1 times the reference's: norm, and product with
    the wave, of every tensor's gradient."""
    good, bad, normal = batches
    reference = golden.load(folder, torch.float64).requires_grad_(False)
    patient = copy.deepcopy(reference).requires_grad_(True)
    with torch.no_grad():
        for parameter in patient.parameters():
            if parameter.dim() == 2:
                parameter.mul_(1.1)
    optimizer = Capture(patient)
    if method in DPO_KL:
        dpo_kl_step(patient, reference, optimizer, bad, good, normal, golden.BETA, *DPO_KL[method][1:])
    elif method == "kto":
        kto_step(patient, reference, optimizer, bad, good, golden.BETA)
    elif method == "dpo":
        ref.dpo_step(patient, reference, optimizer, bad, good, golden.BETA)
    else:
        ref.dapt_step(patient, reference if method == "dapt_kl" else None, optimizer, good, normal, golden.NLL_WEIGHT)
    stored, found = golden.disk_names(folder), {}
    for name, gradient in optimizer.gradients.items():
        disk = name if name in stored else name.removeprefix("transformer.")
        if disk in stored and not disk.endswith("k_proj.bias") and float(gradient.norm()) > 0:
            wave = torch.sin(0.37 * torch.arange(len(gradient), dtype=torch.float64))
            found[disk] = [float(gradient.norm()), float(gradient @ wave)]
    return found


def run(folder, method, dtype, batches):
    good, bad, normal = batches
    model = golden.load(folder, dtype)
    patient, reference = copy.deepcopy(model), copy.deepcopy(model).requires_grad_(False)
    steps = list(steps_of(method, patient, reference, good, bad, normal))
    with torch.no_grad():
        out = {"losses": [l for l, _ in steps], "blocks": [b for _, b in steps],
               "nll_good": float(ref.nll(patient, *good)), "nll_bad": float(ref.nll(patient, *bad))}
    stored, changes = golden.disk_names(folder), {}
    for (name, after), (_, before) in zip(patient.named_parameters(), model.named_parameters()):
        disk = name if name in stored else name.removeprefix("transformer.")
        change = (after.detach() - before.detach()).double().flatten()
        if disk in stored and not disk.endswith(KEY_BIASES) and float(change.norm()) > 0:
            wave = torch.sin(0.37 * torch.arange(len(change), dtype=torch.float64))
            changes[disk] = [float(change.norm()), float(change @ wave)]
    return out | {"changes": changes}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", default="tests/golden")
    ap.add_argument("--only", nargs="+", choices=golden.CHECKPOINTS, default=list(golden.CHECKPOINTS), metavar="NAME")
    methods = ["irepair_min", "irepair_min_kl", "irepair_fixed", "irepair_fixed_kl", "dapt", "dapt_kl", "dpo", "kto", *DPO_KL]
    ap.add_argument("--methods", nargs="+", choices=methods, metavar="METHOD")
    args = ap.parse_args()
    out = pathlib.Path(args.out)
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name in args.only:
        spec, folder = golden.CHECKPOINTS[name], str(out / name)
        batches = golden.batches(golden.make_tokenizer(spec.get("bos", False)), "response")
        found = {"command": "python scripts/make_golden_methods.py", "torch": torch.__version__,
                 "transformers": transformers.__version__}
        if args.methods:
            found = json.loads((out / name / "methods.json").read_text())
        for method in args.methods or methods:
            single = run(folder, method, torch.float32, batches)
            double = golden.in_double(lambda: run(folder, method, torch.float64, batches))
            assert single["blocks"] == double["blocks"], f"{name} {method}: single and double precision slice differently"
            # Double precision is what is expected; how far single is from it bounds what can be asked.
            worst = max(max(abs(s - d) for s, d in zip(single["changes"][t], double["changes"][t])) / double["changes"][t][0]
                        for t in double["changes"])
            found[method] = double | {"single_gap": worst}
            if method.startswith(("dapt", "dpo", "kto")):
                found[method]["gradients"] = golden.in_double(lambda: gradients_of(folder, method, batches))
            print(name, method, found[method]["blocks"], f"{worst:.1e}", file=sys.stderr)
        golden.write_json(f"{folder}/methods.json", found)


if __name__ == "__main__":
    main()
