"""A finished spectral run is asked about evaluation rows that it did not have."""

import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from distinf.cli import main
from distinf.config import resolve
from distinf.engine.query import ask
from distinf.engine.run import execute
from distinf.spectral.evaluate import chosen_targets
from distinf.spectral.scores import stored_scores
from tests.support import blobs_task
from tests.support.runs import POINTS, merged

ROWS = 6


@dataclass(frozen=True)
class Asked:
    """seed: of the evaluation rows alone; 0: those of the run. shift: of the training rows."""

    seed: int = 0
    shift: float = 0.0


def task(settings: Asked, seed: int):
    made = blobs_task.task(blobs_task.Points(), seed)
    made._data["train"]["x"] += settings.shift
    if settings.seed:
        made._data["evaluation"] = blobs_task.points(ROWS + 4, settings.seed)
    return made


def run(out: Path, complement: str, **changes):
    raw = merged(POINTS, {"task": f"{__name__}:task", "out": str(out)})
    raw = merged(raw, {"scores": {"complement": complement}, "actions": {"seeds": 1}, **changes})
    return execute(resolve(raw), lambda *_: nullcontext())


@pytest.fixture(scope="module", params=[pytest.param("none", marks=pytest.mark.slow), "mean"])
def two(request, tmp_path_factory):
    """A run of 64 evaluation rows, and one that had the six others from the start."""
    folder = tmp_path_factory.mktemp(request.param)
    asked = {"settings": {"seed": 9}, "targets": {"ids": list(range(ROWS)), "count": ROWS}}
    return run(folder / "run", request.param), run(folder / "start", request.param, **asked)


def records(session) -> dict[str, dict]:
    found = Path(session.blobs.root).glob("ledger/*/*.json")
    return {str(path): json.loads(path.read_text()) for path in found}


@pytest.mark.parametrize("variant", ["classic", "theta-relative", "ell-relative", "newfluence"])
@pytest.mark.parametrize("passed", [False, True])
def test_scores_are_those_of_a_run_that_had_the_rows_from_the_start(two, variant, passed):
    finished, start = two
    before = records(finished)
    name = f"cross-entropy/{variant}{'/pass' if passed else ''}"
    root = finished.blobs.root
    (answer,) = ask(root, [("seed", 9)], lambda *_: nullcontext(), ranking=name).answers
    expected_QN = stored_scores(start, "cross-entropy", variant)
    expected_QN = expected_QN[np.argsort(chosen_targets(start).ids)]
    assert (answer.scores_QN.shape, expected_QN.shape) == ((ROWS + 4, 240), (ROWS, 240))
    exact = passed or finished.settings.scores.complement == "none"
    same = np.allclose(answer.scores_QN[:ROWS], expected_QN, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert same == exact  # the stored coordinates have nothing from outside of the Ritz vectors
    fresh = {record["stage"] for path, record in records(finished).items() if path not in before}
    assert fresh <= {"evaluate", "queries"} | ({"gradients", "scores"} if passed else set())


def test_the_command_says_what_is_missing_and_the_run_verifies(two, capsys):
    root = two[0].blobs.root
    assert main(["query", root, "--set", "seed=9", "--top", "2"]) == 0
    told = capsys.readouterr().out
    assert "by cross-entropy/ell-relative" in told
    missing = "what lies outside of the Ritz vectors is left out; --ranking "
    assert (missing in told) == (two[0].settings.scores.complement != "none")
    assert main(["verify", root]) == 0
    assert main(["query", root, "--set", "shift=1.0"]) == 2
    assert "make the training rows others" in capsys.readouterr().err
    assert main(["query", root, "--queries", "rows.csv"]) == 2
    assert "the task of this run reads none from a file" in capsys.readouterr().err
