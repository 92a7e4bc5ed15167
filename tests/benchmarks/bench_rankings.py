"""Rules for ranking wrong labels, chosen on data that they are not tested on.

    python -m tests.benchmarks.ranking_data blimp100.tsv.gz DATA
    python -m tests.benchmarks.bench_rankings run DATA/NAME.csv OUT RATE SEED [--seeds 2]
    python -m tests.benchmarks.bench_rankings compare FAMILY ... [--head RULE]
    python -m tests.benchmarks.bench_rankings keep RUN OUT NAME SEED
    python -m tests.benchmarks.bench_rankings apart OUT "ours - other" ...

`run` is configs/noisy_labels/minilm.yaml on one file, without retraining, at one rate of flips; it
keeps every ranking of every cell, and further ones of the same gradients, in OUT/*.npz (N training
rows), as `keep` does of a finished run. `compare` prints of every rule what it finds over these,
`apart` the differences of two.

Names are estimator/aggregation over all trained blocks; "a + b" adds ranks by their normal scores.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

from distinf.engine.run import reopen
from distinf.gram import baselines, ranking
from distinf.gram.actions import flipped_rows
from distinf.gram.block_products import joint_solve, members
from distinf.gram.blocks import ALL
from distinf.gram.configurations import all_scores
from distinf.gram.scores import right_queries
from distinf.gram.session import QUERY, Cell, Session
from distinf.gram.settings import JOINT
from distinf.numerics import metrics
from distinf.numerics.aggregation import tallies
from distinf.numerics.bootstrap import estimate
from distinf.numerics.label_noise import normal_scores
from tests.benchmarks.bench_baselines import CONFIG

SHARE = 0.3
SIZES = {"train_rows": 400, "query_rows": 100, "test_rows": 20}
EASY = ("model.max_length=40",)
PAIRS = ("model.max_length=64", "lora.rank=16", "lora.alpha=16", "train.lr=3e-4",
         "lora.targets=[query,key,value,dense]", "train.batch_size=16")  # fmt: skip
HARD = ("names",)  # with the adapters and the rate that QNLI is learned with
ESTIMATORS = "tracin,cosine,datainf,fisher,fisher-joint"
NAN = float("nan")
RESAMPLES = 4_000
SUMS = (  # beside every mean and vote with own loss or gradient norm
    ("own loss",),
    ("fisher/vote", "own loss", "own loss"),
    ("cosine/mean", "fisher/vote"),
    ("cosine/mean", "fisher/vote", "own loss"),
    ("cosine/mean", "cosine/mean", "own loss"),
    ("cosine/mean", "datainf/vote", "own loss"),
    ("fisher/vote", "fisher-joint/mean", "own loss"),
    ("fisher/vote", "self influence"),
    ("fisher/vote", "own loss", "loss over epochs"),
    ("cosine/mean", "own loss", "loss over epochs"),
    ("own loss", "loss over epochs"),
)


def run(data: Path, out: Path, rate: float, seed: int, seeds: int) -> None:
    """Every ranking of every cell into a file of its own."""
    name = data.stem
    settings = [f"data.{key}={value}" for key, value in SIZES.items()]
    settings += [f"data.path={data}", f"data.flips={rate}", f"seed={seed}", f"seeds={seeds}"]
    settings += ["gradients.embeddings=false", f"scores.estimators=[{ESTIMATORS}]"]
    settings += ["actions.configurations=[]", "runtime.kind=local", *EASY]
    settings += PAIRS if name in HARD else ()
    settings += ["data.group=group"] if name != "names" else []
    folder = out / f"{name}-{rate}-{seed}"
    command = [sys.executable, "-m", "distinf.cli", "run", str(CONFIG), "--out", str(folder)]
    command += [part for each in settings for part in ("--set", each)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ)
    keep(folder, out, f"{name}-{rate}", seed)


def keep(folder: Path, out: Path, name: str, seed: int) -> None:
    """Every ranking of a finished run's cells."""
    session = reopen(str(folder))
    assert isinstance(session, Session)
    out.mkdir(parents=True, exist_ok=True)
    for k, cell in enumerate(session.outline.cells.values()):
        kept = dict(found(session, cell))
        np.savez(out / f"{name}-{seed + k}.npz", **kept)
        print(f"{name} {seed + k}: {kept['right']} of {cell.rows[QUERY]} right", flush=True)


