"""Pretrained weights are loaded once a process, whatever units, cells and jobs ask for."""

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
import yaml

pytest.importorskip("peft", reason="needs distinf[llm]")
pytest.importorskip("transformers", reason="needs distinf[llm]")

import transformers

from distinf.config import resolve
from distinf.engine.run import execute, open_session
from distinf.errors import InputError
from distinf.runtime import Ledger
from distinf.store import open_root
from distinf.studies.language import pretrained
from distinf.studies.language.settings import LoraSettings
from distinf.studies.noisy_labels import glue
from distinf.studies.noisy_labels.models import load_model
from distinf.studies.noisy_labels.settings import ModelSettings
from distinf.tasks.warm import let_go
from tests.support.noisy import tiny_model, write_classes
from tests.support.runs import distinf


@pytest.fixture
def loads(monkeypatch):
    """How often weights were read so far, as a list that grows."""
    let_go()
    kind, found = transformers.AutoModelForSequenceClassification, []
    real = kind.from_pretrained.__func__

    def counted(cls, *args, **kwargs):
        found.append(args)
        return real(cls, *args, **kwargs)

    monkeypatch.setattr(kind, "from_pretrained", classmethod(counted))
    return found


def two_cells(tmp_path):
    return {
        "out": str(tmp_path / "run"), "seeds": 2,
        "data": {"path": write_classes(tmp_path / "rows.csv", ("good", "bad"), rows=48),
                 "train_rows": 24, "query_rows": 12, "test_rows": 12, "flips": 0.2},
        "model": {"name": tiny_model(tmp_path / "model", "llama"), "max_length": 12},
        "train": {"epochs": 1, "batch_size": 12},
        "scores": {"estimators": ["tracin"]},
        "actions": {"configurations": ["random", "full"]},
    }  # fmt: skip


def test_cells_and_jobs_of_a_run_load_the_model_once(tmp_path, loads):
    raw = two_cells(tmp_path) | {"task": "noisy_labels", "runtime": {"kind": "local"}}
    execute(resolve(raw), lambda *_: nullcontext())
    assert len(loads) == 1


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_each_worker_on_ray_loads_the_model_once(tmp_path, monkeypatch):
    raw = two_cells(tmp_path) | {
        "task": "tests.support.counted_models:task", "recipe": "gram",
        "gradients": {"rows_per_unit": 6},
        "runtime": {"kind": "ray", "workers": 2, "num_cpus": 0.5, "dashboard": False},
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(raw))
    monkeypatch.setenv("DISTINF_TEST_LOADS", str(tmp_path / "loads"))
    done = distinf("run", str(tmp_path / "run.yaml"), timeout_s=500)
    assert done.returncode == 0, done.stderr
    blobs, stages = open_root(raw["out"]), ("train", "gradients", "actions")
    units = {stage: len(Ledger(blobs, stage).committed_ids()) for stage in stages}
    assert units == {"train": 2, "gradients": 12, "actions": 4}
    loads = Counter((tmp_path / "loads").read_text().split())
    assert [*loads.values()] == [1, 1, 1]  # the driver's, to try the task out, and two workers'


@pytest.mark.parametrize("quantise", ["none", "4bit", "8bit"])
def test_models_share_frozen_weights_and_nothing_that_is_trained(tmp_path, loads, quantise):
    if quantise != "none":
        pytest.importorskip("bitsandbytes", reason="needs distinf[llm]")
    settings = ModelSettings(name=tiny_model(tmp_path, "llama", wide=4), quantise=quantise,
                             max_length=12)  # fmt: skip
    one, two = (load_model(settings, LoraSettings(), seed, pad=1) for seed in (0, 1))
    assert len(loads) == 1
    for name, parameter in one.named_parameters():
        other = two.get_parameter(name)
        assert (parameter is other) == (not parameter.requires_grad), name
    batch = {"input_ids": torch.tensor([[5, 6, 7]])}
    with torch.no_grad():
        before = two(**batch).logits
        for parameter in one.parameters():
            if parameter.requires_grad:
                parameter += 1.0
        torch.testing.assert_close(two(**batch).logits, before, rtol=0, atol=0)
        assert (one(**batch).logits != before).all()
        again = load_model(settings, LoraSettings(), 1, pad=1)
        torch.testing.assert_close(again(**batch).logits, before, rtol=0, atol=0)
    let_go()
    load_model(settings, LoraSettings(), 0, pad=1)
    assert len(loads) == 2


def test_files_that_changed_are_read_anew(tmp_path, loads):
    settings = ModelSettings(name=tiny_model(tmp_path, "llama"), max_length=12)
    load_model(settings, LoraSettings(), 0, pad=1)
    weights = tmp_path / "model.safetensors"
    os.utime(weights, ns=(1, 1))
    load_model(settings, LoraSettings(), 0, pad=1)
    assert len(loads) == 2


