#!/usr/bin/env python3
"""Write the golden numbers of the evaluation: perplexities, LAMBADA's last words and KL, as transformers and lm-eval's own
code give them on two of the tiny checkpoints of `make_golden.py`.

    python scripts/make_golden_eval.py [--out tests/golden]

What it leaves in OUT/eval: corpus.txt, pages.jsonl, passages.jsonl, expected.json (with the versions that made it).
Needs `torch`, `transformers`, `lm_eval` (of which it takes the rolling windows and the detokenizer of task `wikitext`).
"""
import argparse, json, math, pathlib, re

import lm_eval, torch, transformers
from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

CORPUS = (
    "The river ran slowly past the old house .\n\nWhen the man came home , the dog was late for the bread .\n\n"
    "My neighbour waters 1 @,@ 200 plants ( all of them kind ) , and nobody cared .\n\n"
)
PAGES = [
    " = The Old Boat = \n\n The old boat was built in 1 @,@ 912 ( or 1 @.@ 5 years later ) ; it ran 3 @-@ 4 times a day . \n"
    " \" It drifted slowly home , \" she said : nobody cared . \n\n = = The river = = \n\n The river 's water ran on . \n",
    " = Tea = \n\n Tea at noon [ and bread ] are on the table ! Is the dog ' late ' ? My neighbours ' plants are £ 4 . \n",
]
PASSAGES = [
    "The old boat on the river drifted slowly home",
    "My neighbour is a kind man who waters my plants",
    "When the rain came we ran to the house, and the dog ran to the house",
    "She said that the tea was kind to the plants, and nobody cared. " * 8 + "Tea at noon and bread are on the table",
]


def logp(model, ids):
    """Log-probabilities of all next tokens: (T, V)."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", default=str(pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden"))
    out = pathlib.Path(ap.parse_args().out)
    tok = PreTrainedTokenizerFast(tokenizer_file=str(out / "gpt2" / "tokenizer.json"))
    encode = lambda text: tok(text, add_special_tokens=False).input_ids
    model, other = (AutoModelForCausalLM.from_pretrained(out / name, dtype=torch.float32).eval() for name in ("gpt2", "gpt2-relu-bare"))
    context, eot = model.config.n_positions, model.config.eos_token_id
    found = {"versions": {"torch": torch.__version__, "transformers": transformers.__version__, "lm_eval": lm_eval.__version__}}

    ids = encode(CORPUS)
    nats, tokens = 0.0, 0
    for begin in range(0, len(ids), context):
        window = ids[begin:begin + context]
        if len(window) > 1:
            nats -= float(logp(model, window)[:-1].gather(1, torch.tensor(window[1:])[:, None]).sum())
            tokens += len(window) - 1
    found["paper"] = {"perplexity": math.exp(nats / tokens), "tokens": tokens, "window": context}

    rows = []
    for page in PAGES:
        nats = 0.0
        for pair in get_rolling_token_windows(encode(wikitext_detokenizer({"page": page})), eot, context, 1):
            before, after = make_disjoint_window(pair)
            # As lm-eval's HFLM feeds them: what is predicted follows the context, the last token is no input.
            inputs = (before + after)[:-1][-context:]
            lp = logp(model, inputs)[-len(after):]
            nats -= float(lp.gather(1, torch.tensor(after)[:, None]).sum())
        rows.append({"nats": nats, "words": len(re.split(r"\s+", page)), "bytes": len(page.encode())})
    found["lm_eval"] = rows

    # One that the model gets right: the first context whose likeliest next token is a word of its own.
    ends = (words[:n] for line in CORPUS.splitlines() for words in [line.split()] for n in range(2, len(words)))
    for words in ends:
        text = " ".join(words)
        likeliest = tok.decode([int(logp(model, encode(text))[-1].argmax())])
        if likeliest.startswith(" ") and likeliest.strip().isalpha() and encode(text + likeliest)[:-1] == encode(text):
            PASSAGES.append(text + likeliest)
            break
    rows = []
    for passage in PASSAGES:
        # As lm-eval's TemplateLM._encode_pair: the whole is tokenized and split where the context's own tokens end.
        context_text, word = passage.rsplit(" ", 1)
        whole, split = encode(passage), len(encode(context_text))
        target = whole[split:]
        inputs = whole[-(context + 1):][:-1]
        lp = logp(model, inputs)[-len(target):]
        rows.append({"logp": float(lp.gather(1, torch.tensor(target)[:, None]).sum()), "correct": int(lp.argmax(-1).tolist() == target)})
    found["lambada"] = rows

    texts = [json.loads(line)["text"] for line in open(out / "normal.jsonl")]
    rows = []
    for text in texts:
        p, q = (logp(m, encode(text)) for m in (other, model))
        kl = (p.exp() * (p - q)).sum(-1)
        rows.append({"nats": float(kl.sum()), "tokens": len(kl), "same": int((p.argmax(-1) == q.argmax(-1)).sum())})
    found["kl"] = rows

    folder = out / "eval"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "corpus.txt").write_text(CORPUS)
    (folder / "pages.jsonl").write_text("".join(json.dumps({"page": p}, ensure_ascii=False) + "\n" for p in PAGES))
    (folder / "passages.jsonl").write_text("".join(json.dumps({"text": p}) + "\n" for p in PASSAGES))
    (folder / "expected.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
