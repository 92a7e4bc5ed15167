"""A recipe of somebody's own: how hard the rows are for the model as it starts, and no more."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from distinf.engine.recipe import Recipe
from distinf.engine.session import Outline, Session, row_ranges
from distinf.engine.stage import Stage
from distinf.report.publishing import publish
from distinf.report.schema import Column, Page, Section, Table, stub
from distinf.runtime import Cost, Runtime, Unit


@dataclass(frozen=True)
class HardnessSettings:
    rows_per_unit: int = 20
    power: float = 1.0


@dataclass(frozen=True)
class Settings:
    hardness: HardnessSettings = field(default_factory=HardnessSettings)


def units(outline: Outline) -> list[tuple[Unit, Cost]]:
    ranges = row_ranges(outline.rows["train"], outline.settings.hardness.rows_per_unit)
    return [(Unit("hardness", outline.keys["hardness"], a, b), Cost(bytes=8e3)) for a, b in ranges]


def run(session: Session, runtime: Runtime) -> None:
    work = session.work("tests.support.own_recipe:body")
    runtime.pool(work, HARDNESS.wanted_units(session), session.ledger("hardness"))


def body(session: Session, unit: Unit, attempt: str) -> Any:
    model, ids = session.model_of(session.task), np.arange(unit.start, unit.stop)
    loss = next(iter(session.task.losses.values()))
    with torch.no_grad():
        losses_N = loss(model.eval(), session.read(session.task, "train", ids))
    hard_N = losses_N.double().numpy() ** session.settings.hardness.power
    return session.commit(unit, attempt, {"row": ids, "hardness": hard_N})


def report(session: Session) -> None:
    stored = session.rows(HARDNESS.wanted_units(session)).columns()
    rows = [
        dict(zip(stored, each, strict=True)) for each in np.stack([*stored.values()]).T.tolist()
    ]
    table = Table("By row", rows, [stub("row", "row"), Column("hardness", "hardness")], "hardness")
    page = Page("Hardness", "", answer=("", "", ""), sections=[Section("rows", "Rows", [table])])
    publish(session, {}, {"hardness": rows}, page)


HARDNESS = Stage("hardness", "hardness", reads=("task", "hardness"), units=units, run=run)
RECIPE = Recipe(Settings, (HARDNESS,), report, summary=lambda session: ["rows by hardness"])
