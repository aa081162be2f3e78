#!/usr/bin/env python3
"""Write tiny random classification models and the probabilities that transformers' own pipeline gives on them.

    python scripts/make_golden_classifiers.py [--out tests/golden/classifiers]

What it leaves in OUT:

    texts.json            texts of different lengths; one longer than the models are, one empty, one with a special token
    NAME/                 a model in Hugging Face layout, see MODELS for what is special about each
    NAME/expected.json    the probability of every label for every text, the labels, the versions

Weights come from a seeded generator and are larger than a fresh model's, so that the texts differ. Before anything is
written it is checked that the numbers can tell right from wrong: another activation function, no attention mask on the
padding each move some probability by more than the tests allow; the first seed of which that is true is taken.
Needs `torch`, `transformers`, `tokenizers`.
"""
import argparse
import itertools
import json
import os
import shutil

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (BertConfig, DebertaV2Config, DistilBertConfig, ModernBertConfig, PreTrainedTokenizerFast,
                          RobertaConfig, TextClassificationPipeline, XLMRobertaConfig)

LONGEST = 40             # tokens with the special ones
TOLERANCE = 2e-5         # of the Rust tests
VISIBLE = 5 * TOLERANCE  # what a mistake must move
TEXTS = [
    "Thank you.",
    "You are a fool, and nobody on the river wants to hear your voice!",
    "The old boat drifted slowly home while the rain fell on the river and the dog slept by the table; he said that tea "
    "at noon was for the slow and the dull, that nobody cared at all, and that the neighbour who waters the plants was "
    "late again, as he always had been when the bread was on the table and the house was full of people and rain.",
    "he shouted at the dog",
    "",
    "My neighbour is a kind man who waters my plants, and he came home late.",
    "Café déjà vu: naïve people & 42 dogs?",
    "WHEN THE RAIN CAME WE RAN",
    "nobody said [SEP] or </s> aloud",
]
CORPUS = [t for t in TEXTS if t] + ["The man ran.", "She said the tea was kind to the plants.", "Shout at the rain, fool."]
SMALL = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)

BERT_SPECIAL = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]")
ROBERTA_SPECIAL = dict(bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>", mask_token="<mask>",
                       cls_token="<s>", sep_token="</s>")


def labels(*names):
    return dict(id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)})


def wordpiece():
    tok = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tok.normalizer = normalizers.BertNormalizer(lowercase=True)
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = list(BERT_SPECIAL.values())
    tok.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=160, special_tokens=special, show_progress=False))
    tok.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(t, tok.token_to_id(t)) for t in ("[CLS]", "[SEP]")])
    return tok, BERT_SPECIAL


def byte_level(special, template):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    names = list(dict.fromkeys(special.values()))
    tok.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=300, special_tokens=names, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False))
    tok.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(t, tok.token_to_id(t)) for t in template.split() if t != "$A"])
    return tok, special


def unigram(special, template):
    tok = Tokenizer(models.Unigram())
    tok.normalizer = normalizers.NFKC()
    tok.pre_tokenizer = pre_tokenizers.Metaspace()
    names = list(dict.fromkeys(special.values()))
    tok.train_from_iterator(CORPUS, trainers.UnigramTrainer(
        vocab_size=150, special_tokens=names, unk_token=special["unk_token"], show_progress=False))
    tok.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(t, tok.token_to_id(t)) for t in template.split() if t != "$A"])
    return tok, special


MODELS = {
    # As unitary/toxic-bert: several labels at once.
    "bert": dict(tokenizer=wordpiece, config=lambda v: BertConfig(
        vocab_size=v, max_position_embeddings=LONGEST, **SMALL, problem_type="multi_label_classification",
        **labels("toxic", "severe_toxic", "obscene"))),
    # As s-nlp/roberta_toxicity_classifier: one of two labels. Padding is id 1, positions begin at 2.
    "roberta": dict(tokenizer=lambda: byte_level(ROBERTA_SPECIAL, "<s> $A </s>"), config=lambda v: RobertaConfig(
        vocab_size=v, max_position_embeddings=LONGEST + 2, type_vocab_size=1, **SMALL, **labels("neutral", "toxic"))),
    # One label alone.
    "distilbert": dict(tokenizer=wordpiece, config=lambda v: DistilBertConfig(
        vocab_size=v, max_position_embeddings=LONGEST, dim=16, n_layers=2, n_heads=2, hidden_dim=32,
        **labels("Toxicity"))),
    # Another activation function and more labels; said to be one of several.
    "xlm-roberta": dict(tokenizer=lambda: unigram(ROBERTA_SPECIAL, "<s> $A </s>"), config=lambda v: XLMRobertaConfig(
        vocab_size=v, max_position_embeddings=LONGEST + 2, type_vocab_size=1, hidden_act="gelu_new", **SMALL,
        problem_type="single_label_classification", **labels("polite", "offensive", "spam"))),
    # The options of microsoft/deberta-v3-base; buckets so few that the logarithmic ones are used. Labels not named.
    "deberta-v2": dict(tokenizer=lambda: unigram(BERT_SPECIAL, "[CLS] $A [SEP]"), config=lambda v: DebertaV2Config(
        vocab_size=v, max_position_embeddings=LONGEST, **SMALL, relative_attention=True, position_buckets=8,
        norm_rel_ebd="layer_norm", share_att_key=True, pos_att_type="p2c|c2p", max_relative_positions=-1,
        position_biased_input=False, type_vocab_size=0, pooler_hidden_size=16)),
    # The options of microsoft/deberta-v2-xlarge but for its convolution: keys and queries of positions of their own.
    "deberta-v2-own-keys": dict(tokenizer=lambda: unigram(BERT_SPECIAL, "[CLS] $A [SEP]"), config=lambda v: DebertaV2Config(
        vocab_size=v, max_position_embeddings=LONGEST, **SMALL, relative_attention=True, share_att_key=False,
        pos_att_type=["c2p", "p2c"], type_vocab_size=2, **labels("safe", "unsafe"))),
    # Global attention every third layer, the others see 3 tokens to each side.
    "modernbert": dict(tokenizer=lambda: byte_level(BERT_SPECIAL, "[CLS] $A [SEP]"), config=lambda v: ModernBertConfig(
        vocab_size=v, max_position_embeddings=LONGEST, **{**SMALL, "num_hidden_layers": 4}, local_attention=6,
        global_attn_every_n_layers=3, pad_token_id=0, bos_token_id=2, cls_token_id=2, eos_token_id=3, sep_token_id=3,
        **labels("nothate", "hate"))),
    # The mean of all tokens instead of the first.
    "modernbert-mean": dict(tokenizer=lambda: byte_level(BERT_SPECIAL, "[CLS] $A [SEP]"), config=lambda v: ModernBertConfig(
        vocab_size=v, max_position_embeddings=LONGEST, **SMALL, local_attention=6, global_attn_every_n_layers=2,
        classifier_pooling="mean", pad_token_id=0, bos_token_id=2, cls_token_id=2, eos_token_id=3, sep_token_id=3,
        problem_type="multi_label_classification", **labels("toxicity", "male", "female"))),
}


