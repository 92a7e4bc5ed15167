"""What a run of the Gram route found: the report page's only input.

A cell is one dataset and seed. Scores: above 0, training on the row helps the queries; the lowest
are filtered. Rates and accuracies are shares from 0 to 1. Shapes: M things that are correlated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from distinf.gram.paired import Separated
from distinf.report.provenance import Provenance, StageCost
from distinf.report.rows import plain

RANDOM, FULL = "random", "full"
BASELINES = (RANDOM, FULL)
ALL, HEAD, EMBEDDING = "all", "head", "embedding"
ESTIMATORS = ("tracin", "cosine", "datainf", "fisher", "fisher-joint", "tracin-we-top10")
HOWS = ("mean", "rank", "vote")
BETWEEN = "/"
EPOCHS = {  # train.selected_epoch in words
    "least_query_loss": "epoch of lowest query loss",
    "best_query_accuracy": "epoch of highest query accuracy",
    "last": "last epoch",
}


@dataclass(frozen=True)
class Configuration:
    """One way to one score per row: estimator, layer group, aggregation."""

    estimator: str
    group: str
    how: str

    @property
    def name(self) -> str:
        return BETWEEN.join((self.estimator, self.group, self.how))

    @classmethod
    def of(cls, name: str) -> "Configuration | None":
        """From "datainf/all/vote"; None for a baseline."""
        estimator, first, rest = name.partition(BETWEEN)
        group, last, how = rest.rpartition(BETWEEN)
        return cls(estimator, group, how) if first and last else None


@dataclass(frozen=True)
class Headline:
    """What the answer is about: chosen before the run, not for its result."""

    estimator: str = "datainf"
    group: str = ALL
    how: str = "vote"
    share: float = 0.3  # of the training rows, lowest scores, that are filtered

    @property
    def name(self) -> str:
        return Configuration(self.estimator, self.group, self.how).name


@dataclass(frozen=True)
class CellFinding:
    """A dataset and seed. `flips` None: it is not known which labels are wrong.

    majority_queries: how many of its queries always saying their most frequent class gets right;
    learned_nothing: the model is no better than that. label_ndr: what removing rows by their given
    label alone finds, the label that is most often wrong first.
    history: by name (train_loss, query_loss, query_accuracy, test_loss, test_accuracy) per epoch of
    the training on all rows; empty where the model came trained. best: the epoch scored, from 0.
    """

    name: str
    dataset: str
    seed: int
    rows: int
    queries: int
    correct_queries: int | None = None
    flips: int | None = None
    history: Mapping[str, Sequence[float]] = field(default_factory=dict)
    best: int | None = None
    truncated: int = 0  # rows longer than the model allows
    suggested_wrong: int | None = None  # wrong labels, by the model's own predictions
    majority_queries: int | None = None
    learned_nothing: bool = False
    label_ndr: float | None = None


@dataclass(frozen=True)
class Scored:
    """One configuration's scores in one cell; rates are None where no flips are known.

    within_labels: the NDR expected if, of the rows that it removes, as many of every given label
    were drawn at random; None where labels are not told.
    deciles: share of all flipped rows in each tenth of the ranking, lowest first. curve: share of
    them found at evenly spaced shares removed, 0 to 1. scores: a summary, such as `array_summary`.
    """

    cell: str
    estimator: str
    group: str
    how: str
    ndr: float | None = None
    auc: float | None = None
    deciles: Sequence[float] = ()
    curve: Sequence[float] = ()
    scores: Mapping[str, float | int | None] = field(default_factory=dict)
    within_labels: float | None = None

    @property
    def name(self) -> str:
        return Configuration(self.estimator, self.group, self.how).name


@dataclass(frozen=True)
class FreeRanking:
    """What ranking by a number that every run has anyway finds: "own loss", "gradient norm"."""

    cell: str
    name: str
    ndr: float
    auc: float
    curve: Sequence[float] = ()
    within_labels: float | None = None  # as Scored has it


@dataclass(frozen=True)
class BlockScore:
    """One parameter tensor's own rate; `layer` None outside numbered layers."""

    cell: str
    block: str
    layer: int | None
    module: str  # "query", "value"
    factor: str  # "A", "B", or "" without adapters
    estimator: str
    how: str
    ndr: float
    auc: float


@dataclass(frozen=True)
class Cancelled:
    """How far a group's training gradients cancel; see numerics.cancellation."""

    cell: str
    group: str
    l1: float
    norm: float
    least: float
    median: float
    most: float


