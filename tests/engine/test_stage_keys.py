"""Keys follow from what a stage says that it needs and reads; and what it says is true."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass
from typing import Any

import pytest

from distinf.config import resolve
from distinf.engine import running
from distinf.engine.recipe import RECIPES, Recipe, recipe_named
from distinf.engine.run import execute
from distinf.engine.session import Session
from distinf.engine.stage import Stage, keys_of
from distinf.runtime.units import flatten
from tests.support.runs import POINTS, merged, silent

FACTS = ("path", "cell", "settings", "identity", "data", "losses", "rows", "rows_per_unit")
RECIPE_OBJECTS = [recipe_named(name) for name in RECIPES]
FIELDS = [
    (name, key)
    for name, recipe in zip(RECIPES, RECIPE_OBJECTS, strict=True)
    for section in fields(recipe.settings)
    for key in (f"{section.name}.{f.name}" for f in fields(section.default_factory()))
]


def values_of(recipe: Recipe, **changes: Any) -> dict[str, Any]:
    """Every default, and facts of some task; `changes` by dotted name."""
    found = {**asdict(recipe.settings()), "seed": 0, "task": dict.fromkeys(FACTS, 0)}
    for name, value in changes.items():
        section, key = name.split(".")
        found = {**found, section: {**found[section], key: value}}
    return found


def covers(names: tuple[str, ...], key: str) -> bool:
    """Whether `key` is among these names, or within one of them."""
    left_out = {name[1:] for name in names if name.startswith("-")}
    read = any(key == name or key.startswith(f"{name}.") for name in names)
    return read and key not in left_out


def dependent(recipe: Recipe, readers: set[str]) -> set[str]:
    """These stages and all that need them, one after another."""
    found = set(readers)
    for stage in recipe.stages:
        if found & set(stage.needs):
            found.add(stage.name)
    return found


@pytest.mark.parametrize(("name", "key"), FIELDS)
def test_a_setting_changes_exactly_the_keys_of_the_stages_that_read_it(name, key):
    recipe = recipe_named(name)
    of_names = {"gram scores.damping": {"datainf": 2.0}, "gram scores.estimators": ("tracin",)}
    value: Any = of_names.get(f"{name} {key}", 7.5)
    before, other = values_of(recipe), values_of(recipe, **{key: value})
    one, two = keys_of(recipe.stages, before), keys_of(recipe.stages, other)
    readers = {
        stage.name
        for stage in recipe.stages
        if covers((*stage.read(before), *stage.read(other)), key)
        or any(each.startswith(f"{key}.") for each in stage.read(before))
    }
    assert {stage for stage in one if one[stage] != two[stage]} == dependent(recipe, readers)
    report = [recipe.keys({"": values}, {})[0][""]["report"] for values in (before, other)]
    assert (report[0] != report[1]) == (key not in recipe.unread)


@pytest.mark.parametrize(("name", "key"), FIELDS)
def test_a_setting_that_no_stage_reads_is_listed_as_such(name, key):
    recipe = recipe_named(name)
    named = (*recipe.unread, *(n for stage in recipe.stages for n in stage.uncounted))
    read = any(covers(stage.read(values_of(recipe)), key) for stage in recipe.stages)
    solved = values_of(recipe, **({"curvature.refine": 1} if name == "spectral" else {}))
    read |= any(covers(stage.read(solved), key) for stage in recipe.stages)
    assert read or covers(named, key) or key.startswith("report.")


def test_what_stages_need_comes_before_them_and_what_they_read_is_there():
    for recipe in RECIPE_OBJECTS:
        known = {*flatten(asdict(recipe.settings())), *(f"task.{fact}" for fact in FACTS), "seed"}
        before: set[str] = set()
        for stage in recipe.stages:
            assert set(stage.needs) <= before
            before.add(stage.name)
            for name in (*stage.read(values_of(recipe)), *stage.uncounted, *recipe.unread):
                plain = name.removeprefix("-")
                assert any(
                    key == plain or key.startswith(f"{plain}.") or plain.startswith(f"{key}.")
                    for key in known
                ), name


# -- what is read in truth ---------------------------------------------------------------------


class Reading:
    """Notes every setting that is looked at, by the stage that runs."""

    def __init__(self) -> None:
        self.stage = ""
        self.found: dict[str, set[str]] = {}

    def watched(self, settings: Any, path: str = "") -> Any:
        """The same settings, of classes that note each field's use."""
        values = {f.name: getattr(settings, f.name) for f in fields(settings)}
        inner = {
            key: self.watched(value, f"{path}{key}.") if is_dataclass(value) else value
            for key, value in values.items()
        }
        names, note = set(values), self._note

        def looked_up(this: Any, name: str) -> Any:
            if name in names and not is_dataclass(values[name]):
                note(f"{path}{name}")
            return object.__getattribute__(this, name)

        kind = type(type(settings).__name__, (type(settings),), {"__getattribute__": looked_up})
        made = object.__new__(kind)
        for key, value in inner.items():
            object.__setattr__(made, key, value)
        return made

    def _note(self, name: str) -> None:
        """Not of the outline, which says what units there are, or how a cell is cut into blocks."""
        frame, names = sys._getframe(), set()
        while frame.f_back is not None:
            frame = frame.f_back
            names.add(frame.f_code.co_name)
        if not names & {"outline", "_cell"}:
            self.found.setdefault(self.stage, set()).add(name)


