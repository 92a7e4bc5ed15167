"""Made-up findings of a Gram route run: two datasets, three seeds, six estimators."""

from collections.abc import Collection
from typing import Any

import numpy as np

from distinf.gram.configurations import ORDER
from distinf.gram.paired import Separated
from distinf.gram.settings import HOWS
from distinf.numerics.separation import LEVELS, Separations
from distinf.report.gram.findings import Findings
from distinf.report.gram.page import page
from distinf.report.provenance import Provenance
from distinf.report.render import html
from distinf.report.rows import Row
from tests.support.findings import cost

DATASETS = ("qnli", "sst2")
GROUPS = ("embedding", "00-01", "02-03", "04-05", "06-07", "head", "all")
ROWS, QUERIES, FLIPS, EPOCHS = 4_500, 500, 900, 8
SKILL = {"tracin": 0.40, "cosine": 0.70, "datainf": 0.62, "fisher": 0.64, "fisher-joint": -0.05,
         "tracin-we-top10": 0.35}  # fmt: skip
BY_GROUP = {"embedding": -0.1, "00-01": 0.0, "02-03": 0.08, "04-05": 0.1, "06-07": 0.05,
            "head": -0.2, "all": 0.09}  # fmt: skip
BY_HOW = {"mean": -0.08, "rank": 0.0, "vote": 0.1}
SMALL = ("tracin", "datainf")
RETRAINED = ("datainf", "tracin", "cosine", "tracin-we-top10")
PUBLISHED = "Vitel and Chhabra, Tables 4 to 6"
Key = tuple[str, str, str]  # estimator, group, aggregation


def render(made: Findings, rows: dict[str, list[Row]], files: Collection[str] = ()) -> str:
    """The page; `files`: the tables that lie beside it."""
    return html(page(made, rows), files)


def cell(name: str = "a", dataset: str = "a", seed: int = 0, **more: Any) -> Row:
    """A dataset and seed of 1,000 rows of which nothing is known but `more`."""
    made: Row = {"name": name, "dataset": dataset, "seed": seed, "rows": 1_000, "queries": 100}
    unknown = ("correct_queries", "flips", "majority_queries", "suggested_wrong", "label_ndr",
               "within_labels", "best", "loss_before", "loss_after")  # fmt: skip
    made |= dict.fromkeys(unknown) | {"learned_nothing": False, "truncated": 0, "history": {}}
    return made | more


def scored(
    of: str, key: Key, ndr: float | None = None, auc: float | None = None, **more: Any
) -> Row:
    """A configuration's scores in the cell `of`."""
    named = dict(zip(("estimator", "group", "how"), key, strict=True))
    made: Row = {"cell": of, "configuration": "/".join(key), **named, "ndr": ndr, "auc": auc}
    return made | {"within_labels": None, "scores": {}} | more


def free(of: str, name: str, ndr: float, auc: float, **more: Any) -> Row:
    """What ranking by a number finds that every run has."""
    made: Row = {"cell": of, "configuration": name, "ndr": ndr, "auc": auc, "within_labels": None}
    return made | more


def retrained(of: str, configuration: str, top: float, at_best: float, **more: Any) -> Row:
    """A configuration's training on what it left."""
    made: Row = {"cell": of, "configuration": configuration, "kept": 70, "kept_flips": None}
    made |= {"test_accuracy": top, "accuracy_at_best": at_best, "query_loss": float("nan")}
    return made | {"job": "", "history": {}} | more


def _placed(name: str) -> Row:
    """Influence and loss both find the wrong rows, partly the same ones."""
    random, wrong = np.random.default_rng(5), np.arange(400) < 80
    places = [np.where(wrong, random.beta(1, 5, 400), random.random(400)) for _ in range(2)]
    counts = {"both": [500, 350], "influence": [850, 250], "loss": [850, 150]}
    counts["neither"] = [2_300, 150]
    told = dict(zip(("influence_pct", "own_loss_pct"), (100 * p for p in places), strict=True))
    return {"cell": name, **told, "flipped": wrong.tolist(), "counts": counts}


