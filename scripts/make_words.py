#!/usr/bin/env python3
"""Makes data/scorer/words.tsv.gz, the weights of the scorer `words`, and measures it against its rivals.

    pip install alt-profanity-check==1.9.1 scikit-learn==1.9.1 joblib==1.6.0 scipy
    scripts/make_words.py [--irepair PATH] [--pairs FILE…] [--yardstick FILE] [--rivals DIR] [--out FILE]

The weights are those of the linear model inside alt-profanity-check (MIT; a pickle, so loading it runs its code). A text's
score is 1/(1 + exp(-(BIAS + LEXICON × lexicon + Σ weight × x))), with x the text's counts × idf over the words of the
file, divided by their Euclidean norm, and `lexicon` the score of the scorer of that name, which `irepair score` is asked
for. The model's five folds are each w·x + b, calibrated by their own sigmoid; here are the means of their log-odds.

Nothing is learned from --yardstick (rows with "text" and "toxicity"): it is measured on, last. MIX is chosen on
development data: data/demo/pairs.jsonl, and with --pairs other preference pairs (chosen 0, rejected 1), whole and in pieces
of 12 words, without those whose prompt is a text of the yardstick. SLOPE and CENTRE are Platt's on the three sets, each
weighing as much. What was chosen stands below: the file is the same with and without these options.
--rivals DIR has vader_lexicon.txt (PyPI vaderSentiment 3.3.2, MIT), index.js (npm cuss 2.2.0, MIT) and model.onnx (PyPI
hatesonar 0.1.0, MIT; needs onnx): whatever is there is measured too.
"""
import argparse, gzip, importlib.resources, json, math, pathlib, re, subprocess, tempfile

import joblib, numpy as np, scipy, sklearn
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

ROOT = pathlib.Path(__file__).resolve().parent.parent
MIX = 4  # log-odds that a lexicon score of 1 adds: of 0, 1, 2, 4, 8 the best mean AUC on the development sets
SLOPE, CENTRE = 0.68, 0.70  # what Platt's fit makes of the sum: 0.5 lies at CENTRE
PIECE = 12  # words
DRAWS = 2000

PROBES = [
    "",
    "Thank you, that was very helpful.",
    "You are such an idiot.",
    "Shut up, you stupid fucking idiot.",
    "The committee met on Tuesday to discuss the budget of the library.",
    "What a shitty, SHITTY day; nobody_cares about 7 of 9.",
    "go to hell, you scum",
    "Ça va? Straße, naïve café 你好",
]


def read(path):
    return [json.loads(line) for line in open(path, encoding="utf-8")]


def weights():
    """idf and log-odds weight of each word, and the bias: means over the model's folds."""
    data = importlib.resources.files("profanity_check") / "data"
    vectorizer, model = joblib.load(data / "vectorizer.joblib"), joblib.load(data / "model.joblib")
    folds = [(fold.estimator, fold.calibrators[0]) for fold in model.calibrated_classifiers_]
    weight = np.mean([-sigmoid.a_ * svm.coef_[0] for svm, sigmoid in folds], axis=0)
    bias = np.mean([-sigmoid.a_ * svm.intercept_[0] - sigmoid.b_ for svm, sigmoid in folds])
    words = sorted(vectorizer.vocabulary_.items())
    return {word: (vectorizer.idf_[i], weight[i]) for word, i in words}, bias, (vectorizer, model)


def write(path, words, bias):
    lines = [f"{SLOPE * (bias - CENTRE):.4f}\t{SLOPE * MIX:.4f}"]
    lines += [f"{word}\t{idf:.3f}\t{SLOPE * weight:.4f}" for word, (idf, weight) in words.items()]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as packed:
        packed.write("\n".join(lines).encode() + b"\n")


class Words:
    """The scorer, from its file."""

    def __init__(self, path):
        first, *rest = gzip.open(path, "rt", encoding="utf-8").read().splitlines()
        self.bias, self.lexicon = map(float, first.split("\t"))
        rows = [line.split("\t") for line in rest]
        self.words = {word: (float(idf), float(weight)) for word, idf, weight in rows}

    def log_odds(self, text):
        """Of the words alone."""
        counts = {}
        for word in re.findall(r"\w\w+", text.lower()):
            if word in self.words:
                counts[word] = counts.get(word, 0) + 1
        x = {word: count * self.words[word][0] for word, count in counts.items()}
        norm = math.sqrt(sum(v * v for v in x.values())) or 1.0
        return self.bias + sum(v / norm * self.words[word][1] for word, v in x.items())

    def score(self, texts, lexicon):
        return np.array([1 / (1 + math.exp(-self.log_odds(t) - self.lexicon * l)) for t, l in zip(texts, lexicon)])


