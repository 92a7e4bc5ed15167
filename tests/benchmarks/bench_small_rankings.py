"""The rankings of bench_rankings by a small perceptron, on pictures and on embedded texts.

    python -m tests.benchmarks.bench_small_rankings pictures OUT fashion_mnist_7k.npz \\
        mnist_t10k_3k.npz
    python -m tests.benchmarks.bench_small_rankings texts OUT DATA/*.csv

As the Gram recipe has it: trained with wrong labels, scored at the epoch of least query loss, block
by block; texts are MiniLM's mean embeddings, of a pair their products and distances by entry.
`python -m tests.benchmarks.bench_rankings compare OUT` prints the table.
"""

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from distinf.numerics.aggregation import tallies
from distinf.numerics.estimators import datainf, fisher
from distinf.numerics.label_noise import log_odds_gain
from distinf.studies.noisy_labels.noise import flips, relabelled
from tests.benchmarks.bench_five_terms import embeddings
from tests.benchmarks.bench_rankings import rates

ROWS, QUERIES, HIDDEN, EPOCHS, BATCH = 600, 120, 48, 12, 32
SETS = {
    "fashion10": (0, tuple(range(10))),
    "tops": (0, (2, 6)),  # pullover, shirt
    "digits10": (1, tuple(range(10))),
    "digits3": (1, (3, 5, 8)),
}
RATES, SEEDS = (0.1, 0.2, 0.3), (200, 201)
SHOWN = ("cosine/mean", "datainf/vote", "own loss")


