#!/usr/bin/env python3
"""Do irepair's LAMBADA and perplexities mean what lm-evaluation-harness means by them? Row by row, with its own code.

    check_lm_eval.py MODEL [--irepair BINARY] [--lambada FILE.jsonl] [--pages FILE] [--text FILE] [--limit 100]

MODEL is a folder in Hugging Face layout. Needs an environment with torch and transformers; installs lm_eval and what it
needs beside them if it is missing (without dependencies, which would bring a torch build of their choice). Nothing is
taken from the hub. Compares, in single precision:

  --lambada FILE   "text" a row, the first --limit: log-probability and argmax of the last word against HFLM.loglikelihood on
                   the context and target that lambada_openai.yaml's templates make
  --pages FILE     "page" a row, the first --limit (a .raw file is cut into pages as EleutherAI/wikitext_document_level
                   does, and given to irepair both as rows and as it is): nats, words and bytes of --ppl-protocol lm-eval
                   against HFLM.loglikelihood_rolling on lm-eval's detokenized page, and its process_results
  --text FILE      protocol paper (.txt or .raw): nats of each window against plain transformers: encoded once, no BOS,
                   windows of min(1024, context) without overlap

and always a few passages and pages with the awkward cases in them. Prints a table of the largest differences, relative
to max(1, |theirs|). Exit status: 0 if all are below 1e-4 and words, bytes and argmax are equal, else 1.
"""
import argparse, collections, importlib.util, json, os, pathlib, re, subprocess, sys, tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
LM_EVAL = "0.4.13"
TOLERANCE = 1e-4

PASSAGES = {
    "plain": "The river ran slowly past the old house",
    "two spaces before the last word": "The river ran slowly past the old  house",
    "newline before the last word": "The river ran slowly past the old\n house",
    "newline inside the last word": "The river ran slowly past the\nold house\nand",
    "space after the last word": "The river ran slowly past the old house ",
    "quotes and dashes": 'She said: "I don\'t -- I never would." He laughed',
    "not ASCII": "Die Straße führt über den Fluß nach Überlingen",
    "longer than the context": "and so it went on and on until the end of the day " * 80 + "came",
}
PAGES = {
    "plain": " = Title = \n \n The river @-@ bank was 2 @,@ 000 m ( 1 @.@ 2 mi ) long . It 's there ; \" really \" . \n",
    "begins with an empty line": " \n = Title = \n \n The river ran slowly . \n",
    "nested marks": " = A = \n ( a [ b { c } d ] e ) ' f ' \" g \n h \" ( unclosed \n = = B = = \n = = = C = = = \n = = = = D = = = = \n x N y 5 ° C \n",
    "slash and number": " = A = \n see /' 5/ and players ' rights , dogs 's \n",
    "control characters that Python calls space": " = A = \n a\x1cb \x1f c ( \x1d d ) e\u00a0f\u2003g \n",
    "longer than the context": " = Long = \n" + " the cat , which sat on the mat , saw a dog . \n" * 120,
}


def lm_eval():
    """lm-eval's classes and its tasks' own files; installed if missing."""
    if importlib.util.find_spec("lm_eval") is None:
        pip = [sys.executable, "-m", "pip", "install", "-q"]
        subprocess.run(pip + ["--no-deps", f"lm_eval=={LM_EVAL}", "accelerate"], check=True)
        subprocess.run(pip + ["requests", "psutil", "more_itertools"], check=True)
    from lm_eval import utils
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    # By path: the package lm_eval.tasks would want `datasets`.
    tasks = pathlib.Path(utils.__file__).parent / "tasks"
    templates = {}
    for line in (tasks / "lambada" / "lambada_openai.yaml").read_text().splitlines():
        if found := re.match(r'(doc_to_text|doc_to_target): "(.*)"$', line):
            templates[found[1]] = found[2]
    spec = importlib.util.spec_from_file_location("preprocess_wikitext", tasks / "wikitext" / "preprocess_wikitext.py")
    wikitext = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(wikitext)
    return utils, Instance, HFLM, templates, wikitext


