"""Findings of a made-up receiver study, whole: every experiment, and runs beside it."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from distinf.report.spectral.findings import (
    Attribution,
    AxisCurves,
    Family,
    Findings,
    Headline,
    Outcome,
)
from distinf.studies.receiver.published import published
from tests.support.findings import TARGETS, VARIANTS, findings

GENIE, BEFORE = 0.021, {417: 0.062, 88: 0.072, 503: 0.082}
OTHERS_BEFORE, OTHERS_GENIE, OTHERS_BASELINE = 0.0834, 0.0561, 0.121
SEEDS = range(6)
RATES = (0.001, 0.002, 0.004, 0.007, 0.01, 0.02, 0.04, 0.07, 0.1)


def study(**changes: object) -> Findings:
    """The whole study; keyword arguments replace its parts."""
    rng = np.random.default_rng(3)
    main = complete(findings(), rng)
    reduced = complete(findings(title="reduced", label=""), rng, worse=1.3)
    reduced = replace(reduced, label="1,020 slots", families=reduced.families[:1], attributions=())
    group = Headline("bce", "ell-relative", aim="multi-target", noun="slots", pool=200, steps=100)
    trials = [replace(o, aim="multi-target") for o in reduced.outcomes]
    subset = replace(
        reduced,
        families=(),
        headline=group,
        outcomes=[replace(o, selection="group") if o.loss else o for o in trials],
    )
    made = replace(main, variations={"reduced": reduced, "subset": subset}, published=published())
    return replace(made, **changes)  # type: ignore[arg-type]


def complete(base: Findings, rng: np.random.Generator, worse: float = 1.0) -> Findings:
    """`base` with every experiment, and with what was measured on the other samples."""
    assert base.evaluation is not None
    assert base.ritz is not None
    gap_E = base.evaluation.gap_E
    reference_E = np.clip(10 ** rng.normal(-1.6, 0.6, gap_E.size), 1e-5, 0.5)
    evaluation = replace(
        base.evaluation,
        metric_E=worse * reference_E * (1 + gap_E),
        reference_E=reference_E,
        least_reference=5e-3,
    )
    head = [o for o in base.main_outcomes() if o.selection != "harmful"]
    sizes = 18 * np.exp(-4.5 * (1 - np.exp(-np.arange(60) / 12))) * rng.uniform(0.9, 1.1, 60)
    signs, residuals = rng.choice([1, 1, -1], 60), np.geomspace(1e-9, 1.0, 60)
    ritz = replace(base.ritz, all_values=(sizes * signs).tolist(), all_residuals=residuals.tolist())
    return replace(
        base,
        outcomes=[_known(o, rng, worse) for o in head],
        label="4,080 slots",
        targets=[replace(t, baseline=2.2 * t.metric) for t in base.targets],
        evaluation=evaluation,
        ritz=ritz,
        families=families(rng),
        attributions=list(attributions(rng)),
        axis_curves=curves(["random", "helpful"], 0.9),
        non_target_before=worse * OTHERS_BEFORE,
        non_target_reference=OTHERS_GENIE,
        non_target_baseline=OTHERS_BASELINE,
    )


def families(rng: np.random.Generator) -> list[Family]:
    """Every kind of experiment: Table 1 and several targets first."""
    both = {"selection": ("random", "helpful")}
    several = {"aim": ("multi-target",)}
    return [
        Family("table1", ("loss", "variant", "selection"), _table_1(rng)),
        Family(
            "multi", ("selection",),
            _trials(rng, {"selection": ("random", "helpful", "group"), **several}, 15),
            curves(["random", "helpful", "group"], 1.2),
        ),
        Family("updates", ("update", "selection"), _updates(rng)),
        Family("ascent", (), _ascent(rng)),
        Family(
            "pools_and_order", ("pool", "order", "selection"),
            _trials(rng, {"pool": (50, 100, 200), "order": ("random", "rank", "weighted"),
                          **both}, 3),
        ),
        Family("adapters", ("adapter", "selection"), _trials(rng, {"adapter": (2, 8), **both}, 3)),
        Family(
            "tracin", ("variant",),
            _trials(rng, {"variant": ("ell-relative", "tracin"), "selection": ("helpful",)}, 3),
        ),
        Family("rates", ("lr",), _rates(rng)),
    ]  # fmt: skip


def attributions(rng: np.random.Generator) -> Iterator[Attribution]:
    """Two most helpful and two most harmful slots of the first target; two pilot symbols."""
    for rank in (1, 2, -1, -2):
        symbol, carrier = np.mgrid[:14, :48]
        bump = np.exp(-((symbol - 7 - rank) ** 2) / 9 - (carrier - 24 - 6 * rank) ** 2 / 60)
        parts = np.sign(rank) * 0.01 * bump + 0.001 * rng.standard_normal((14, 48))
        parts[2, ::2] = parts[11, ::2] = np.nan
        score = float(np.nansum(parts))
        axes = ("symbol", "subcarrier")
        yield Attribution(TARGETS[0], 1200 + rank, rank, score, parts, axes)


def curves(selections: Sequence[str], gain: float) -> AxisCurves:
    """55 bins; the error rate is zero in the last ones."""
    x = np.linspace(-3.7, 31.7, 55)
    genie = 0.28 * np.exp(-0.16 * (x + 4)) / (1 + np.exp(x - 26))
    factor = {"baseline": 2.6, "before": 1.75, "random": 1.7, "helpful": 1.45, "group": 1.5}
    named = ["baseline", "before", *selections]
    made = {
        n: np.minimum(0.5, genie * (1 + (factor[n] * gain - 1) * (0.2 + np.abs(x) / 26)))
        for n in named
    } | {"reference": genie}
    made["reference"][-2:] = 0.0
    return AxisCurves(x.tolist(), [40] * 55, {k: y.tolist() for k, y in made.items()})


def _table_1(rng: np.random.Generator) -> list[Outcome]:
    rows = []
    for loss, variant in itertools.product(("bce", "ber"), VARIANTS):
        choice = {"loss": (loss,), "variant": (variant,), "selection": ("helpful",)}
        rows += _trials(rng, choice, 3, TARGETS[:1], float(rng.normal(0, 12)))
    return rows + _trials(rng, {"selection": ("random",)}, 3, TARGETS[:1])


def _updates(rng: np.random.Generator) -> list[Outcome]:
    every = ("helpful", "random", "harmful")
    return _trials(
        rng, {"update": ("first-order", "second-order"), "selection": every}, 20, TARGETS[:1]
    )


def _ascent(rng: np.random.Generator) -> list[Outcome]:
    return _trials(rng, {"update": ("ascent",), "selection": ("harmful",)}, 20, TARGETS[:1])


def _rates(rng: np.random.Generator) -> list[Outcome]:
    return _trials(rng, {"lr": RATES, "selection": ("helpful",)}, 20, TARGETS[:1])


def _trials(
    rng: np.random.Generator,
    choices: Mapping[str, Sequence[object]],
    steps: int,
    targets: Sequence[int] = TARGETS,
    shift: float = 0.0,
) -> list[Outcome]:
    """Every combination on every target and of four seeds; a random arm comes once."""
    rows: dict[object, Outcome] = {}
    for values in itertools.product(*choices.values()):
        arm = dict(zip(choices, values, strict=True))
        if arm["selection"] == "random":
            arm |= {"loss": "", "variant": "", "pool": None, "order": "random"}
        else:
            arm = {"loss": "bce", "variant": "ell-relative", "pool": 50} | arm
        for target, seed in itertools.product(targets, range(4)):
            key = (*arm.items(), target, seed)
            rows.setdefault(key, _trial(rng, arm, target, seed, steps, shift))
    return list(rows.values())


def _trial(
    rng: np.random.Generator,
    arm: Mapping[str, object],
    target: int,
    seed: int,
    steps: int,
    shift: float,
) -> Outcome:
    """A path that falls to a level, or rises to chance where it should diverge."""
    before, rate = BEFORE[target], float(arm.get("lr", 0.002))  # type: ignore[arg-type]
    x = np.arange(steps + 1)
    guided = arm["selection"] != "random"
    closed = (42 + shift if guided else 6) / 100 + 0.08 * rng.standard_normal()
    if arm.get("update") == "second-order":
        closed *= 0.1
    path = before - (before - GENIE) * closed * (1 - np.exp(-x / 1.7)) + 2e-4 * x * guided
    harm = 400 * rate**2 * x if "lr" in arm else np.zeros(steps + 1)
    if arm.get("update") == "ascent":
        harm = 0.3 * x**1.5 * (2 if guided else 0.6)
    path = path + (0.48 - path) * (1 - np.exp(-harm)) * (x > 0)
    path[0] = before
    gap = 100 * (before - path[-1]) / (before - GENIE)
    made = Outcome(
        str(arm["selection"]), target, seed, float(gap), path.tolist(), lr=rate,
        **{k: v for k, v in arm.items() if k not in ("selection", "lr")},  # type: ignore[arg-type]
    )  # fmt: skip
    return _known(made, rng)


def _known(outcome: Outcome, rng: np.random.Generator, worse: float = 1.0) -> Outcome:
    """`outcome` with what it did to the other samples."""
    before = worse * OTHERS_BEFORE
    after = before * (1 + 0.01 * rng.standard_normal())
    return replace(
        outcome,
        lr=0.002 if outcome.lr is None else outcome.lr,
        pool=outcome.pool or (50 if outcome.selection != "random" else None),
        non_target_metric=after,
        non_target_change_pct=100 * (after / before - 1),
        non_target_gap_reduction_pct=100 * (before - after) / (before - OTHERS_GENIE),
    )


def trials(gaps: dict[int, float], **arm: object) -> list[Outcome]:
    """One trial per seed and target, which is the key of its gap reduction."""
    values = {"selection": "helpful", "lr": 0.002} | arm
    if values["selection"] != "random":
        values = {"loss": "bce", "variant": "classic", "pool": 50} | values
    return [
        Outcome(target=t, seed=s, gap_reduction_pct=g + s, **values)  # type: ignore[arg-type]
        for t, g in gaps.items()
        for s in SEEDS
    ]


def small(*families: Family, **changes: object) -> Findings:
    """A headline of helpful (40) and random (10) trials on two targets, and these families."""
    outcomes = trials({1: 40.0, 2: 44.0}) + trials({1: 10.0, 2: 10.0}, selection="random")
    head = Headline("bce", "classic", noun="slots", pool=50, steps=3)
    made = Findings("A run", "Small.", headline=head, outcomes=outcomes, families=families)
    return replace(made, **changes)  # type: ignore[arg-type]