# -- the hub --------------------------------------------------------------------------------

ASKS = """
import json
from distinf.studies.language.pretrained import asked
print(json.dumps([asked("some/model", "main"), asked("some/model", "main")]))
"""


class Proxy(BaseHTTPRequestHandler):
    """An HTTP proxy behind which a hub is whose name cannot be looked up."""

    def do_GET(self):
        self.server.asked.append(self.path)
        found = json.dumps({"id": "some/model", "sha": "c" * 40}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(found)))
        self.end_headers()
        self.wfile.write(found)

    def log_message(self, *_):
        pass


@pytest.fixture
def proxy():
    with HTTPServer(("127.0.0.1", 0), Proxy) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def asked(**environment):
    kept = {k: v for k, v in os.environ.items() if "proxy" not in k.lower() and k[:3] != "HF_"}
    env = {**kept, "HF_ENDPOINT": "http://hub.invalid", **environment}
    done = subprocess.run([sys.executable, "-c", ASKS], env=env, capture_output=True, text=True,
                          timeout=300, check=True)  # fmt: skip
    once, again = json.loads(done.stdout)
    assert once == again
    return once


def test_the_hub_is_asked_by_its_client_once_and_not_looked_up(proxy):
    where = f"http://127.0.0.1:{proxy.server_port}"
    assert asked(HTTP_PROXY=where) == ["c" * 40, False]
    (path,) = [path for path in proxy.asked if "model" in path]
    assert path == "http://hub.invalid/api/models/some/model/revision/main"
    before = len(proxy.asked)
    assert asked(HTTP_PROXY=where, HF_HUB_OFFLINE="1") == ["main", True]
    assert len(proxy.asked) == before


def test_without_a_hub_only_what_was_downloaded_is_there():
    assert asked() == ["main", True]


@pytest.fixture
def downloaded(tmp_path, monkeypatch):
    """commit, name -> what a hub's client keeps of some/model, with no hub: `name` is `commit`."""
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--some--model"
    (folder / "refs").mkdir(parents=True)

    def keep(commit: str, name: str) -> None:
        pretrained.asked.cache_clear()
        if not (folder / "snapshots" / commit).exists():
            tiny_model(folder / "snapshots" / commit)
        (folder / "refs" / name).write_text(commit)

    yield keep
    pretrained.asked.cache_clear()


def test_a_revision_that_moved_or_is_not_there_is_refused_before_any_work(tmp_path, downloaded):
    def opened(out: str, revision: str):
        raw = {
            "task": "noisy_labels", "out": str(tmp_path / out), "runtime": {"kind": "local"},
            "data": {"path": str(tmp_path / "rows.csv"),
                     "train_rows": 24, "query_rows": 12, "test_rows": 12},
            "model": {"name": "some/model", "revision": revision, "max_length": 12},
        }  # fmt: skip
        return open_session(resolve(raw))

    write_classes(tmp_path / "rows.csv", ("good", "bad"), rows=48)
    downloaded("a" * 40, "v1")
    opened("by-name", "v1")
    opened("by-name", "v1")
    opened("by-commit", "a" * 40)
    downloaded("b" * 40, "v1")
    with pytest.raises(InputError, match=r"differing: digest.*digest.revision"):
        opened("by-name", "v1")
    opened("by-commit", "a" * 40)
    with pytest.raises(InputError, match=f"some/model at revision {'c' * 40} could not be loaded"):
        opened("absent", "c" * 40)
    assert not (tmp_path / "absent").exists()


def test_glue_that_moved_is_refused_and_all_workers_read_one_commit(
    tmp_path, downloaded, monkeypatch
):
    datasets, commits = pytest.importorskip("datasets"), {"v1": "a" * 40}
    read = []

    def asked(name, revision, kind="model"):
        return (commits[revision], False) if kind == "dataset" else real(name, revision)

    real = pretrained.asked
    monkeypatch.setattr(glue, "asked", asked)
    monkeypatch.setattr(
        datasets, "load_dataset", lambda hub, name, revision: read.append((hub, revision))
    )

    def opened():
        raw = {
            "task": "noisy_labels", "out": str(tmp_path / "run"), "runtime": {"kind": "local"},
            "data": {"datasets": ["rte"], "revision": "v1"}, "seeds": 1,
            "model": {"name": tiny_model(tmp_path / "model"), "max_length": 12},
        }  # fmt: skip
        return open_session(resolve(raw))

    opened()
    opened()
    glue.from_hub("rte", "v1")
    assert read == [("nyu-mll/glue", "a" * 40)]
    commits["v1"] = "b" * 40
    with pytest.raises(InputError, match=r"differing: digest.data, digest.data_revision"):
        opened()
