"""A run's configuration: YAML in, validated and resolved out.

Components own their settings as frozen dataclasses; this composes them and refuses the rest.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from typing import Any, ClassVar, get_type_hints

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from distinf.config_file import assign, merged, read, reason, refuse_boundless, refuse_truths
from distinf.config_mistakes import explain
from distinf.digest import digest
from distinf.engine.recipe import REPORT, Recipe, recipe_named
from distinf.engine.session import Session, session_of
from distinf.engine.stage import WHOLE
from distinf.errors import InputError
from distinf.masking import given_again, masked, unknown
from distinf.naming import refuse_names, shown
from distinf.runtime import RuntimeSettings
from distinf.runtime.units import differences, flatten
from distinf.tasks.checkpoint import content_digest
from distinf.tasks.identity import rows_of, seen, seen_model, stated
from distinf.tasks.sources import sources
from distinf.tasks.task import (
    SPLITS,
    STUDIES,
    GeneratingTask,
    Task,
    build_task,
    recipe_of,
    settings_type,
    task_path,
)

METHOD = "gradients.method"
NOT_VARIED = ("task", "recipe", "out", "runtime", "variations", "report", "provenance")


class RunConfig(BaseModel):
    """One run.

    task      a study, or module:function of your own, from the folder that you are in
    recipe    spectral, gram, empirical, or module:object of your own; empty: the task's own, or
              spectral
    seed      of all randomness
    out       folder or URL of the run; empty: runs/ and the configuration's name
    settings  the task's own; they may stand outside of it too, where no other key is called so.
              A secret (by its name: token, key, password, secret) is not kept in the run's folder
    variations  by name, each a mapping of dotted keys to other values. A variation shares all
              work that its keys do not change, lies in the same folder, and is shown in the same
              report. It improves the run's targets, unless it sets targets otherwise
    provenance  written into a run's folder; never read back
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    RECIPE: ClassVar[Recipe]

    task: str
    recipe: str = ""
    seed: int = Field(default=0, ge=0)
    out: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    runtime: RuntimeSettings = Field(default_factory=RuntimeSettings)
    variations: dict[str, dict[str, Any]] = Field(default_factory=dict)
    provenance: dict[str, Any] | None = None

    @property
    def stages(self) -> Any:
        """The settings of the recipe's stages, as its sessions hold them."""
        kind = self.RECIPE.settings
        return kind(**{field.name: getattr(self, field.name) for field in dataclasses.fields(kind)})

    @cached_property
    def decided(self) -> Any:
        """`stages` as the run takes them, with what only the task can show decided."""
        decide = self.RECIPE.decided
        return decide(self.task, self.identity, self.stages) if decide else self.stages

    @property
    def decisions(self) -> dict[str, Any]:
        """Dotted keys on which `decided` is not what the settings say."""
        asked, taken = (flatten(dataclasses.asdict(s)) for s in (self.stages, self.decided))
        return {key: taken[key] for key in differences(asked, taken)}

    def session(self, root: str, device: torch.device) -> Session:
        """The run as this process sees it."""
        return session_of(self.context(root), device)

    @cached_property
    def identity(self) -> Task:
        """The task, for its digests and shapes; a session builds its own and attaches rows."""
        return build_task(self.task, self.settings, self.seed, self.RECIPE.task)

    @cached_property
    def sources(self) -> dict[str, str]:
        """What every other process must have of the task's code as this one has it."""
        return sources(task_path(self.task))

    @cached_property
    def seen(self) -> dict[str, dict[str, str]]:
        """By cell: what every other process must see of the task as this one does."""
        cells = self.RECIPE.cells(self.identity).items()
        return {name: seen(cell, stated(cell)) | seen_model(cell) for name, cell in cells}

    @cached_property
    def varied(self) -> "dict[str, RunConfig]":
        """Each of `variations` -> the run with those keys changed."""
        found = {}
        refuse_names("variations", self.variations)
        for name, changes in self.variations.items():
            raw = self.model_dump(mode="json", exclude={"variations", "provenance"})
            for key, value in changes.items():
                if key.partition(".")[0] in NOT_VARIED:
                    raise InputError(f"variations.{name}: '{key}' is the same for the whole run")
                assign(raw, key, value, f"variations.{name}")
            varied = resolve(raw, f"variations.{name}")
            if self.method and not varied.method:  # it was chosen for the run
                varied = varied.settled({"": self.method})
            found[name] = varied
        return found

    @property
    def method(self) -> str | None:
        """gradients.method; None where it is still to be chosen."""
        chosen: str | None = getattr(getattr(self, "gradients", None), "method", "")
        return chosen

    def settled(self, methods: Mapping[str, str]) -> "RunConfig":
        """With the methods that were chosen, the run's by "" and variations' by name, filled in."""
        if self.method is not None or not methods.get(""):
            return self
        main = methods[""]
        gradients = dataclasses.replace(self.stages.gradients, method=main)
        others = {n: m for n, m in methods.items() if m != main and n in self.variations}
        varied = {
            name: {**changes, METHOD: others[name]} if name in others else changes
            for name, changes in self.variations.items()
        }
        made = self.model_copy(update={"gradients": gradients, "variations": varied})
        for name in ("varied", "decided"):
            made.__dict__.pop(name, None)
        return made

    def context(
        self, root: str, name: str = "", run: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """What a worker needs to know of this run, as JSON; of a variation, its name and what it
        shares with the run."""
        keys, lent = self.RECIPE.keys(self.values, run or {})
        varied = {n: config.context(root, n, lent) for n, config in self.varied.items()}
        if varied:
            own = keys[WHOLE]
            shown = {n: context["keys"][WHOLE][REPORT] for n, context in varied.items()}
            own[REPORT] = digest([own[REPORT], shown])
        return {
            "name": name,
            "variations": varied,
            "root": root,
            "recipe": self.recipe,
            "task": self.task,
            "task_settings": self.settings,
            "seed": self.seed,
            "settings": dataclasses.asdict(self.decided),
            "keys": keys,
            "seen": self.seen,
            "sources": self.sources,
            **lent,
        }

    def stored_form(self) -> dict[str, Any]:
        """As JSON, with a mask in place of each secret, and without provenance."""
        plain = self.model_dump(mode="json", exclude={"provenance"})
        hidden = {key: masked(plain[key], key) for key in ("settings", "variations")}
        return {**plain, **hidden}

    @property
    def unknown_secrets(self) -> list[str]:
        """Dotted keys of those that a run's folder has only the masks of."""
        return [*unknown(self.settings), *unknown(self.variations, "variations")]

    @property
    def values(self) -> dict[str, dict[str, Any]]:
        """By cell, all that a stage can read: settings by section, the seed, facts of the task."""
        settings = dataclasses.asdict(self.decided)
        for name in self.RECIPE.files:  # what is in a file counts, not where it lies
            section, key = name.split(".")
            if settings[section][key]:
                settings[section][key] = content_digest(settings[section][key])
        found = {}
        for name, task in self.RECIPE.cells(self.identity).items():
            facts = _facts(self.task, name, task, masked(self.settings))
            found[name] = {**settings, "seed": self.seed, "task": facts}
        return found


@cache
def config_class(name: str) -> type[RunConfig]:
    """The configurations of a recipe: a run's own keys, and a section for each of its settings."""
    recipe = recipe_named(name)
    hints = get_type_hints(recipe.settings)
    sections: Any = {key: (kind, Field(default_factory=kind)) for key, kind in hints.items()}
    made: type[RunConfig] = create_model(
        "RunConfig", __base__=RunConfig, __doc__=recipe.settings.__doc__, **sections
    )
    made.RECIPE = recipe
    return made


def recipe_in(raw: Mapping[str, Any], where: str) -> str:
    """The name of a configuration's recipe: as its `recipe` says, or the task's own."""
    task = raw.get("task")
    for near in difflib.get_close_matches("task", raw, cutoff=0.7) if task is None else ():
        raise InputError(f"{where}: unknown key '{near}'; did you mean 'task'?")
    if not isinstance(task, str) or not task:
        raise InputError(f"{where}: task: is needed: a study ({', '.join(STUDIES)}) or mine:task")
    named = raw.get("recipe") or recipe_of(task)
    if not isinstance(named, str):
        raise InputError(f"{where}: recipe: {shown(named)} is no name")
    return named


def _facts(name: str, cell: str, task: Task, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of a cell of a task: what results may depend on beside settings."""
    identity, has_model = stated(task), isinstance(task, Task)
    return {
        "path": task_path(name),
        "cell": cell,
        "settings": dict(settings),
        "identity": identity,
        "data": identity.get("data") or dict(settings),
        "losses": list(task.losses) if has_model else [],
        "rows": {split: rows_of(task, split) for split in SPLITS} if has_model else {},
        "rows_per_unit": _per_unit(task),
    }


def _per_unit(task: Task) -> dict[str, int]:
    if not isinstance(task, GeneratingTask):
        return {}
    return {split: task.rows_per_unit(split) for split in SPLITS}


def load(path: str, overrides: Sequence[str] = (), verb: str = "run") -> RunConfig:
    """Read, override (`a.b=value`, the value as YAML), validate and resolve a configuration.

    See `config_file.read` for what `path` and `verb` mean.
    Raises InputError with one line for whatever is wrong.
    """
    return resolve(read(path, overrides, verb), path)


def resolve(raw: Mapping[str, Any], where: str = "config") -> RunConfig:
    """Validate a mapping, the task's own settings included, and fill in every default."""
    try:
        refuse_boundless(raw)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: {reason(error)}") from None
    odd = [key for key in raw if not isinstance(key, str)]
    if odd:
        raise InputError(f"{where}: unknown key '{odd[0]}'; keys are names such as 'train'")
    raw = {key: value for key, value in raw.items() if value is not None}  # all commented out
    name = recipe_in(raw, where)
    kind = config_class(name)
    raw = _with_own_settings(raw, kind)
    raw |= {key: given_again(raw[key], key) for key in ("settings", "variations") if key in raw}
    try:
        config = kind(**{**raw, "recipe": name})
    except ValidationError as error:
        own = _untyped(error, raw)
        known = _own_keys(raw["task"])
        raise InputError(f"{where}: {explain(error, kind, known)}{own}") from None
    except ArithmeticError as error:  # of a check that reckons with the numbers
        raise InputError(f"{where}: a number is out of range: {error}") from None
    typed = settings_type(config.task)
    if not dataclasses.is_dataclass(typed):
        return _checked(config, raw, where)
    holder = create_model(
        "Task settings", __config__=ConfigDict(extra="forbid"), settings=(typed, ...)
    )
    try:
        settings = holder(settings=config.settings).settings  # type: ignore[attr-defined]
    except ValidationError as error:
        raise InputError(f"{where}: {explain(error, holder)}") from None
    except ArithmeticError as error:
        raise InputError(f"{where}: a number of the settings is out of range: {error}") from None
    plain = TypeAdapter(typed).dump_python(settings, mode="json")
    return _checked(config.model_copy(update={"settings": plain}), raw, where)


def _checked(config: RunConfig, raw: Mapping[str, Any], where: str) -> RunConfig:
    """It, unless a truth value stands for a number, or a variation has a mistake."""
    try:
        refuse_truths(raw, config.model_dump(mode="json", exclude={"provenance"}))
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    _ = config.varied
    return config


def _with_own_settings(raw: Mapping[str, Any], kind: type[RunConfig]) -> dict[str, Any]:
    """Keys that the run does not have but the task's settings do, moved in among those."""
    own = _own_keys(raw["task"]) - kind.model_fields.keys()
    moved = {key: value for key, value in raw.items() if key in own}
    rest = {key: value for key, value in raw.items() if key not in moved}
    if moved and isinstance(rest.get("settings", {}), dict):
        rest["settings"] = merged(rest.get("settings", {}), moved)
    return rest


def _own_keys(task: str) -> set[str]:
    """The task's settings; none of a task that does not say what it has."""
    typed = settings_type(task)
    return {f.name for f in dataclasses.fields(typed)} if dataclasses.is_dataclass(typed) else set()


def _untyped(error: ValidationError, raw: Mapping[str, Any]) -> str:
    """Where an unknown key belongs that is a setting of a task which does not say what it has."""
    first = error.errors()[0]
    unknown = first["type"] == "extra_forbidden" and len(first["loc"]) == 1
    if not unknown or dataclasses.is_dataclass(settings_type(raw["task"])):
        return ""
    return f"; a setting of the task's own is settings.{first['loc'][0]}"


def dump(config: RunConfig, record: Mapping[str, Any]) -> str:
    """The resolved configuration and its provenance as YAML that `distinf run` replays."""
    plain = config.stored_form()
    return yaml.safe_dump({**plain, "provenance": dict(record)}, sort_keys=False, width=100)
