#!/usr/bin/env python3
"""Write where TRL's own code lets a response begin: tests/golden/tokenizers/boundary.json.

    python scripts/make_golden_boundary.py [--out tests/golden/tokenizers]

Twenty awkward rows of plain text and some conversations, on tokenizers over the bases that make_golden_tokenizers.py
left in OUT, prepared by `DPOTrainer._prepare_dataset`. For each row: the ids of the prompt and of both responses. Where
no token of the whole text lies across the boundary, `apart` has what our own rule must give: the ids of the prompt
alone, and what the ids of prompt and response as one text have behind them. Needs `trl` and `transformers`.
"""
import argparse
import json
import os
import pathlib
import tempfile
import types

os.environ["TOKENIZERS_PARALLELISM"] = "false"

import transformers
import trl
from datasets import Dataset
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer

from make_golden_tokenizers import END, FAST, LLAMA, METASPACE, case, special, template, write

ROWS = [
    ("The man went", " left", " home"),
    ("The man went ", "left", "home"),
    ("The man went", "left", "ing home"),
    ("The man  ", "  went", " went"),
    ("Tell me:\n", "\nIt is late", "It is late"),
    ("Tell me:\n\n", "it is", "\n\nit"),
    ("12", "34", " 34"),
    ("20", "26 is late.", "2"),
    ("don", "'t", " not"),
    ("caf", "é and tea", "e"),
    ("cafe", "́ naïve", " naïve"),
    ("The dog<|end|>", "went home", " went home"),
    ("The dog <tok>", " went", "went"),
    ("The dog", "<|end|> went", "<tok>went"),
    ("The dog ", "<tok> went", " <tok> went"),
    ("Say it", " <|end|>left<tok>right", " is late</s>"),
    ("Say it", " " + END, END),
    ("ü", "ber", " über"),
    ("    The man", "\twent", "\n\n\twent"),
    ("left, ", "left left", "right.  "),
]
CHAT = ("{% for m in messages %}{% if m.role == 'user' %}{{ '<|end|>' + m.content + ' <tok>' }}"
        "{% else %}{{ m.content + '<|end|>\\n' }}{% endif %}{% endfor %}")
THINKS = ("{{ bos_token }}{% for m in messages %}{{ '<|end|>' + m.role + '\\n' + m.content + '<tok>\\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|end|>assistant\\n<think>\\n' }}{% endif %}")
COLON = ("{% for m in messages %}{{ m.role + ': ' + m.content + ('\\n' if m.role == 'user' else eos_token) }}{% endfor %}"
         "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}")
TALKS = [
    ([("user", "Why is it late?")], "It is late.", "nobody asked"),
    ([("user", "The dog"), ("assistant", "went home"), ("user", "And the man? ")], " left", "  left\n\n"),
    ([("system", "Be kind."), ("user", "<tok> 2026")], "<|end|> the man", "2"),
]


def tokenizers():
    """Folders, as make_golden_tokenizers.py has them, by the kind of their vocabulary."""
    marks = lambda size, **flags: [special("<|end|>", size, **flags), special("<tok>", size + 1, special=False)]
    own = [special(t, i) for i, t in enumerate(["<unk>", "<s>", "</s>"])]
    of_bytes = lambda **flags: {"added_tokens": [special(END, 0), *marks(340, **flags)]}
    of_pieces = lambda **flags: {"added_tokens": own + marks(406, **flags)}
    ends = {"bos_token": END, "eos_token": END}
    pieces = {"bos_token": "<s>", "eos_token": "</s>"}
    yield case("bytes", "llama", "bytes", of_bytes(), FAST | ends)
    yield case("bytes with a space before texts", "gpt2", "bytes", of_bytes(), ends | {"add_prefix_space": True})
    yield case("bytes between two ends", "llama", "bytes", of_bytes() | {"post_processor": template([END, 0], ["<|end|>", 340])}, FAST | ends)
    yield case("bytes, marks swallow spaces", "llama", "bytes", of_bytes(lstrip=True, rstrip=True), FAST | ends)
    yield case("Qwen2's words", "qwen2", "bytes", of_bytes(), {"eos_token": "<|end|>", "bos_token": None})
    yield case("pieces, ▁ behind every mark", "llama", "pieces", of_pieces(), FAST | pieces)
    yield case("pieces, marks that are normalized", "llama", "pieces", of_pieces(normalized=True), FAST | pieces)
    yield case("pieces, marks swallow spaces", "llama", "pieces", of_pieces(rstrip=True), FAST | pieces)
    yield case("Llama's class", "llama", "pieces", of_pieces(), LLAMA)
    yield case("Llama's class, legacy, no space", "llama", "pieces", of_pieces(), LLAMA | {"add_prefix_space": False})
    for scheme in ["always", "first", "never"]:
        yield case("Metaspace " + scheme, "llama", "pieces", of_pieces() | {
            "normalizer": None, "pre_tokenizer": METASPACE(scheme), "post_processor": template(["<s>", 1], ["</s>", 2])}, FAST | pieces)
    yield case("Unigram", "llama", "unigram", {"added_tokens": own + marks(110)}, FAST | pieces | {"unk_token": "<unk>"})
    yield case("words", "llama", "words", {"added_tokens": [special("[UNK]", 1), special("[SEP]", 3), *marks(160)]}, FAST | {"eos_token": "[SEP]"})