@dataclass(frozen=True, eq=False)
class Correlation:
    """Spearman's correlation of the rows' scores, mean over cells: values_MM, NaN where none."""

    title: str  # "estimators, all layers, mean over queries and blocks"
    names: Sequence[str]
    values_MM: np.ndarray


@dataclass(frozen=True)
class Retrained:
    """One configuration's training on what it left; several may share a job.

    test_accuracy: the best over epochs (what Vitel and Chhabra report); accuracy_at_best: at the
    selected epoch (NaN where no test rows are); query_loss: the least. configuration: "random",
    "full", or as Configuration.name.
    """

    cell: str
    configuration: str
    test_accuracy: float
    accuracy_at_best: float
    kept: int
    job: str = ""
    kept_flips: int | None = None
    history: Mapping[str, Sequence[float]] = field(default_factory=dict)
    query_loss: float = float("nan")


@dataclass(frozen=True)
class RankedRow:
    """One of the lowest rows of the headline's ranking; `row` is its number in the user's file."""

    cell: str
    rank: int
    row: int | str
    score: float
    text: str = ""
    label: str = ""
    flipped: bool | None = None
    columns: Mapping[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Conditioning:
    """Of the damped Fisher matrix of a block or group: an upper bound of (largest eigenvalue + λ)
    / λ, and so of its condition number."""

    cell: str
    estimator: str
    block: str
    damping: float
    condition: float


@dataclass(frozen=True)
class EstimatorTime:
    """What an estimator took in one layer group: all the steps that it needs, those that others
    need too among them, but not the gradients. alone_s: of those that only it needs."""

    cell: str
    estimator: str
    group: str
    wall_s: float
    processor_s: float
    alone_s: float


@dataclass(frozen=True)
class PublishedMethod:
    """A row of Vitel and Chhabra's Tables 4 to 6; accuracy: dataset -> mean and sd, in percent.

    A number that could not be read is NaN, a front (`rank`) None.
    """

    source: str
    model: str
    estimator: str  # or "random", "full"
    how: str
    group: str
    win_rate: float
    accuracy: Mapping[str, tuple[float, float]]
    rank: int | None = None
    win_rate_sd: float = float("nan")

    @property
    def name(self) -> str:
        baseline = self.estimator in BASELINES
        own = Configuration(self.estimator, self.group, self.how).name
        return self.estimator if baseline else own


@dataclass(frozen=True)
class PublishedLayer:
    """A cell of Vitel and Chhabra's Table 3. group: embedding, attention-1 to -4, head."""

    source: str
    model: str
    estimator: str
    group: str
    rank: int
    win_rate: float


@dataclass(frozen=True)
class Findings:
    """Everything on the page. A part that is empty is left out of it."""

    title: str
    task: str  # one sentence: what was run
    question: str = ""
    headline: Headline = field(default_factory=Headline)
    selected_epoch: str = "least_query_loss"  # one of EPOCHS: whose weights are scored
    cells: Sequence[CellFinding] = ()
    scored: Sequence[Scored] = ()
    free: Sequence[FreeRanking] = ()
    blocks: Sequence[BlockScore] = ()
    cancellation: Sequence[Cancelled] = ()
    separated: Sequence[Separated] = ()
    correlations: Sequence[Correlation] = ()
    joint: Correlation | None = None  # of every estimator in every group, "tracin/00-05"
    retrained: Sequence[Retrained] = ()
    ranking: Sequence[RankedRow] = ()
    conditioning: Sequence[Conditioning] = ()
    estimator_times: Sequence[EstimatorTime] = ()
    methods_published: Sequence[PublishedMethod] = ()
    layers_published: Sequence[PublishedLayer] = ()
    costs: Sequence[StageCost] = ()
    deviations: Sequence[str] = ()
    warnings: Sequence[str] = ()
    quarantined: Mapping[str, Sequence[int]] = field(default_factory=dict)  # "cell split" -> rows
    provenance: Provenance = field(default_factory=Provenance)

    @property
    def epoch(self) -> str:
        """The selected epoch in words."""
        return EPOCHS.get(self.selected_epoch, self.selected_epoch)

    def to_json(self) -> dict[str, Any]:
        """Plain values, strict JSON: non-finite numbers are null, arrays their summaries."""
        return plain(self)
