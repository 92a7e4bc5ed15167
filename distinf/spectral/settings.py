"""Every knob of every stage, with its default. What changes a result is part of a
run's fingerprint (NOT_FINGERPRINTED in distinf/engine/fingerprint.py names the rest).
"""

import os
from dataclasses import dataclass, field
from typing import Literal

from distinf.engine.bounds import at_least, not_negative, positive
from distinf.numerics.capture import Method
from distinf.numerics.curvature import Kind
from distinf.numerics.precision import Precision
from distinf.numerics.variants import Complement, Policy
from distinf.spectral.action_settings import ActionSettings

MOST_UNITS = 1_000_000  # of one stage; a ledger of more would be no use to anyone


@dataclass(frozen=True)
class DataSettings:
    """chunk_rows: rows of one stored chunk, the least that is read at once.
    cache_mb: a split up to this size is kept in a worker's memory once it was read."""

    chunk_rows: int = 24
    cache_mb: float = 2_048.0

    def __post_init__(self) -> None:
        at_least("chunk_rows", self.chunk_rows, 1)
        not_negative("cache_mb", self.cache_mb)


@dataclass(frozen=True)
class TrainSettings:
    """Linear warm-up, constant, then linear decay to 0 (Honkala et al. 2021, section V).

    rows              training rows, from the first on (0: all); a reduced training set
    checkpoint        a safetensors file whose weights training starts from ("": the task's own);
                      every worker reads it
    precision         of the passes: float32, tf32 (CUDA), or bfloat16 (weights stay float32)
    steps             optimizer steps; 0 keeps the model as it starts
    batch_size        rows a step, over all shards
    lr, weight_decay  of the task's optimizer; lr is the rate's maximum
    shards            logical pieces of a batch, each with its own batch statistics; fixed, so that
                      any number of ranks gives the same bits
    warmup, constant  shares of `steps` up to whose end the rate rises, then stays at its maximum
    checkpoint_every  steps between commits: the most that a killed run repeats
    """

    steps: int = 400
    batch_size: int = 48
    lr: float = 1e-2
    weight_decay: float = 1e-4
    warmup: float = 800 / 30_000
    constant: float = 0.3
    shards: int = 2
    checkpoint_every: int = 50
    rows: int = 0
    checkpoint: str = ""
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 0)
        at_least("rows", self.rows, 0)
        at_least("checkpoint_every", self.checkpoint_every, 1)
        if self.steps > MOST_UNITS * self.checkpoint_every:
            raise ValueError(
                f"steps: {self.steps} in pieces of checkpoint_every {self.checkpoint_every} are "
                f"more than {MOST_UNITS} commits; raise checkpoint_every"
            )
        at_least("shards", self.shards, 1)
        positive("lr", self.lr)
        not_negative("weight_decay", self.weight_decay)
        if self.checkpoint and "://" not in self.checkpoint:  # a worker's folder may be another
            object.__setattr__(self, "checkpoint", os.path.abspath(self.checkpoint))
        if self.batch_size % self.shards or self.batch_size < self.shards:
            raise ValueError(
                f"batch_size: {self.batch_size} is not a multiple of train.shards ({self.shards})"
            )
        if not 0 <= self.warmup <= self.constant <= 1:
            raise ValueError("warmup and constant are shares: 0 <= warmup <= constant <= 1")

    def rate(self, step: int) -> float:
        """The learning rate of step `step`, counted from 0."""
        done = (step + 1) / self.steps
        if done < self.warmup:
            return self.lr * done / self.warmup
        if done <= self.constant or self.constant == 1:
            return self.lr
        return self.lr * min(1.0, (1 - step / self.steps) / (1 - self.constant))


@dataclass(frozen=True)
class EvaluateSettings:
    """batch_size: rows evaluated at once. rows_per_unit: rows of one unit."""

    batch_size: int = 64
    rows_per_unit: int = 1_024

    def __post_init__(self) -> None:
        at_least("batch_size", self.batch_size, 1)
        at_least("rows_per_unit", self.rows_per_unit, 1)


