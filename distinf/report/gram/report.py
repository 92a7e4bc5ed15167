"""Stage report: from the run's committed arrays to one page, its tables, and every row ranked."""

from typing import Any

import numpy as np
import torch

from distinf.gram.actions import flipped_rows, lowest_first, results
from distinf.gram.scores import all_scores, headline
from distinf.gram.session import TRAIN, Session
from distinf.gram.train import stored_fit
from distinf.numerics.metrics import ndr
from distinf.report import publishing
from distinf.report.gram.free_rankings import free_rankings, suggested
from distinf.report.gram.gathering import cell_ranking, findings
from distinf.report.gram.page import render
from distinf.report.gram.tables import tables
from distinf.report.gram.warnings import chance_warnings, class_warnings, label_warnings

WORST = 10  # rows in the terminal


def write(session: Session) -> None:
    """Every row ranked, the tables, and the page."""
    cells = session.outline.cells.values()
    rankings = {ranking_name(cell.name): cell_ranking(session, cell) for cell in cells}
    found = findings(session)
    publishing.publish(session, found.to_json(), tables(found), render(found), rankings)


def ranking_name(cell: str) -> str:
    """The table that has all of a cell's rows, the most detrimental first."""
    return f"ranked_rows-{cell}" if cell else "ranked_rows"


def summary_lines(session: Session) -> list[str]:
    """The answer in a few lines, for the terminal."""
    root = session.blobs.root
    found = [f"warning: {line}" for line in chance_warnings(session)]  # before any rate
    found += _detected(session)
    cells = list(session.outline.cells.values())
    more = f" and {len(cells) - 1} more" if len(cells) > 1 else ""
    if not any(cell.trained for cell in cells):
        found.append("the model was scored as model() returns it; nothing was trained")
    found += [f"warning: {line}" for line in (*label_warnings(session), *class_warnings(session))]
    counted = [(cell, suggested(session, cell)) for cell in cells]
    wrong = [(told.wrong, cell.rows[TRAIN]) for cell, told in counted if told is not None]
    if wrong:
        most, rows = (sum(numbers) for numbers in zip(*wrong))
        found.append(
            f"about {most:,} of {rows:,} labels are wrong, by the model's own predictions "
            "(confident learning)"
        )
    found.append(
        f"the {cells[0].rows[TRAIN]:,} training rows ranked, most detrimental first: "
        f"{root}/report/{ranking_name(cells[0].name)}.csv{more}"
    )
    return found


def _detected(session: Session) -> list[str]:
    """How many known wrong labels the headline finds, and what finds as many for nothing."""
    rates: dict[str, list[float]] = {}
    share = session.settings.actions.fraction
    for cell in session.outline.cells.values():
        noise = flipped_rows(session, cell.name)
        if noise is None or not noise.any():
            continue
        first = "/".join(headline(session, cell))
        every = {first: all_scores(session, cell)[headline(session, cell)]}
        for name, scores_N in (every | dict(free_rankings(session, cell))).items():
            ordered = torch.from_numpy(lowest_first(scores_N))
            rates.setdefault(name, []).append(ndr(ordered, torch.from_numpy(noise), share))
    if not rates:
        return []
    (name, ours), *free = ((name, float(np.mean(found))) for name, found in rates.items())
    told = ", ".join(f"{each} {rate:.0%}" for each, rate in free)
    best = max(rate for _, rate in free)
    verdict = "; influence finds no more than these here" if best >= ours else ""
    return [
        f"{name}: {ours:.0%} of the mislabelled rows are among the lowest {share:.0%} "
        f"(random: {share:.0%})",
        f"at no cost beside it: {told}{verdict}",
    ]


def worst_rows(session: Session) -> list[dict[str, Any]]:
    """The ten rows of the first cell that harm the most, as `ranked_rows.csv` has them."""
    first = next(iter(session.outline.cells.values()))
    return cell_ranking(session, first)[:WORST]


def query_losses(session: Session) -> list[tuple[str, float, int]]:
    """(configuration, least query loss, cells): as `accuracies`, for a task without test rows."""
    found: dict[str, list[float]] = {}
    named = [(filtered.configuration, stored) for filtered, stored in results(session)]
    whole = [("nothing", stored_fit(session, name)) for name in session.outline.cells]
    for configuration, stored in [*named, *(whole if named else [])]:
        if "query_loss" in stored:
            found.setdefault(configuration, []).append(float(np.nanmin(stored["query_loss"])))
    return [(name, float(np.mean(losses)), len(losses)) for name, losses in found.items()]


def accuracies(session: Session) -> list[tuple[str, float, float, int]]:
    """(configuration, best test accuracy, that at the selected epoch, cells): means over cells;
    last the models trained on all rows."""
    found: dict[str, list[tuple[float, float]]] = {}
    named = [(filtered.configuration, stored) for filtered, stored in results(session)]
    whole = [("nothing", stored_fit(session, name)) for name in session.outline.cells]
    for configuration, stored in [*named, *(whole if named else [])]:
        if "test_accuracy" in stored:
            accuracy = stored["test_accuracy"]
            pair = float(np.nanmax(accuracy)), float(accuracy[int(stored["best"])])
            found.setdefault(configuration, []).append(pair)
    means = {name: np.mean(pairs, axis=0) for name, pairs in found.items()}
    return [
        (name, float(means[name][0]), float(means[name][1]), len(pairs))
        for name, pairs in found.items()
    ]