def findings(
    seeds: int = 3, datasets: tuple[str, ...] = DATASETS, small: bool = False, **changes: Any
) -> Findings:
    """A study like that of Vitel and Chhabra on `datasets`; `changes` replace whole fields.

    `small`: two estimators and three layer groups, which are drawn faster.
    """
    rng = np.random.default_rng(20)
    cells = [
        _cell(f"{dataset}-{seed}", dataset, seed, rng)
        for dataset in datasets
        for seed in range(seeds)
    ]
    keys = _configurations(small)
    every = [s for c in cells for s in _scored(c["name"], keys, rng)]
    made: dict[str, Any] = {
        "title": "Mislabelled rows of two GLUE tasks",
        "task": "A small model with LoRA adapters was trained on 4,500 rows of each task with 20 % "
        "of the labels flipped; every row was scored, and the lowest 30 % were filtered.",
        "question": "Which training rows have a wrong label?",
        "cells": cells,
        "scored": every,
        "free": [f for c in cells for f in _free(c["name"], rng)],
        "blocks": [b for c in cells for b in _blocks(c["name"], small, rng)],
        "cancellation": [x for c in cells for x in _cancelled(c["name"], rng)],
        "correlations": _correlations(rng),
        "retrained": [r for c in cells for r in _retrained(c, every, rng)],
        "ranking": [r for c in cells[:2] for r in _ranking(c["name"], rng)],
        "conditioning": [
            {"cell": c["name"], "estimator": e, "block": f"layers.{k}.v.lora_B",
             "damping": 1e-4 * (k + 1), "condition": 10 ** (3.0 + k)}
            for c in cells for e in ("fisher", "fisher-joint") for k in range(3)
        ],
        "methods_published": _methods_published(),
        "layers_published": [
            {"layer": f"attention-{k}", "estimator": "datainf",
             "source": "Vitel and Chhabra, Table 3", "model": "mistral-7b", "rank": r,
             "win_rate": w}
            for k, r, w in ((1, 2, 0.53), (2, 1, 0.60), (3, 2, 0.39), (4, 3, 0.20))
        ],
        "costs": [cost("train", 6, 412.0, 790.0, 12_000_000),
                  cost("gradients", 36, 230.5, 455.0, 3_400_000_000),
                  cost("gram", 12, 8.1, 15.0, 610_000_000),
                  cost("scores", 6, 3.2, 6.0, 20_000_000)],
        "separated": [
            Separated(c["name"], theta, w, Separations(level, 999, 300 - k, 290 - k, 900, 500, 600))
            for c in cells for theta, w in (("00-01", "head"), ("head", "embedding"))
            for k, level in enumerate(LEVELS)
        ],
        "estimator_times": [
            {"cell": c["name"], "estimator": e, "group": g, "wall_s": 1.5 + k,
             "processor_s": 2.5 + k, "alone_s": 0.5}
            for c in cells for k, e in enumerate(SMALL) for g in GROUPS
        ],
        "sensitivity": [
            {"cell": c["name"], "estimator": e, "factor": f, "queries": 10, "spearman": rho,
             "least": rho - 0.1}
            for c in cells for e in ("datainf", "fisher")
            for f, rho in (("λ / 10", 0.8), ("10 λ", 0.9))
        ],
        "placed": [_placed(c["name"]) for c in cells],
        "deviations": ["The encoder is small and not the published one."],
        "warnings": ["fisher-joint: the damping is small against the largest eigenvalue."],
        "quarantined": {"qnli-0 train": [17, 2204]},
        "provenance": Provenance(
            config_yaml="study: noisy_labels\n", command="distinf run runs/made/config.yaml",
            fingerprint="a1b2c3", versions={"torch": "2.13.0"}, machine={"cores": "2"},
            seeds={"run": 0},
        ),
    }  # fmt: skip
    return Findings(**(made | changes))


