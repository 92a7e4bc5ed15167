"""Arms: the ways of acting on scores that a run tries, and the families that they come in.

The headline family is ActionSettings' own fields; `actions.also` adds families that differ in the
fields they name. Arms that are the same work have the same jobs, in whichever families they are.
"""

import dataclasses
import difflib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import TypeAdapter, ValidationError

from distinf.errors import InputError
from distinf.runtime import Unit
from distinf.spectral.action_settings import ActionSettings
from distinf.spectral.session import Outline

NAME = "actions"
HEADLINE = ""
ALL_TARGETS = -1  # the target of a job that acts on all at once
NOT_OF_ONE_FAMILY = ("also", "non_targets", "guard", "fresh_draws")
LISTED = "selections"  # a list as it stands, not one of several values


@dataclass(frozen=True)
class Arm:
    """One way of choosing rows and of updating on them; the fields are ActionSettings'.

    `loss` and `variant` are "" and `pool` is 0 where the choice does not depend on them.
    """

    selection: str
    loss: str
    variant: str
    pool: int
    update: str
    aim: str
    order: str
    steps: int
    batch_size: int
    lr: float
    weight_decay: float
    newton_lr: float
    newton_pairs: str
    newton_solves: str
    adapter: int
    optimizer: str
    retain: float
    stop: float | None


@dataclass(frozen=True)
class Family:
    """Arms that differ in `varied` (Arm's names), their targets (0: all) and their seeds.

    `rates` are the learning rates as configured: an arm's own is 0 where it plays no part.
    """

    name: str
    varied: tuple[str, ...]
    members: tuple[tuple[Arm, int, int], ...]  # (arm, targets, seeds)


def families(settings: ActionSettings, losses: Sequence[str]) -> list[Family]:
    """The headline's family, then those of `also`; InputError says what is wrong with one."""
    found = [_family(HEADLINE, settings, {}, losses)]
    for name, fields in settings.also.items():
        found.append(_family(name, settings, fields, losses))
    return found


def family_jobs(outline: Outline, family: Family, chosen: int | None = None) -> list[Unit]:
    """A family's jobs: per arm, target (by rank) and seed; `chosen`: how many targets there are."""
    count = outline.settings.targets.count if chosen is None else chosen
    if outline.settings.targets.ids and chosen is None:
        count = len(outline.settings.targets.ids)
    found = []
    for arm, targets, seeds in family.members:
        among = min(targets or count, count)
        ranks = range(among) if arm.aim == "single-target" else (ALL_TARGETS,)
        for rank, seed in itertools.product(ranks, range(seeds)):
            job: dict[str, Any] = {"arm": asdict(arm), "target": rank, "seed": seed}
            if rank == ALL_TARGETS:
                job["among"] = among
            if arm.variant == "tracin":
                job["trajectory"] = outline.keys["tracin"]
            found.append(Unit(NAME, outline.keys[NAME], job=job))
    return found


def jobs(outline: Outline, chosen: int | None = None) -> list[Unit]:
    """The jobs of all families, each once, the headline's first."""
    every: dict[str, Unit] = {}
    for family in families(outline.settings.actions, outline.losses):
        for job in family_jobs(outline, family, chosen):
            every.setdefault(job.id, job)
    return list(every.values())


def arm_of(job: Unit) -> Arm:
    """The arm that a job belongs to."""
    return Arm(**job.job["arm"])


def _family(
    name: str, base: ActionSettings, fields: Mapping[str, Any], losses: Sequence[str]
) -> Family:
    known = [f.name for f in dataclasses.fields(ActionSettings) if f.name not in NOT_OF_ONE_FAMILY]
    for key in fields:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
            raise InputError(f"unknown key 'actions.also.{name}.{key}'; {hint}")
    choices = {
        key: list(value) if isinstance(value, list | tuple) and key != LISTED else [value]
        for key, value in fields.items()
    }
    members = []
    for values in itertools.product(*choices.values()):
        settings = _settings(name, base, dict(zip(choices, values, strict=True)))
        _check_loss(name, settings, losses)
        members += [
            (_arm(settings, selection, losses), settings.targets, settings.seeds)
            for selection in settings.selections
        ]
    varied = [key for key, values in choices.items() if len(values) > 1]
    if len({arm.selection for arm, _, _ in members}) > 1:
        varied.append("selection")
    return Family(name, tuple(varied), tuple(dict.fromkeys(members)))


def _settings(name: str, base: ActionSettings, changes: dict[str, Any]) -> ActionSettings:
    """The headline's settings with these changes; a selection that cannot be is left out."""
    plain = asdict(base) | {"also": {}} | changes
    try:
        return TypeAdapter(ActionSettings).validate_python(plain)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"actions.also.{name}{'.' + where if where else ''}: {message}") from None


def _check_loss(name: str, settings: ActionSettings, losses: Sequence[str]) -> None:
    if settings.loss and settings.loss not in losses:
        key = f"actions.also.{name}.loss" if name else "actions.loss"
        raise InputError(
            f"{key}: '{settings.loss}' is not a loss of this task ({', '.join(losses)})"
        )


def _arm(settings: ActionSettings, selection: str, losses: Sequence[str]) -> Arm:
    """The arm, with whatever plays no part in it at one fixed value: same work, same job."""
    names = {f.name for f in dataclasses.fields(Arm)} - {"selection", "loss"}
    values = {name: getattr(settings, name) for name in names}
    arm = Arm(selection=selection, loss=settings.loss or losses[0], **values)
    if arm.update == "second-order":  # no optimizer: eta times the damped inverse
        arm = replace(arm, lr=0.0, weight_decay=0.0, optimizer="")
    else:
        arm = replace(arm, newton_lr=0.0, newton_pairs="", newton_solves="")
    every = arm.aim == "single-target" or selection in ("random", "matched", "group")
    if arm.newton_pairs and every:
        arm = replace(arm, newton_pairs="all")  # a row there is paired with every target
    if selection == "nearest" and arm.update != "second-order":  # its signs need scores
        arm = replace(arm, loss="", variant="")
    if selection == "matched":
        arm = replace(arm, order="random")  # its rows have no scores to go by
    if selection == "random":
        loss = arm.loss if arm.update == "second-order" else ""  # its signs need scores
        arm = replace(arm, loss=loss, variant="", pool=0, order="random", retain=0.0)
    return arm
