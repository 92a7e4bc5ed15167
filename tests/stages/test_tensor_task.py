"""An evaluation set of training rows is refused, unless it is meant."""

import pytest
import torch

from distinf.errors import InputError
from distinf.stages.tensor_task import TensorTask


def task_of(train, evaluation, **options):
    data = {"train": train, "evaluation": evaluation}
    losses = {"loss": lambda model, batch: model(batch["x"]).square().mean(1)}
    return TensorTask(lambda: torch.nn.Linear(3, 2), data, losses, **options)


def rows(seed, count=20):
    generator = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(count, 3, generator=generator),
        "label": torch.randint(2, (count,), generator=generator),
    }


def test_shared_rows_are_counted_and_named():
    train, evaluation = rows(0), rows(1, 9)
    for row, twin in ((2, 19), (3, 0), (8, 4), (5, 5)):
        for name, values in train.items():
            evaluation[name][row] = values[twin]
    message = (
        r"4 of 9 evaluation rows are training rows too \(2 = training row 19, 3 = training row 0, "
        r"5 = training row 5, …\); .* say shared_rows=True if that is meant$"
    )
    with pytest.raises(InputError, match=message):
        task_of(train, evaluation).digests()
    assert task_of(train, evaluation, shared_rows=True).digests()


def test_a_row_is_all_of_its_columns():
    train, evaluation = rows(0), rows(1)
    evaluation["x"] = train["x"].clone()
    evaluation["label"] = 1 - train["label"]
    assert task_of(train, evaluation).digests()
    evaluation["label"][7] = train["label"][7]
    with pytest.raises(InputError, match=r"1 of 20 .*\(7 = training row 7\)"):
        task_of(train, evaluation).digests()


def test_columns_of_one_split_alone_do_not_tell_rows_apart():
    train, evaluation = rows(0), rows(1)
    evaluation["x"][3], evaluation["label"][3] = train["x"][6], train["label"][6]
    evaluation["weight"] = torch.arange(20.0)
    with pytest.raises(InputError, match=r"3 = training row 6"):
        task_of(train, evaluation).digests()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.bool, torch.float64, torch.uint8])
def test_columns_may_be_of_any_type_and_order_in_memory(dtype):
    train = {"x": torch.randn(8, 3, 4).to(dtype).transpose(1, 2), "y": torch.zeros(8)}
    evaluation = {"x": torch.ones(5, 4, 3).to(dtype), "y": torch.ones(5)}
    assert task_of(train, evaluation).digests()
