"""A run's rehearsal refuses a loss that has no gradient, before anything is computed."""

import pytest
import torch
from torch import nn

import distinf
from distinf.errors import InputError
from distinf.numerics.parameters import Layout
from distinf.stages.gram.settings import GradientSettings
from distinf.stages.methods import Pass, rehearsed_method


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
