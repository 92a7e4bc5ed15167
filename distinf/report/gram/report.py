"""Stage report: from the run's committed arrays to one page, its tables, and every row ranked."""

from typing import Any

import numpy as np
import torch

from distinf.gram.actions import flipped_rows, lowest_first, results
from distinf.gram.scores import all_scores, headline
from distinf.gram.session import Session
from distinf.gram.train import stored_fit
from distinf.numerics.metrics import ndr
from distinf.report import publishing
from distinf.report.gram.findings import cell_ranking, cell_rows, findings
from distinf.report.gram.free_rankings import free_rankings
from distinf.report.gram.page import render
from distinf.report.gram.tables import tables
from distinf.report.gram.views import ranking_name
from distinf.report.gram.warnings import chance_warnings, class_warnings, label_warnings

WORST = 10  # rows in the terminal


def write(session: Session) -> None:
    """Every row ranked, the tables, and the page."""
    cells = session.outline.cells.values()
    rankings = {ranking_name(cell.name): cell_ranking(session, cell) for cell in cells}
    found = findings(session)
    rows = tables(found)
    page = render(found, rows, [*rankings, *rows])
    publishing.publish(session, found.to_json(), rows, page, rankings)


def summary_lines(session: Session) -> list[str]:
    """The answer in a few lines, for the terminal."""
    cells, share = cell_rows(session), session.settings.actions.fraction
    found = [f"warning: {line}" for line in chance_warnings(cells)]  # before any rate
    found += _detected(session)
    if not any(cell.trained for cell in session.outline.cells.values()):
        found.append("the model was scored as model() returns it; nothing was trained")
    further = (*label_warnings(cells, share), *class_warnings(session))
    found += [f"warning: {line}" for line in further]
    told = [c for c in cells if c["suggested_wrong"] is not None]
    wrong = sum(c["suggested_wrong"] for c in told)
    if told:
        found.append(
            f"about {wrong:,} of {sum(c['rows'] for c in told):,} labels are wrong, by the model's "
            "own predictions (confident learning)"
        )
    more = f" and {len(cells) - 1} more" if len(cells) > 1 else ""
    found.append(
        f"the {cells[0]['rows']:,} training rows ranked, most detrimental first: "
        f"{session.blobs.root}/report/{ranking_name(cells[0]['name'])}.csv{more}"
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
        key = headline(session, cell)
        every = {"/".join(key): all_scores(session, cell)[key], **free_rankings(session, cell)}
        for name, scores_N in every.items():
            ordered = torch.from_numpy(lowest_first(scores_N))
            rates.setdefault(name, []).append(ndr(ordered, torch.from_numpy(noise), share))
    if not rates:
        return []
    (name, ours), *free = ((name, float(np.mean(found))) for name, found in rates.items())
    told = ", ".join(f"{each} {rate:.0%}" for each, rate in free)
    equal = max(rate for _, rate in free) >= ours
    return [
        f"{name}: {ours:.0%} of the mislabelled rows are among the lowest {share:.0%} "
        f"(random: {share:.0%})",
        f"at no cost beside it: {told}"
        + ("; influence finds no more than these here" if equal else ""),
    ]


def worst_rows(session: Session) -> list[dict[str, Any]]:
    """The ten rows of the first cell that harm the most, as `ranked_rows.csv` has them."""
    first = next(iter(session.outline.cells.values()))
    return cell_ranking(session, first)[:WORST]


def accuracies(session: Session) -> list[tuple[str, float, float, int]]:
    """(configuration, best test accuracy, that at the selected epoch, cells): means over cells;
    last the models trained on all rows."""
    found: dict[str, list[tuple[float, float]]] = {}
    for name, stored in _trained(session):
        if "test_accuracy" in stored:
            accuracy = stored["test_accuracy"]
            pair = float(np.nanmax(accuracy)), float(accuracy[int(stored["best"])])
            found.setdefault(name, []).append(pair)
    means = {name: np.mean(pairs, axis=0).tolist() for name, pairs in found.items()}
    return [(name, *means[name], len(pairs)) for name, pairs in found.items()]


def query_losses(session: Session) -> list[tuple[str, float, int]]:
    """(configuration, least query loss, cells): as `accuracies`, for a task without test rows."""
    found: dict[str, list[float]] = {}
    for name, stored in _trained(session):
        if "query_loss" in stored:
            found.setdefault(name, []).append(float(np.nanmin(stored["query_loss"])))
    return [(name, float(np.mean(losses)), len(losses)) for name, losses in found.items()]


def _trained(session: Session) -> list[tuple[str, Any]]:
    """(configuration, what its training stored), where any was trained again."""
    again = [(filtered.configuration, stored) for filtered, stored in results(session)]
    whole = [("nothing", stored_fit(session, name)) for name in session.outline.cells]
    return [*again, *(whole if again else [])]