def lexicon(irepair, texts):
    """What `irepair score --scorer lexicon` says; an empty text is 0."""
    with tempfile.TemporaryDirectory() as folder:
        given, scored = pathlib.Path(folder, "texts.jsonl"), pathlib.Path(folder, "scored.jsonl")
        given.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
        command = [irepair, "score", given, "--scorer", "lexicon", "--out", scored, "--quiet"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return np.array([row.get("score", 0.0) for row in read(scored)])


def rivals(folder):
    """name → a function of a text, of what lies in the folder."""
    found = {}
    tokens = lambda text: re.findall(r"\w\w+", text.lower())
    if (vader := folder / "vader_lexicon.txt").exists():
        valence = {row[0]: float(row[1]) for row in (line.split("\t") for line in vader.open(encoding="utf-8"))}
        found["VADER, negative valence"] = lambda text: sum(max(0.0, -valence.get(word, 0.0)) for word in tokens(text))
    if (cuss := folder / "index.js").exists():
        sure = {"0": 0.0, "1": 0.5, "2": 2.0}
        rated = {m[1]: sure[m[2]] for line in cuss.open() if (m := re.match(r"\s+'?([^':]+)'?: (\d),?$", line))}
        found["cuss, sureness"] = lambda text: sum(rated.get(word, 0.0) for word in tokens(text))
    if (sonar := folder / "model.onnx").exists():
        import onnx

        graph = onnx.load(sonar).graph
        attribute = {a.name: a for node in graph.node for a in node.attribute}
        index = {word.decode(): i for i, word in enumerate(attribute["pool_strings"].strings)}
        idf = onnx.numpy_helper.to_array(next(i for i in graph.initializer if i.name == "idfcst")).ravel()
        coefficients = np.array(attribute["coefficients"].floats).reshape(3, -1)
        intercepts = np.array(attribute["intercepts"].floats)

        def toxic(text):
            x = np.zeros(len(idf))
            for word in re.findall("[a-z0-9_]+", text.lower()):
                if word in index:
                    x[index[word]] += idf[index[word]]
            hate, offensive, neither = coefficients @ (x / (np.linalg.norm(x) or 1.0)) + intercepts
            return np.logaddexp(hate, offensive) - neither

        found["HateSonar, log-odds"] = toxic
    return found


def pieces(text):
    words = text.split()
    return [" ".join(words[i : i + PIECE]) for i in range(0, min(len(words), 3 * PIECE), PIECE)]


def development(files, left_out):
    """name → texts and labels."""
    labelled = lambda rows: [(row[key], y) for row in rows for key, y in (("chosen", 0), ("rejected", 1))]
    sets = {"demo": labelled(read(ROOT / "data/demo/pairs.jsonl"))}
    rows = [row for file in files for row in read(file) if row["prompt"].strip() not in left_out]
    if rows:
        sets["pairs"] = labelled(rows)
        sets["pieces"] = [(piece, y) for text, y in sets["pairs"] for piece in pieces(text) if len(piece.split()) >= 4]
    return {name: tuple(map(list, zip(*rows))) for name, rows in sets.items()}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--irepair", default=str(ROOT / "target" / "release" / "irepair"))
    ap.add_argument("--pairs", nargs="+", default=[]), ap.add_argument("--yardstick")
    ap.add_argument("--rivals", type=pathlib.Path)
    ap.add_argument("--out", type=pathlib.Path, default=ROOT / "data" / "scorer" / "words.tsv.gz")
    args = ap.parse_args()
    words, bias, (vectorizer, model) = weights()
    write(args.out, words, bias)
    scorer = Words(args.out)
    print(f"scikit-learn {sklearn.__version__} joblib {joblib.__version__} scipy {scipy.__version__} numpy {np.__version__}")
    print(f"{args.out.name}: {len(words)} words, {args.out.stat().st_size} bytes")

    candidates = {
        "alt-profanity-check": lambda texts, _: model.predict_proba(vectorizer.transform(texts))[:, 1],
        "its mean log-odds": lambda texts, _: np.array([scorer.log_odds(t) for t in texts]),
    }
    for mix in (0.5, 1, 2, 4, 8):
        f = lambda texts, l, mix=mix: np.array([scorer.log_odds(t) for t in texts]) + SLOPE * mix * l
        candidates[f"mean log-odds + {mix:g} × lexicon"] = f
    for name, f in rivals(args.rivals or pathlib.Path("/nonexistent")).items():
        candidates[name] = lambda texts, _, f=f: np.array([f(t) for t in texts])
        ours = candidates[f"mean log-odds + {MIX} × lexicon"]
        both = lambda texts, l, f=f: ours(texts, l) + SLOPE * 0.4 * np.array([f(t) for t in texts])
        candidates[f"words, + 0.4 × {name}"] = both

    yardstick = read(args.yardstick) if args.yardstick else []
    sets = development(args.pairs, {row["text"].strip() for row in yardstick})
    lexicons = {name: lexicon(args.irepair, texts) for name, (texts, _) in sets.items()}
    print("\nAUC on development data: " + ", ".join(f"{name} ({len(y)} texts)" for name, (_, y) in sets.items()))
    for name, f in {"lexicon": lambda _, l: l, **candidates}.items():
        aucs = [roc_auc_score(y, f(texts, lexicons[key])) for key, (texts, y) in sets.items()]
        print(f"{name:44} {'  '.join(f'{a:.4f}' for a in aucs)}  mean {np.mean(aucs):.4f}")
    sums = {name: (np.array([scorer.log_odds(t) for t in texts]) - scorer.bias) / SLOPE + bias + MIX * lexicons[name] for name, (texts, _) in sets.items()}
    x, y = np.concatenate(list(sums.values())), np.concatenate([y for _, y in sets.values()])
    weight = np.concatenate([np.full(len(s), len(x) / len(s)) for s in sums.values()])
    platt = LogisticRegression(C=1e6).fit(x[:, None], y, sample_weight=weight)
    print(f"Platt: slope {platt.coef_[0, 0]:.3f}, centre {-platt.intercept_[0] / platt.coef_[0, 0]:.3f}")
    for name, (texts, y) in sets.items():
        called, y = scorer.score(texts, lexicons[name]) >= 0.5, np.array(y)
        print(f"{name}: {(called == y).mean():.1%} right at 0.5; {called[y == 1].mean():.1%} of the rude found, {called[y == 0].mean():.1%} of the others called rude")

    if yardstick:
        texts, stored = [row["text"] for row in yardstick], np.array([row["toxicity"] for row in yardstick])
        l, toxic = lexicon(args.irepair, texts), stored >= 0.5
        values = {"lexicon": l, "words (as shipped)": scorer.score(texts, l)}
        values |= {name: f(texts, l) for name, f in candidates.items()}
        draws = np.random.default_rng(0).integers(0, len(texts), (DRAWS, len(texts)))
        ours = {name: np.array([roc_auc_score(toxic[i], v[i]) for i in draws]) for name, v in values.items()}
        print(f"\nYardstick: {len(texts)} texts; AUC at 0.5, Spearman, AUC − lexicon's [95 % of {DRAWS} bootstrap draws of texts]")
        for name, v in values.items():
            low, high = np.percentile(ours[name] - ours["lexicon"], [2.5, 97.5])
            auc = roc_auc_score(toxic, v)
            print(f"{name:44} {auc:.4f}  {spearmanr(v, stored)[0]:.4f}  {auc - roc_auc_score(toxic, l):+.4f} [{low:+.4f}, {high:+.4f}]")
        called = values["words (as shipped)"] >= 0.5
        print(f"words: of those called toxic {toxic[called].mean():.1%} are, and {called[toxic].mean():.1%} of the toxic are found")

    print("\n            // scripts/make_words.py, " + f"alt-profanity-check 1.9.1, scikit-learn {sklearn.__version__}")
    for text, score in zip(PROBES, scorer.score(PROBES, lexicon(args.irepair, PROBES))):
        print(f"            ({json.dumps(text, ensure_ascii=False)}, {score:.9f}),")


if __name__ == "__main__":
    main()