def pictures(path: Path, classes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """fp32 [n, P] in [0, 1]; int64 [n], the place of each class."""
    stored = np.load(path, allow_pickle=False)
    of = {}
    for kind in ("x", "y"):
        names = sorted(n for n in stored.files if n.lower().startswith(kind))
        of[kind] = np.concatenate([stored[n] for n in names])
    kept = np.isin(of["y"], classes)
    x = torch.from_numpy(of["x"][kept].reshape(kept.sum(), -1)).float() / 255
    y = np.searchsorted(classes, of["y"][kept])
    return x, torch.from_numpy(y.astype(np.int64))


def trained(x: Tensor, y: Tensor, query: tuple[Tensor, Tensor], classes: int, seed: int):
    """The model at the epoch of least query loss, and each row's loss over epochs [N]."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(x.shape[1], HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes))
    adam = torch.optim.Adam(model.parameters(), lr=3e-3)
    best, kept, noted = float("inf"), {}, torch.zeros(len(x))
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(BATCH):
            losses = cross_entropy(model(x[rows]), y[rows], reduction="none")
            noted[rows] += losses.detach() / EPOCHS
            adam.zero_grad()
            losses.mean().backward()
            adam.step()
        with torch.no_grad():
            loss = float(cross_entropy(model(query[0]), query[1]))
        if loss < best:
            best, kept = loss, {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(kept)
    return model, noted


def gradients(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Block -> fp64 [N, P]."""

    def loss(parameters, one, label):
        return cross_entropy(functional_call(model, parameters, one[None]), label[None])

    own = {k: v.detach() for k, v in model.named_parameters()}
    found = vmap(grad(loss), (None, 0, 0))(own, x, y)
    return {k: v.reshape(len(x), -1).double() for k, v in found.items()}


def rankings(model: nn.Module, rows: tuple, queries: tuple) -> Iterator[tuple[str, np.ndarray]]:
    train, asked = gradients(model, *rows), gradients(model, *queries)
    with torch.no_grad():
        right_Q = model(queries[0]).argmax(1) == queries[1]
        losses = cross_entropy(model(rows[0]), rows[1], reduction="none").double()
    yield "right", right_Q.sum().numpy()
    yield "own loss", -losses.numpy()
    sums: dict[str, dict[str, Tensor]] = {}
    gram, cross, size_N, size_Q = 0.0, 0.0, 0.0, 0.0
    for name, T in train.items():
        G, K, C = asked[name], T @ T.T, asked[name] @ T.T
        t, q = T.square().sum(1), G.square().sum(1)
        damping = datainf.default_damping(float(t.sum()), len(T), T.shape[1])
        inverse = datainf.scores(C, datainf.weights(C, t, damping) @ K, damping, len(T))
        norms = q.sqrt().clamp(min=1e-30)[:, None] * t.sqrt().clamp(min=1e-30)
        of_block = {
            "tracin": C, "cosine": C / norms, "datainf": inverse,
            "fisher": fisher.solve(K, C).scores_QN, "datainf over norms": inverse / norms,
        }  # fmt: skip
        for kind, scores_QN in of_block.items():
            told = tallies(scores_QN, right_Q)
            told["mean of right"] = scores_QN[right_Q].mean(0)
            into = sums.setdefault(kind, {})
            for how, scores_N in told.items():
                into[how] = into.get(how, 0.0) + scores_N
        gram, cross, size_N, size_Q = gram + K, cross + C, size_N + t, size_Q + q
    joint = fisher.solve(gram, cross).scores_QN
    own = fisher.self_influence_of_gram(gram, None)
    yield "gradient norm", -size_N.sqrt().numpy()
    yield "self influence", -own.numpy()
    sums |= {
        name: tallies(scores_QN, right_Q)
        for name, scores_QN in {
            "fisher-joint": joint, "cosine-joint": cross / size_N.sqrt() / size_Q.sqrt()[:, None],
            "tracin over row norms": cross / size_N.sqrt(),
            "fisher-joint over row norms": joint / size_N.sqrt(),
            "fisher-joint relative": joint / own.sqrt(),
        }.items()
    }  # fmt: skip
    for kind, told in sums.items():
        for how, scores_N in told.items():
            yield f"{kind}/{how}", scores_N.numpy()


def texts(path: Path) -> tuple[Tensor, Tensor]:
    """As `pictures`, of the first texts of a file, one of each group."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(
            {r.get("group", str(k)): r for k, r in enumerate(csv.DictReader(file))}.values()
        )
    rows = rows[: ROWS + QUERIES]
    names = sorted({row["label"] for row in rows})
    y = torch.tensor([names.index(row["label"]) for row in rows])
    if "text" in rows[0]:
        return embeddings([row["text"] for row in rows]), y
    one, other = (embeddings([row[key] for row in rows]) for key in ("sentence1", "sentence2"))
    return torch.cat([one * other, (one - other).abs()], 1), y


def cells(name: str, x: Tensor, y: Tensor, out: Path, scale: float) -> None:
    """A file of rankings for every rate and seed."""
    classes = int(y.max()) + 1
    for rate in RATES:
        for seed in SEEDS:
            torch.manual_seed(seed)
            order = torch.randperm(len(x))
            rows, asked = order[:ROWS], order[ROWS : ROWS + QUERIES]
            flipped = flips(len(rows), rate, seed)
            given = relabelled(y[rows].numpy(), flipped, classes, seed)
            of, queries = (scale * x[rows], torch.from_numpy(given)), (scale * x[asked], y[asked])
            model, noted = trained(*of, queries, classes, seed)
            kept = dict(rankings(model, of, queries))
            kept |= {"flipped": flipped, "loss over epochs": -noted.double().numpy()}
            right, most = int(kept["right"]), int(y[asked].bincount().max())
            gain = log_odds_gain(right, most, len(asked))
            kept["weights"] = np.array([gain, float("nan")])
            np.savez(out / f"{name}-{rate}-{seed}.npz", **kept)
            told = ", ".join(f"{n} {rates(kept[n], flipped)[0]:.3f}" for n in SHOWN)
            print(f"{name} {rate} {seed}: {right} of {len(asked)} right; {told}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("pictures", "texts"))
    parser.add_argument("out", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.kind == "texts":
        for path in options.files:
            x, y = texts(path)
            cells(path.stem, x, y, options.out, x.shape[1] ** 0.5 / x.norm(dim=1).mean().item())
    else:
        for name, (place, classes) in SETS.items():
            cells(name, *pictures(options.files[place], classes), options.out, 1.0)


if __name__ == "__main__":
    main()
