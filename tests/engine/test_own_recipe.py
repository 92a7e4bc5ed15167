"""A recipe that nothing in the product names has all that ours have: it runs, is killed and
resumed to the same bytes, plans, shows how far it is, verifies, and reports."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from distinf.cli import main
from tests.support import own_recipe
from tests.support.runs import REPOSITORY

TASK = "tests.support.blobs_task:task"
FORGETFUL = replace(own_recipe.RECIPE, report=None)


def written(folder: Path, recipe: str = "tests.support.own_recipe:RECIPE", **changes) -> Path:
    raw = {
        "task": TASK, "recipe": recipe,
        "runtime": {"kind": "local", "dashboard": False}, "out": str(folder / "run"), **changes,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.yaml").write_text(yaml.safe_dump(raw))
    return folder / "run.yaml"


def tables(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "run/report").iterdir())}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    assert main(["run", str(written(folder))]) == 0
    return folder


def test_it_is_at_most_sixty_lines():
    source = Path(own_recipe.__file__).read_text().splitlines()
    assert len(source) <= 60


def test_it_runs_and_reports(whole, capsys):
    assert set(tables(whole)) == {"findings.json", "hardness.csv", "hardness.json", "index.html"}
    assert main(["run", str(whole / "run.yaml")]) == 0
    assert "rows by hardness" in capsys.readouterr().out


@pytest.mark.ray
@pytest.mark.timeout(240)
def test_killed_in_the_middle_it_ends_in_the_same_bytes(tmp_path):
    file = written(tmp_path, hardness={"rows_per_unit": 1})
    ledger = tmp_path / "run/ledger/hardness"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "distinf", "run", str(file)], cwd=REPOSITORY,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if ledger.exists() and len(list(ledger.glob("*.json"))) > 3:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path.name: path.read_bytes() for path in ledger.glob("*.json")}
    assert not (tmp_path / "run/report").exists()
    assert len(before) > 3
    assert main(["run", str(file)]) == 0
    assert (
        before.items() <= {path.name: path.read_bytes() for path in ledger.glob("*.json")}.items()
    )
    other = written(tmp_path / "other", hardness={"rows_per_unit": 1})
    assert main(["run", str(other)]) == 0
    assert tables(tmp_path) == tables(tmp_path / "other")


def test_it_plans_shows_its_status_and_verifies(whole, capsys):
    assert main(["plan", str(whole / "run.yaml"), "--gflops", "1"]) == 0
    assert main(["plan", str(whole / "run.yaml")]) == 0  # nothing of its own to measure
    assert main(["plan", str(whole / "run.yaml"), "--gpu", "h100"]) == 2
    assert "hardness" in capsys.readouterr().out
    assert main(["status", str(whole / "run")]) == 0
    assert "finished" in capsys.readouterr().out
    assert main(["verify", str(whole / "run")]) == 0
    assert main(["report", str(whole / "run")]) == 0


def test_a_setting_makes_a_variation_of_its_own(whole, tmp_path):
    varied = {"squared": {"hardness.power": 2.0}}
    assert main(["run", str(written(tmp_path, variations=varied))]) == 0
    assert main(["verify", str(tmp_path / "run")]) == 0
    records = list((tmp_path / "run/ledger/hardness").glob("*.json"))
    assert len(records) == 2 * len(list((whole / "run/ledger/hardness").glob("*.json")))


def test_one_that_forgot_its_report_is_refused_before_anything_runs(tmp_path, capsys):
    assert main(["run", str(written(tmp_path, f"{__name__}:FORGETFUL"))]) == 2
    assert "has no report; give its Recipe one" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["spectrum", "tests.support.own_recipe:NONE", "no.such:RECIPE"])
def test_a_name_of_no_recipe_is_one_line(name, tmp_path, capsys):
    file = written(tmp_path)
    assert main(["run", str(file), "--set", f"recipe={name}"]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert "recipe: " in line
