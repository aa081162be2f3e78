#!/usr/bin/env python3
"""Write what transformers makes of the files of tokenizer folders: tests/golden/tokenizers.

    python scripts/make_golden_tokenizers.py [--out tests/golden/tokenizers]
    python scripts/make_golden_tokenizers.py --random 300 --seed 7 --out FOLDER

What it leaves in OUT: `base-NAME.json`, small tokenizers of the common kinds (those of the repository, if it has them), and `cases.json`: folders with
tokenizer_config.json, special_tokens_map.json, added_tokens.json, tokenizer.json or vocab.json and merges.txt, and the
ids, special tokens and texts that AutoTokenizer makes of them. With --random the folders are drawn at random: more than
the repository needs to hold, for those who change how such files are read. Needs `transformers` and `tokenizers`.
"""
import argparse
import copy
import json
import os
import pathlib
import random
import tempfile

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import tokenizers
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

transformers.logging.set_verbosity_error()
CORPUS = [
    "The man went left and the dog went home; nobody asked why.",
    "My neighbour waters the plants, reads 12 books a year and says thank you.",
    "Tell me about number 7: it is a prime, isn't it?",
    "She said: \"It's late, let us go.\" They didn't go. We've all been there!",
    "A kind word costs nothing, and the bread was late for the third time in 2026.",
    "naïve café, über and Straße; what is left is left.",
] * 20
TEXTS = [
    "The man went left",
    " The man  went\nhome <|end|> it is <tok> late. ",
    "<s>Tell me about 2026 naïve <pad> plants!</s>",
    "<|endoftext|> left<|end|>right <extra> the<tok>man",
    "It's late , isn 't it ? the  dog",
]
END = "<|endoftext|>"
MARKS = ["<|end|>", "<tok>", "<extra>", "<pad>"]


def special(content, id, **flags):
    return {"id": id, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
            "special": True} | flags


def trained(model, trainer, normalizer=None, pre_tokenizer=None):
    tokenizer = Tokenizer(model)
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator(CORPUS, trainer)
    return json.loads(tokenizer.to_str())


