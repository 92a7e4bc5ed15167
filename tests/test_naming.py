"""Names of a user's that become files, arrays and columns: refused before anything is written."""

import csv

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from distinf import cli
from distinf.config import resolve
from distinf.errors import InputError
from distinf.gram.task import cells_of
from distinf.naming import MOST_BYTES, refuse_names
from distinf.store import open_root, read_group, write_group
from distinf.tasks.rehearsal import few_rows, rehearse
from distinf.tasks.task import build_task
from distinf.tasks.tensor_task import TensorTask
from tests.support.blobs_task import loss, points
from tests.support.runs import POINTS, distinf, merged

OUTSIDE = "../../../evil"
WRONG = {
    OUTSIDE: "has a slash",
    "a/b": "has a slash",
    "a\\b": "has a slash",
    "": "is empty",
    "  ": "is empty",
    " a": "begins or ends with a space",
    "a\n": "begins or ends with a space",
    "a\x00b": "cannot be printed",
    "a\u202eb": "cannot be printed",
    "a\ud800": "cannot be printed",
    "..": "begins with a dot",
    ".hidden": "begins with a dot",
    "__zarr": "two underscores",
    "é" * 91: f"longer than {MOST_BYTES} bytes",
    7: "is no text but a int",
}
RIGHT = ("cross-entropy", "L1 + L2", "lr=0.1", "Größe", "损失", "a.b", "_a", "50 %", "x" * 180)


@pytest.mark.parametrize("name", WRONG)
def test_a_name_that_is_no_file_s_is_refused_in_one_line(name):
    with pytest.raises(InputError, match=WRONG[name]) as raised:
        refuse_names("variations", ["fine", name])
    line = str(raised.value)
    assert line.isprintable()
    assert line.startswith("variations: the name ")
    assert len(line) < 250


def test_usual_names_pass():
    refuse_names("variations", RIGHT)


@pytest.mark.parametrize("other", ["BASE", "Base"])
def test_two_names_that_differ_in_case_alone_are_refused_but_where_they_may(other):
    with pytest.raises(InputError, match="one name where upper and lower case are one"):
        refuse_names("variations", ["base", other])
    refuse_names("parameters", ["base", other], cased=True)


@given(st.text(max_size=40))
def test_whatever_passes_is_one_file_inside_its_folder_and_one_array(tmp_path_factory, name):
    try:
        refuse_names("losses", [name])
    except InputError:
        return
    root = tmp_path_factory.mktemp("names")
    manifest = write_group(open_root(str(root)), "group/1", {name: np.arange(3)})
    assert [file.name for file in (root / "group" / "1").iterdir() if file.is_dir()] == [name]
    assert read_group(open_root(str(root)), manifest)[name].tolist() == [0, 1, 2]


GIVEN_IN_SETTINGS = {
    "a variation": ({"variations": {OUTSIDE: {"train.steps": 3}}}, "variations: the name"),
    "two variations": (
        {"variations": {"a": {"seed": 1}, "A": {"seed": 2}}},
        "variations: 'a' and 'A'",
    ),
    "an experiment": ({"actions": {"also": {OUTSIDE: {"steps": 3}}}}, "actions: also: the name"),
    "a group": (
        {"recipe": "gram", "scores": {"groups": {"a/b": ".*"}}},
        "scores: groups: the name",
    ),
}


@pytest.mark.parametrize("case", GIVEN_IN_SETTINGS)
def test_names_in_settings_are_refused(case):
    changes, line = GIVEN_IN_SETTINGS[case]
    base = {"task": POINTS["task"]} if "recipe" in changes else POINTS
    with pytest.raises(InputError, match=line) as raised:
        resolve(merged(base, changes))
    assert "\n" not in str(raised.value)


def test_a_variation_named_like_a_path_ends_before_anything_is_written(tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "task: tests.support.blobs_task:task\nruntime: {kind: local}\n"
        f"variations: {{{OUTSIDE!r}: {{train.steps: 3}}}}\n"
    )
    out = tmp_path / "a" / "b" / "run"
    done = distinf("run", str(tmp_path / "mine.yaml"), "--out", str(out))
    assert done.returncode == 2
    assert "variations: the name '../../../evil' has a slash" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml"]


def made(**more) -> TensorTask:
    data = {"train": points(40, 1), "evaluation": points(8, 2)}
    model = more.pop("model", lambda: nn.Linear(4, 2))
    return TensorTask(model, data, more.pop("losses", {"own": loss}), **more)


def slashed(settings: dict, seed: int) -> TensorTask:
    return made(losses={"a/b": loss})


