"""Everything that a task has is tried before anything is computed, and refused in one line."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from distinf import cli
from distinf.errors import InputError
from distinf.gram.task import Fit
from distinf.gram.train import checked_fit, load_weights
from distinf.spectral.settings import TrainSettings
from distinf.spectral.train import try_step
from distinf.tasks.rehearsal import checked_shapes, few_rows, rehearse
from distinf.tasks.shapes import Shapes
from distinf.tasks.task import Wording
from distinf.tasks.tensor_task import TensorTask
from tests.support.blobs_task import loss, points
from tests.support.runs import run_points


def made(rows: int = 40, queries: int = 8, kind: type = TensorTask) -> Any:
    data = {"train": points(rows, 1), "evaluation": points(queries, 2)}
    return kind(lambda: nn.Linear(4, 2), data, {"own": loss})


def columns(**more: Any) -> Any:
    """An evaluate() that returns these columns beside the metric."""
    return lambda model, batch: (
        {"metric": loss(model, batch)}
        | {name: value(batch) if callable(value) else value for name, value in more.items()}
    )


def one_more(batch: dict) -> torch.Tensor:
    return torch.ones(len(batch["x"]) + 1)


def halves(batch: dict) -> torch.Tensor:
    return torch.full((len(batch["x"]),), 0.5)


WRONG: dict[str, tuple[str, Any, str]] = {
    "no losses": ("losses", {}, "losses is a dict of 0"),
    "a loss that is no function": ("losses", {"own": 3}, r"losses\['own'\] is a int"),
    "a loss of a mean": ("losses", {"own": lambda m, b: loss(m, b).mean()}, "no mean over samples"),
    "a loss that is a float": ("losses", {"own": lambda m, b: 0.5}, "is a float, not a tensor"),
    "a loss of integers": ("losses", {"own": lambda m, b: b["label"]}, "has no gradient"),
    "no model": ("model", lambda: None, r"model\(\) returned None"),
    "a metric that is no name": ("metric", 3, "metric is 3"),
    "no metric": ("evaluate", lambda m, b: {"error": loss(m, b)}, "no column 'metric'"),
    "no axis": ("axis", "snr", "no column 'snr', which is the task's axis"),
    "no reference": ("reference", "genie", "no column 'genie'"),
    "no columns": ("evaluate", lambda m, b: loss(m, b), "not columns by name"),
    "a column too long": ("evaluate", columns(odd=one_more), "column 'odd' has shape"),
    "a column of a list": ("evaluate", columns(odd=[1, 2]), "column 'odd' is a list of 2"),
    "right by halves": ("evaluate", columns(correct=halves), "neither 0 nor 1"),
    "another row": ("batch", lambda s, ids: {"x": torch.ones(3, 4)}, r"has 3 rows; return the"),
    "no optimizer": ("optimizer", lambda p, lr, weight_decay: p, r"has no step\(\)"),
    "an optimizer of less": ("optimizer", lambda p, lr: None, r"optimizer\(\) failed at"),
    "lengths of one split": ("lengths", lambda s: np.ones(40, int), r"each of the 8 rows"),
    "lengths in words": ("lengths", lambda s: np.full(40, 0.5), r"lengths\('train'\) is float64"),
    "too few flips": ("flipped", lambda: np.zeros(39, bool), "each of the 40 training rows"),
    "flips by name": ("flipped", lambda: np.full(40, "yes"), r"flipped\(\) is <U3"),
    "a summary in words": ("summary", lambda: "fine", r"summary\(\) returned a str"),
    "a metric without a name": ("wording", Wording(metric=None), r"wording.metric is None"),
    "a column of images": ("wording", Wording(columns=("x",)), r"wording.columns' 'x' has shape"),
    "a fit of one": ("fit", lambda kept: None, r"fit cannot be called as fit\(kept, recipe"),
    "a wording in words": ("wording", "rows", "wording is a str"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_member_of_a_task_is_one_line(case):
    name, value, line = WRONG[case]
    task = made()
    setattr(task, name, value)
    with pytest.raises(InputError, match=line) as raised:
        rehearse(task)
    assert "\n" not in str(raised.value)


def test_a_task_that_is_right_passes():
    rehearse(made())
    rehearse(made(rows=2, queries=1))


def test_one_training_row_is_refused():
    with pytest.raises(InputError, match="one training row has no others"):
        rehearse(made(rows=1))


def test_a_loss_that_fails_on_a_single_row_is_found():
    task = made()
    task.losses = {"own": lambda m, b: nn.functional.mse_loss(
        m(b["x"])[:, 0].squeeze(), b["x"][:, 0], reduction="none"
    ).squeeze()}  # fmt: skip
    with pytest.raises(InputError, match=r"shape \(\) for one row"):
        rehearse(task)


@pytest.mark.parametrize("shapes", [None, (1, 2, 3), Shapes(-1, 1.0, 1.0), Shapes(1, np.nan, 1.0)])
def test_shapes_that_are_none_are_refused(shapes):
    task = made()
    task.shapes = lambda: shapes
    with pytest.raises(InputError, match=r"shapes\(\)"):
        checked_shapes(task)


def test_rows_that_are_made_in_the_run_are_made_twice_over_for_the_rehearsal():
    class Made(TensorTask):
        def rows_per_unit(self, split: str) -> int:
            return 4

        def generate(self, split: str, start: int, stop: int) -> dict[str, np.ndarray]:
            return {"x": np.ones((stop - start, 4), np.float32), "label": np.zeros(stop, np.int64)}

        def attach(self, split: str, rows: Any) -> None:
            self._data = {**self._data, split: rows}

        def rows(self, split: str) -> int:
            return 8

        def batch(self, split: str, ids: np.ndarray) -> dict[str, torch.Tensor]:
            found = self._data[split].take(ids)
            return {name: torch.from_numpy(values) for name, values in found.items()}

    task = made(kind=Made)
    few_rows(task)
    rehearse(task)
    task.generate = lambda split, start, stop: {"x": np.ones((7, 4))}
    with pytest.raises(InputError, match=r"generate\('train', 0, 2\) returned arrays"):
        few_rows(task)


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_an_optimizer_that_can_step_passes_with_sparse_gradients_too(optimizer):
    task = made()
    task._optimizer = optimizer
    words = nn.Embedding(9, 3, sparse=True)
    task.model = lambda: nn.Sequential(words, nn.Flatten(), nn.Linear(12, 2))
    task.losses = {"own": lambda m, b: nn.functional.cross_entropy(
        m(b["x"].abs().long().clamp(max=8)), b["label"], reduction="none"
    )}  # fmt: skip
    try_step(task, TrainSettings())


def test_an_optimizer_that_needs_more_than_gradients_is_refused_before_training():
    task = made()
    task.optimizer = lambda parameters, lr, weight_decay: torch.optim.LBFGS(parameters, lr)
    with pytest.raises(InputError, match=r"a training step .*closure"):
        try_step(task, TrainSettings())


def now_and_then(settings: dict, seed: int) -> TensorTask:
    """A column for batches of up to two rows only."""
    task = made(queries=10)
    task.evaluate = lambda model, batch: (
        {"metric": loss(model, batch)}
        | ({"more": loss(model, batch)} if len(batch["x"]) <= 2 else {})
    )
    return task


def test_a_column_of_some_rows_only_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"'more' for some evaluation rows only.* row 8 "):
        run_points(
            tmp_path / "run", task="tests.tasks.test_rehearsal:now_and_then",
            evaluate={"batch_size": 4}, actions={"pool": 20},
        )  # fmt: skip


class Fitted(TensorTask):
    """Trained by its own few steps, with no test rows."""

    def fit(self, kept, recipe, device, tell=lambda share: None):
        model, losses = self.model(), []
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(recipe.epochs):
            optimizer.zero_grad()
            loss(model, self.batch("train", kept)).mean().backward()
            optimizer.step()
            with torch.no_grad():
                losses.append(float(loss(model, self.batch("evaluation", np.arange(8))).mean()))
        weights = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}
        return Fit({"query_loss": losses}, int(np.argmin(losses)), weights)


def fitted(settings: dict, seed: int) -> Fitted:
    return made(kind=Fitted)


def test_without_test_rows_the_report_is_on_the_query_loss(tmp_path, capsys):
    config = tmp_path / "fit.yaml"
    config.write_text(
        "recipe: gram\ntask: tests.tasks.test_rehearsal:fitted\nruntime: {kind: local}\n"
        "train: {epochs: 2}\nscores: {estimators: [tracin]}\nactions: {configurations: [random]}\n"
    )
    assert cli.main(["run", str(config), "--out", str(tmp_path / "run")]) == 0
    assert "Query loss after leaving rows out" in capsys.readouterr().out
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "Query loss of the models trained again" in page
    assert "nan" not in (tmp_path / "run" / "report" / "query_loss.csv").read_text()


LOSSES = [0.5, 0.4]


@pytest.mark.parametrize(
    ("fit", "line"),
    [
        (None, "returned a NoneType"),
        (Fit({"test_accuracy": LOSSES}, 0, {}), "has test_accuracy; give query_loss"),
        (Fit({"query_loss": LOSSES, "test_loss": [1.0]}, 0, {}), r"test_loss \(1,\)"),
        (Fit({"query_loss": 0.5}, 0, {}), "not one value an epoch"),
        (Fit({"query_loss": ["low"]}, 0, {}), "query_loss holds no numbers"),
        (Fit({"query_loss": LOSSES}, 2, {}), "best epoch is 2, of epochs 0 to 1"),
    ],
)
def test_a_fit_that_is_none_is_one_line(fit, line):
    with pytest.raises(InputError, match=line):
        checked_fit(fit)


COURSE = {"query_loss": [0.5, 0.4, 0.4, 0.6], "query_accuracy": [0.6, 0.8, 0.8, 0.8]}


@pytest.mark.parametrize(
    ("rule", "kept"),
    [("least_query_loss", {1, 2}), ("best_query_accuracy", {1, 2, 3}), ("last", {3})],
)
def test_a_fit_of_another_epoch_than_the_selected_one_is_one_line(rule, kept):
    for epoch in range(4):
        fit = Fit(COURSE, epoch, {})
        if epoch in kept:
            checked_fit(fit, rule)
            continue
        with pytest.raises(InputError, match=f"weights of epoch {epoch}, and .*{rule} asks for"):
            checked_fit(fit, rule)


def test_an_epoch_by_accuracy_needs_a_history_of_it():
    with pytest.raises(InputError, match="best_query_accuracy needs query_accuracy in the history"):
        checked_fit(Fit({"query_loss": LOSSES}, 1, {}), "best_query_accuracy")


@pytest.mark.parametrize("weights", [{"scale": np.ones(3)}, {"weight": np.ones((4, 2))}])
def test_weights_of_another_model_are_one_line(weights):
    with pytest.raises(InputError, match=r"fit\(\)'s weights have '(scale|weight)' \("):
        load_weights(nn.Linear(4, 2), weights)


def one_query(settings: dict, seed: int) -> TensorTask:
    return made(queries=1)


def test_one_evaluation_row_is_enough(tmp_path):
    name, out = "tests.tasks.test_rehearsal:one_query", str(tmp_path / "run")
    assert cli.main(["score", name, "--out", out, "--set", "runtime.kind=local"]) == 0