@dataclass(frozen=True)
class TargetSettings:
    """Which evaluation rows to improve: those of largest gap.

    count          how many
    per_condition  at most so many whose conditions are the same, by the columns that the task names
                   as `conditions` (0: any number)
    min_reference  only rows whose reference is at least this (Tuononen et al.: BER 1e-3)
    criterion      the gap that ranks rows: relative to the reference (Tuononen et al., Eq. 9),
                   absolute, or one of the task's own `criteria`
    ids            these evaluation rows instead, all of them and in this order
    """

    count: int = 5
    per_condition: int = 1
    min_reference: float = 1e-3
    criterion: str = "relative"
    ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        at_least("count", self.count, 1)
        at_least("per_condition", self.per_condition, 0)
        not_negative("min_reference", self.min_reference)
        if self.ids:
            object.__setattr__(self, "count", len(self.ids))


REFINEMENT = (
    "refine",
    "refine_steps",
    "refine_tolerance",
    "refine_agreement",
)  # what solves of the targets take


@dataclass(frozen=True)
class CurvatureSettings:
    """Arnoldi on the mean curvature over some training rows.

    kind          hessian (exact), or gauss-newton (positive semi-definite): by forward mode, or,
                  where two rows show before the run that it does not pass the model (LSTM, SiLU),
                  by double backward; hessian-double-backward and gauss-newton-double-backward take
                  that at once
    steps, keep   Krylov steps, and Ritz pairs kept
    samples       training rows of one product, drawn by the seed
    fresh         other rows at every step, as in Tuononen et al. (its T is then not symmetric)
    shards        logical pieces of a product; fixed, so that the ranks do not change a bit
    reduction     ordered (bitwise the same on any ranks) or allreduce (the fast path)
    memory_mb     of activations of one microbatch, and of the directions that refined solves share
    probes        products that tell what the operator is outside the pairs: of training gradients
                  for scores.complement gradients, else for the trace; 0: none
    residuals     products (true ones, a product per pair) or relation (from the Arnoldi relation)
    blocks        which parameters: all, lora, or a regex on their names
    refine        how many of the targets to refine by a preconditioned solve under each loss; null:
                  as many as a quarter of this stage's products do for, where curvature and damping
                  are positive, and none where scores.complement is none
    refine_steps, refine_tolerance  where a refined solve ends: after so many products, or at this
                  residual
    refine_agreement  or where the rankings of 64 training rows after k and after 2 k products have
                  this Spearman correlation (1: never)
    precision     of the products: float32, tf32 (CUDA), or bfloat16
    """

    kind: Kind = "hessian"
    steps: int = 200
    keep: int = 40
    samples: int = 11_990
    fresh: bool = False
    shards: int = 8
    reduction: Literal["ordered", "allreduce"] = "ordered"
    memory_mb: float = 1_024.0
    probes: int = 30
    residuals: Literal["products", "relation"] = "products"
    blocks: str = "all"
    refine: int | None = None
    refine_steps: int = 100
    refine_tolerance: float = 1e-3
    refine_agreement: float = 0.99
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1)
        at_least("samples", self.samples, 1)
        at_least("shards", self.shards, 1)
        at_least("probes", self.probes, 0)
        at_least("refine", self.refine or 0, 0)
        at_least("refine_steps", self.refine_steps, 1)
        if not 0 < self.refine_tolerance < 1:
            raise ValueError(f"refine_tolerance: {self.refine_tolerance} must lie between 0 and 1")
        if not 0 < self.refine_agreement <= 1:
            raise ValueError(
                f"refine_agreement: {self.refine_agreement} must lie above 0 and at most at 1"
            )
        if self.fresh and self.residuals == "relation":
            raise ValueError(
                "residuals: the Arnoldi relation holds for one operator; with curvature.fresh set "
                "curvature.residuals to products"
            )
        positive("memory_mb", self.memory_mb)
        if not 1 <= self.keep <= self.steps:
            raise ValueError(
                f"keep: {self.keep} Ritz pairs cannot come from {self.steps} steps; "
                "raise curvature.steps or lower curvature.keep"
            )


@dataclass(frozen=True)
class GradientSettings:
    """One pass over the rows that may be chosen.

    candidates     trained (the rows that the model was trained on) or all (the whole split)
    rows           of them to score, from the first on (0: all)
    rows_per_unit  rows of one unit
    chunk          per-sample gradients at once
    method         hooks (the layers they know), vmap, or loop (what neither passes); null takes the
                   first of them that knows every layer and agrees with one row at a time
    check          compare a few rows with one row at a time, before the run and on each worker
    precision      of the passes: float32, tf32 (CUDA), or bfloat16
    """

    rows: int = 0
    rows_per_unit: int = 480
    chunk: int = 16
    method: Method | None = None
    check: bool = True
    candidates: Literal["trained", "all"] = "trained"
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        at_least("rows", self.rows, 0)
        at_least("rows_per_unit", self.rows_per_unit, 1)
        at_least("chunk", self.chunk, 1)

    @property
    def chosen(self) -> Method:
        """The method, where it is set or chosen."""
        assert self.method is not None
        return self.method


