"""What a result depends on is all of the code that it ran: no module may change unseen."""

import importlib
import sys

import pytest

from distinf.engine.run import open_session
from distinf.errors import InputError
from distinf.spectral.session import Session
from distinf.tasks.sources import sources
from tests.support.runs import POINTS, run_points

TASK = """
import os, json, torch, numpy.linalg
import helper
from pack import inner
from tests.support import blobs_task

def loss(model, batch):
    from late import scale
    import importlib
    named = importlib.import_module("named")
    computed = importlib.import_module("com" + "puted")
    return scale * computed.one * blobs_task.loss(model, batch)

def task(settings, seed):
    made = blobs_task.task(blobs_task.Points(), seed)
    made.losses = {"cross-entropy": loss}
    return made
"""
FILES = {
    "mine.py": TASK,
    "helper.py": "import further\ntry:\n    import not_there\nexcept ImportError:\n    pass\n",
    "further.py": "",
    "late.py": "scale = 1.0\n",
    "named.py": "",
    "computed.py": "one = 1.0\n",
    "unused.py": "",
    "pack/__init__.py": "",
    "pack/inner.py": "from . import beside\nfrom .below.deep import x\n",
    "pack/beside.py": "",
    "pack/below/__init__.py": "",
    "pack/below/deep.py": "x = 1\n",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    own = {name.removesuffix(".py").split("/")[0] for name in FILES}
    for name in [n for n in sys.modules if n.split(".")[0] in own]:
        del sys.modules[name]


def test_all_that_the_files_import_is_there_and_nothing_installed(folder):
    found = sources("mine:task")
    assert set(found) == {
        "distinf", "mine", "helper", "further", "late", "named", "tests", "tests.support",
        "tests.support.blobs_task", "pack", "pack.inner", "pack.beside", "pack.below",
        "pack.below.deep",
    }  # fmt: skip
    assert "pack.below.deep" not in sys.modules  # found without being imported


@pytest.mark.parametrize("name", ["mine", "further", "late", "named", "pack/below/deep"])
def test_a_change_of_any_of_them_changes_its_digest_alone(folder, name):
    before = sources("mine:task")
    file = folder / f"{name}.py"
    file.write_text(file.read_text() + "# other\n")
    after = sources("mine:task")
    assert [k for k in before if before[k] != after[k]] == [name.replace("/", ".")]


def test_a_namespace_in_one_that_is_not_imported_stops_nothing(folder):
    (folder / "outer" / "inner").mkdir(parents=True)  # neither has an __init__.py
    (folder / "outer" / "inner" / "own.py").write_text("one = 1.0\n")
    file = folder / "mine.py"
    file.write_text(file.read_text() + "def later():\n    import outer.inner.own\n")
    assert "helper" in sources("mine:task")


def test_ours_are_covered_where_they_are_no_installed_distribution():
    assert len(sources("receiver:x")["distinf"]) > len("0.0.0+")


@pytest.mark.slow
def test_a_module_of_a_computed_name_is_refused_too_once_it_was_changed(folder):
    def run(accept=()):
        return run_points(folder / "run", accept=accept, task="mine:task")

    session = run()
    assert session.changed_sources() == []
    (folder / "computed.py").write_text("one = 2.0\n")
    with pytest.raises(InputError, match=r"differing: code.computed\)"):
        run()
    assert run(accept=["code.computed"]).changed_sources() == []


def test_a_worker_with_other_code_is_refused(tmp_path):
    session = run_points(tmp_path / "run")
    changed = {**session.context["sources"], "tests.support": "other"}
    other = Session({**session.context, "sources": changed}, session.device)
    with pytest.raises(InputError, match=r"source of tests.support on .* is not what"):
        other.refuse_other_data()


def test_a_change_is_refused_by_name_before_anything_is_written(folder):
    run_points(folder / "run", task="mine:task")
    kept = (folder / "run" / "config.yaml").read_bytes()
    (folder / "further.py").write_text("# other\n")
    config = {**POINTS, "task": "mine:task", "out": str(folder / "run")}
    from distinf.config import resolve

    with pytest.raises(InputError, match=r"differing: code.further\).*--accept code.further"):
        open_session(resolve(config))
    assert (folder / "run" / "config.yaml").read_bytes() == kept