def doubled(settings: dict, seed: int) -> TensorTask:
    return made(losses={"own": loss, "Own": loss})


class OfCells(TensorTask):
    """One cell with a name of the user's."""

    name, inner = "a/b", {"own": loss}

    def cells(self) -> dict:
        return {self.name: made(losses=self.inner)}


def test_a_loss_named_like_a_path_ends_before_the_training(tmp_path, capsys):
    out = tmp_path / "run"
    words = ["--out", str(out), "--set", "runtime.kind=local"]
    assert cli.main(["run", f"{__name__}:slashed", *words]) == 2
    assert "task: losses: the name 'a/b' has a slash" in capsys.readouterr().err
    assert not out.exists()


def test_two_losses_of_one_name_are_refused():
    with pytest.raises(InputError, match="losses: 'own' and 'Own' are one name"):
        build_task(f"{__name__}:doubled", {}, 0)


def test_a_cell_and_its_losses_have_names_of_files():
    task = made()
    task.__class__ = OfCells
    with pytest.raises(InputError, match=r"cells\(\): the name 'a/b' has a slash"):
        cells_of(task)
    task.name, task.inner = "cell", {"x/y": loss}
    with pytest.raises(InputError, match="losses: the name 'x/y' has a slash"):
        cells_of(task)


def test_a_column_of_evaluate_has_the_name_of_an_array():
    task = made()
    task.evaluate = lambda model, batch: {"metric": loss(model, batch), OUTSIDE: batch["label"]}
    with pytest.raises(InputError, match=r"evaluate\(\)'s columns: the name .* has a slash"):
        rehearse(task)


def test_generated_arrays_have_the_names_of_arrays():
    task = made()
    task.generate = lambda split, start, stop: {"x/y": np.zeros((stop - start, 4))}
    with pytest.raises(InputError, match=r"generate\(\)'s arrays of 'train': the name 'x/y'"):
        few_rows(task)


class Keyed(nn.Module):
    """Its one layer is called by a key of the user's."""

    def __init__(self) -> None:
        super().__init__()
        self.of = nn.ModuleDict({"user/id": nn.Linear(4, 2)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.of["user/id"](x)
        return found


def keyed(settings: dict, seed: int) -> TensorTask:
    return made(model=Keyed)


def test_a_parameter_that_is_stored_by_its_name_has_that_of_an_array(tmp_path, capsys):
    out = tmp_path / "run"
    words = ["--out", str(out), "--set", "runtime.kind=local"]
    assert cli.main(["run", f"{__name__}:keyed", *words]) == 2
    assert "parameters and buffers: the name 'of.user/id.weight' has a slash" in (
        capsys.readouterr().err
    )
    assert not out.exists()


NOTES = ("place", "score", "row", "own_loss", "gradient_norm", "flipped", "suggested_label")


def noted(settings: dict, seed: int) -> TensorTask:
    return made(notes={name: [f"{name} {k}" for k in range(40)] for name in (*NOTES, "rank")})


def test_notes_called_like_columns_of_ours_stand_beside_them(tmp_path):
    words = ["--out", str(tmp_path / "run"), "--set", "runtime.kind=local"]
    assert cli.main(["score", f"{__name__}:noted", *words]) == 0
    with open(tmp_path / "run" / "report" / "ranked_rows.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(int(row["row"]) for row in rows) == list(range(40))
    assert all(np.isfinite(float(row["score"])) for row in rows)
    for row in rows:
        assert all(row[f"note_{name}"] == f"{name} {row['row']}" for name in NOTES)
    with open(tmp_path / "run" / "report" / "ranking.csv", newline="") as file:
        top = list(csv.DictReader(file))
    assert [row["rank"] for row in top] == [str(k + 1) for k in range(len(top))]
    assert top[0]["note_rank"] == f"rank {top[0]['row']}"
    assert top[0]["flipped"] == ""


def test_two_notes_of_one_name_are_refused():
    with pytest.raises(InputError, match="two notes are called '1'"):
        made(notes={1: range(40), "1": range(40)})


def test_two_classes_of_one_name_are_refused(tmp_path, capsys):
    words = ["--out", str(tmp_path / "run"), "--set", "runtime.kind=local"]
    assert cli.main(["score", f"{__name__}:twin_classes", *words]) == 2
    assert "two classes are called 'cat'" in capsys.readouterr().err


def twin_classes(settings: dict, seed: int) -> TensorTask:
    return made(
        probabilities=lambda model, batch: model(batch["x"]).softmax(-1),
        labels=points(40, 1)["label"],
        classes=["cat", "cat"],
    )
