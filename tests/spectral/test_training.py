"""Training over shards, against a closed form; its steps where memory runs out."""

import numpy as np
import pytest
import torch

from distinf.errors import InputError, Interrupted
from distinf.microbatch import MICROBATCHES
from distinf.spectral import train
from distinf.tasks import checkpoint
from distinf.tasks.tensor_task import TensorTask
from tests.support.blobs_task import loss, points
from tests.support.partial import points_config, run_until

STEPS, MOMENTUM = 3, 0.3


def normalised(settings: dict, seed: int) -> TensorTask:
    """BatchNorm first: its statistics are those of the rows, whatever was learnt."""
    return TensorTask(
        model=lambda: torch.nn.Sequential(
            torch.nn.BatchNorm1d(4, momentum=MOMENTUM), torch.nn.Linear(4, 2)
        ),
        data={"train": points(240, seed + 1), "evaluation": points(64, seed + 2)},
        losses={"cross-entropy": loss},
        seed=seed,
    )


def test_running_statistics_are_averaged_over_the_shards(tmp_path):
    changes = {"steps": STEPS, "shards": 4, "batch_size": 24, "checkpoint_every": STEPS}
    config = points_config(
        tmp_path / "run", task="tests.spectral.test_training:normalised", train=changes
    )
    session = run_until("train", config)
    mean_X, variance_X = torch.zeros(4).double(), torch.ones(4).double()
    for step in range(STEPS):
        rows = train.step_rows(session, step)
        shards_SNX = session.batch("train", rows)["x"].double().view(4, 6, 4)
        mean_X = (1 - MOMENTUM) * mean_X + MOMENTUM * shards_SNX.mean(1).mean(0)
        variance_X = (1 - MOMENTUM) * variance_X + MOMENTUM * shards_SNX.var(1).mean(0)
    found = train.trained_model(session)[0]
    torch.testing.assert_close(found.running_mean.double(), mean_X, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.running_var.double(), variance_X, rtol=1e-5, atol=1e-5)
    assert int(found.num_batches_tracked) == STEPS


HELD = 3  # rows of a training pass that fit


def crowded(settings: dict, seed: int) -> TensorTask:
    """Of a machine that holds HELD rows in training; "norm": rows that depend on each other."""
    made = normalised(settings, seed)
    if not settings.get("norm"):
        dropout, linear = settings.get("dropout", 0.0), torch.nn.Linear
        made._model = lambda: torch.nn.Sequential(
            linear(4, 8), torch.nn.Dropout(dropout), linear(8, 2)
        )

    def within(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if torch.is_grad_enabled() and model.training and len(batch["x"]) > settings["held"]:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return loss(model, batch)

    made.losses = {"cross-entropy": within}
    return made


def trained(folder, **settings):
    MICROBATCHES.forget()
    steps = {"steps": STEPS, "shards": 2, "batch_size": 24, "checkpoint_every": STEPS}
    task = "tests.spectral.test_training:crowded"
    config = points_config(folder, task=task, train=steps, settings=settings)
    session = run_until("train", config)
    unit = train.units(session.outline)[0][0]
    return session.arrays(unit), session.record(unit).get("microbatch")


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_step_that_does_not_fit_is_taken_in_parts(tmp_path, dropout):
    whole, noted = trained(tmp_path / "whole", held=24, dropout=dropout)
    assert noted is None
    cut, noted = trained(tmp_path / "cut", held=HELD, dropout=dropout)
    assert noted == {"train.batch_size": [12, 3]}
    if not dropout:  # which draws otherwise
        for name, values in whole.items():
            np.testing.assert_allclose(cut[name], values, rtol=1e-5, atol=1e-6)


def test_rows_that_depend_on_each_other_are_never_cut(tmp_path):
    with pytest.raises(Interrupted, match=r"CUDA out of memory.*lower train.batch_size"):
        trained(tmp_path / "run", held=HELD, norm=True)


class TwoHeads(torch.nn.Module):
    """The loss knows one of them."""

    def __init__(self):
        super().__init__()
        self.one, self.other = torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.one(x)


def two_heads(settings: dict, seed: int) -> TensorTask:
    return TensorTask(
        model=TwoHeads,
        data={"train": points(240, seed + 1), "evaluation": points(64, seed + 2)},
        losses={"cross-entropy": loss},
        seed=seed,
    )


def test_a_parameter_that_no_loss_depends_on_is_left_alone_as_by_torchs_optimizers(tmp_path):
    """It has no gradient, so it is not decayed either."""
    changes = {"steps": 4, "shards": 2, "batch_size": 24, "lr": 0.1, "weight_decay": 0.5}
    config = points_config(
        tmp_path / "run", task="tests.spectral.test_training:two_heads", train=changes
    )
    session = run_until("train", config)
    start, end = session.fresh_model(), train.trained_model(session)
    assert torch.equal(end.other.weight, start.other.weight)
    again = session.fresh_model()
    optimizer = session.task.optimizer(again.parameters(), lr=0.1, weight_decay=0.5)
    for step in range(4):
        for group in optimizer.param_groups:
            group["lr"] = session.settings.train.rate(step)
        optimizer.zero_grad()
        loss(again, session.batch("train", train.step_rows(session, step))).mean().backward()
        optimizer.step()
    torch.testing.assert_close(end.one.weight, again.one.weight)


def half_frozen(settings: dict, seed: int) -> TensorTask:
    """Its first layer stays as the seed drew it."""
    made = normalised(settings, seed)

    def model() -> torch.nn.Module:
        drawn = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        drawn[0].requires_grad_(False)
        return drawn

    made._model = model
    return made


def test_a_checkpoint_brings_its_frozen_weights_to_a_run_of_another_seed(tmp_path):
    task = {"task": "tests.spectral.test_training:half_frozen"}
    steps = {"steps": 2, "checkpoint_every": 2}
    first = run_until("train", points_config(tmp_path / "first", train=steps, **task))
    wanted = train.trained_model(first).state_dict()
    kept = {"steps": 0, "checkpoint": str(tmp_path / "first" / train.WEIGHTS)}
    other = run_until("train", points_config(tmp_path / "other", seed=7, train=kept, **task))
    assert not torch.equal(other.fresh_model().state_dict()["0.weight"], wanted["0.weight"])
    for name, values in train.trained_model(other).state_dict().items():
        assert torch.equal(values, wanted[name]), name


def test_a_checkpoint_without_frozen_weights_is_refused(tmp_path):
    model = half_frozen({}, 0).model()
    path = tmp_path / "trained.safetensors"
    path.write_bytes(checkpoint.encoded(checkpoint.unfrozen(model), {}))
    with pytest.raises(InputError, match=r"has no '0\.weight', '0\.bias'"):
        checkpoint.load_checked(str(path), model)