def bases():
    """Small tokenizers of the common kinds, each a tokenizer.json."""
    found = {}
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base = trained(models.BPE(), trainers.BpeTrainer(
        vocab_size=340, special_tokens=[END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
        pre_tokenizer=byte_level)
    base["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    found["bytes"] = base

    # As Llama 2: BPE over pieces with ▁, and a token for each byte.
    base = trained(models.BPE(), trainers.BpeTrainer(vocab_size=150, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False),
                   pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="always"))
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{b:02X}>": 3 + b for b in range(256)}
    for token in sorted(base["model"]["vocab"], key=base["model"]["vocab"].get):
        vocab.setdefault(token, len(vocab))
    base["model"] |= {"vocab": vocab, "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    base["added_tokens"] = [special(token, id) for id, token in enumerate(["<unk>", "<s>", "</s>"])]
    base["normalizer"] = {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}
    base["pre_tokenizer"] = None
    base["decoder"] = {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    base["post_processor"] = template(["<s>", 1], None)
    found["pieces"] = base

    base = trained(models.WordPiece(unk_token="[UNK]"), trainers.WordPieceTrainer(
        vocab_size=160, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], show_progress=False),
        normalizer=normalizers.BertNormalizer(), pre_tokenizer=pre_tokenizers.BertPreTokenizer())
    base["decoder"] = json.loads(decoders.WordPiece().__getstate__())
    found["words"] = base

    base = trained(models.Unigram(), trainers.UnigramTrainer(
        vocab_size=130, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False),
        pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="always"))
    base["decoder"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
    found["unigram"] = base
    return found


def template(before, after):
    """A post-processor that puts texts between these tokens."""
    piece = lambda token: [{"SpecialToken": {"id": token[0], "type_id": 0}}] if token else []
    tokens = [token for token in (before, after) if token]
    return {"type": "TemplateProcessing", "single": [*piece(before), {"Sequence": {"id": "A", "type_id": 0}}, *piece(after)],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {t: {"id": t, "ids": [id], "tokens": [t]} for t, id in tokens}}


def case(name, model, base, tokenizer=(), config=None, map=None, added=None, vocabulary=False, json_too=True, **model_config):
    """A folder: what its `tokenizer.json` has otherwise than the base, and its other files."""
    return {"name": name, "model": {"model_type": model} | model_config, "base": base, "tokenizer": dict(tokenizer) if json_too else None,
            "config": config, "map": map, "added": added, "vocabulary": vocabulary}


METASPACE = lambda scheme: {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
BYTE_LEVEL = lambda space: {"type": "ByteLevel", "add_prefix_space": space, "trim_offsets": True, "use_regex": True}
LLAMA = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
TOKEN = lambda content, **flags: {"__type": "AddedToken", "content": content, "lstrip": False, "normalized": True,
                                  "rstrip": False, "single_word": False} | flags
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}


def cases():
    end = [END, 0]
    yield case("add_prefix_space of the other file", "gpt2", "bytes", config={"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True})
    yield case("add_prefix_space of tokenizer.json is the class's", "gpt2", "bytes", {"pre_tokenizer": BYTE_LEVEL(True)})
    yield case("add_prefix_space as it stands", "llama", "bytes", {"pre_tokenizer": BYTE_LEVEL(True)}, config=FAST | {"add_prefix_space": False})
    yield case("a class with Fast behind it", "llama", "bytes", {"pre_tokenizer": BYTE_LEVEL(True)}, config={"tokenizer_class": "GPT2TokenizerFast"})
    yield case("the class stands in config.json", "llama", "bytes", {"pre_tokenizer": BYTE_LEVEL(True)}, tokenizer_class="GPT2Tokenizer")
    yield case("a class that nobody knows", "gpt2", "bytes", {"pre_tokenizer": BYTE_LEVEL(True)}, config={"tokenizer_class": "MyTokenizer"})
    yield case("named tokens that are nowhere else", "gpt2", "bytes", config={"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"})
    yield case("named tokens as objects", "llama", "bytes", config=FAST | {
        "bos_token": TOKEN("<s>", rstrip=True), "eos_token": TOKEN("</s>", normalized=False, lstrip=True), "pad_token": TOKEN("<pad>")})
    yield case("a named token that is null", "gpt2", "bytes", config={"bos_token": None, "eos_token": END})
    yield case("tokens of added_tokens.json", "llama", "bytes", config=FAST, added={"<tok>": 341, "<|end|>": 340})
    yield case("tokens of added_tokens.json, and a space before texts", "llama", "pieces", config=FAST, added={"<tok>": 401, "<|end|>": 402})
    yield case("tokens of added_tokens.json that are special", "gpt2", "bytes", config={"additional_special_tokens": ["<|end|>"]},
               added={"<tok>": 340, "<|end|>": 341})
    yield case("special_tokens_map.json as text and object", "llama", "bytes", config=FAST, map={
        "bos_token": {"content": "<s>", "lstrip": False, "normalized": False, "rstrip": True, "single_word": False},
        "eos_token": "</s>", "additional_special_tokens": ["<|end|>", "<tok>"]})
    yield case("the older file has the last word", "llama", "bytes", config=FAST | {"bos_token": "<|end|>"}, map={"bos_token": "<s>"})
    yield case("unless the newer one lists all", "llama", "bytes", config=FAST | {"bos_token": "<|end|>", "added_tokens_decoder": {}},
               map={"bos_token": "<s>"}, added={"<tok>": 340})
    yield case("added_tokens_decoder goes before tokenizer.json", "llama", "bytes", {"added_tokens": [special(END, 0), special("<|end|>", 340)]},
               config=FAST | {"added_tokens_decoder": {"340": {k: v for k, v in special("<|end|>", 340, lstrip=True, rstrip=True).items() if k != "id"},
                                                       "341": {k: v for k, v in special("<tok>", 341, special=False).items() if k != "id"}}})
    yield case("a class has no other tokens than added_tokens_decoder's", "gpt2", "bytes",
               {"added_tokens": [special(END, 0), special("<|end|>", 340)]}, config={"added_tokens_decoder": {
                   "0": {k: v for k, v in special(END, 0).items() if k != "id"}, "341": {k: v for k, v in special("<tok>", 341).items() if k != "id"}}})
    yield case("extra_special_tokens", "llama", "bytes", config=FAST | {"extra_special_tokens": ["<|end|>", "<extra>"]})
    yield case("additional_special_tokens as objects", "llama", "bytes", config=FAST | {"additional_special_tokens": [TOKEN("<|end|>", lstrip=True), "<extra>"]})
    yield case("split_special_tokens", "llama", "bytes", config=FAST | {"split_special_tokens": True})
    yield case("add_bos_token and add_eos_token beside tokenizer.json", "llama", "bytes", {"post_processor": template(end, None)},
               config=FAST | {"bos_token": END, "eos_token": END, "add_bos_token": False, "add_eos_token": True})
    yield case("a tokenizer.json that puts an end behind texts", "llama", "bytes", {"post_processor": template(None, end)}, config=FAST | {"eos_token": END})

    for name, more in [("", {}), (", legacy", {"legacy": True}), (", not legacy", {"legacy": False}), (", no space", {"add_prefix_space": False})]:
        yield case("Llama's class" + name, "llama", "pieces", config=LLAMA | more)
    yield case("Llama's class, and tokens elsewhere", "llama", "pieces", config=LLAMA | {"pad_token": "<pad>"}, added={"<|end|>": 402, "<tok>": 401})
    yield case("Llama's class with a vocabulary of bytes", "llama", "bytes", {"pre_tokenizer": BYTE_LEVEL(True)}, config=LLAMA)
    yield case("Mistral as it stands, whatever its class", "mistral", "pieces", config=LLAMA | {"add_prefix_space": False})
    for scheme in ["first", "always", "never"]:
        yield case(f"Metaspace {scheme}", "llama", "pieces", {"normalizer": None, "pre_tokenizer": METASPACE(scheme)}, config=FAST, map={"pad_token": "<|end|>"})
    yield case("Code Llama", "llama", "pieces", config=LLAMA | {"tokenizer_class": "CodeLlamaTokenizer"})
    yield case("Gemma", "llama", "pieces", config={"tokenizer_class": "GemmaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"})
    yield case("Qwen2 whatever the folder says", "qwen2", "bytes", {"pre_tokenizer": BYTE_LEVEL(True)}, config=FAST | {"eos_token": "<|end|>", "bos_token": None})
    yield case("Qwen2 with a space", "qwen2", "bytes", config={"tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": True})
    yield case("Qwen2's special tokens are plain", "qwen3", "bytes", {"added_tokens": [special(END, 0), special("<|end|>", 340, lstrip=True)]},
               config={"tokenizer_class": "Qwen2Tokenizer", "pad_token": "<|end|>"})
    yield case("Qwen3 as it stands", "qwen3", "bytes", {"pre_tokenizer": BYTE_LEVEL(True)}, config=FAST)
    yield case("GPT-NeoX drops the post-processor", "gpt_neox", "bytes", {"post_processor": template(end, end), "normalizer": {"type": "Lowercase"}},
               config={"tokenizer_class": "GPTNeoXTokenizer", "add_bos_token": True})
    yield case("BERT", "gpt2", "words", config={"tokenizer_class": "BertTokenizer"})
    yield case("BERT with capitals", "gpt2", "words", config={"tokenizer_class": "BertTokenizerFast", "do_lower_case": False, "clean_up_tokenization_spaces": True})
    yield case("words as they stand", "llama", "words", config=FAST | {"clean_up_tokenization_spaces": True})
    yield case("Unigram", "llama", "unigram", config=FAST | {"unk_token": "<unk>", "clean_up_tokenization_spaces": True})
    yield case("spaces of BPE stay", "llama", "bytes", config=FAST | {"clean_up_tokenization_spaces": True})

    yield case("GPT-2's first layout", "gpt2", "bytes", vocabulary=True, json_too=False)
    yield case("GPT-Neo's first layout", "gpt_neo", "bytes", vocabulary=True, json_too=False,
               config={"add_prefix_space": True, "bos_token": END, "eos_token": END}, map={"bos_token": END, "eos_token": END})
    yield case("the first layout with tokens around", "gpt2", "bytes", vocabulary=True, json_too=False,
               config={"add_bos_token": True, "add_eos_token": True}, added={"<|end|>": 340, "<tok>": 341}, map={"eos_token": "<|end|>"})
    yield case("the first layout of Qwen2", "qwen2", "bytes", vocabulary=True, json_too=False, config={"tokenizer_class": "Qwen2Tokenizer"})
    yield case("the first layout of GPT-NeoX", "gpt_neox", "bytes", vocabulary=True, json_too=False, config={"add_bos_token": True, "bos_token": END})
    yield case("a llama with GPT-2's first layout", "llama", "bytes", vocabulary=True, json_too=False, config={"tokenizer_class": "GPT2Tokenizer"})
    yield case("BERT's first layout", "gpt2", "words", vocabulary=True, json_too=False, config={"tokenizer_class": "BertTokenizer"})


def random_case(number, draw):
    """A folder with everything at random."""
    flag = lambda p=0.5: draw.random() < p
    base = draw.choice(["bytes", "bytes", "pieces", "pieces", "words", "unigram"])
    model = draw.choice(["gpt2", "gpt_neo", "gpt_neox", "llama", "llama", "mistral", "qwen2", "qwen3"])
    own = {"bytes": ["GPT2Tokenizer", "GPTNeoXTokenizer", "Qwen2Tokenizer", "LlamaTokenizer", "Qwen2TokenizerFast"],
           "pieces": ["LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "GemmaTokenizer"], "words": ["BertTokenizer"],
           "unigram": ["PreTrainedTokenizerFast"]}[base]
    # A class over a vocabulary of another kind makes nothing of use.
    if base == "unigram" or base == "words" or base == "pieces":
        model = draw.choice(["llama", "mistral"]) if base != "words" else "llama"
    tokenizer, names = {}, {"bytes": (END, END), "pieces": ("<s>", "</s>"), "words": ("[CLS]", "[SEP]"), "unigram": ("<s>", "</s>")}[base]
    ids = {"bytes": {END: 0}, "pieces": {"<s>": 1, "</s>": 2}, "words": {"[CLS]": 2, "[SEP]": 3}, "unigram": {"<s>": 1, "</s>": 2}}[base]
    if flag(0.4):
        tokenizer["post_processor"] = template([names[0], ids[names[0]]] if flag() else None, [names[1], ids[names[1]]] if flag() else None)
    if base == "bytes" and flag(0.4):
        tokenizer["pre_tokenizer"] = BYTE_LEVEL(flag())
    if base == "pieces" and flag():
        tokenizer |= {"normalizer": None, "pre_tokenizer": METASPACE(draw.choice(["first", "always", "never"]))}
    size = {"bytes": 340, "pieces": 403, "words": 160, "unigram": 130}[base]
    loose = lambda: {"lstrip": flag(0.3), "rstrip": flag(0.3), "single_word": flag(0.2), "normalized": flag(0.4)}
    marks = draw.sample(MARKS, draw.randint(0, 3))
    config = None
    if flag(0.9):
        config = {"tokenizer_class": draw.choice(own + ["PreTrainedTokenizerFast"])} if flag(0.8) or base == "words" else {}
        for name, value in [("bos_token", names[0]), ("eos_token", names[1]), ("pad_token", "<pad>"), ("unk_token", None)]:
            if value and flag():
                config[name] = TOKEN(value, **loose()) if flag(0.3) else value
            elif flag(0.1):
                config[name] = None
        for name in ["add_prefix_space", "add_bos_token", "add_eos_token", "legacy", "clean_up_tokenization_spaces", "do_lower_case"]:
            if flag(0.25):
                config[name] = flag()
        if flag(0.1):
            config["split_special_tokens"] = True
        if flag(0.2):
            config[draw.choice(["extra_special_tokens", "additional_special_tokens"])] = [
                TOKEN(mark, **loose()) if flag(0.3) else mark for mark in marks]
        if flag(0.25):
            known = [t | {} for t in tokenizer.get("added_tokens", [])]
            config["added_tokens_decoder"] = {str(size + i): {k: v for k, v in special(mark, 0, special=flag(), **loose()).items() if k != "id"}
                                              for i, mark in enumerate(marks)}
    added = {mark: size + i for i, mark in enumerate(draw.sample(MARKS, 2))} if flag(0.3) else None
    map = None
    if flag(0.3):
        map = {"bos_token": names[0] if flag() else {"content": names[0], **loose()}}
        if flag():
            map["eos_token"] = draw.choice(MARKS)
        if flag(0.3):
            map["additional_special_tokens"] = draw.sample(MARKS, 2)
    first = base == "bytes" and flag(0.2) and (config or {}).get("tokenizer_class", "GPT2Tokenizer") in own[:3] and model in ("gpt2", "gpt_neo")
    return case(f"random {number}", model, base, tokenizer, config, map, added, vocabulary=first, json_too=not first)


def write(case, bases, folder):
    """The files of a folder."""
    base = bases[case["base"]]
    put = lambda name, value: (folder / name).write_text(json.dumps(value, ensure_ascii=False))
    put("config.json", case["model"])
    if case["tokenizer"] is not None:
        put("tokenizer.json", copy.deepcopy(base) | case["tokenizer"])
    for key, name in [("config", "tokenizer_config.json"), ("map", "special_tokens_map.json"), ("added", "added_tokens.json")]:
        if case[key] is not None:
            put(name, case[key])
    if case["vocabulary"] and base["model"]["type"] == "WordPiece":
        vocab = base["model"]["vocab"]
        (folder / "vocab.txt").write_text("".join(token + "\n" for token in sorted(vocab, key=vocab.get)))
    elif case["vocabulary"]:
        put("vocab.json", base["model"]["vocab"])
        merges = [" ".join(merge) for merge in base["model"]["merges"]]
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")


def expected(case, bases):
    with tempfile.TemporaryDirectory() as folder:
        write(case, bases, pathlib.Path(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = [tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS]
    return case | {
        "ids": [tokenizer(text).input_ids for text in TEXTS], "plain": plain, "special": tokenizer.special_tokens_map,
        "decoded": [tokenizer.decode(ids, skip_special_tokens=True) for ids in plain]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = pathlib.Path(__file__).resolve().parent.parent
    parser.add_argument("--out", default=str(here / "tests" / "golden" / "tokenizers"))
    parser.add_argument("--random", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    # The trainers break ties as they come, so bases that are there stay.
    home = here / "tests" / "golden" / "tokenizers"
    found = {path.stem.removeprefix("base-"): json.loads(path.read_text()) for path in sorted(home.glob("base-*.json"))} or bases()
    for name, base in found.items():
        (out / f"base-{name}.json").write_text(json.dumps(base, ensure_ascii=False, separators=(",", ":")) + "\n")
    draw = random.Random(args.seed)
    wanted = [random_case(i, draw) for i in range(args.random)] if args.random else list(cases())
    rows, refused = [], 0
    for wish in wanted:
        try:
            rows.append(expected(wish, found))
        except Exception as error:
            if not args.random:
                raise
            refused += 1
            print("refused:", wish["name"], type(error).__name__, str(error)[:100])
    versions = {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__}
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    texts = json.dumps(TEXTS, ensure_ascii=False)
    (out / "cases.json").write_text(f'{{"versions": {json.dumps(versions)},\n"texts": {texts},\n"cases": [\n{lines}\n]}}\n')
    print(len(rows), "folders,", refused, "refused by transformers")


if __name__ == "__main__":
    main()
