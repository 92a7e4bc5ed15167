"""A run's folder of another format is refused in one line that names the version that made it."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from distinf.cli import main
from distinf.engine.format import FORMAT
from tests.support.runs import run_points


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run_points(tmp_path_factory.mktemp("format") / "run")


@pytest.fixture
def older(finished, tmp_path):
    """A folder as 0.1.0 left it: no format in its configuration, other words in its agenda."""
    folder = tmp_path / "older"
    shutil.copytree(finished.blobs.root, folder)
    stored = yaml.safe_load((folder / "config.yaml").read_text())
    assert stored["provenance"].pop("format") == FORMAT
    stored["provenance"]["versions"]["distinf"] = "0.1.0"
    (folder / "config.yaml").write_text(yaml.safe_dump(stored))
    start = json.loads((folder / "agenda" / "start.json").read_text())
    for part in start["parts"]:
        del part["words"]
    (folder / "agenda" / "start.json").write_text(json.dumps(start))
    return folder


@pytest.mark.parametrize("command", ["run", "status", "verify", "report"])
def test_every_command_refuses_it_in_one_line(older, command, capsys):
    before = sorted(path for path in older.rglob("*") if path.is_file())
    assert main([command, str(older)]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(told) == 1
    assert "format 1, made by distinf 0.1.0" in told[0]
    assert "--out" in told[0]
    assert sorted(path for path in older.rglob("*") if path.is_file()) == before


def test_this_format_is_taken(finished, capsys):
    assert main(["status", str(finished.blobs.root)]) == 0
    assert "finished" in capsys.readouterr().out
    assert Path(finished.blobs.root, "config.yaml").exists()