@dataclass(frozen=True)
class ScoreSettings:
    """damping   lambda, added to every eigenvalue; null: what the run's steps of SGD stand for (1 /
              the sum of their learning rates, times 1 - momentum, and the weight decay), with
              another optimizer 1 % of the largest Ritz value's size
    filter    of the eigenvalues: damped (1 / (theta + lambda)), or unrolled, what training by SGD
              did to a direction: (1 - exp(-T theta)) / theta, T the sum of its learning rates (Bae
              et al. 2024, SOURCE), or 1 / damping where that is set; no target is refined then;
              preconditioned: the same of training by Adam, AdamW or LAMB, on the eigenpairs of
              P^1/2 H P^1/2 and gradients P^1/2 g, P what the optimizer multiplied gradients by in
              its last step (1 / (sqrt(v) + eps), times LAMB's trust ratio)
    complement  what the curvature is outside the Ritz pairs: none (the inverse is truncated to the
              pairs, Eq. 7 of Tuononen, Penttinen and Hautamäki; damping may be 0), damping (that
              alone), mean (the mean eigenvalue there, by curvature.probes, and the damping), or
              gradients (the same as training gradients see it, by as many of them)
    negative  Ritz values below or near zero: refuse, absolute, drop (into the complement), keep;
              null: absolute where the damping is derived, refuse where it is set
    scaling   of Newfluence: mean (the leave-one-out factor of a mean Hessian) or paper (Eq. 6)
    ekfac     EK-FAC's scores beside, as the variant ekfac: in two passes more over the rows of
              curvature.samples, with targets sampled from the model (Grosse et al. 2023)
    ekfac_damping  its lambda (null: a tenth of each layer's mean eigenvalue)
    """

    damping: float | None = None
    filter: Literal["damped", "unrolled", "preconditioned"] = "damped"
    complement: Complement = "gradients"
    negative: Policy | None = None
    scaling: Literal["mean", "paper"] = "mean"
    ekfac: bool = False
    ekfac_damping: float | None = None

    def __post_init__(self) -> None:
        if self.damping is not None:
            not_negative("damping", self.damping)
        if self.ekfac_damping is not None:
            positive("ekfac_damping", self.ekfac_damping)

    @property
    def policy(self) -> Policy:
        """`negative`, or what it is where none is set: no default fails once curvature is paid."""
        return self.negative or ("absolute" if self.damping is None else "refuse")


@dataclass(frozen=True)
class TrajectorySettings:
    """TracIn (Pruthi et al. 2020, Eq. 1): gradients' dot products at checkpoints of training.

    checkpoints: how many of the stored ones, evenly spaced, the last among them (0: no TracIn).
    """

    checkpoints: int = 0

    def __post_init__(self) -> None:
        at_least("checkpoints", self.checkpoints, 0)


@dataclass(frozen=True)
class AttributionSettings:
    """Which elements of a row drive its influence: rows per target, most helpful and most harmful.

    rows: of each kind and target (0: none). targets: how many of the targets, first ones first.
    """

    rows: int = 0
    targets: int = 1

    def __post_init__(self) -> None:
        at_least("rows", self.rows, 0)
        at_least("targets", self.targets, 1)


@dataclass(frozen=True)
class ReportSettings:
    """title: of the page. bins: of the metric against the task's axis."""

    title: str = ""
    bins: int = 10

    def __post_init__(self) -> None:
        at_least("bins", self.bins, 1)


@dataclass(frozen=True)
class StageSettings:
    """The settings of a spectral run's stages: curvature first, then projections of gradients."""

    data: DataSettings = field(default_factory=DataSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    targets: TargetSettings = field(default_factory=TargetSettings)
    curvature: CurvatureSettings = field(default_factory=CurvatureSettings)
    gradients: GradientSettings = field(default_factory=GradientSettings)
    scores: ScoreSettings = field(default_factory=ScoreSettings)
    trajectory: TrajectorySettings = field(default_factory=TrajectorySettings)
    attribution: AttributionSettings = field(default_factory=AttributionSettings)
    actions: ActionSettings = field(default_factory=ActionSettings)
    report: ReportSettings = field(default_factory=ReportSettings)
