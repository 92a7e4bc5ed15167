"""A loss that has no gradient, or a zero one for every row, is refused instead of ranked by."""

import pytest
import torch
from torch import nn

import distinf
from distinf.errors import InputError
from distinf.gram.settings import GradientSettings
from distinf.numerics.parameters import Layout
from distinf.tasks.methods import Pass, rehearsed_method
from tests.support.runs import run_points


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


@torch.no_grad()
def watched(model, batch):
    return loss(model, batch)


def accuracy(model, batch):
    return (model(batch["x"]).argmax(1) != batch["y"]).float()


def rehearsed(of, methods):
    data = {"x": torch.randn(8, 4), "y": torch.arange(8) % 2}
    split = {"train": data, "evaluation": {key: value + 9 for key, value in data.items()}}
    split["evaluation"]["y"] = data["y"]
    task = distinf.TensorTask(lambda: nn.Linear(4, 2), split, {"loss": of})
    model = task.model()
    passes = [Pass("loss", "train", 4), Pass("loss", "evaluation", 4)]
    return rehearsed_method(task, model, Layout.of(model), GradientSettings(), passes, methods)


@pytest.mark.parametrize("method", ["hooks", "vmap", "loop"])
@pytest.mark.parametrize("of", [watched, accuracy])
def test_a_loss_without_a_gradient_is_refused_by_every_method(of, method):
    with pytest.raises(InputError, match=r"no gradient with respect to .*\(weight, bias\)"):
        rehearsed(of, (method,))
    assert rehearsed(loss, (method,)) == method


def saturated(settings: dict, seed: int):
    """Every evaluation row lies where the loss is flat; its gradient is there, and zero."""

    def flat(model, batch):
        return model(batch["x"]).square().sum(1) * batch["weight"] + 1

    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
    weight = (torch.arange(40) < 30).float()
    data = {"train": {"x": x[:30], "weight": weight[:30]}}
    data["evaluation"] = {"x": x[30:], "weight": weight[30:]}
    return distinf.TensorTask(lambda: nn.Linear(4, 2), data, {"flat": flat}, seed=seed)


def test_targets_whose_gradients_are_all_zero_rank_nothing(tmp_path):
    small = {"curvature": {"steps": 3, "keep": 2, "samples": 20, "probes": 1},
             "train": {"steps": 2}, "actions": {"pool": 10, "non_targets": 3}}  # fmt: skip
    with pytest.raises(InputError, match=r"the flat gradient of every target is exactly zero"):
        run_points(tmp_path / "run", task=f"{__name__}:saturated", **small)
