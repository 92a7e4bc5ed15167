"""A configuration as it is given: which folder it takes, and what replays a run."""

import os
import subprocess
import sys

import pytest

from distinf.config_file import default_folder, read
from distinf.errors import InputError
from distinf.store import open_root
from tests.support.runs import command


def test_commands_and_tasks_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["mine.yaml", "mine:other", "package.mine:task"]
    folders = [default_folder(name, verb) for name in given for verb in ("run", "score")]
    assert len(set(folders)) == len(folders)
    assert default_folder("configs/mine.yaml", "run") == "runs/mine"
    assert default_folder("mine:task", "score") == "runs/mine-score"


def test_a_folder_that_is_named_goes_before_the_default(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("out: there\n")
    assert read(str(file))["out"] == "there"
    assert read(str(file), verb="score")["out"] == "there"
    assert read(str(file), ["out=here"])["out"] == "here"
    assert read(str(file), ["out=here"], out="2024")["out"] == "2024"
    file.write_text("out:\n")
    assert read(str(file))["out"] == "runs/mine"


def test_a_runs_folder_its_file_and_its_url_replay_it(tmp_path):
    text = "task: mine:task\nout: elsewhere\nprovenance: {versions: {}}\n"
    (tmp_path / "config.yaml").write_text(text)
    for name in (str(tmp_path), str(tmp_path / "config.yaml")):
        raw = read(name)
        assert (raw["out"], raw["provenance"]) == (str(tmp_path), None)
        assert read(name, out="again")["out"] == "again"
    open_root("memory://replayed").put("config.yaml", text.encode())
    for name in ("memory://replayed", "memory://replayed/config.yaml"):
        assert read(name)["out"] == "memory://replayed"
    with pytest.raises(InputError, match=r"memory://none: no config.yaml there; give the URL"):
        read("memory://none")


def test_score_takes_the_gram_route_where_none_is_named(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("task: mine:task\n")
    assert read(str(file), verb="score")["recipe"] == "gram"
    assert "recipe" not in read(str(file))
    file.write_text("recipe: spectral\n")
    assert read(str(file), verb="score")["recipe"] == "spectral"


@pytest.mark.parametrize(("route", "recipe"), [("basis", "spectral"), ("gram", "gram")])
def test_a_route_as_0_1_had_it_is_a_recipe(tmp_path, route, recipe):
    file = tmp_path / "old.yaml"
    file.write_text(f"task: mine:task\nroute: {route}\n")
    assert read(str(file))["recipe"] == recipe
    assert read(str(file), [f"recipe={recipe}"])["recipe"] == recipe
    assert "route" not in read(str(file))


def test_what_a_task_of_0_1_imports_is_there_under_its_former_name():
    code = (
        "from distinf.stages.gram.task import Fit\nimport distinf.gram.task\n"
        "from distinf.stages.tensor_task import TensorTask\n"
        "from distinf.stages.task import Shapes\n"
        "import distinf.stages.task\nassert Fit is distinf.gram.task.Fit\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_variations_as_0_1_called_them(tmp_path):
    """In a file, in one that it extends, and in an override."""
    (tmp_path / "base.yaml").write_text("task: mine:task\nbeside: {a: {train.steps: 3}}\n")
    file = tmp_path / "old.yaml"
    file.write_text("extends: base.yaml\nbeside: {b: {train.steps: 4}}\n")
    found = read(str(file), ["beside.c={train.steps: 5}"])
    assert "beside" not in found
    assert found["variations"] == {name: {"train.steps": 3 + k} for k, name in enumerate("abc")}


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    """A shell sees none in YAML, nor in --out=~/x."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("out: ~/runs/a\n")
    file = str(tmp_path / "mine.yaml")
    assert read(file)["out"] == f"{tmp_path}/runs/a"
    assert read(file, ["out=~/b"])["out"] == f"{tmp_path}/b"
    assert read(file, out="~/c")["out"] == f"{tmp_path}/c"


@pytest.mark.parametrize("given", ["pipe.yaml", "/dev/zero", "large.yaml"])
def test_a_configuration_without_an_end_is_refused(tmp_path, given):
    os.mkfifo(tmp_path / "pipe.yaml")
    with open(tmp_path / "large.yaml", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match=r"give the path of a YAML file"):
        read(str(tmp_path / given))


@pytest.mark.parametrize("said", ["argument", "file"])
def test_a_folder_that_the_locale_cannot_name_is_one_line(tmp_path, said):
    """Of --out as of YAML; Python takes C for UTF-8, unless it is told not to."""
    (tmp_path / "mine.yaml").write_text("task: mine:task\nout: r\xe9\n", encoding="utf-8")
    more = ["--out", "r\xe9".encode()] if said == "argument" else []
    here = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    found = subprocess.run(
        [*command("run", str(tmp_path / "mine.yaml")), *more],
        env=here, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 2
    assert "names of files are ascii; set PYTHONUTF8=1" in found.stderr
    assert found.stderr.count("\n") == 1
