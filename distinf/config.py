"""A run's configuration: YAML in, validated and resolved out.

Components own their settings as frozen dataclasses; this composes them and refuses the rest.
"""

import dataclasses
import difflib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, TypeVar

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from distinf.errors import InputError
from distinf.runtime import RuntimeSettings, digest
from distinf.stages.basis import session as basis_session
from distinf.stages.basis import settings as basis
from distinf.stages.gram import session as gram_session
from distinf.stages.gram import settings as gram_route
from distinf.stages.session import Session
from distinf.stages.task import (
    ROUTE_OF_STUDY,
    Task,
    build_task,
    settings_type,
)

Settings = TypeVar("Settings")
TASK_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
NOT_VARIED = ("task", "route", "out", "runtime", "beside", "report", "provenance")


class RunConfig(BaseModel):
    """One run. `settings` are the task's own; the rest is the same for every task.

    beside: variations by name, each a mapping of dotted keys to other values. A variation shares
    all work that its keys do not change, lies in the same folder, and is shown in the same report.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ROUTE: ClassVar[str] = ""
    SESSIONS: ClassVar[ModuleType]  # its Session and bases
    STAGES: ClassVar[type]  # the dataclass of its stages' settings

    task: str = "receiver"
    route: str = ""
    seed: int = Field(default=0, ge=0)
    out: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    runtime: RuntimeSettings = Field(default_factory=RuntimeSettings)
    beside: dict[str, dict[str, Any]] = Field(default_factory=dict)
    provenance: dict[str, Any] | None = None  # written into a run's folder; never read back

    @property
    def stages(self) -> Any:
        """The settings of the route's stages, as its sessions hold them."""
        names = [field.name for field in dataclasses.fields(self.STAGES)]
        return self.STAGES(**{name: getattr(self, name) for name in names})

    def session(self, root: str, device: torch.device) -> Session:
        """The run as this process sees it."""
        found: Session = self.SESSIONS.Session(self.context(root), device)
        return found

    @cached_property
    def identity(self) -> Task:
        """The task, for its digests and shapes; a session builds its own and attaches rows."""
        return build_task(self.task, self.settings, self.seed)

    @cached_property
    def variations(self) -> "dict[str, RunConfig]":
        """Each name of `beside` -> the run with those keys changed."""
        found = {}
        for name, changes in self.beside.items():
            raw = self.model_dump(mode="json", exclude={"beside", "provenance"})
            for key, value in changes.items():
                if key.partition(".")[0] in NOT_VARIED:
                    raise InputError(f"beside.{name}: '{key}' is the same for the whole run")
                _assign(raw, key, value, f"beside.{name}")
            found[name] = resolve(raw, f"beside.{name}")
        return found

    def context(self, root: str, name: str = "") -> dict[str, Any]:
        """What a worker needs to know of this run, as JSON; `name` is a variation's."""
        beside = {n: config.context(root, n) for n, config in self.variations.items()}
        own = self.SESSIONS.bases(self.task, self.settings, self.identity, self.seed, self.stages)
        if beside:
            shown = {n: context["basis"]["report"] for n, context in beside.items()}
            own["report"] = digest([own["report"], shown])
        return {
            "name": name,
            "beside": beside,
            "root": root,
            "task": self.task,
            "task_settings": self.settings,
            "seed": self.seed,
            "settings": dataclasses.asdict(self.stages),
            "basis": own,
        }


class BasisConfig(RunConfig):
    """A run of the basis route: curvature first, then projections of gradients."""

    ROUTE: ClassVar[str] = "basis"
    SESSIONS: ClassVar[ModuleType] = basis_session
    STAGES: ClassVar[type] = basis.StageSettings

    data: basis.DataSettings = Field(default_factory=basis.DataSettings)
    train: basis.TrainSettings = Field(default_factory=basis.TrainSettings)
    evaluate: basis.EvaluateSettings = Field(default_factory=basis.EvaluateSettings)
    targets: basis.TargetSettings = Field(default_factory=basis.TargetSettings)
    curvature: basis.CurvatureSettings = Field(default_factory=basis.CurvatureSettings)
    gradients: basis.GradientSettings = Field(default_factory=basis.GradientSettings)
    scores: basis.ScoreSettings = Field(default_factory=basis.ScoreSettings)
    trajectory: basis.TrajectorySettings = Field(default_factory=basis.TrajectorySettings)
    attribution: basis.AttributionSettings = Field(default_factory=basis.AttributionSettings)
    actions: basis.ActionSettings = Field(default_factory=basis.ActionSettings)
    report: basis.ReportSettings = Field(default_factory=basis.ReportSettings)


