"""The method of a run's gradients: chosen in the rehearsal, kept, and refused where it is wrong."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from distinf.config import load, resolve
from distinf.engine.run import checked_session, execute, open_session, reopen
from distinf.errors import InputError
from distinf.gram import configurations, gradients, stored_gradients
from distinf.gram.session import TRAIN
from distinf.numerics.parameters import Layout
from distinf.spectral import gradients as basis_gradients
from distinf.spectral import queries
from distinf.tasks.tensor_task import TensorTask
from tests.support.runs import all_scores, silent

KINDS = ("embedding", "tied", "several", "conv", "norm", "linear", "rows one by one", "mixing")


class Net(nn.Module):
    """Ids [n, 4] -> [n, 2], through layers of a kind."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.words = nn.Embedding(9, 6).requires_grad_(kind in ("embedding", "tied", "several"))
        self.places = nn.Embedding(4, 6) if kind == "several" else None
        self.conv = nn.Conv1d(6, 6, 3) if kind == "conv" else None
        self.norm = nn.LayerNorm(6) if kind == "norm" else None
        self.head = nn.Linear(6, 9 if kind == "tied" else 2)
        if kind == "tied":
            self.head.weight = self.words.weight

    def forward(self, ids):
        x = self.words(ids)
        if self.kind == "rows one by one":
            return torch.stack([self.head(row.mean(0)) for row in x])
        if self.places is not None:
            x = x + self.places(torch.arange(4))
        if self.conv is not None:
            x = self.conv(x.mT).tanh().mT
        if self.norm is not None:
            x = self.norm(x)
        return self.head(x.mean(1))[:, :2]


def loss(model, batch):
    values = functional.cross_entropy(model(batch["ids"]), batch["y"], reduction="none")
    return values / values.mean() if model.kind == "mixing" else values


def dropped(model, batch):
    return functional.dropout(loss(model, batch), 0.5)


def task(settings: dict, seed: int):
    random = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 9, (60, 4), generator=random)
    data = {"ids": ids, "y": (ids[:, 0] > 4).long()}
    losses = {"loss": loss} | ({"dropped": dropped} if settings.get("dropped") else {})
    return TensorTask(
        lambda: Net(settings["kind"]),
        {"train": {k: v[:40] for k, v in data.items()},
         "evaluation": {k: v[40:] for k, v in data.items()}},
        losses, seed=seed, shared_rows=True,
    )  # fmt: skip


def config_of(out, kind, **changes):
    gradients = changes.pop("gradients", {})
    return resolve({
        "task": "tests.tasks.test_methods:task", "recipe": "gram", "out": str(out),
        "runtime": {"kind": "local"}, "settings": {"kind": kind},
        "gradients": {"rows_per_batch": 16, **gradients}, "actions": {"configurations": []},
        **changes,
    })  # fmt: skip


def ranked(out, kind, **changes):
    """All scores of a run to its end, and the method that it took."""
    session = execute(config_of(out, kind, **changes), silent)
    return configurations.all_scores(session, session.cell("")), session.settings.gradients.method


CHOSEN = {"several": "vmap", "tied": "vmap", "rows one by one": "vmap"}


OFTEN = ("linear", "conv", "several")


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[] if kind in OFTEN else [pytest.mark.slow])
        for kind in KINDS
        if kind != "mixing"
    ],
)
def test_every_method_ranks_every_kind_of_layer_alike_or_names_one_that_does(kind, tmp_path):
    expected, method = ranked(tmp_path / "loop", kind, gradients={"method": "loop"})
    assert method == "loop"
    found, method = ranked(tmp_path / "chosen", kind)
    assert method == CHOSEN.get(kind, "hooks")
    same(found, expected)
    for method in ("hooks", "vmap"):
        changes = {"gradients": {"method": method}}
        if method == "hooks" and kind in CHOSEN:
            with pytest.raises(InputError, match=r"--set gradients\.method=loop"):
                ranked(tmp_path / method, kind, **changes)
        else:
            same(ranked(tmp_path / method, kind, **changes)[0], expected)


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        scale = np.nanmax(np.abs(values))
        np.testing.assert_allclose(found[name], values, rtol=1e-3, atol=1e-3 * scale)


def test_the_choice_is_stored_and_a_resumed_run_has_the_same(tmp_path):
    session = open_session(config_of(tmp_path / "run", "several"))
    assert session.settings.gradients.method == "vmap"
    stored = load(str(tmp_path / "run"))
    assert stored.method == "vmap"
    again = open_session(config_of(tmp_path / "run", "several"))
    reopened = reopen(str(tmp_path / "run"))
    explicit = open_session(config_of(tmp_path / "other", "several", gradients={"method": "vmap"}))
    for other in (again, reopened, explicit):
        assert other.keys == session.keys
    unlike = open_session(config_of(tmp_path / "loop", "several", gradients={"method": "loop"}))
    cells = [s.keys for s in (session, unlike)]
    assert cells[0]["train"] == cells[1]["train"]
    assert cells[0]["gradients"] != cells[1]["gradients"]