def randomize(model, seed):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            draw = torch.randn(p.shape, generator=g)
            if name.endswith("bias"):
                p.copy_(0.2 * draw)
            elif "norm" in name.lower():
                p.copy_(1 + 0.2 * draw)
            else:
                p.copy_(0.6 * draw)
        padding = [m for m in model.modules() if isinstance(m, torch.nn.Embedding) and m.padding_idx is not None]
        for m in padding:
            m.weight[m.padding_idx] = 0.7


def probabilities(model, tokenizer, together):
    """(texts, labels), by transformers' pipeline."""
    pipe = TextClassificationPipeline(model=model, tokenizer=tokenizer, device="cpu")
    names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    rows = pipe(TEXTS, top_k=None, truncation=True, batch_size=together)
    return torch.tensor([[{r["label"]: r["score"] for r in row}[n] for n in names] for row in rows], dtype=torch.float64)


def moved(model, tokenizer, expected, change):
    """How far a mistake moves the probability it moves most."""
    return (probabilities(change(model), tokenizer, 1) - expected).abs().max().item()


def check(name, model, tokenizer, expected, rebuilt):
    spread = (expected.max(0).values - expected.min(0).values).min().item()
    together = (probabilities(model, tokenizer, len(TEXTS)) - expected).abs().max().item()
    assert together < 1e-5, f"{name}: a batch gives something else: {together}"
    act = next(k for k in ("hidden_act", "activation", "hidden_activation") if hasattr(model.config, k))
    other = "gelu" if getattr(model.config, act) == "gelu_new" else "gelu_new"
    gelu = moved(model, tokenizer, expected, lambda _: rebuilt(**{act: other}))
    # The mask: padded ids are read as tokens.
    with torch.no_grad():
        enc = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
        seen = model(input_ids=enc["input_ids"], attention_mask=torch.ones_like(enc["attention_mask"])).logits
        right = model(input_ids=enc["input_ids"], attention_mask=enc["attention_mask"]).logits
        mask = (seen - right).abs().max().item()
    figures = dict(spread=spread, gelu=gelu, mask=mask)
    return figures, spread > 0.1 and gelu > VISIBLE and mask > 100 * VISIBLE


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="tests/golden/classifiers")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    os.makedirs(out, exist_ok=True)
    with open(f"{out}/texts.json", "w") as f:
        f.write(json.dumps(TEXTS, indent=1, ensure_ascii=False) + "\n")
    for name, spec in MODELS.items():
        raw, special = spec["tokenizer"]()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=LONGEST, **special)
        config = spec["config"](raw.get_vocab_size())
        config.pad_token_id = tokenizer.pad_token_id
        family = transformers.AutoModelForSequenceClassification
        model = family.from_config(config, attn_implementation="eager").eval()
        folder = f"{out}/{name}"

        def rebuilt(**changes):
            return family.from_pretrained(folder, attn_implementation="eager", **changes).eval()

        for seed in itertools.count(1):
            randomize(model, seed)
            expected = probabilities(model, tokenizer, 1)
            shutil.rmtree(folder, ignore_errors=True)
            model.save_pretrained(folder)
            figures, sees = check(name, model, tokenizer, expected, rebuilt)
            if sees:
                break
        tokenizer.save_pretrained(folder)
        lengths = [len(tokenizer(t)["input_ids"]) for t in TEXTS]
        assert max(lengths) > LONGEST, f"{name}: no text is too long: {lengths}"
        with open(f"{folder}/expected.json", "w") as f:
            f.write(json.dumps({
                "torch": torch.__version__, "transformers": transformers.__version__, "seed": seed,
                "labels": [model.config.id2label[i] for i in range(model.config.num_labels)],
                "probabilities": expected.tolist()}, indent=1) + "\n")
        size = sum(os.path.getsize(f"{folder}/{f}") for f in os.listdir(folder))
        print(f"{name}: {size / 1024:.0f} KiB, seed {seed}, lengths {lengths}, {figures}")


if __name__ == "__main__":
    main()
