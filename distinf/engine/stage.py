"""Stages: what a run consists of, and the keys by which each knows its results again.

A stage says what it needs and reads; its key is the digest of these, so nobody lists twice what a
result depends on. A unit's id covers its stage's key: work whose key is another is other work.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distinf.digest import digest
from distinf.runtime import Cost, Resources, Runtime, Unit

if TYPE_CHECKING:
    from distinf.engine.session import Session

Names = tuple[str, ...]
Values = Mapping[str, Any]  # settings by section, "seed", and facts of the task under "task"
Keys = Mapping[str, str]  # by stage
WHOLE = ""  # of a run's cells, the one that is all of it


def no_units(outline: Any) -> Sequence[tuple[Unit, Cost]]:
    """Of a stage that only has a key: a choice that others depend on."""
    return ()


def no_curves(session: Any, unit: Unit) -> Mapping[str, Any]:
    """Of a stage that shows none."""
    return {}


@dataclass(frozen=True)
class Stage:
    """One step of a recipe.

    name       of its ledger, and of the arrays that it stores
    title      the same in words
    needs      the stages whose results it reads
    reads      what else they depend on, by dotted name: settings ("train" is all of them,
               "-train.rows" is not among them), "seed", facts of the task ("task.rows"). Or a
               function that tells it from the values, where one setting decides whether another
               counts
    uncounted  settings that it looks at and that change no result: they say which units there are,
               each of which names what is its own, or they are only checked
    units      outline -> [(unit, cost)], from the settings alone
    run        carries out what is not committed; None for a choice, which has a key and no units
    wanted     session -> its units, where what they are hangs on the stages before
    done       session -> whether nothing is left, where fewer units than planned may do
    shards     settings -> ranks that can share a unit, in a gang; without it units are spread whole
    ranks      settings -> ranks that share each unit, in a gang, no fewer; None: each its own
    sharing    the setting that says how many
    resources  settings -> what its jobs take, where that is not what the run's workers have
    is_jobs    each unit is a job with a folder of its own under jobs/
    curves     session, committed unit -> numbers by name, one a step from the unit's start on
    """

    name: str
    title: str
    needs: Names = ()
    reads: Names | Callable[[Values], Names] = ()
    uncounted: Names = ()
    units: Callable[[Any], Sequence[tuple[Unit, Cost]]] = no_units
    run: Callable[[Any, Runtime], None] | None = None
    wanted: Callable[[Any], Sequence[Unit]] | None = None
    done: Callable[[Any], bool] | None = None
    shards: Callable[[Any], int] | None = None
    resources: Callable[[Any], Resources | None] | None = None
    is_jobs: bool = False
    ranks: Callable[[Any], int | None] | None = None
    sharing: str = ""
    curves: Callable[[Any, Unit], Mapping[str, Any]] = no_curves

    def read(self, values: Values) -> Names:
        """The names of what it reads under these values."""
        return self.reads if isinstance(self.reads, tuple) else self.reads(values)

    def wanted_units(self, session: "Session") -> Sequence[Unit]:
        """What it has to do."""
        if self.wanted is not None:
            return self.wanted(session)
        return [unit for unit, _ in self.units(session.outline)]

    def is_done(self, session: "Session", wanted: Sequence[Unit]) -> bool:
        """Nothing is left to do."""
        if self.done is not None:
            return self.done(session)
        return {unit.id for unit in wanted} <= session.ledger(self.name).committed_ids()


def pooled(
    body: str,
    stage: str,
    units: Callable[[Any], Sequence[tuple[Unit, Cost]]] = no_units,
    wanted: Callable[[Any], Sequence[Unit]] | None = None,
) -> Callable[[Any, Runtime], None]:
    """Stage.run: whichever worker is free does `body`, "module:function" of (session, unit,
    attempt), with each unit, or with those that are `wanted` of the session."""

    def run(session: "Session", runtime: Runtime) -> None:
        every = wanted(session) if wanted else [unit for unit, _ in units(session.outline)]
        if every:
            runtime.pool(session.work(body), every, session.ledger(stage))

    return run


def keys_of(stages: Iterable[Stage], values: Values, given: Keys | None = None) -> dict[str, str]:
    """Each stage's key, those that it needs before it; `given` ones are taken as they are."""
    found: dict[str, str] = {}
    for stage in stages:
        needed = {name: found[name] for name in stage.needs}
        own = digest([stage.name, needed, picked(values, stage.read(values))])
        found[stage.name] = (given or {}).get(stage.name, own)
    return found


def picked(values: Values, names: Iterable[str]) -> dict[str, Any]:
    """{dotted name: value} of `names`; a name with a minus before it is left out of the others."""
    left_out = {name[1:] for name in names if name.startswith("-")}
    found = {}
    for name in names:
        if not name.startswith("-"):
            found[name] = _without(_at(values, name), name, left_out)
    return found


def _at(values: Any, name: str) -> Any:
    """None for what a mapping of the user's own does not have."""
    for part in name.split("."):
        values = values.get(part)
    return values


def _without(value: Any, name: str, left_out: set[str]) -> Any:
    if not isinstance(value, Mapping):
        return value
    inner = {key: f"{name}.{key}" for key in value}
    return {k: _without(value[k], n, left_out) for k, n in inner.items() if n not in left_out}
