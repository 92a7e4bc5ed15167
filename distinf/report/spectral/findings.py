"""What a run found: the report page's only input.

Shapes: N training samples, E evaluation samples, K Ritz values, B bins of the axis.
The metric is something that should go down. Scores: above 0, training on the sample helps.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any

import numpy as np

from distinf.numerics.krylov import has_converged
from distinf.report.provenance import Provenance
from distinf.report.rows import Row, gathered
from distinf.spectral.attribution import Attribution
from distinf.tasks.task import Published

SELECTED, CONTROL, OPPOSITE = "helpful", "random", "harmful"
BASELINES = (CONTROL, "nearest", "matched")  # choices that go by no score of a row
BEST = "best baseline"  # for each trial the one that did best in the others
Columns = Mapping[str, float | int | str]  # from the data


@dataclass(frozen=True)
class MetricInfo:
    """How to name the metric: `reference` None means that the gap is the metric itself."""

    name: str = "loss"
    reference: str | None = None  # "the best possible"
    baseline: str | None = None  # another method to compare with
    axis: str | None = None  # "SNR [dB]"
    log: bool = False


@dataclass(frozen=True)
class Headline:
    """The arm that the answer is about, and the noun for what was selected."""

    loss: str = ""
    variant: str = ""
    update: str = "first-order"
    aim: str = "single-target"
    noun: str = "samples"
    pool: int | None = None  # how many of the most helpful were drawn from
    steps: int | None = None


@dataclass(frozen=True)
class Outcome:
    """One fine-tune: the selection it used, its target (an evaluation row id) and its seed.

    `loss` and `variant` are empty where the selection does not depend on scores (random).
    `gap_reduction_pct` may be NaN (diverged, or no gap to reduce): counted, never averaged.
    Changes are of others' mean metric; above 0 is worse. `sibling`: evaluation samples under the
    target's conditions; `fresh`: drawn anew under them.
    """

    selection: str
    target: int
    seed: int
    gap_reduction_pct: float
    metric_by_step: Sequence[float] = ()  # from before the first step
    non_target_change_pct: float | None = None
    loss: str = ""
    variant: str = ""
    update: str = "first-order"  # or "ascent", "second-order"
    aim: str = "single-target"  # or "multi-target": all targets at once, one Outcome for each
    order: str = "random"  # how the pool was gone through: or "rank", "weighted"
    pool: int | None = None
    lr: float | None = None
    adapter: int = 0  # rank of the adapters that were trained; 0: every parameter
    non_target_metric: float | None = None  # mean after the last step
    non_target_gap_reduction_pct: float | None = None  # of the mean metric to the mean reference
    settings: Columns = field(default_factory=dict)  # further ones: steps…
    sibling_change_pct: float | None = None
    fresh_change_pct: float | None = None
    condition: int | None = None  # targets of one number were measured under the same conditions

    @property
    def draw(self) -> int:
        """What is independent of the other trials' of another number: the condition, or target."""
        return self.target if self.condition is None else self.condition

    def value(self, name: str) -> Any:
        """The field or the further setting `name`; None where there is none."""
        if name in OUTCOME_FIELDS:
            return getattr(self, name)
        usual = {
            "steps": max(0, len(self.metric_by_step) - 1),
            "newton_lr": self.lr if self.update == "second-order" else None,
        }
        return self.settings.get(name, usual.get(name))


OUTCOME_FIELDS = frozenset(f.name for f in fields(Outcome))


@dataclass(frozen=True)
class AxisCurves:
    """The metric's mean per bin of the axis; roles: before, reference, baseline or a selection."""

    x: Sequence[float]
    counts: Sequence[int]
    curves: Mapping[str, Sequence[float]]
    draws: int | None = None  # distinct conditions among the samples


@dataclass(frozen=True, eq=False)
class Family:
    """One further experiment: arms that differ in `varied` and are the headline's in all else.

    varied: names of Outcome's fields or settings, "selection" among them where there are several.
    """

    name: str
    varied: Sequence[str]
    outcomes: Sequence[Outcome]
    axis_curves: AxisCurves | None = None


@dataclass(frozen=True)
class EvaluationPoints:
    """Every evaluation sample before fine-tuning; `eligible` could have been chosen as target."""

    ids_E: np.ndarray
    gap_E: np.ndarray
    axis_E: np.ndarray | None = None
    eligible_E: np.ndarray | None = None
    rule: str = ""  # "reference of at least 0.001"
    metric_E: np.ndarray | None = None
    reference_E: np.ndarray | None = None
    least_reference: float | None = None  # of an eligible sample
    draws: int | None = None  # distinct conditions among the samples


@dataclass(frozen=True)
class ScoreSet:
    """One loss's and variant's scores: target -> float [N]; `outside_shares`: target -> share of
    their variance from outside the Ritz pairs, where it is known (classic)."""

    loss: str
    variant: str
    scores: Mapping[int, np.ndarray]
    nonpositive_denominators: int = 0
    outside_shares: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """An evaluation sample to improve, before fine-tuning; `gap` is relative to the reference."""

    id: int
    metric: float
    gap: float
    reference: float | None = None
    axis: float | None = None
    columns: Columns = field(default_factory=dict)
    baseline: float | None = None


