"""What a task's own errors become: one line that names the row and the user's line, exit code 2."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from distinf import cli
from distinf.errors import InputError
from distinf.tasks.task import error_context
from distinf.tasks.tensor_task import TensorTask
from tests.support.blobs_task import loss, points
from tests.support.runs import POINTS, run_points

LOCAL = ["--set", "runtime.kind=local"]


def made(data: dict | None = None, **more) -> TensorTask:
    data = data or {"train": points(40, 1), "evaluation": points(8, 2)}
    return TensorTask(lambda: nn.Linear(4, 2), data, {"own": more.pop("own", loss)}, **more)


def mislabelled(settings: dict, seed: int) -> TensorTask:
    """Training row 29 has a label that the model has no output for."""
    data = {"train": points(40, 1), "evaluation": points(8, 2)}
    data["train"]["label"][29] = 7
    return made(data)


class Counted(TensorTask):
    """The same rows, by the numbers that they have in the user's table."""

    def numbers(self, split: str) -> np.ndarray:
        return np.arange(self.rows(split)) + 5_000


def numbered(settings: dict, seed: int) -> TensorTask:
    plain = mislabelled(settings, seed)
    return Counted(plain._model, plain._data, plain.losses)


def leaving(model: nn.Module, batch: dict) -> torch.Tensor:
    if len(batch["label"]) > 2:
        sys.exit()
    return loss(model, batch)


def leaves(settings: dict, seed: int) -> TensorTask:
    return made(own=leaving)


def leaves_at_once(settings: dict, seed: int) -> TensorTask:
    sys.exit(0)


def unpicklable(model: nn.Module, batch: dict) -> torch.Tensor:
    if len(batch["label"]) > 2:
        raise Odd()
    return loss(model, batch)


class Odd(BaseException):
    """No Exception, cannot be printed, and holds what cannot be pickled."""

    def __init__(self) -> None:
        super().__init__(lambda: None)

    def __str__(self) -> str:
        raise RuntimeError("no text")


def odd(settings: dict, seed: int) -> TensorTask:
    return made(own=unpicklable)


def score(task: str, out, *more: str) -> int:
    name = f"tests.tasks.test_user_errors:{task}"
    return cli.main(["score", name, "--out", str(out / "run"), *LOCAL, *more])


@pytest.mark.parametrize(("task", "row"), [("mislabelled", "29"), ("numbered", "5029")])
def test_a_label_outside_the_classes_is_named_by_its_row(tmp_path, capsys, task, row):
    assert score(task, tmp_path) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert f"loss 'own' failed on training row {row} at " in told
    assert "blobs_task.py:" in told
    assert "Target 7 is out of bounds" in told
    assert "resume" not in told


def test_the_row_is_named_with_one_attempt_too(tmp_path, capsys):
    assert score("mislabelled", tmp_path, "--set", "runtime.attempts=1") == 2
    assert "training row 29 at" in capsys.readouterr().err


def test_a_row_is_named_in_training_too(tmp_path):
    runtime = {**POINTS["runtime"], "attempts": 2}
    with pytest.raises(InputError, match=r"loss 'own' failed on training row 29 at"):
        run_points(
            tmp_path / "run", task="tests.tasks.test_user_errors:mislabelled", runtime=runtime,
            actions={"pool": 20},
        )  # fmt: skip


@pytest.mark.parametrize("task", ["leaves", "leaves_at_once"])
def test_sys_exit_in_a_task_is_a_failure(tmp_path, capsys, task):
    assert score(task, tmp_path) == 2
    assert "test_user_errors.py:" in capsys.readouterr().err.splitlines()[-1]


def test_an_error_that_can_be_neither_printed_nor_pickled_is_one_line(tmp_path, capsys):
    assert score("odd", tmp_path) == 2
    assert "Odd: (its text cannot be had)" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            ValueError("many\nlines \x1b[31mand ünprintables"),
            r"many lines \x1b[31mand ünprintables",
        ),
        (RecursionError("deep"), "RecursionError: deep"),
        (StopIteration(), "StopIteration"),
        (GeneratorExit(), "GeneratorExit"),
        (KeyError("x" * 2_000), "x…"),
        (DeprecationWarning("soon"), "DeprecationWarning: soon"),
        (FileNotFoundError(2, "No such file", "a.csv"), "a.csv"),
    ],
)
def test_any_error_of_the_users_is_one_line(error, line):
    with pytest.raises(InputError) as raised, error_context("task(settings, seed)"):
        raise error
    assert line in str(raised.value)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize("error", [MemoryError(), ConnectionResetError(), TimeoutError()])
def test_what_may_pass_is_not_called_the_users_mistake(error):
    with pytest.raises(type(error)), error_context("task(settings, seed)"):
        raise error


def shorter_in_large_batches(settings: dict, seed: int) -> TensorTask:
    def short(model: nn.Module, batch: dict) -> torch.Tensor:
        values = loss(model, batch)
        return values[:-1] if len(values) > 5 else values

    return made(own=short)


def test_a_loss_of_another_length_in_larger_batches_is_the_users_to_mend(tmp_path, capsys):
    out = ["--out", str(tmp_path / "run"), *LOCAL]
    assert cli.main(["score", "tests.tasks.test_user_errors:shorter_in_large_batches", *out]) == 2
    assert "the loss returned shape" in capsys.readouterr().err


def wide_notes(settings: dict, seed: int) -> TensorTask:
    notes = {"chances": torch.rand(40, 3), "odd": [{"a": 10**400}] * 40, "huge": [-(10**400)] * 40}
    return made(notes=notes)


def test_notes_of_several_numbers_a_row_are_shown(tmp_path):
    out = ["--out", str(tmp_path / "run"), *LOCAL]
    assert cli.main(["score", "tests.tasks.test_user_errors:wide_notes", *out]) == 0
    assert "[0." in (tmp_path / "run/report/ranked_rows.csv").read_text()
