"""What a run's driver holds in the memory of its own host."""

from typing import Any

from distinf.engine.running import together
from distinf.gram.session import Session as GramSession
from distinf.spectral.gradients import scored_rows
from distinf.spectral.scores import stored_variants
from distinf.spectral.session import Session as SpectralSession
from distinf.tasks.identity import has_own_rows

PROCESS_BYTES = 0.65e9  # with the packages of a task: .68 measured with transformers
TRIED = 2  # rows on which a task is tried before a run
SCORE_BYTES = 100.0  # of each of a page's scores, ranked: measured on 800,000 rows with 16


def driver_bytes(session: Any) -> dict[str, float]:
    """By part; the model is gone when the report is made."""
    tried = max((_tried(each) for each in together(session)), default=0.0)
    reported = max((_reported(each) for each in together(session)), default=0.0)
    beside = {"the model, tried on two rows": tried, "the report": reported}
    largest = max(beside, key=lambda name: beside[name])
    return {"process": PROCESS_BYTES, largest: beside[largest]}


def _tried(session: Any) -> float:
    """Of a task whose rows are there from the start."""
    tasks = session.tasks.values()
    shapes = [task.shapes() for task in tasks if has_own_rows(task)]
    return max(
        (s.model_bytes + 4.0 * s.tuned + TRIED * s.activation_bytes_per_sample for s in shapes),
        default=0.0,
    )


def _reported(session: Any) -> float:
    if isinstance(session, SpectralSession):
        outline = session.outline
        of_row = outline.settings.targets.count * len(outline.losses)
        return SCORE_BYTES * scored_rows(outline) * of_row * len(stored_variants(outline))
    if isinstance(session, GramSession):
        settings = session.settings.scores
        cells = session.outline.cells.values()
        return sum(8.0 * cell.rows["train"] * len(cell.groups) for cell in cells) * len(
            settings.estimators
        )
    return 0.0