def plain_scores(**changes: Any) -> Findings:
    """A user's own data: one cell, no known flips, nothing trained again."""
    rng = np.random.default_rng(4)
    names = [(e, g, h) for e in ("tracin", "datainf") for g in ("head", "all") for h in HOWS]
    summary = {"count": 800, "nonfinite": 0, "min": -3.0, "median": 0.1, "max": 2.0}
    made: dict[str, Any] = {
        "title": "Rows of my file",
        "task": "800 rows were scored against 100 queries.",
        "cells": [cell("", "mine", rows=800, correct_queries=88)],
        "scored": [scored("", key, scores=summary) for key in names],
        "correlations": _correlations(rng)[:1],
        "ranking": [
            {
                "cell": "",
                "rank": k + 1,
                "row": 40 + k,
                "score": -2.0 + k / 10,
                "label": "positive",
                "flipped": None,
                "text": f"text of row {40 + k}",
            }
            for k in range(5)
        ],
        "costs": [cost("gradients", 4, 9.0, 17.0, 1_000_000)],
    }
    return Findings(**(made | changes))


def _cell(name: str, dataset: str, seed: int, rng: np.random.Generator) -> Row:
    epochs = np.arange(EPOCHS)
    accuracy = 0.62 + 0.2 * (1 - np.exp(-epochs / 2)) + rng.normal(0, 0.006, EPOCHS)
    query_loss = 0.55 + 0.02 * (epochs - 3 - seed % 2) ** 2 / 4
    history = {
        "train_loss": (0.69 * np.exp(-epochs / 5)).tolist(),
        "query_loss": query_loss.tolist(),
        "query_accuracy": (accuracy + 0.01).tolist(),
        "test_loss": (query_loss + 0.02).tolist(),
        "test_accuracy": accuracy.tolist(),
    }
    best = int(query_loss.argmin())
    told = {"correct_queries": 410 + seed, "flips": FLIPS, "best": best, "truncated": 12}
    return cell(name, dataset, seed, rows=ROWS, queries=QUERIES, history=history, **told)


def _skill(key: Key) -> float:
    return float(np.clip(SKILL[key[0]] + BY_GROUP[key[1]] + BY_HOW[key[2]], -0.3, 0.97))


def _configurations(small: bool) -> list[Key]:
    estimators, groups = (ORDER, GROUPS) if not small else (SMALL, ("00-01", "02-03", "all"))
    return [
        (e, g, h)
        for e in estimators for g in groups for h in HOWS
        if e != "tracin-we-top10" or g == "embedding"
    ]  # fmt: skip


def _scored(of: str, keys: list[Key], rng: np.random.Generator) -> list[Row]:
    found = []
    for key in keys:
        skill = float(np.clip(_skill(key) + rng.normal(0, 0.02), -0.3, 0.985))
        places = np.linspace(0, 1, 101)
        curve = skill * np.minimum(places / 0.2, 1) + (1 - skill) * places
        auc = float(np.trapezoid(curve, places)) / 0.9
        told = {"deciles": np.diff(curve[::10]).tolist(), "curve": curve.tolist()}
        found.append(scored(of, key, float(curve[30]), auc, **told, scores={"median": 0.1}))
    return found


def _free(of: str, rng: np.random.Generator) -> list[Row]:
    places = np.linspace(0, 1, 101)
    found = []
    for name, mean in (("own loss", 0.75), ("gradient norm", 0.6)):
        skill = mean + rng.normal(0, 0.02)
        curve = skill * np.minimum(places / 0.2, 1) + (1 - skill) * places
        area = float(np.trapezoid(curve, places)) / 0.9
        found.append(free(of, name, float(curve[30]), area, curve=curve.tolist()))
    return found