def prepared(tokenizer, rows):
    """The rows as TRL's trainer prepares them."""
    trainer = types.SimpleNamespace(_tokenizer=tokenizer)
    args = DPOConfig(output_dir=tempfile.gettempdir(), max_length=None, use_cpu=True, bf16=False, report_to="none")
    found = DPOTrainer._prepare_dataset(trainer, Dataset.from_list(rows), tokenizer, args, "train")
    return [[row[key] for key in ("prompt_ids", "chosen_ids", "rejected_ids")] for row in found]


def apart(tokenizer, prompt, response):
    """What our rule must give, where no token lies across the boundary; else null."""
    begin = tokenizer(prompt, add_special_tokens=False).input_ids
    whole = tokenizer(prompt + response, add_special_tokens=False, return_offsets_mapping=True)
    ids, split = whole.input_ids, len(begin)
    across = any(start < len(prompt) < end for start, end in whole.offset_mapping)
    return ids[split:] if not across and ids[:split] == begin and ids[split:] else None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = pathlib.Path(__file__).resolve().parent.parent
    parser.add_argument("--out", default=str(here / "tests" / "golden" / "tokenizers"))
    out = pathlib.Path(parser.parse_args().out)
    bases = {path.stem.removeprefix("base-"): json.loads(path.read_text()) for path in out.glob("base-*.json")}
    message = lambda role, content: {"role": role, "content": content}
    talks = [{"prompt": [message(*turn) for turn in history], "chosen": [message("assistant", chosen)],
              "rejected": [message("assistant", rejected)]} for history, chosen, rejected in TALKS]
    found = []
    for wish in tokenizers():
        with tempfile.TemporaryDirectory() as folder:
            write(wish, bases, pathlib.Path(folder))
            tokenizer = AutoTokenizer.from_pretrained(folder)
        # A row at a time: some have no token of theirs in one text.
        plain = []
        for prompt, chosen, rejected in ROWS:
            row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
            alone = tokenizer(prompt, add_special_tokens=False).input_ids
            plain.append({"trl": prepared(tokenizer, [row])[0], "prompt": alone,
                          "apart": [apart(tokenizer, prompt, text) for text in (chosen, rejected)]})
        chats = []
        for name, chat in [("chat", CHAT), ("thinks", THINKS), ("colon", COLON)]:
            tokenizer.chat_template = chat
            chats.append([prepared(tokenizer, [talk])[0] for talk in talks])
        # What stands before a text.
        text = tokenizer("man").input_ids
        own = tokenizer("man", add_special_tokens=False).input_ids
        before = next(text[:i] for i in range(len(text)) if text[i:i + len(own)] == own)
        found.append(wish | {"before": before, "rows": plain, "chats": chats})
    versions = {"trl": trl.__version__, "transformers": transformers.__version__}
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in found)
    (out / "boundary.json").write_text(
        f'{{"versions": {json.dumps(versions)},\n"rows": {json.dumps(ROWS, ensure_ascii=False)},\n'
        f'"templates": {json.dumps([CHAT, THINKS, COLON])},\n"talks": {json.dumps(talks, ensure_ascii=False)},\n'
        f'"cases": [\n{lines}\n]}}\n')
    print(len(found), "tokenizers")


if __name__ == "__main__":
    main()