def found(session: Session, cell: Cell) -> Iterator[tuple[str, np.ndarray]]:
    """Rankings fp64 [N], low = likely wrong; and flipped, right (queries), weights."""
    yield "flipped", flipped_rows(session, cell.name)
    right_Q = torch.from_numpy(right_queries(session, cell))
    yield "right", right_Q.sum().numpy()
    yield "weights", np.array(baselines.weights(session, cell) or (NAN, NAN))
    for (estimator, group, how), scores_N in all_scores(session, cell).items():
        if group == ALL:
            yield f"{estimator}/{how}", scores_N
    yield from ranking.free_rankings(session, cell).items()
    yield "combined", ranking.combined(session, cell)
    for name, scores_QN in further(session, cell):
        for how, scores_N in tallies(scores_QN, right_Q).items():
            yield f"{name}/{how}", scores_N.numpy()
        yield f"{name}/mean of right", scores_QN[right_Q].mean(0).numpy()


def further(session: Session, cell: Cell) -> Iterator[tuple[str, torch.Tensor]]:
    """Scores [Q, N] that the product does not have: of all blocks as one vector, and others over
    the rows' own norms."""
    queries, parts = cell.rows[QUERY], list(members(session, cell, ALL))
    cosines_QN = datainf_QN = cross_QN = train_N = query_Q = torch.zeros(())
    for each in parts:
        block_QN = each.cross(0, queries)
        own_N = each.sqnorm_N.sqrt().clamp(min=1e-30)
        own_Q = each.query_sqnorm_Q.sqrt().clamp(min=1e-30)[:, None]
        cross_QN, train_N = cross_QN + block_QN, train_N + each.sqnorm_N
        query_Q = query_Q + each.query_sqnorm_Q
        cosines_QN = cosines_QN + block_QN / own_N / own_Q
        datainf_QN = datainf_QN + each.scores("datainf", block_QN, 0, queries) / own_N / own_Q
    yield "cosines", cosines_QN
    yield "datainf over norms", datainf_QN
    yield "cosine-joint", cross_QN / train_N.sqrt() / query_Q.sqrt()[:, None]
    yield "tracin over row norms", cross_QN / train_N.sqrt()
    if JOINT not in session.settings.scores.estimators:
        return
    joint_QN = joint_solve(session, cell, ALL).scores_QN
    yield "fisher-joint over row norms", joint_QN / train_N.sqrt()
    own_N = baselines.columns(session, cell).get(baselines.SELF_INFLUENCE)
    if own_N is not None:
        yield "fisher-joint relative", joint_QN / torch.from_numpy(own_N).sqrt()


# -- rules ---------------------------------------------------------------------------------


