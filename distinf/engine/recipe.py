"""Recipes: the kinds of run there are, each an object that says all that is its own."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from distinf.digest import digest
from distinf.engine.stage import WHOLE, Keys, Names, Stage, Values, keys_of, picked
from distinf.errors import InputError
from distinf.naming import shown
from distinf.runtime import Cost, Runtime, Unit
from distinf.runtime.handed import FOLDER, sums_of
from distinf.tasks.task import Batch, PerSampleLoss, Task

if TYPE_CHECKING:
    from distinf.engine.session import Session

RECIPES = {  # named here, imported on demand; another is named as module:object
    "spectral": "distinf.recipes.spectral:RECIPE",
    "gram": "distinf.recipes.gram:RECIPE",
    "empirical": "distinf.recipes.empirical:RECIPE",
}
AS_IF_ADDED = (  # an Answer's note, and what it scores
    "scored as if added to training: by the run's model and curvature, which have nothing of them",
    "Candidates",
)
REPORT = "report"
PAGE = f"{REPORT}/index.html"


def whole(task: Any) -> dict[str, Any]:
    """A task as a single cell."""
    return {WHOLE: task}


def nothing_checked(session: "Session") -> str:
    """No method of gradients to choose."""
    return ""


def no_summary(session: "Session") -> Sequence[Any]:
    """Nothing but where the report is."""
    return ()


@dataclass(frozen=True)
class Asks:
    """How a finished run is asked about query rows that come later, and about candidates.

    ranking     (session, a name or "", rows of the later queries by split, or None where they are
                the run's own, whether candidates are scored) -> (the whole name; the stages to run
                for later queries, which find again what was done for training rows; settings by
                section to use)
    answers     (session, name) -> for each cell its Answer
    candidates  the stages of a session of candidates, that which makes their rows first
    """

    ranking: Callable[
        [Any, str, Mapping[str, int] | None, bool], tuple[str, Names, Mapping[str, Any]]
    ]
    answers: "Callable[[Any, str], Iterable[Answer]]"
    candidates: tuple[Stage, ...] = ()


@dataclass(frozen=True)
class Answer:
    """Of one cell: scores_QN fp64, > 0 helps the query, NaN where there is none; and what people
    know the queries and the training rows, or candidates, by."""

    cell: str
    scores_QN: np.ndarray
    queries: Sequence[Mapping[str, Any]]
    rows: Callable[[np.ndarray], Sequence[Mapping[str, Any]]]
    note: str = ""  # what a reader has to know of the scores
    scored: str = "Training rows"

    def extremes(self, top: int) -> Iterator[dict[str, Any]]:
        """Of each query the most helpful rows (place 1, 2, …) and the most harmful (-1, -2, …)."""
        for query, scores_N in zip(self.queries, self.scores_QN, strict=True):
            places, rows = extreme_rows(scores_N, top)
            about = {f"query_{key}": value for key, value in query.items()}
            each = zip(places.tolist(), rows.tolist(), self.rows(rows), strict=True)
            for place, row, known in each:
                yield {**about, "place": place, "score": float(scores_N[row]), **known}


def extreme_rows(scores_N: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """int64 each: the places 1, 2, … of the highest scores and -1, -2, … of the lowest, at most
    `top` of either, and the rows that have them."""
    order = np.argsort(-scores_N, kind="stable")[: int(np.isfinite(scores_N).sum())]
    places = np.arange(1, min(top, len(order)) + 1)
    rows = [order[: len(places)], order[::-1][: len(places)]]
    return np.concatenate([places, -places]), np.concatenate(rows)


@dataclass(frozen=True)
class Foretold:
    """Of one cell: what its scores say that training without rows will do to the queries' losses.

    scores   by the name of a ranking: (the loss that it is about, fp64 [Q, N]), > 0 helps
    ranking  the name of the one that the report ranks by
    queries  int [Q], the ids of the evaluation rows that they are
    wrong_N  bool, the rows whose label is known to be wrong; None where none is known
    costs    by ranking, what its scores took beyond training, in gradients of one row each
    """

    cell: str
    rows: int
    scores: Mapping[str, tuple[str, np.ndarray]]
    ranking: str
    queries: np.ndarray
    wrong_N: np.ndarray | None = None
    costs: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Draws:
    """What a training draws. seed: 0 trains in the run's order, another in an order of its own;
    `own_start`: and from starting weights of its own, not the run's."""

    seed: int = 0
    own_start: bool = False