class GramConfig(RunConfig):
    """A run of the Gram route: gradients once, then products of them."""

    ROUTE: ClassVar[str] = "gram"
    SESSIONS: ClassVar[ModuleType] = gram_session
    STAGES: ClassVar[type] = gram_route.StageSettings

    train: gram_route.TrainSettings = Field(default_factory=gram_route.TrainSettings)
    gradients: gram_route.GradientSettings = Field(default_factory=gram_route.GradientSettings)
    gram: gram_route.GramSettings = Field(default_factory=gram_route.GramSettings)
    scores: gram_route.ScoreSettings = Field(default_factory=gram_route.ScoreSettings)
    actions: gram_route.ActionSettings = Field(default_factory=gram_route.ActionSettings)
    report: gram_route.ReportSettings = Field(default_factory=gram_route.ReportSettings)


ROUTES: dict[str, type[RunConfig]] = {"basis": BasisConfig, "gram": GramConfig}


def route_class(raw: Mapping[str, Any], where: str) -> type[RunConfig]:
    """The kind of run: as the `route` key says, or the study's own, or the basis route."""
    named = raw.get("route") or ROUTE_OF_STUDY.get(str(raw.get("task", "receiver")), "basis")
    if named not in ROUTES:
        raise InputError(f"{where}: route: '{named}' is unknown; use one of {', '.join(ROUTES)}")
    return ROUTES[named]


def load(path: str, overrides: Sequence[str] = (), route: str = "") -> RunConfig:
    """Read, override (`a.b=value`, the value as YAML), validate and resolve a configuration.

    `path` may name a task, as module:function, for a run of that task with every default.

    `extends: other.yaml` starts from that file's keys. A config.yaml inside a run's folder replays
    that run: its `out` is the folder it lies in. `route` is for a file that names none.
    Raises InputError with one line for whatever is wrong.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "config.yaml"
    if TASK_NAME.fullmatch(path) and not file.exists():
        raw: dict[str, Any] = {"task": path}
        file = Path(path.partition(":")[0].rpartition(".")[2])
    else:
        raw = _extended(path, file)
    if raw.get("provenance") is not None:
        raw = {**raw, "out": str(file.parent), "provenance": None}
    for override in overrides:
        _override(raw, override)
    raw.setdefault("out", f"runs/{file.stem}")
    if route and not raw.get("route"):
        raw["route"] = route
    return resolve(raw, path)


def _extended(path: str, file: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file's keys over those of the file that it extends, which is named relative to it."""
    raw = _read(path, file)
    base = raw.pop("extends", None)
    if base is None:
        return raw
    if not isinstance(base, str):
        raise InputError(f"{path}: extends names one file, such as 'paper-800k.yaml'")
    if file.resolve() in seen:
        raise InputError(f"{path}: extends itself through {base}")
    inner = file.parent / base
    return _merged(_extended(str(inner), inner, (*seen, file.resolve())), raw)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `over`, mapping by mapping; an empty mapping replaces."""
    found = dict(base)
    for key, value in over.items():
        inner = found.get(key)
        nested = isinstance(inner, dict) and isinstance(value, dict) and value
        found[key] = _merged(inner, value) if nested else value  # type: ignore[arg-type]
    return found


def _read(path: str, file: Path) -> dict[str, Any]:
    """The keys of a YAML file, which the user calls `path`."""
    try:
        raw = yaml.safe_load(file.read_text())
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror or error}; give the path of a YAML file"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8 text; give the path of a YAML file") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise InputError(f"{path}:{line} {problem}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: holds no keys; see configs/quickstart.yaml")
    return raw


def load_settings(path: str, kind: type[Settings]) -> Settings:
    """Read and validate a YAML file of settings other than a run's, such as an import's.

    Raises InputError with one line for whatever is wrong.
    """
    raw = _read(path, Path(path))
    holder = create_model("Settings", __config__=ConfigDict(extra="forbid"), settings=(kind, ...))
    try:
        return holder(settings=raw).settings  # type: ignore[attr-defined, no-any-return]
    except ValidationError as error:
        raise InputError(f"{path}: {_explain(error, holder, skip=1)}") from None


def resolve(raw: Mapping[str, Any], where: str = "config") -> RunConfig:
    """Validate a mapping, the task's own settings included, and fill in every default."""
    odd = [key for key in raw if not isinstance(key, str)]
    if odd:
        raise InputError(f"{where}: unknown key '{odd[0]}'; keys are names such as 'train'")
    kind = route_class(raw, where)
    raw = _with_own_settings(raw, kind)
    try:
        config = kind(**{**raw, "route": kind.ROUTE})
    except ValidationError as error:
        raise InputError(f"{where}: {_explain(error, kind)}") from None
    typed = settings_type(config.task)
    if not dataclasses.is_dataclass(typed):
        _ = config.variations
        return config
    holder = create_model(
        "Task settings", __config__=ConfigDict(extra="forbid"), settings=(typed, ...)
    )
    try:
        settings = holder(settings=config.settings).settings  # type: ignore[attr-defined]
    except ValidationError as error:
        raise InputError(f"{where}: {_explain(error, holder)}") from None
    plain = TypeAdapter(typed).dump_python(settings, mode="json")
    resolved = config.model_copy(update={"settings": plain})
    _ = resolved.variations  # a mistake in one is told now
    return resolved


