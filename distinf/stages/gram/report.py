"""Stage report: from the run's committed arrays to one page, its tables, and every row ranked."""

import numpy as np
import torch

from distinf.numerics.metrics import ndr
from distinf.runtime import Runtime
from distinf.stages import publishing
from distinf.stages.gram.actions import flipped_rows, lowest_first, results
from distinf.stages.gram.findings import cell_ranking, chance_warnings, findings
from distinf.stages.gram.page.page import render
from distinf.stages.gram.page.tables import tables
from distinf.stages.gram.scores import all_scores, headline
from distinf.stages.gram.session import TRAIN, Session
from distinf.stages.gram.train import stored_fit
from distinf.stages.page.rows import csv_text

NAME, units, is_done = publishing.NAME, publishing.units, publishing.is_done


def run(session: Session, runtime: Runtime) -> None:
    """Write the report's files; then say so."""
    write(session)
    publishing.commit(session)


def write(session: Session) -> None:
    """Every row ranked, the tables, and the page."""
    for cell in session.outline.cells.values():
        text = csv_text(cell_ranking(session, cell))
        session.blobs.put(f"report/{ranking_name(cell.name)}", text.encode())
    found = findings(session)
    publishing.publish(session, found.to_json(), tables(found), render(found))


def ranking_name(cell: str) -> str:
    """The file that has all of a cell's rows, the most detrimental first."""
    return f"ranked_rows-{cell}.csv" if cell else "ranked_rows.csv"


def summary_lines(session: Session) -> list[str]:
    """The answer in a few lines, for the terminal."""
    found, rates, share = [], [], session.settings.actions.fraction
    for cell in session.outline.cells.values():
        key = headline(session, cell)
        noise = flipped_rows(session, cell.name)
        if noise is not None and noise.any():
            scores_N = torch.from_numpy(lowest_first(all_scores(session, cell)[key]))
            rates.append(ndr(scores_N, torch.from_numpy(noise), share))
    root = session.blobs.root
    if rates:
        found.append(
            f"{'/'.join(key)}: {np.mean(rates):.0%} of the mislabelled rows are among the lowest "
            f"{share:.0%} (random: {share:.0%})"
        )
    cells = list(session.outline.cells.values())
    more = f" and {len(cells) - 1} more" if len(cells) > 1 else ""
    if not any(cell.trained for cell in cells):
        found.append("the model was scored as model() returns it; nothing was trained")
    found += [f"warning: {line}" for line in chance_warnings(session)]
    found.append(
        f"the {cells[0].rows[TRAIN]:,} training rows ranked, most detrimental first: "
        f"{root}/report/{ranking_name(cells[0].name)}{more}"
    )
    return found


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
    """(configuration, best test accuracy, that at the lowest query loss, cells): means over cells;
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
