"""Wrong labels among five named classes: influence, the model's own loss, a classifier out of fold.

    python -m tests.benchmarks.bench_five_terms prepare blimp100.tsv.gz five_terms.csv
    distinf run ...                          (the command is in RESULTS.md)
    python -m tests.benchmarks.bench_five_terms compare RUN

The sentences are BLiMP's (Warstadt et al. 2020, CC BY 4.0), a column each for the good and the bad
of a pair; the class of both is the pair's linguistic term, and a pair is never split.
"""

import argparse
import csv
import gzip
from pathlib import Path

import numpy as np
import torch

from distinf.studies.language.pretrained import location
from distinf.studies.noisy_labels.settings import ModelSettings

TERMS = ("argument_structure", "binding", "island_effects", "npi_licensing",
         "subject_verb_agreement")  # fmt: skip
FOLDS = 5
DECAY = 1e-3  # L2 penalty of the regression; unit-length embeddings


def prepare(source: str, out: str) -> None:
    """Two rows a pair, with the pair's name and its term."""
    with gzip.open(source, "rt", encoding="utf-8") as file:
        pairs = [row for row in csv.DictReader(file, delimiter="\t") if row["term"] in TERMS]
    with open(out, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "term", "pair"])
        for pair in pairs:
            name = f"{pair['uid']}-{pair['pair_id']}"
            writer.writerows([pair[kind], pair["term"], name] for kind in ("good", "bad"))
    print(f"{out}: {2 * len(pairs)} texts in {len(pairs)} pairs")


def compare(run: str) -> None:
    """Precision at the number flipped, of the run's ranking, its own loss, and out of fold."""
    (path,) = Path(run, "report").glob("ranked_rows*.csv")
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    flipped = np.array([row["flipped"] == "True" for row in rows])
    suspicion = {
        "influence": -np.array([float(row["score"]) for row in rows]),
        "own loss": np.array([float(row["own_loss"]) for row in rows]),
        "gradient norm": np.array([float(row["gradient_norm"]) for row in rows]),
        "out of fold": out_of_fold([row["text"] for row in rows], [row["label"] for row in rows]),
    }
    print(f"{len(rows)} rows, {flipped.sum()} flipped")
    for name, values in suspicion.items():
        worst = np.argsort(-values, kind="stable")[: flipped.sum()]
        print(f"{name:>14}: precision at the number flipped {flipped[worst].mean():.3f}")
    suggested = np.array([row["suggested_label"] == row["clean_label"] for row in rows])
    print(f"suggested label right for {suggested[flipped].mean():.3f} of the flipped rows")


def out_of_fold(texts: list[str], labels: list[str]) -> np.ndarray:
    """[N]: minus log probability of each row's own label, by a regression on the other folds."""
    names = sorted(set(labels))
    given = torch.tensor([names.index(label) for label in labels])
    embedded = embeddings(texts)
    fold = torch.from_numpy(np.random.default_rng(0).permutation(len(texts)) % FOLDS)
    losses = torch.zeros(len(texts))
    for k in range(FOLDS):
        weights = regression(embedded[fold != k], given[fold != k], len(names))
        logits = embedded[fold == k] @ weights[:-1] + weights[-1]
        losses[fold == k] = torch.nn.functional.cross_entropy(
            logits, given[fold == k], reduction="none"
        )
    return losses.numpy()


@torch.no_grad()
def embeddings(texts: list[str]) -> torch.Tensor:
    """[N, 384]: MiniLM's mean over tokens, of unit length, as its makers have it."""
    import transformers

    where = location(ModelSettings())
    tokenizer = transformers.AutoTokenizer.from_pretrained(where)
    model = transformers.AutoModel.from_pretrained(where).eval()
    parts = []
    for start in range(0, len(texts), 64):
        batch = tokenizer(texts[start : start + 64], padding=True, return_tensors="pt")
        hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
        mean = (hidden * mask).sum(1) / mask.sum(1)
        parts.append(torch.nn.functional.normalize(mean))
    return torch.cat(parts)


def regression(inputs: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """[384 + 1, C]: multinomial logistic regression, the last row its offsets."""
    weights = torch.zeros(inputs.shape[1] + 1, classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(inputs @ weights[:-1] + weights[-1], labels)
        loss = loss + DECAY * weights[:-1].square().sum() / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("prepare", "compare"))
    parser.add_argument("given", help="BLiMP's pairs (prepare), or a run's folder (compare)")
    parser.add_argument("out", nargs="?", help="the file to write (prepare)")
    options = parser.parse_args()
    if options.what == "prepare":
        prepare(options.given, options.out)
    else:
        compare(options.given)


if __name__ == "__main__":
    main()