def _with_own_settings(raw: Mapping[str, Any], kind: type[RunConfig]) -> dict[str, Any]:
    """Keys that the run does not have but the task's settings do, moved in among those."""
    task = raw.get("task", "receiver")
    typed = settings_type(task) if isinstance(task, str) else None
    if not dataclasses.is_dataclass(typed):
        return dict(raw)
    own = {field.name for field in dataclasses.fields(typed)} - kind.model_fields.keys()
    moved = {key: value for key, value in raw.items() if key in own}
    rest = {key: value for key, value in raw.items() if key not in moved}
    if moved and isinstance(rest.get("settings", {}), dict):
        rest["settings"] = _merged(rest.get("settings", {}), moved)
    return rest


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"--set {override}: write it as key=value, as in --set seed=1")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"--set {override}: the value is not valid YAML") from None
    _assign(raw, key.strip(), value, f"--set {override}")


def _assign(raw: dict[str, Any], key: str, value: Any, where: str) -> None:
    *path, last = key.split(".")
    place = raw
    for name in path:
        place = place.setdefault(name, {})
        if not isinstance(place, dict):
            raise InputError(f"{where}: '{name}' is a value, it has no keys below it")
    place[last] = value


def _explain(error: ValidationError, root: Any = RunConfig, skip: int = 0) -> str:
    """The first problem in one line, with the nearest valid name for an unknown key.

    skip: how many names of the path are not the user's.
    """
    problems = error.errors()
    first = problems[0]
    path = [str(part) for part in first["loc"]]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        known = sorted(_field_names(root, path[:-1]))
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
        return f"unknown key '{'.'.join(path[skip:])}'; {hint}{more}"
    message = first["msg"].removeprefix("Value error, ")
    return ": ".join(filter(None, [".".join(path[skip:]), f"{message}{more}"]))


def _field_names(root: Any, path: Sequence[str]) -> Iterator[str]:
    """Names of the fields of the model or dataclass at `path`."""
    for part in path:
        fields = root.model_fields if hasattr(root, "model_fields") else {}
        if part in fields:
            root = fields[part].annotation
        elif dataclasses.is_dataclass(root):
            hints = inspect.get_annotations(root, eval_str=True)  # type: ignore[arg-type]
            root = hints.get(part)
    if hasattr(root, "model_fields"):
        yield from root.model_fields
    elif dataclasses.is_dataclass(root):
        yield from (field.name for field in dataclasses.fields(root))


def dump(config: RunConfig, record: Mapping[str, Any]) -> str:
    """The resolved configuration and its provenance as YAML that `distinf run` replays."""
    plain = config.model_dump(mode="json", exclude={"provenance"})
    return yaml.safe_dump({**plain, "provenance": dict(record)}, sort_keys=False, width=100)