def rules(kept: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every ranking of a cell, and sums of their normal scores; of these also with the regression
    on embeddings, where there is one, by three weights of what model and regression know."""
    count = len(kept["flipped"])
    out = {n: v for n, v in kept.items() if v.shape == (count,) and n != "flipped"}
    normal = {name: _normal(values) for name, values in out.items()}
    model, regression = kept["weights"]
    both = model + regression
    weights = {"weighted": 0.0, "by squared weights": 0.0, "where it knows more": 0.0}
    if both > 0:  # not NaN
        squared = regression**2 / (model**2 + regression**2)
        weights = dict(zip(weights, (regression / both, squared, (regression > model) / 2)))
    embedded = normal.get("embedding loss trusted too", np.zeros(count))
    heads = [n for n in normal if n.endswith(("/mean", "/vote"))]
    sums = [(n, other) for n in heads for other in ("own loss", "gradient norm")]
    for of in (*sums, *(of for of in SUMS if set(of) <= set(normal))):
        name, found = " + ".join(of), np.mean([normal[n] for n in of], 0)
        out[name] = found
        for how, weight in weights.items():
            out[f"{name} + embedded, {how}"] = (1 - weight) * found + weight * embedded
    out["cosine/mean + own loss, the lower"] = np.minimum(normal["cosine/mean"], normal["own loss"])
    return out


def _normal(values_N: np.ndarray) -> np.ndarray:
    return normal_scores(torch.from_numpy(np.nan_to_num(values_N))).numpy()


def rates(scores_N: np.ndarray, flipped_N: np.ndarray) -> tuple[float, float]:
    """NDR at SHARE, and AUC (a right row is above a wrong one)."""
    of = torch.from_numpy(np.nan_to_num(scores_N).astype(float)), torch.from_numpy(flipped_N)
    return metrics.ndr(*of, SHARE), metrics.ndr_auc(*of)


def compare(families: list[Path], head: str, old: str, least: float) -> None:
    """Of every rule: its NDR and AUC, mean over families of the mean over their sets, how far it is
    from the better, by each set, of `head` and own loss (mean, and at worst), and the NDR of each
    family; and how far `head` is above `old`, families, sets and cells resampled. Cells whose model
    is hardly better than chance are left out."""
    cells: dict[str, dict[str, list[dict[str, tuple[float, float]]]]] = {}
    for out in families:
        by_set = cells.setdefault(out.name, {})
        for kept, name in learned(out, least):
            made = {n: rates(v, kept["flipped"]) for n, v in rules(kept).items()}
            by_set.setdefault(name.split("-")[0], []).append(made)
        print(f"{out.name}: { {name: len(of) for name, of in by_set.items()} }")
    every = [made for by_set in cells.values() for of in by_set.values() for made in of]
    lines = []
    for rule in set.intersection(*map(set, every)):
        means, worst = {}, np.inf
        for family, by_set in cells.items():
            found = []
            for of in by_set.values():
                mine, *others = (np.mean([m[n] for m in of], 0) for n in (rule, head, "own loss"))
                found.append([*mine, mine[0] - max(other[0] for other in others)])
            means[family] = np.mean(found, 0)
            worst = min(worst, *(each[2] for each in found))
        lines.append((np.mean([*means.values()], 0), worst, means, rule))
    print(f"| rule | NDR | AUC | less the better | at worst | {' | '.join(cells)} |")
    for (ndr, auc, less), worst, means, rule in sorted(lines, key=lambda line: -line[0][0]):
        told = " | ".join(f"{each[0]:.3f}" for each in means.values())
        print(f"| {rule} | {ndr:.4f} | {auc:.4f} | {less:+.4f} | {worst:+.3f} | {told} |")
    apart = [
        [np.array([made[head][0] - made[old][0] for made in of]) for of in by_set.values()]
        for by_set in cells.values()
    ]
    draws = np.random.default_rng(0)
    means_R = [
        np.mean([
            np.mean([draws.choice(sets[k], len(sets[k])).mean() for k in picked])
            for sets in apart
            for picked in [draws.integers(len(sets), size=len(sets))]
        ])
        for _ in range(RESAMPLES)
    ]  # fmt: skip
    low, high = np.quantile(means_R, (0.025, 0.975))
    mean = np.mean([np.mean([each.mean() for each in sets]) for sets in apart])
    print(f"{head} - {old}: {mean:+.3f} ({low:+.3f} to {high:+.3f})")


def learned(out: Path, least: float) -> Iterator[tuple[dict[str, np.ndarray], str]]:
    """What was kept of each cell, and its name; without those that learned nothing."""
    for path in sorted(out.glob("*.npz")):
        kept = dict(np.load(path))
        if kept["weights"][0] > least:
            yield kept, path.stem
        else:
            print(f"left out, nothing learned: {out.name} {path.stem}")


def apart_from(out: Path, pairs: list[str]) -> None:
    """Paired differences of NDR with 95 % intervals, over cells and the wrong labels of each."""
    every = [dict(np.load(path)) for path in sorted(out.glob("*.npz"))]
    made = [(rules(kept), kept["flipped"]) for kept in every]
    for pair in pairs:
        ours, other = pair.split(" - ")
        trials = {}
        for k, (of, flipped) in enumerate(made):
            caught = [
                np.isin(np.flatnonzero(flipped), _lowest(of[name])).astype(float)
                for name in (ours, other)
            ]
            trials |= {(k, row): float(v) for row, v in enumerate(caught[0] - caught[1])}
        e = estimate(trials)
        print(f"{pair}: {e.mean:+.3f} ({e.low:+.3f} to {e.high:+.3f}), {len(made)} cells")


def _lowest(scores_N: np.ndarray) -> np.ndarray:
    """The rows that a filter of SHARE removes."""
    order_N = metrics.lowest_first(torch.from_numpy(np.nan_to_num(scores_N).astype(float)))
    return order_N[: metrics.removed(len(scores_N), SHARE)].numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    one = kinds.add_parser("run")
    one.add_argument("data", type=Path)
    one.add_argument("out", type=Path)
    one.add_argument("rate", type=float)
    one.add_argument("seed", type=int)
    one.add_argument("--seeds", type=int, default=1)
    kept = kinds.add_parser("keep")
    kept.add_argument("folder", type=Path)
    kept.add_argument("out", type=Path)
    kept.add_argument("name")
    kept.add_argument("seed", type=int)
    apart = kinds.add_parser("apart")
    apart.add_argument("out", type=Path)
    apart.add_argument("rules", nargs="+", help='"ours - other"')
    other = kinds.add_parser("compare")
    other.add_argument("families", type=Path, nargs="+", help="folders of what was kept")
    other.add_argument("--head", default="datainf/vote")
    other.add_argument("--old", default="datainf/vote")
    other.add_argument("--least", type=float, default=0.3, help="log odds above one class's")
    options = parser.parse_args()
    if options.kind == "run":
        data, out = options.data.resolve(), options.out.resolve()
        run(data, out, options.rate, options.seed, options.seeds)
    elif options.kind == "keep":
        keep(options.folder, options.out, options.name, options.seed)
    elif options.kind == "apart":
        apart_from(options.out, options.rules)
    else:
        compare(options.families, options.head, options.old, options.least)


if __name__ == "__main__":
    main()
