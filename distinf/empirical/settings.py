"""Every knob of the empirical recipe, with its default."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from distinf.engine.bounds import at_least, not_negative, positive
from distinf.naming import refuse_names
from distinf.numerics.precision import Precision

OfGradients = Literal["tracin", "cosine", "datainf", "fisher", "fisher-joint", "ekfac", "exact"]
WithoutGradients = Literal["first-step", "prompt", "random", "loss", "length", "bm25", "embeddings"]
Estimate = Literal[OfGradients, WithoutGradients]
OF_GRADIENTS: tuple[str, ...] = get_args(OfGradients)


@dataclass(frozen=True)
class TuneSettings:
    """Fine-tuning, anew for each row from the same weights, on that row alone.

    leave_one_out     instead on all rows, one after another, held against all but that one in the
                      same order (Eq. 4 of Matelsky et al. as they write it)
    optimizer         sgd or adamw, as torch has them; neither has stepped before. Or prompt: the
                      row stands in the prompt and nothing is tuned (of tasks that can do so)
    lr                of its steps
    weight_decay      of its steps
    momentum          of sgd
    steps             on each row (Matelsky et al.: one epoch of one row is one)
    blocks            regex on the parameters that are tuned; all, or lora
    precision         of the passes: float32, tf32 (CUDA) or bfloat16 (autocast); weights are
                      float32 always
    first_order       also what the step would do were the losses linear (Eq. 3 of Matelsky et
                      al.), at the price of two evaluations more
    least_taken       of the steps of a few rows together this share has to be taken, or the run is
                      refused: rounding the weights would swallow them
    sweep             doublings of lr tried above it, and as many halvings below it, on a few rows:
                      the page says where the matrix hardly depends on the rate, and warns of an lr
                      that is not there; 0: none
    rows_per_unit     rows that one unit fine-tunes on, one after the other
    evaluation_batch  rows evaluated at once
    """

    leave_one_out: bool = False
    optimizer: Literal["sgd", "adamw", "prompt"] = "sgd"
    lr: float = 1e-3
    weight_decay: float = 0.0
    momentum: float = 0.0
    steps: int = 1
    blocks: str = "all"
    precision: Precision = "float32"
    first_order: bool = False
    least_taken: float = 0.9
    sweep: int = 1
    rows_per_unit: int = 10
    evaluation_batch: int = 256

    def __post_init__(self) -> None:
        positive("lr", self.lr)
        not_negative("weight_decay", self.weight_decay)
        not_negative("momentum", self.momentum)
        not_negative("sweep", self.sweep)
        for name in ("steps", "rows_per_unit", "evaluation_batch"):
            at_least(name, getattr(self, name), 1)
        if not 0 <= self.least_taken <= 1:
            raise ValueError(f"least_taken: {self.least_taken} must lie between 0 and 1")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError("momentum: is of sgd; leave it out, or set tune.optimizer to sgd")
        if self.first_order and self.optimizer == "prompt":
            raise ValueError("first_order: a prompt takes no step; leave it out")
        if self.leave_one_out and (self.first_order or self.optimizer == "prompt"):
            other = "first_order" if self.first_order else "optimizer: prompt"
            raise ValueError(f"leave_one_out: does not go with {other}; leave one of them out")


@dataclass(frozen=True)
class EstimateSettings:
    """What is held against the measured matrix, the yardstick.

    estimators  of gradients: tracin (their product), cosine, datainf and fisher (each parameter by
                itself, added up), fisher-joint, ekfac, and exact (the damped mean Hessian, of at
                most 100,000 parameters, where that is positive definite); first-step: what the
                optimizer's first step would do, were the losses linear; prompt: the row in the
                prompt; and what needs no gradient: random, loss (the row's own), length and bm25
                (of texts), embeddings (their cosine). Empty: nothing
    spaces      by name, a regex on the parameters that estimators of gradients look at; empty: all
                that are tuned
    """

    estimators: tuple[Estimate, ...] = ()
    spaces: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(set(self.estimators)) < len(self.estimators):
            raise ValueError("estimators: name each once")
        refuse_names("spaces", self.spaces)


@dataclass(frozen=True)
class ReportSettings:
    """What the report has beside its page and tables.

    matrix  report/matrix.csv, the whole matrix with names, by this sign: influence (above 0: it
            lowers the loss), or eq4, minus that, as Eq. 4 of Matelsky et al. has it (the loss after
            less before: what is learned is below 0); empty: report/influence.npy alone
    """

    matrix: Literal["", "influence", "eq4"] = ""


@dataclass(frozen=True)
class StageSettings:
    """A section a field."""

    tune: TuneSettings = field(default_factory=TuneSettings)
    estimates: EstimateSettings = field(default_factory=EstimateSettings)
    report: ReportSettings = field(default_factory=ReportSettings)
