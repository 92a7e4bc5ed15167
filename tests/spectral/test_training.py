"""Training over shards, against a closed form."""

import torch

from distinf.spectral import train
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
