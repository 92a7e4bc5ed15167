"""The curvature product is chosen before anything is trained, and the run says which it was."""

import re

import pytest
import yaml
from torch import nn

from distinf import cli
from distinf.config import resolve
from distinf.errors import InputError
from distinf.spectral import curvature
from distinf.spectral.settings import StageSettings
from distinf.tasks.tensor_task import TensorTask
from tests.numerics.cases import ByHand, CrossEntropy
from tests.support.blobs_task import points
from tests.support.runs import POINTS, merged, run_points

HERE = "tests.spectral.test_curvature_kinds"
SMALL = {
    "curvature": {"steps": 4, "keep": 2, "probes": 1, "shards": 2, "refine": 1},
    "scores": {"damping": 1.0, "negative": "keep"},
    "actions": {"pool": 20, "seeds": 1, "update": "second-order", "selections": ["helpful"]},
}


class Hand(nn.Module):
    def forward(self, x):
        return ByHand.apply(x)


def through(middle: nn.Module) -> TensorTask:
    """With a loss that can be split at the outputs."""
    data = {}
    for split, made in (("train", points(60, 1)), ("evaluation", points(20, 2))):
        data[split] = {"x": made["x"], "y": made["label"]}
    return TensorTask(
        lambda: nn.Sequential(nn.Linear(4, 5), middle, nn.Linear(5, 2)),
        data,
        {"own": CrossEntropy()},
    )


def silu(settings: dict, seed: int) -> TensorTask:
    return through(nn.SiLU())


def hand(settings: dict, seed: int) -> TensorTask:
    return through(Hand())


def once_split(settings: dict, seed: int) -> TensorTask:
    """A layer that torch differentiates once alone."""
    return through(nn.Hardsigmoid())


def test_a_run_takes_double_backward_where_forward_mode_does_not_pass(tmp_path):
    session = run_points(tmp_path / "run", task=f"{HERE}:silu", **SMALL)
    assert session.settings.curvature.kind == "hessian-double-backward"
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert stored["curvature"]["kind"] == "hessian"
    assert stored["provenance"]["decided"] == {"curvature.kind": "hessian-double-backward"}
    assert "double backward" in (tmp_path / "run" / "report" / "index.html").read_text()


def test_what_was_decided_is_in_the_key():
    def key(task: str, kind: str) -> str:
        changes = {"task": f"{HERE}:{task}", "curvature": {"kind": kind}, "out": "nowhere"}
        return resolve(merged(POINTS, changes)).context("nowhere")["keys"][""]["curvature"]

    assert key("silu", "hessian") == key("silu", "hessian-double-backward")


def test_where_no_product_passes_nothing_is_trained_and_the_way_out_works(tmp_path, capsys):
    with pytest.raises(InputError, match=rf"curvature.kind: .*distinf score {HERE}:hand"):
        run_points(tmp_path / "run", task=f"{HERE}:hand", **SMALL)
    assert not (tmp_path / "run").exists()
    out = str(tmp_path / "scored")
    assert cli.main(["score", f"{HERE}:hand", "--out", out, "--set", "runtime.kind=local"]) == 0


def test_where_only_gauss_newton_passes_it_is_named_and_works(tmp_path):
    with pytest.raises(InputError) as raised:
        run_points(tmp_path / "run", task=f"{HERE}:once_split", **SMALL)
    (kind,) = re.findall(r"; --set curvature\.kind=([\w-]+), or rank", str(raised.value))
    changes = merged(SMALL, {"curvature": {"kind": kind}, "actions": {"update": "first-order"}})
    session = run_points(tmp_path / "run", task=f"{HERE}:once_split", **changes)
    assert session.settings.curvature.kind == kind == "gauss-newton"


def test_where_forward_mode_passes_the_settings_stay_as_they_are():
    settings = StageSettings()
    assert curvature.decided("mine:task", through(nn.Tanh()), settings) == settings