def _blocks(of: str, small: bool, rng: np.random.Generator) -> list[Row]:
    found = []
    for estimator in SMALL if small else ("tracin", "cosine", "datainf", "fisher"):
        for layer in range(8):
            for module in ("query", "value"):
                for factor in "AB":
                    base = 0.25 + 0.3 * (factor == "B") + 0.15 * (module == "value")
                    rate = base + 0.03 * layer + rng.normal(0, 0.02)
                    name = f"layers.{layer}.{module}.lora_{factor}"
                    found.append(
                        {"cell": of, "block": name, "layer": layer, "module": module,
                         "factor": factor, "estimator": estimator, "how": "vote", "ndr": rate,
                         "auc": 0.6}
                    )  # fmt: skip
    return found


def _cancelled(of: str, rng: np.random.Generator) -> list[Row]:
    found = []
    for k, group in enumerate(GROUPS):
        l1, norm = (float(v) for v in rng.uniform(3 + k, 9 + 2 * k, 2))
        row = {"cell": of, "group": group, "l1": l1, "norm": norm, "least": 1.0}
        found.append(row | {"median": 12.5 + k, "most": float("inf") if k % 2 else 1e5})
    return found


def _correlations(rng: np.random.Generator) -> list[Row]:
    found = []
    for title, names in (
        ("estimators, all layers, mean", ORDER),
        ("layer groups, datainf, mean", GROUPS),
    ):
        drawn = rng.normal(size=(40, len(names))) + rng.normal(size=(40, 1))
        drawn[:, -1] *= -1
        found.append({"title": title, "names": names, "values_MM": np.corrcoef(drawn.T)})
    return found


def _retrained(of: Row, every: list[Row], rng: np.random.Generator) -> list[Row]:
    rates = {s["configuration"]: s["ndr"] for s in every if s["cell"] == of["name"]}
    base = 0.80 if of["dataset"] == "qnli" else 0.90
    names = {n: r or 0 for n, r in rates.items() if n.partition("/")[0] in RETRAINED}
    names |= {"random": 0.3, "full": 1.0}
    found = []
    for name, rate in names.items():
        top = base + 0.06 * (rate - 0.3) + rng.normal(0, 0.004)
        epochs = np.arange(EPOCHS)
        course = top - 0.15 * np.exp(-epochs / 1.5) + rng.normal(0, 0.002, EPOCHS)
        best = float(course.max())
        told = {"kept": 3_150, "kept_flips": int(FLIPS * (1 - rate)), "job": name[:12]}
        told["history"] = {"test_accuracy": course.tolist()}
        found.append(retrained(of["name"], name, best, best - 0.004, **told))
    return found


def _ranking(of: str, rng: np.random.Generator) -> list[Row]:
    texts = (
        "A quiet, funny film that earns every one of its tears.",
        "What is the largest city of the region? || The harbour was dredged in 1911, and again "
        "after the war, when the larger ships came back and the old quay turned out too short.",
        "No.",
    )
    rows = rng.permutation(ROWS)[:25]
    return [
        {"cell": of, "rank": k + 1, "row": int(row), "score": -9.0 + 0.2 * k, "label": "entailment",
         "flipped": k % 7 != 3, "text": texts[k % 3], "clean_label": "not entailment"}
        for k, row in enumerate(rows)
    ]  # fmt: skip


def _methods_published() -> list[Row]:
    told = (
        ("full", "", "", 0.96, (87.1, 1.6), (93.8, 1.1)),
        ("datainf", "vote", "all", 0.82, (84.1, 1.9), (89.5, 2.1)),
        ("datainf", "vote", "00-07", 0.84, (82.9, 1.7), (89.3, 2.2)),
        ("random", "", "", 0.43, (76.9, 2.3), (80.8, 3.2)),
    )
    return [
        {"configuration": f"{e}/{group}/{how}" if how else e, "estimator": e, "how": how,
         "group": group, "source": PUBLISHED, "model": "mistral-7b", "rank": None,
         "win_rate": rate, "win_rate_sd": float("nan"), "qnli_mean_pct": q[0],
         "qnli_sd_pct": q[1], "sst2_mean_pct": s[0], "sst2_sd_pct": s[1]}
        for e, how, group, rate, q, s in told
    ]  # fmt: skip
