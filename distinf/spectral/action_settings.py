"""Settings of the fine-tunings that act on a ranking."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from distinf.engine.bounds import at_least, not_negative, positive
from distinf.naming import refuse_names

Selection = Literal["random", "helpful", "harmful", "nearest", "matched", "group"]


@dataclass(frozen=True)
class ActionSettings:
    """Fine-tune on chosen rows, and see what it does to the targets and to the others.

    loss, variant  whose scores choose the rows; variant tracin needs trajectory.checkpoints, and
                   ekfac scores.ekfac
    selections     helpful (highest scores), harmful (lowest), random (any row), nearest (those
                   whose conditions are nearest to the target's, where the task names conditions
                   that rows have as numbers: what a choice without influence does), matched (random
                   rows, as many of each class as among the helpful ones, where the task tells
                   classes of rows), group (the largest joint score over the targets; multi-target
                   only)
    pool           rows in a pool (Tuononen et al.: 50); with several targets, in each target's
    update         first-order (descent), ascent (its reverse), or second-order (Eq. 11 and 16)
    aim            single-target, or multi-target (all targets at once)
    order          how a pool is gone through: random, rank, or weighted (by score, at random)
    steps, batch_size, lr, weight_decay  of fine-tuning (Tuononen et al.: 3 x 24, 0.002, 1e-5)
    newton_lr      eta of the second-order update, which has no optimizer
    newton_pairs   whose signs it takes: chosen (Eq. 16: of a row, the targets in whose pool it is)
                   or all (every target of the job)
    newton_solves  of a row: fresh (its gradient anew at each step) or stored (its gradient at the
                   trained weights, as 8.2 of that paper reuses them)
    adapter        rank of low-rank adapters, all that is then trained (0: every parameter)
    seeds          repetitions, each with its own draws from the pools; 0 fine-tunes nothing: the
                   scores are all that is asked for
    retain         share of each step's rows that are random ones in place of the pool's, to keep
                   what the model can do elsewhere (0 to 1)
    stop           percent by which the metric of `guard` rows may rise (null: any): the step that
                   goes beyond is taken back, and none follows
    guard          evaluation rows that decide the stop: neither targets, nor under the conditions
                   of one, nor measured
    targets        how many of the targets, first ones first (0: all)
    non_targets    other evaluation rows, drawn by the seed, that measure side effects (0: all)
    fresh_draws    rows drawn anew under each target's conditions, where the task can do so, that
                   tell adapting to conditions from fitting one row (0: none)
    optimizer      fresh: its state starts at zero; kept: it goes on from the end of training
                   (Tuononen et al. does not say which; BatchNorm stays frozen in both)
    also           further experiments by name: any of the fields above (but `non_targets`, `guard`
                   and `fresh_draws`) with other values, a list meaning each of them; what is left
                   out is as here
    """

    loss: str = ""
    variant: Literal[
        "classic", "theta-relative", "ell-relative", "newfluence", "tracin", "ekfac"
    ] = "ell-relative"
    selections: tuple[Selection, ...] = ("random", "helpful", "harmful")
    pool: int = 50
    update: Literal["first-order", "ascent", "second-order"] = "first-order"
    aim: Literal["single-target", "multi-target"] = "single-target"
    order: Literal["random", "rank", "weighted"] = "random"
    steps: int = 3
    batch_size: int = 24
    lr: float = 2e-3
    weight_decay: float = 1e-5
    newton_lr: float = 1e-3
    newton_pairs: Literal["chosen", "all"] = "chosen"
    newton_solves: Literal["fresh", "stored"] = "fresh"
    adapter: int = 0
    seeds: int = 10
    retain: float = 0.0
    stop: float | None = None
    guard: int = 100
    targets: int = 0
    non_targets: int = 200
    fresh_draws: int = 24
    optimizer: Literal["fresh", "kept"] = "fresh"
    also: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        refuse_names("also", self.also)
        for name in ("pool", "steps", "batch_size"):
            at_least(name, getattr(self, name), 1)
        at_least("guard", self.guard, 1)
        if not 0 <= self.retain <= 1:
            raise ValueError(f"retain: {self.retain} must lie between 0 and 1")
        if self.retain and not round(self.retain * self.batch_size):
            raise ValueError(
                f"retain: {self.retain} of a step's {self.batch_size} rows (actions.batch_size) is "
                "less than one row; raise it, or set it to 0"
            )
        if self.retain and self.update != "first-order":
            raise ValueError("retain: its rows are learned by descent; set update to first-order")
        if self.stop is not None:
            not_negative("stop", self.stop)
        for name in ("seeds", "adapter", "targets", "non_targets", "fresh_draws"):
            at_least(name, getattr(self, name), 0)
        positive("lr", self.lr)
        positive("newton_lr", self.newton_lr)
        not_negative("weight_decay", self.weight_decay)
        if not self.selections:
            raise ValueError(
                "selections: name at least one of random, helpful, harmful, nearest, matched, group"
            )
        if "group" in self.selections and self.aim == "single-target":
            raise ValueError("selections: group is for several targets; set aim to multi-target")
        if self.adapter and (self.update == "second-order" or self.optimizer == "kept"):
            raise ValueError(
                "adapter: the stored curvature and optimizer state are of the model's own "
                "parameters; use a first-order update and a fresh optimizer"
            )
        if self.seeds and self.batch_size > self.pool:
            raise ValueError(
                f"batch_size: {self.batch_size} rows cannot be drawn from a pool of {self.pool}; "
                "raise actions.pool or lower actions.batch_size"
            )
