"""Rows that a spectral run was not trained on, scored as if added: as in a run that had them among
its training split, behind those that it was trained on."""

import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from distinf.cli import main
from distinf.config import resolve
from distinf.engine.query import ask
from distinf.engine.run import execute
from distinf.spectral.evaluate import chosen_targets
from distinf.spectral.scores import stored_scores
from distinf.spectral.solves import converged_solutions
from tests.support import blobs_task
from tests.support.runs import POINTS, merged

OWN, CANDIDATES, ASKED = 240, 21, 6
VARIANTS = ["classic", "theta-relative", "ell-relative"]


@dataclass(frozen=True)
class Settings:
    """pool: the training split is the run's (own), the candidates, or both. seed: of the
    evaluation rows; 0: those of the run."""

    pool: str = "own"
    seed: int = 0


def task(settings: Settings, seed: int):
    made = blobs_task.task(blobs_task.Points(), seed)
    own, others = made._data["train"], blobs_task.points(CANDIDATES, 77)
    others["x"][4] = torch.inf
    pools = {"own": [own], "candidates": [others], "both": [own, others]}[settings.pool]
    made._data["train"] = {key: torch.cat([part[key] for part in pools]) for key in own}
    if settings.seed:
        made._data["evaluation"] = blobs_task.points(ASKED + 4, settings.seed)
    made._classes = ("left", "right")
    made._probabilities = lambda model, batch: model(batch["x"]).softmax(1)
    return made


def run(out: Path, complement: str, **changes):
    raw = merged(POINTS, {"task": f"{__name__}:task", "out": str(out)})
    damped = {"damping": 0.5, "negative": "keep"}
    raw = merged(raw, {"scores": {"complement": complement, "ekfac": True, **damped}})
    raw = merged(raw, {"curvature": {"refine": int(complement == "mean"), "refine_steps": 200}})
    raw = merged(raw, {"actions": {"seeds": 1, "steps": 1}, **changes})
    return execute(resolve(raw), lambda *_: nullcontext())


BOTH = {"settings": {"pool": "both"}, "train": {"rows": OWN}, "gradients": {"candidates": "all"}}


@pytest.fixture(scope="module", params=[pytest.param("none", marks=pytest.mark.slow), "mean"])
def two(request, tmp_path_factory):
    """A run, and one whose training split had the candidates from the start."""
    folder = tmp_path_factory.mktemp(request.param)
    return run(folder / "run", request.param), run(folder / "start", request.param, **BOTH)


def asked(session, ranking: str, changes=(), **more):
    others = [("pool", "candidates")]
    found = ask(
        session.blobs.root, changes, lambda *_: nullcontext(),
        candidates=others, ranking=f"cross-entropy/{ranking}", **more,
    )  # fmt: skip
    return found.answers[0]


@pytest.mark.parametrize("variant", [*VARIANTS, "ekfac"])
def test_scores_are_those_of_a_run_that_had_the_candidates_from_the_start(two, variant):
    finished, start = two
    before = set(Path(finished.blobs.root).glob("ledger/*/*.json"))
    answer = asked(finished, variant)
    refined = finished.settings.scores.complement == "mean"
    assert bool(converged_solutions(finished)) == refined  # a solve is among the scores
    order = np.argsort(chosen_targets(start).ids)
    expected_QN = stored_scores(start, "cross-entropy", variant)[order][:, OWN:]
    assert answer.scores_QN.shape == (2, CANDIDATES)
    assert np.isnan(answer.scores_QN[:, 4]).all()
    assert np.isfinite(np.delete(answer.scores_QN, 4, 1)).all()
    np.testing.assert_allclose(answer.scores_QN, expected_QN, rtol=1e-4, atol=1e-6)
    fresh = set(Path(finished.blobs.root).glob("ledger/*/*.json")) - before
    assert {json.loads(path.read_text())["stage"] for path in fresh} <= {"gradients", "scores"}


@pytest.mark.parametrize(
    "variant",
    [VARIANTS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS[1:])],
)
def test_later_queries_and_candidates_at_once(two, tmp_path, variant):
    complement = two[0].settings.scores.complement
    targets = {"ids": list(range(ASKED)), "count": ASKED}
    late = merged(BOTH, {"settings": {"seed": 9}, "targets": targets, "curvature": {"refine": 0}})
    start = run(tmp_path / "start", complement, **late)
    answer = asked(two[0], variant, [("seed", 9)])
    order = np.argsort(chosen_targets(start).ids)
    expected_QN = stored_scores(start, "cross-entropy", variant)[order][:, OWN:]
    assert answer.scores_QN.shape == (ASKED + 4, CANDIDATES)
    np.testing.assert_allclose(answer.scores_QN[:ASKED], expected_QN, rtol=1e-4, atol=1e-6)


def test_what_is_killed_resumes_to_equal_bytes(two):
    root = Path(two[0].blobs.root)
    wanted = asked(two[0], "classic", [("seed", 11)]).scores_QN.tobytes()
    kept = sorted(root.glob("ledger/*/*.json"), key=lambda path: path.stat().st_mtime_ns)
    for path in kept[-2:]:  # of the candidates' gradients and scores
        assert json.loads(path.read_text())["stage"] in ("gradients", "scores")
        path.unlink()
    assert asked(two[0], "classic", [("seed", 11)]).scores_QN.tobytes() == wanted


def test_the_command(two, capsys):
    root = two[0].blobs.root
    assert main(["query", root, "--candidates", "--set", "pool=candidates", "--top", "2"]) == 0
    told = capsys.readouterr().out
    assert "Candidates by query" in told
    assert "scored as if added to training: by the run's model and curvature" in told
    assert main(["verify", root]) == 0


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--candidates"], "say by --set which of the task's settings makes others"),
        (["--candidates", "rows.csv"], "the task of this run reads none from a file; say by"),
        (["--candidates", "--set", "seed=9"], "these candidates are the run's own training rows"),
        (["--candidates", "--set", "pool=own"], "these candidates are the run's own training rows"),
        (["--candidates", "--set", "pol=own"], "unknown key"),
        (["--candidates", "--set", "pool=candidates", "--ranking", "cross-entropy/newfluence"],
         "newfluence takes a row's own part out of the curvature, and a candidate has none in it"),
        (["--candidates", "--set", "pool=candidates", "--ranking", "cross-entropy/classic/pass"],
         "use one of"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_one_line(two, words, why, capsys):
    assert main(["query", two[0].blobs.root, *words]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert why in line