@contextmanager
def reading(monkeypatch: pytest.MonkeyPatch, kind: type[Session]) -> Iterator[Reading]:
    made, plain, run_stage = Reading(), kind.settings.func, running.run_stage

    def settings(session: Session) -> Any:
        return session.cached("watched", lambda: made.watched(plain(session)))

    def noted(session: Session, stage: Stage, *rest: Any) -> None:
        made.stage = stage.name
        run_stage(session, stage, *rest)
        made.stage = ""

    monkeypatch.setattr(kind, "settings", property(settings))
    monkeypatch.setattr(running, "run_stage", noted)
    yield made


WORDS: Mapping[str, Any] = {
    "task": "tests.support.words_task:task", "recipe": "gram", "runtime": {"kind": "local"},
    "settings": {"double": True},
    "train": {"epochs": 2, "lr": 0.05, "batch_size": 10},
    "gradients": {"embeddings": True, "rows_per_unit": 17, "slab": 60, "tokens_per_batch": 40},
    "gram": {"rows_per_tile": 25},
    "scores": {"estimators": ["tracin", "datainf", "fisher", "fisher-joint"]},
    "actions": {"configurations": ["random", "datainf/all/vote"]},
}  # fmt: skip
EVERYTHING = {
    "curvature": {"refine": 1}, "scores": {"damping": 5.0, "negative": "refuse"},
    "trajectory": {"checkpoints": 2},
    "actions": {"also": {"stopped": {"stop": 0.5, "steps": 2}, "newton": {"update": "second-order"},
                         "weighted": {"order": "weighted"}, "summed": {"variant": "tracin"}}},
}  # fmt: skip


@pytest.mark.parametrize("raw", [merged(POINTS, EVERYTHING), WORDS], ids=["spectral", "gram"])
def test_a_stage_reads_no_setting_that_its_key_does_not_cover(raw, tmp_path, monkeypatch):
    config = resolve({**raw, "out": str(tmp_path / "run")})
    recipe = config.RECIPE
    assert recipe.session is not None
    with reading(monkeypatch, recipe.session) as read:
        execute(config, silent)
    values = {**config.values[next(iter(config.values))]}
    reads = {stage.name: stage.read(values) for stage in recipe.stages}
    known: dict[str, set[str]] = {}  # of a stage and all that it needs: what its units' ids tell
    by_name = {stage.name: stage for stage in recipe.stages}
    for stage in recipe.stages:
        below = [known[name] for name in stage.needs]
        named = {
            key
            for key in flatten(asdict(recipe.settings()))
            if covers(reads[stage.name], key) or covers((*stage.uncounted, *recipe.unread), key)
        }
        known[stage.name] = named.union(*below)
    beyond = {
        stage: sorted(found - known[stage])
        for stage, found in read.found.items()
        if stage in by_name and found - known[stage]
    }
    assert beyond == {}, beyond
    assert len(read.found) > 4  # it did watch
