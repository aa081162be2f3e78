#!/usr/bin/env python3
"""Write what lm-eval's own HFLM says of models whose tokenizers differ in their special tokens: tests/golden/eval/special.json.

    python scripts/make_golden_lm_eval.py [--out tests/golden]

The models are tiny checkpoints of make_golden.py with other tokenizer files: some begin texts with BOS, some end them
with EOS, some have no BOS (as Qwen's), one names another BOS in config.json than its tokenizer has. For each: the files
that differ, log-probability and argmax of the last words (`HFLM.loglikelihood` on what lambada_openai.yaml's templates
make) and the nats of pages (`HFLM.loglikelihood_rolling` on lm-eval's detokenized page). Needs torch, transformers, lm_eval.
"""
import argparse
import json
import logging
import os
import pathlib
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"

import lm_eval
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

from make_golden_tokenizers import END, template

PASSAGES = [
    "The old boat on the river drifted slowly home",
    "My neighbour is a kind man  who waters my plants",
    END + "When the rain came we ran to the house",
    "She said that the tea was kind to the plants, and nobody cared. " * 8 + "Tea at noon and bread are on the table",
]
PAGES = [
    " = The Old Boat = \n\n The old boat was built in 1 @,@ 912 ( or 1 @.@ 5 years later ) ; it ran 3 @-@ 4 times a day . \n" * 3,
    "Tea at noon and bread are on the table",
    END + "Tea at noon",
]
END_0 = [END, 0]


def variants():
    """Name, checkpoint, and what differs: in tokenizer.json, tokenizer_config.json, config.json."""
    fast = {"tokenizer_class": "PreTrainedTokenizerFast"}
    yield "as it is", "gpt2", {}, None, {}
    yield "begins with BOS", "llama", {"post_processor": template(END_0, None)}, fast | {"bos_token": END, "eos_token": END}, {}
    yield "begins with BOS, ends with EOS", "mistral", {"post_processor": template(END_0, END_0)}, fast | {"bos_token": END, "eos_token": END}, {}
    yield "no BOS, as Qwen-Instruct", "qwen2", {}, {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "eos_token": END, "pad_token": END}, {"bos_token_id": 5}
    yield "BOS of the class", "gpt-neo", {}, {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}, {"bos_token_id": 7, "eos_token_id": 9}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default=str(pathlib.Path(__file__).resolve().parent.parent / "tests" / "golden"))
    out = pathlib.Path(parser.parse_args().out)
    logging.disable(logging.WARNING)
    found = []
    for name, checkpoint, tokenizer, config, model in variants():
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            for path in (out / checkpoint).iterdir():
                shutil.copy(path, folder)
            for file, more in [("tokenizer.json", tokenizer), ("config.json", model)]:
                (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | more))
            if config is not None:
                (folder / "tokenizer_config.json").write_text(json.dumps(config))
            lm = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1)
            ask = lambda kind, *args: Instance(request_type=kind, doc={}, arguments=args, idx=0)
            split = [(" ".join(p.split(" ")[:-1]), " " + p.split(" ")[-1]) for p in PASSAGES]
            words = lm.loglikelihood([ask("loglikelihood", *pair) for pair in split], disable_tqdm=True)
            pages = [ask("loglikelihood_rolling", wikitext_detokenizer({"page": page})) for page in PAGES]
            nats = [-x for x in lm.loglikelihood_rolling(pages, disable_tqdm=True)]
        found.append({"name": name, "checkpoint": checkpoint, "tokenizer": tokenizer, "config": config, "model": model,
                      "lambada": [{"logp": logp, "correct": int(correct)} for logp, correct in words], "nats": nats})
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "lm_eval": lm_eval.__version__}
    whole = {"versions": versions, "passages": PASSAGES, "pages": PAGES, "variants": found}
    (out / "eval" / "special.json").write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