@dataclass(frozen=True)
class Unrolls:
    """How a finished run's own training is unrolled, for influence that is exact.

    check   session -> None; InputError for a training that cannot be
    scores  (session, cell, which of its queries, tell) -> {loss: fp64 [q, N]}, > 0 helps
    """

    check: Callable[[Any], None]
    scores: Callable[[Any, str, slice, Callable[[float], None]], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Trained:
    """A finished run's model of one cell, for one step more.

    rate     the run's learning rate
    losses   as the task's; the step is down the first
    rows     training rows [n] -> Batch
    queries  the cell's queries [n], by their position -> Batch
    """

    model: nn.Module
    rate: float
    losses: Mapping[str, PerSampleLoss]
    rows: Callable[[np.ndarray], Batch]
    queries: Callable[[np.ndarray], Batch]


@dataclass(frozen=True)
class Evaluates:
    """How scores of a finished run are held against training on some of the rows.

    stage     a choice without units, whose key names the trainings
    check     (session, draws) -> None; InputError for a run that cannot be trained again, or not so
    foretold  session -> for each cell what it foretells
    losses    (session, cell, rows kept [n], draws, tell) -> {loss: fp64 [Q]} of the model trained
              on these rows alone
    scored    the stages whose keys name the scores
    passed    (session, cell, how many rows are kept) -> how many rows all steps of that training
              go through together
    aligned   share of rows up to which those left out leave a gap in the run's own order, and all
              else stays as it was
    unrolls   how its training is unrolled; None: it is not
    trained   (session, cell) -> its Trained; None: no step more is taken
    """

    stage: Stage
    check: Callable[[Any, Draws], None]
    foretold: Callable[[Any], Iterable[Foretold]]
    losses: Callable[
        [Any, str, np.ndarray, Draws, Callable[[float], None]], Mapping[str, np.ndarray]
    ]
    scored: tuple[Stage, ...]
    passed: Callable[[Any, str, int], float]
    aligned: float = 0.0
    unrolls: Unrolls | None = None
    trained: Callable[[Any, str], Trained] | None = None

    def key(self, session: "Session") -> str:
        """What an evaluation is of: the trainings and scores of every cell, as they are now."""
        names = [stage.name for stage in (self.stage, *self.scored)]
        keys = session.context["keys"]
        return digest([[cell, [keys[cell].get(name) for name in names]] for cell in sorted(keys)])


@dataclass(frozen=True)
class Recipe:
    """A kind of run.

    settings  dataclass of its stages' settings, a section a field, each with its default
    task      protocol of its tasks: Task, or Identified where there is no model
    stages    in their order, without the report; each after those that it needs
    report    session -> None: writes report/ by report/publishing.py, from committed arrays alone
    session   what a process holds of a run; None: engine.session.Session
    cells     task -> {name: task} of a run of several (datasets, seeds), each with keys of its own
    check     session -> the method by which gradients are taken, "" for none; InputError for what
              can only fail later, hours into the run
    decided   (task's name, task, settings) -> settings, with what only the task can show
    lent      (keys, values, what the run lends) -> (keys to take instead, what this run lends):
              what a variation shares with its run beyond equal keys
    asks      how a finished run is asked about query rows that come later; None: it is not
    evaluates how its scores are held against retraining; None: they are not
    unevaluated  why not
    summary   session -> lines and tables for the terminal, once all is done
    packages  another version of one of these gives other last bits
    files     settings that name a file, of which the content counts
    unread    settings that change no result
    """

    settings: type
    stages: tuple[Stage, ...]
    report: Callable[[Any], None] | None = None
    task: type = Task
    session: "type[Session] | None" = None
    cells: Callable[[Any], Mapping[str, Any]] = whole
    check: Callable[[Any], str] = nothing_checked
    decided: Callable[[str, Any, Any], Any] | None = None
    lent: Callable[[Keys, Values, Mapping[str, Any]], tuple[Keys, dict[str, Any]]] | None = None
    asks: "Asks | None" = None
    evaluates: "Evaluates | None" = None
    unevaluated: str = "it has no scores to hold against training again"
    summary: Callable[[Any], Sequence[Any]] = no_summary
    packages: tuple[str, ...] = ("torch", "numpy")
    files: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    @property
    def working(self) -> tuple[Stage, ...]:
        """The stages that have units, but for the report."""
        return tuple(stage for stage in self.stages if stage.run is not None)

    @property
    def last(self) -> Stage:
        """The report, made of all the others."""
        assert self.report is not None  # see recipe_named
        return Stage(
            REPORT, REPORT, units=_page, run=_reporting(self.report), done=_is_reported
        )  # fmt: skip

    @property
    def every(self) -> tuple[Stage, ...]:
        """The stages that have units, the report last."""
        return (*self.working, self.last)

    def keys(
        self, cells: Mapping[str, Values], lends: Mapping[str, Any]
    ) -> tuple[dict[str, dict[str, str]], dict[str, Any]]:
        """Of each cell, by its values: the stages' keys; the report's is the whole's.

        Second, what a variation of this run may take from it; `lends`: what this one may."""
        found = {cell: keys_of(self.stages, values) for cell, values in cells.items()}
        lent: dict[str, Any] = {}
        if self.lent is not None:
            given, lent = self.lent(found[WHOLE], cells[WHOLE], lends)
            found[WHOLE] = keys_of(self.stages, cells[WHOLE], given)
        values = next(iter(cells.values()))
        sections = [name for name in values if name not in ("task", "seed")]
        settings = picked(values, [*sections, *(f"-{name}" for name in self.unread)])
        key = digest([REPORT, found, settings])
        return {**found, WHOLE: {**found.get(WHOLE, {}), REPORT: key}}, lent


def recipe_named(name: str) -> Recipe:
    """One of RECIPES, or module:object; InputError if it is none, or cannot report."""
    module, _, attribute = RECIPES.get(name, name).partition(":")
    if not module or not attribute:
        known = ", ".join(RECIPES)
        raise InputError(f"recipe: {shown(name)} is unknown; use one of {known}, or module:object")
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"recipe: {name}: {error}") from None
    if not isinstance(found, Recipe):
        raise InputError(f"recipe: {name} is no Recipe of distinf/engine/recipe.py")
    if found.report is None:
        raise InputError(f"recipe: {name} has no report; give its Recipe one, report=write")
    return found


# -- the report --------------------------------------------------------------------------------


def _page(outline: Any) -> Sequence[tuple[Unit, Cost]]:
    return [(Unit(REPORT, outline.keys[REPORT]), Cost(bytes=3e6))]


def _reporting(write: Callable[[Any], None]) -> Callable[[Any, Runtime], None]:
    def run(session: "Session", runtime: Runtime) -> None:
        write(session)
        (unit, _), empty = _page(session.outline)[0], {"group": REPORT, "files": {}, "bytes": 0}
        session.ledger(REPORT).commit(unit, 1, {"manifest": empty, "summary": {}})

    return run


def _is_reported(session: "Session") -> bool:
    """The page and the sums of all files are there, and they are this run's."""
    there = {*session.blobs.names(REPORT), *session.blobs.names(FOLDER)}
    units = [unit for unit, _ in _page(session.outline)]
    return {PAGE, sums_of(REPORT)} <= there and bool(session.done(units))
