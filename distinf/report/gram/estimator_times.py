"""What every estimator took in every layer group, from the records of the units that took it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from distinf.gram import scores
from distinf.gram.session import Cell, Session
from distinf.gram.stopwatch import TOOK, joint_name
from distinf.gram.tiles import PHASES, phase_units
from distinf.report.gram import findings as page

Note = Mapping[str, Any]


def estimator_times(session: Session, cell: Cell) -> Iterator[page.EstimatorTime]:
    """Of each estimator in each group that it is scored in; none of a run whose records are older
    than these notes."""
    units = [u for phase in PHASES for u in phase_units(session.settings, cell, phase)]
    units += scores.cell_units(session.settings, cell)
    notes = [note for u in units for note in session.record(u)["summary"].get(TOOK, ())]
    scored = dict.fromkeys((e, group) for e, group, _ in scores.all_scores(session, cell))
    for estimator, group in scored if notes else ():
        of = {*cell.groups[group], joint_name(group)}
        mine = [n for n in notes if estimator in n["estimators"] and n["of"] in of]
        alone = [n for n in mine if len(n["estimators"]) == 1]
        yield page.EstimatorTime(
            cell.name, estimator, group, _sum(mine, "wall_s"), _sum(mine, "processor_s"),
            _sum(alone, "wall_s"),
        )  # fmt: skip


def _sum(notes: Sequence[Note], key: str) -> float:
    return float(sum(note[key] for note in notes))
