"""Every process of a run has the same data and model, or the run is refused before any work."""

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from distinf import cli
from distinf.config import resolve
from distinf.engine.session import prepare
from distinf.errors import InputError
from distinf.tasks.identity import refuse_other, rows_of, seen, seen_model, stated
from distinf.tasks.tensor_task import TensorTask
from tests.support.blobs_task import loss, points
from tests.support.runs import run_points

HERE = "tests.tasks.test_same_data"
_builds = itertools.count()


def of(train: dict, model=None) -> TensorTask:
    data = {"train": train, "evaluation": points(10, 2)}
    return TensorTask(model or (lambda: nn.Linear(4, 2)), data, {"own": loss})


def unseeded(settings: dict, seed: int) -> TensorTask:
    """Other rows in every build, in one process too."""
    return of(points(60, 1_000 + next(_builds)))


def by_process(settings: dict, seed: int) -> TensorTask:
    """The same rows in one process, others in every other."""
    return of(points(60, os.getpid()))


class Stated(TensorTask):
    """Says the same of itself whatever its data and model are."""

    def digests(self) -> dict[str, str]:
        return {"data": "mine, version 1"}


def silent_rows(settings: dict, seed: int) -> TensorTask:
    made = unseeded(settings, seed)
    return Stated(made._model, made._data, made.losses)


def silent_model(settings: dict, seed: int) -> TensorTask:
    made = Stated(lambda: nn.Linear(4, 2), of(points(60, 1))._data, {"own": loss}, seed=seed)
    made.model = lambda: nn.Linear(4, 2)  # not from the seed
    return made


@pytest.mark.parametrize(
    ("task", "named"), [("unseeded", r"data\.train\.x"), ("silent_rows", r"batch\('train'\)")]
)
def test_other_rows_in_each_build_are_refused_before_any_work(tmp_path, task, named):
    with pytest.raises(InputError, match=rf"{named}.* differ between .*seed what draws them"):
        run_points(tmp_path / "run", task=f"{HERE}:{task}")
    assert not (tmp_path / "run").exists()


def test_another_model_in_each_build_is_refused_before_anything_is_committed(tmp_path):
    with pytest.raises(InputError, match=r"model\(\) differ"):
        run_points(tmp_path / "run", task=f"{HERE}:silent_model", actions={"pool": 20})
    assert not list((tmp_path / "run" / "ledger").rglob("*.json"))


def unseeded_loss(settings: dict, seed: int) -> TensorTask:
    weight = 1.0 + next(_builds)
    made = of(points(60, 1))
    return TensorTask(made._model, made._data, {"own": lambda m, b: weight * loss(m, b)})


def unseeded_teacher(settings: dict, seed: int) -> TensorTask:
    teacher, made = nn.Linear(4, 2), of(points(60, 1))

    def distance(model, batch):
        return (model(batch["x"]) - teacher(batch["x"])).square().sum(1)

    return TensorTask(made._model, made._data, {"own": distance})


@pytest.mark.parametrize("task", ["unseeded_loss", "unseeded_teacher"])
def test_another_loss_in_each_build_is_refused_before_any_work(tmp_path, capsys, task):
    words = ["--out", str(tmp_path / "run"), "--set", "runtime.kind=local"]
    assert cli.main(["score", f"{HERE}:{task}", *words]) == 2
    assert "task: loss 'own' differ between two builds" in capsys.readouterr().err
    assert not list(tmp_path.rglob("ledger/**/*.json"))


def test_losses_may_differ_by_rounding_between_processes():
    first = {"loss 'own'": "1.000000e+00 nan 2.500000e-03"}
    refuse_other(first, {"loss 'own'": "1.000010e+00 nan 2.500010e-03"})
    with pytest.raises(InputError, match="loss 'own' differ"):
        refuse_other(first, {"loss 'own'": "1.100000e+00 nan 2.500000e-03"})
    coarse = TensorTask(lambda: nn.Linear(4, 2).bfloat16(), of(points(60, 1))._data, {"own": loss})
    assert "loss 'own'" not in seen_model(coarse)


@pytest.mark.ray
@pytest.mark.slow
def test_a_worker_with_other_rows_than_the_driver_is_refused(tmp_path, capsys):
    workers = ["--set", "runtime.workers=1", "--set", "runtime.dashboard=false"]
    out = str(tmp_path / "run")
    assert cli.main(["score", f"{HERE}:by_process", "--out", out, *workers]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "data.train.x" in told
    assert "differ between two builds of the task" in told
    assert not list(Path(out, "ledger").rglob("*.json"))


@pytest.mark.parametrize("recipe", ["spectral", "gram"])
def test_a_worker_of_either_recipe_compares_before_its_first_unit(tmp_path, recipe):
    raw = {"task": "tests.support.blobs_task:task", "recipe": recipe, "out": "x"}
    context = resolve(raw).context(str(tmp_path))
    assert prepare(context, torch.device("cpu")).outline
    context["seen"][""]["batch('train')"] = "another"
    with pytest.raises(InputError, match=r"batch\('train'\) differ"):
        prepare(context, torch.device("cpu"))


def test_what_is_compared_is_what_a_row_holds():
    one, two = of(points(60, 1)), of(points(60, 1))
    assert seen(one, stated(one)) == seen(two, stated(two))
    two._data["train"]["x"][30, 0] += 1e-6  # the row in the middle
    assert seen(one, {}) != seen(two, {})
    with pytest.raises(InputError, match=r"task: batch\('train'\) differ"):
        refuse_other(seen(one, {}), seen(two, {}))


def test_a_model_is_known_by_its_entries():
    torch.manual_seed(0)
    model = nn.Linear(300, 70)
    before = seen_model(of(points(60, 1)), model)
    with torch.no_grad():
        model.weight += 1e-3
    assert seen_model(of(points(60, 1)), model) != before


@pytest.mark.parametrize("rows", [0, -1, 2.0, None])
def test_a_split_of_no_rows_is_refused(rows):
    made = of(points(60, 1))
    made.rows = lambda split: rows
    with pytest.raises(InputError, match="needs one row of 'train' at least"):
        rows_of(made, "train")


def test_a_number_of_numpys_is_a_number_of_rows():
    made = of(points(60, 1))
    made.rows = lambda split: np.int64(60)
    assert type(rows_of(made, "train")) is int


@pytest.mark.parametrize("digests", [None, {"data": 3}, {3: "data"}, "text"])
def test_digests_that_are_no_texts_are_refused(digests):
    made = of(points(60, 1))
    made.digests = lambda: digests
    with pytest.raises(InputError, match=r"digests\(\) returned .*return texts by name"):
        stated(made)