class Check:
    def __init__(self, args, scratch):
        self.args, self.scratch = args, pathlib.Path(scratch)
        self.utils, self.Instance, HFLM, self.templates, self.wikitext = lm_eval()
        self.lm = HFLM(pretrained=args.model, device="cpu", dtype="float32", batch_size=8)
        self.problems, self.table, self.runs = [], [], 0

    def file(self, name, rows):
        path = self.scratch / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    def ours(self, *flags):
        """The rows of irepair's only task; None if it refuses."""
        self.runs += 1
        out = self.scratch / f"out{self.runs}"
        command = [self.args.irepair, "eval", "--model", self.args.model, "--out", str(out), "-q", *flags]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            self.problems.append(f"irepair eval {' '.join(flags)}: {done.stderr.strip()}")
            return None
        results = json.loads((out / "results.json").read_text())
        [rows] = [m["models"][0]["rows"] for m in results["measurements"]]
        return [json.loads(line) for line in (out / rows).read_text().splitlines()]

    def compare(self, what, ours, theirs, names=None):
        """Rows as {key: number}: floats nearly equal, integers equal."""
        if ours is None:
            return
        if len(ours) != len(theirs):
            self.problems.append(f"{what}: {len(ours)} rows, lm-eval has {len(theirs)}")
            return
        worst, unequal = collections.Counter(), collections.Counter()
        for i, (a, b) in enumerate(zip(ours, theirs)):
            for key, value in b.items():
                where = f"{what}: row {i}{f' ({names[i]})' if names else ''}: {key} is {a[key]}, not {value}"
                if isinstance(value, int):
                    unequal[key] += a[key] != value
                    wrong = a[key] != value
                else:
                    difference = abs(a[key] - value) / max(1, abs(value))
                    worst[key] = max(worst[key], difference)
                    wrong = not difference <= TOLERANCE
                if wrong:
                    self.problems.append(where)
        shown = [f"{key} {value:.1e}" for key, value in worst.items()] + [f"{key} {n} unequal" for key, n in unequal.items()]
        self.table.append(f"{what:44} {len(ours):5} rows   " + ", ".join(shown))

    def lambada(self, what, texts, names=None):
        docs = [{"text": text} for text in texts]
        pairs = [tuple(self.utils.apply_template(self.templates[t], doc) for t in ("doc_to_text", "doc_to_target")) for doc in docs]
        theirs = self.lm.loglikelihood([self.Instance("loglikelihood", d, p, 0) for d, p in zip(docs, pairs)], disable_tqdm=True)
        ours = self.ours("--lambada", self.file(f"{self.runs}.jsonl", docs))
        self.compare(what, ours, [{"logp": logp, "correct": int(greedy)} for logp, greedy in theirs], names)

    def rolling(self, what, pages, names=None, file=None):
        docs = [{"page": page} for page in pages]
        requests = [self.Instance("loglikelihood_rolling", d, (self.wikitext.wikitext_detokenizer(d),), 0) for d in docs]
        theirs = []
        for doc, logp in zip(docs, self.lm.loglikelihood_rolling(requests, disable_tqdm=True)):
            figures = self.wikitext.process_results(doc, (logp,))
            theirs.append({"nats": -float(logp), "words": figures["word_perplexity"][1], "bytes": figures["byte_perplexity"][1]})
        ours = self.ours("--ppl-protocol", "lm-eval", "--ppl", file or self.file(f"{self.runs}.jsonl", docs))
        self.compare(what, ours, theirs, names)

    def paper(self, what, path):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(self.args.model, dtype=torch.float32).eval()
        text = pathlib.Path(path).read_bytes().decode()
        ids = AutoTokenizer.from_pretrained(self.args.model)(text, add_special_tokens=False, verbose=False).input_ids
        window = min(1024, model.config.max_position_embeddings)
        theirs = []
        with torch.no_grad():
            for begin in range(0, len(ids), window):
                own = torch.tensor(ids[begin : begin + window])
                logp = model(own[None]).logits[0].log_softmax(-1)[:-1].gather(1, own[1:, None])
                theirs.append({"nats": -float(logp.double().sum()), "tokens": len(own) - 1})
        self.compare(what, self.ours("--ppl", path), theirs)


def pages_of(text):
    """As EleutherAI/wikitext_document_level: a page ends before the line break before the next title."""
    found, page = [], []
    for line in text.split("\n"):
        flat = line.replace("= = =", "===").replace("= =", "==").strip()
        if flat.startswith("= ") and flat.endswith(" ="):
            found.append("\n".join(page))
            page = []
        page.append(line)
    return [page for page in found if page.strip()] + ["\n".join(page)]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model", metavar="MODEL")
    ap.add_argument("--irepair", default="irepair")
    ap.add_argument("--lambada", metavar="FILE.jsonl")
    ap.add_argument("--pages", metavar="FILE")
    ap.add_argument("--text", metavar="FILE")
    ap.add_argument("--limit", type=int, default=100, metavar="N")
    args = ap.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        check = Check(args, scratch)
        check.lambada("lambada_openai, awkward passages", list(PASSAGES.values()), list(PASSAGES))
        check.rolling("lm-eval perplexity, awkward pages", list(PAGES.values()), list(PAGES))
        check.rolling("lm-eval perplexity, one page alone", [PAGES["begins with an empty line"]])
        check.rolling("lm-eval perplexity, a page without text", [PAGES["plain"], "", PAGES["plain"]])
        if args.lambada:
            texts = [json.loads(line)["text"] for line in open(args.lambada, encoding="utf-8")][: args.limit]
            check.lambada("lambada_openai", texts)
        if args.pages and args.pages.endswith(".jsonl"):
            pages = [json.loads(line)["page"] for line in open(args.pages, encoding="utf-8")]
            check.rolling("lm-eval perplexity, pages", pages[: args.limit])
        elif args.pages:
            text = pathlib.Path(args.pages).read_bytes().decode().replace("\r\n", "\n")
            pages = pages_of(text)[: args.limit]
            check.rolling("lm-eval perplexity, pages", pages)
            raw = check.scratch / "pages.raw"
            raw.write_bytes("\n".join(pages).encode())
            check.rolling("lm-eval perplexity, the file itself", pages, file=str(raw))
        if args.text:
            check.paper("protocol paper, windows", args.text)
    print("\n".join(check.table))
    for problem in check.problems:
        print(f"check_lm_eval: {problem}", file=sys.stderr)
    return 1 if check.problems else 0


if __name__ == "__main__":
    sys.exit(main())