@dataclass(frozen=True)
class Ritz:
    """The curvature's Ritz pairs, most extreme first, and what the solver did with them."""

    values_K: Sequence[float]
    residuals_K: Sequence[float]
    kept: int
    damping: float
    complement: str = ""  # what the operator is outside the pairs: "none", "damping", "mean"
    complement_mean: float | None = None
    trace: float | None = None
    policy: str = ""  # what happens to pairs with value + damping <= 0
    dropped: int = 0  # pairs that the policy acted on
    orthogonality: float | None = None  # max |QᵀQ - I|
    asymmetry: float | None = None  # ‖T - Tᵀ‖ / ‖T‖
    operator: str = "Hessian"
    kept_K: Sequence[bool] = ()  # which are kept, where it is not the first `kept`
    all_values: Sequence[float] = ()  # of every Krylov step, largest magnitude first
    all_residuals: Sequence[float] = ()  # theirs
    complement_error: float | None = None  # standard, of the mean over training gradients
    quotients_R: Sequence[float] = ()  # what each of these sees by itself
    filter: str = ""  # of the eigenvalues, as scores.filter

    def is_kept(self, place: int) -> bool:
        """Whether the pair at `place`, from 0, is among those that scores use."""
        return self.kept_K[place] if self.kept_K else place < self.kept

    def converged_values(self) -> list[float]:
        """Those of all Krylov steps' values that have converged, largest magnitude first."""
        both = zip(self.all_values, self.all_residuals, strict=True)
        return [v for v, r in both if has_converged(v, r)]


@dataclass(frozen=True)
class TrainingCurve:
    steps: Sequence[int]
    loss: Sequence[float]
    label: str = "training loss"


@dataclass(frozen=True)
class Findings:
    """Everything on the page. A part that is None or empty is left out of it."""

    title: str
    task: str  # one sentence: what was run
    question: str = ""
    metric: MetricInfo = field(default_factory=MetricInfo)
    headline: Headline = field(default_factory=Headline)
    outcomes: Sequence[Outcome] = ()
    descriptions: Mapping[str, str] = field(default_factory=dict)  # selection -> "the 50 most …"
    targets: Sequence[Target] = ()
    evaluation: EvaluationPoints | None = None
    axis_curves: AxisCurves | None = None
    scores: Sequence[ScoreSet] = ()
    free_scores: Sequence[ScoreSet] = ()  # rankings that cost nothing beside; the name as variant
    classes: Mapping[str, tuple[Sequence[str], np.ndarray]] = field(default_factory=dict)  # of rows
    top_samples: Sequence[Row] = ()  # target, rank (-1, … harmful), id, score, free ones, columns
    ritz: Ritz | None = None
    solves: Sequence[Row] = ()  # refined queries: target, loss, status, steps, residual
    sensitivity: Sequence[Row] = ()  # of the ranking: factor, damping, targets, spearman, least
    refined: str = ""  # how many are, at which cost, or why none is
    training: TrainingCurve | None = None
    costs: Sequence[Row] = ()
    families: Sequence[Family] = ()
    attributions: Sequence[Attribution] = ()
    non_target_before: float | None = None  # the non-targets' mean metric before fine-tuning
    non_target_reference: float | None = None
    non_target_baseline: float | None = None
    label: str = ""  # what tells this run from those beside it: "4,080 samples"
    data: str = ""  # runs of one text have the same rows by the same numbers
    variations: Mapping[str, "Findings"] = field(default_factory=dict)  # variations of this run
    published: Sequence[Published] = ()
    deviations: Sequence[str] = ()
    warnings: Sequence[str] = ()
    quarantined: Mapping[str, Sequence[int]] = field(default_factory=dict)  # split -> sample ids
    provenance: Provenance = field(default_factory=Provenance)

    def main_outcomes(self) -> list[Outcome]:
        """The trials of the headline's loss, variant, update and aim, and their controls."""
        head = self.headline
        own = (o for o in self.outcomes if (o.update, o.aim) == (head.update, head.aim))
        return [o for o in own if o.loss in ("", head.loss) and o.variant in ("", head.variant)]

    def by_selection(self) -> dict[str, list[Outcome]]:
        """The headline's trials: helpful, the baselines, harmful, then others as they came."""
        found = gathered(self.main_outcomes(), attrgetter("selection"))
        order = dict.fromkeys((SELECTED, *BASELINES, OPPOSITE, *found))
        return {selection: found[selection] for selection in order if selection in found}

    def headline_scores(self) -> Mapping[int, np.ndarray]:
        """Of the headline's loss and variant; {} where they were not scored."""
        own = (self.headline.loss, self.headline.variant)
        return next((s.scores for s in self.scores if (s.loss, s.variant) == own), {})

    def guided(self) -> str:
        """The headline's selection that scores are to improve: helpful, or else the first one."""
        seen = self.by_selection()
        others = [s for s in seen if s not in (*BASELINES, OPPOSITE)]
        return SELECTED if SELECTED in seen or not others else others[0]

    def first_scored(self) -> int | None:
        """The first target that has scores: the one with the largest gap."""
        scored = [i for s in self.scores for i in s.scores]
        return next((t.id for t in self.targets if t.id in scored), next(iter(scored), None))