def test_a_variation_has_the_runs_choice_and_may_have_its_own(tmp_path):
    varied = {"more": {"gradients.rows_per_unit": 8}, "own": {"gradients.method": "loop"}}
    session = open_session(config_of(tmp_path / "run", "several", variations=varied))
    found = {n: s.settings.gradients.method for n, s in session.variations.items()}
    assert found == {"more": "vmap", "own": "loop"}
    again = open_session(config_of(tmp_path / "run", "several", variations=varied))
    assert {n: s.keys for n, s in again.variations.items()} == {
        n: s.keys for n, s in session.variations.items()
    }


@pytest.mark.parametrize("method", [None, "hooks", "vmap", "loop"])
def test_a_loss_that_mixes_rows_is_refused_before_anything_is_written(method, tmp_path):
    config = config_of(tmp_path / "run", "mixing", gradients={"method": method})
    with pytest.raises(InputError, match="depends on the other rows"):
        execute(config, silent)
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_the_check_can_be_turned_off_and_is_no_part_of_the_run(tmp_path):
    config = config_of(tmp_path / "run", "mixing", gradients={"check": False, "method": "hooks"})
    assert checked_session(config)[0].settings.gradients.method == "hooks"
    on = open_session(config_of(tmp_path / "on", "linear"))
    off = open_session(config_of(tmp_path / "on", "linear", gradients={"check": False}))
    assert on.keys == off.keys


def test_the_basis_route_scores_layers_that_hooks_do_not_know(tmp_path):
    def found(method):
        raw = config_of(tmp_path / str(method), "several").model_dump(include={"out", "runtime"})
        changes = {
            "task": "tests.tasks.test_methods:task", "settings": {"kind": "several"},
            "gradients": {"method": method}, "train": {"steps": 4, "batch_size": 8},
            "trajectory": {"checkpoints": 1}, "targets": {"count": 2},
            "curvature": {"steps": 3, "keep": 2, "samples": 20, "probes": 1},
            "scores": {"damping": 0.1, "negative": "absolute"},
            "actions": {"pool": 30, "seeds": 1, "steps": 1, "selections": ["random"]},
        }  # fmt: skip
        session = execute(resolve({**raw, **changes}), silent)
        return all_scores(session), session.settings.gradients.method

    expected, _ = found("loop")
    values, method = found(None)
    assert method == "vmap"
    same(values, expected)


def test_keys_of_the_spectral_recipe_hold_the_method_and_not_the_check(tmp_path):
    raw = config_of(tmp_path / "run", "linear").model_dump(include={"task", "out", "runtime"})

    def keys(**gradients):
        changes = {"settings": {"kind": "linear"}, "gradients": gradients}
        return resolve({**raw, **changes}).context(str(tmp_path))["keys"][""]

    hooks, loop = keys(method="hooks"), keys(method="loop")
    assert keys(method="hooks", check=False) == hooks
    assert {name for name in hooks if hooks[name] != loop[name]} >= {
        "queries", "gradients", "scores", "trajectory",
    }  # fmt: skip
    assert hooks["curvature"] == loop["curvature"]


def test_query_losses_of_the_basis_route_are_checked_too(tmp_path):
    changes = {"recipe": "spectral", "settings": {"kind": "linear", "dropped": True}, "actions": {},
               "gradients": {"chunk": 8, "rows_per_batch": 16}}  # fmt: skip
    changes["gradients"].pop("rows_per_batch")
    raw = config_of(tmp_path / "run", "linear").model_dump(include={"task", "out", "runtime"})
    with pytest.raises(InputError, match="is not a function of model and row"):
        checked_session(resolve({**raw, **changes}))


def test_a_worker_looks_again_at_the_model_that_was_trained(tmp_path, monkeypatch):
    """A task may give another model later; here the driver's was fine and the worker's is not."""
    session = open_session(config_of(tmp_path / "run", "linear"))
    unit = stored_gradients.split_units(session.settings, session.cell(""), TRAIN)[0]
    model = Net("rows one by one")
    monkeypatch.setattr(gradients, "trained_model", lambda *_: model)
    with pytest.raises(InputError, match=r"--set gradients\.method=loop"):
        gradients.body(session, unit, "1-0")


def test_the_basis_routes_workers_look_again_too(tmp_path, monkeypatch):
    raw = {
        "task": "tests.tasks.test_methods:task", "out": str(tmp_path / "run"),
        "runtime": {"kind": "local"}, "settings": {"kind": "linear"},
        "curvature": {"steps": 3, "keep": 2, "samples": 20}, "actions": {"pool": 30},
    }  # fmt: skip
    session = open_session(resolve(raw))
    assert session.settings.gradients.method == "hooks"
    model = Net("rows one by one")
    monkeypatch.setattr(basis_gradients, "trained_layers", lambda _: (model, Layout.of(model)))
    (unit, _), *_ = basis_gradients.units(session.outline)
    with pytest.raises(InputError, match=r"--set gradients\.method=loop"):
        basis_gradients.body(session, unit, "1-0")
    model = Net("linear")
    original = model.head.forward
    model.head.forward = lambda x: 2 * original(x)  # which hooks do not see
    batch = session.batch("evaluation", np.arange(2))
    with pytest.raises(InputError, match=r"one row at a time.*gradients\.method=loop"):
        queries.target_gradients(session, model, loss, batch, Layout.of(model))
