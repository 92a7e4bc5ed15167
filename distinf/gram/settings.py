"""Every knob of the Gram recipe's stages, with its default. What changes a result is part
of a run's fingerprint (NOT_FINGERPRINTED in distinf/engine/fingerprint.py names the rest).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from distinf.engine.bounds import at_least, not_negative, positive
from distinf.gram import deepspeed
from distinf.naming import refuse_names
from distinf.numerics.capture import Method
from distinf.numerics.estimators import ESTIMATORS
from distinf.numerics.precision import Precision

JOINT = "fisher-joint"
OF_WORDS = ("tracin-we-top10", "tracin-we-both10")  # on the input embedding alone
BLOCKWISE = tuple(
    name for name, each in ESTIMATORS.items() if each.needs in ("products", "gram", "factors")
)
EKFAC = "ekfac"  # on all layers but the embedding
OF_ALL_PAIRS = (JOINT, *(name for name in BLOCKWISE if ESTIMATORS[name].needs == "gram"))
if TYPE_CHECKING:
    Estimator = str
else:
    Estimator = Literal[(*BLOCKWISE, JOINT, *OF_WORDS)]
How = Literal["mean", "rank", "vote"]
HOWS: tuple[How, ...] = ("mean", "rank", "vote")
DAMPED = (*(name for name in BLOCKWISE if hasattr(ESTIMATORS[name].settings(), "damping")), JOINT)
Epoch = Literal["least_query_loss", "best_query_accuracy", "last"]
BASELINES = ("random", "full")
GRID = "grid"


@dataclass(frozen=True)
class TrainSettings:
    """Fine-tuning, for the noisy run and for every retraining; the task carries it out.

    epochs              passes over the training rows
    batch_size          rows a step
    lr                  maximum
    lr_of               other values by dataset name
    weight_decay        of AdamW
    clip                a step's gradient is scaled down to this norm (0: never)
    warmup              share of the steps over which the rate rises
    schedule            after it: cosine or linear to 0, or constant
    selected_epoch      whose weights are kept and scored: that of least_query_loss, that of
                        best_query_accuracy (of equal ones the least query loss), or the last; the
                        test rows never choose
    precision           of the passes: float32, tf32 (CUDA) or bfloat16 (autocast)
    evaluation_batch    rows evaluated at once
    deepspeed           a DeepSpeed file (JSON), such as configs/deepspeed/zero2.json: each training
                        is then of a gang; its content is kept here ({}: one device, no DeepSpeed)
    devices             workers that share one training
    checkpoint_every    steps of such a training after which it is saved
    optimizer           adamw; its moments in 8 bits (adamw-8bit, by bitsandbytes), and in memory
                        that CUDA moves to the host when it is short (paged-adamw-8bit)
    accumulation        parts of a step's rows, whose gradients are added up one after another
    checkpointing       activations of layers are computed again in the backward pass, not kept
    """

    epochs: int = 10
    batch_size: int = 32
    lr: float = 3e-4
    lr_of: Mapping[str, float] = field(default_factory=dict)
    weight_decay: float = 0.0
    clip: float = 1.0
    warmup: float = 0.1
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    selected_epoch: Epoch = "least_query_loss"
    precision: Precision = "float32"
    evaluation_batch: int = 64
    deepspeed: Mapping[str, Any] | str = field(default_factory=dict)
    devices: int = 1
    checkpoint_every: int = 100
    optimizer: Literal["adamw", "adamw-8bit", "paged-adamw-8bit"] = "adamw"
    accumulation: int = 1
    checkpointing: bool = False

    def __post_init__(self) -> None:
        whole = ("epochs", "batch_size", "evaluation_batch", "devices", "checkpoint_every")
        for name in (*whole, "accumulation"):
            at_least(name, getattr(self, name), 1)
        if self.batch_size < self.accumulation:
            raise ValueError(
                f"accumulation: {self.accumulation} parts of batch_size {self.batch_size} rows; "
                "lower it"
            )
        for name, rate in {
            "lr": self.lr,
            **{f"lr_of.{k}": v for k, v in self.lr_of.items()},
        }.items():
            positive(name, rate)
        not_negative("weight_decay", self.weight_decay)
        not_negative("clip", self.clip)
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup: {self.warmup} is a share of the steps, from 0 to below 1")
        if isinstance(self.deepspeed, str):  # workers may not see the file
            found = deepspeed.read(self.deepspeed) if self.deepspeed else {}
            object.__setattr__(self, "deepspeed", found)
        if self.deepspeed and (self.optimizer, self.accumulation) != ("adamw", 1):
            raise ValueError(
                "optimizer and accumulation are of trainings without deepspeed: leave them out, "
                "and name train_micro_batch_size_per_gpu in its file"
            )
        if self.deepspeed:
            deepspeed.refuse_contradictions(self)
        elif self.devices > 1:
            raise ValueError("devices: several share a training by train.deepspeed; name its file")


@dataclass(frozen=True)
class GradientSettings:
    """One pass of per-sample gradients over the training and the query rows.

    blocks           which trained parameters: all, lora, or a regex on their names
    exclude          a regex on the names of those to leave out ("": none)
    embeddings       the input embedding too, frozen or not, as sparse rows
    method           hooks, vmap or loop (these: dense blocks only); null takes the first of them
                     that knows every layer and agrees with one row at a time
    check            compare a few rows with one row at a time, before the run and on each worker
    tokens_per_batch  of one pass, padding included (tasks whose rows have lengths)
    rows_per_batch   of one pass, for tasks whose rows have none
    rows_per_unit    rows of one unit
    projection       p of two-sided random projections of linear layers (0: none)
    project_above    entries from which on a linear weight is projected
    precision        of the passes: float32, tf32 (CUDA) or bfloat16 (autocast)
    store            float32, or bfloat16 (half the bytes, three digits)
    slab             entries that are stored side by side; a piece of the linear algebra's work
    checkpointing    activations of layers are computed again in the backward pass, not kept
    devices          workers that share a unit's rows, each with its part of the frozen layers (for
                     a model that does not fit one); 1: each has the model, and units of its own
    """

    blocks: str = "all"
    exclude: str = ""
    embeddings: bool = False
    method: Method | None = None
    check: bool = True
    tokens_per_batch: int = 4_096
    rows_per_batch: int = 32
    rows_per_unit: int = 256
    projection: int = 0
    project_above: int = 65_536
    precision: Precision = "float32"
    store: Literal["float32", "bfloat16"] = "float32"
    slab: int = 65_536
    checkpointing: bool = False
    devices: int = 1

    def __post_init__(self) -> None:
        for name in ("tokens_per_batch", "rows_per_batch", "rows_per_unit", "slab", "devices"):
            at_least(name, getattr(self, name), 1)
        at_least("projection", self.projection, 0)
        at_least("project_above", self.project_above, 0)
        if self.method not in (None, "hooks") and (self.projection or self.embeddings):
            raise ValueError("method: projections and embeddings need hooks")
        if self.method == "vmap" and self.checkpointing:
            raise ValueError("method: vmap does not pass checkpointing; take hooks or loop")
        if self.devices > 1 and self.method not in (None, "hooks"):
            raise ValueError("devices: parts of a model are for hooks; leave one of both out")

    @property
    def chosen(self) -> Method:
        """The method, where it is set or chosen."""
        assert self.method is not None
        return self.method


@dataclass(frozen=True)
class GramSettings:
    """rows_per_tile: training rows on a side of one tile of a Gram matrix."""

    rows_per_tile: int = 1_024

    def __post_init__(self) -> None:
        at_least("rows_per_tile", self.rows_per_tile, 1)


@dataclass(frozen=True)
class ScoreSettings:
    """estimators  tracin, cosine, datainf, fisher (each block by itself); ekfac (each layer, in two
                more passes over the training rows, with labels sampled from the model);
                fisher-joint (the blocks of a group together); tracin-we-top10 (Vitel and Chhabra:
                the shared words among the ten of largest gradient in the training row) and
                tracin-we-both10 (in both rows)
    damping     lambda by estimator; the default is each estimator's own, documented there
    top         share of the training rows (or their number) that a vote ranks; the text of
                Vitel and Chhabra takes the number to be filtered, 0.3, their code 0.2
    groups      regex on block names, by group; empty: all, head, four of layers, embedding
    """

    estimators: tuple[Estimator, ...] = ("tracin", "cosine", "datainf", "fisher")
    damping: Mapping[str, float] = field(default_factory=dict)
    top: float = 0.3
    groups: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.estimators:
            raise ValueError("estimators: name at least one")
        for name, value in self.damping.items():
            if name not in DAMPED:
                raise ValueError(f"damping: '{name}' has none; it is for {', '.join(DAMPED)}")
            positive(f"damping.{name}", value)
        if not (0 < self.top < 1 or (self.top >= 1 and float(self.top).is_integer())):
            raise ValueError(f"top: {self.top} must be a share in (0, 1) or a whole number of rows")
        refuse_names("groups", self.groups)


@dataclass(frozen=True)
class ActionSettings:
    """Leave out the rows of lowest score, train again from the same start, and compare.

    fraction        of the training rows that are left out
    configurations  random, full (all known noise first; only where some is known),
                    "estimator/group/how", or grid (all of them); empty: nothing is trained again
    resources_gpus  GPUs of one job, fractions too (0: what a worker has)
    adapters        the trained weights of the scored models and of every job are kept as
                    safetensors (adapters as PEFT has them) under adapters/ in the run's folder,
                    each beside the rows that it was trained on
    """

    fraction: float = 0.3
    configurations: tuple[str, ...] = ()
    resources_gpus: float = 0.0
    adapters: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ValueError(f"fraction: {self.fraction} must lie between 0 and 1")
        not_negative("resources_gpus", self.resources_gpus)
        for name in self.configurations:
            parts = name.split("/")
            if name not in (*BASELINES, GRID) and (len(parts) != 3 or parts[2] not in HOWS):
                raise ValueError(
                    f"configurations: '{name}' is neither random, full nor grid, nor "
                    "estimator/group/how such as datainf/all/vote"
                )


@dataclass(frozen=True)
class ReportSettings:
    """title: of the page. ranking: whose scores rank the rows ("": the first that there is of
    fisher/all/vote, datainf/all/vote and the first estimator's). rows: lowest ones shown.
    per_query: of each query, so many most helpful rows and so many most harmful (0: none). tokens:
    of each of these rows, what each of its tokens adds to the product of its gradient with the
    query's (of sft)."""

    title: str = ""
    ranking: str = ""
    rows: int = 25
    per_query: int = 0
    tokens: bool = False

    def __post_init__(self) -> None:
        at_least("rows", self.rows, 1)
        at_least("per_query", self.per_query, 0)
        if self.tokens and not self.per_query:
            raise ValueError("tokens: are of the rows of each query; set report.per_query too")


@dataclass(frozen=True)
class StageSettings:
    """The settings of a Gram run's stages: gradients once, then products of them."""

    train: TrainSettings = field(default_factory=TrainSettings)
    gradients: GradientSettings = field(default_factory=GradientSettings)
    gram: GramSettings = field(default_factory=GramSettings)
    scores: ScoreSettings = field(default_factory=ScoreSettings)
    actions: ActionSettings = field(default_factory=ActionSettings)
    report: ReportSettings = field(default_factory=ReportSettings)

    @property
    def needs_gpu(self) -> str:
        """The setting that does, and its value; "" where none does."""
        name = self.train.optimizer
        return f"train.optimizer: {name}" if name.startswith("paged") else ""
