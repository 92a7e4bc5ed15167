"""The empirical studies, killed in the middle of their stages, end in the same tables."""

import os
import signal
import subprocess
import time

import numpy as np
import pytest
import yaml

from distinf.cli import main
from tests.support.runs import ROOT, command

PAGE = ("index.html", "costs")  # which say how long it took


def language(folder):
    pytest.importorskip("transformers", reason="needs distinf[llm]")
    from tests.support.causal import write_causal

    return {
        "task": "knowledge",
        "settings": {"model": str(write_causal(folder / "model")), "draws": 5,
                     "domains": ["squares", "chain_induces"]},
        "tune": {"optimizer": "adamw", "lr": 1e-3, "first_order": True, "rows_per_unit": 2},
        "estimates": {"estimators": ["tracin", "bm25"], "spaces": {"attention": "self_attn"}},
        "variations": {"prompted": {"tune.optimizer": "prompt", "tune.first_order": False}},
    }  # fmt: skip


def vision(folder):
    random = np.random.default_rng(0)
    shapes = random.integers(0, 200, (10, 28, 28))
    for name, each in (("clothes", 12), ("digits", 2)):
        y = np.repeat(np.arange(10), each)
        x = np.clip(shapes[y] + random.integers(-40, 40, (len(y), 28, 28)), 0, 255)
        np.savez(folder / f"{name}.npz", x=x.astype(np.uint8), y=y)
    files = {name: str(folder / f"{name}.npz") for name in ("clothes", "digits")}
    return {
        "task": "fashion_digits",
        "settings": {**files, "per_class": 2, "noise": [0.5], "epochs": 1},
        "tune": {"lr": 1e-3, "first_order": True, "rows_per_unit": 2},
        "variations": {"adamw": {"tune.optimizer": "adamw"}},
    }


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("study", [language, vision])
def test_a_study_killed_in_its_stages_ends_in_the_same_bytes(tmp_path, study):
    file, out = tmp_path / "run.yaml", tmp_path / "killed"
    raw = {"recipe": "empirical", "runtime": {"kind": "local"}, **study(tmp_path)}
    file.write_text(yaml.safe_dump(raw))
    assert main(["run", str(file), "--out", str(tmp_path / "whole")]) == 0
    every = len(committed(tmp_path / "whole", "tuning"))
    arguments = command("run", str(file), "--out", str(out))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    for stage, least in (("rates", 1), ("tuning", every // 4), ("tuning", 3 * every // 4)):
        process = subprocess.Popen(
            arguments, cwd=ROOT, env=environment, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while process.poll() is None and len(committed(out, stage)) < least:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert len(committed(out, "tuning")) < every, "it was killed too late to be in the middle"
    assert main(["run", str(file), "--out", str(out)]) == 0
    whole, killed = (tables(folder) for folder in (tmp_path / "whole", out))
    assert whole.keys() == killed.keys() >= {"influence.npy", "measures.csv", "rates.json"}
    assert [name for name in whole if whole[name] != killed[name]] == []


def committed(out, stage):
    return [*out.glob(f"ledger/{stage}/*.json")]


def tables(out):
    files = (out / "report").iterdir()
    return {f.name: f.read_bytes() for f in files if not f.name.startswith(PAGE)}
