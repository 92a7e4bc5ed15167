"""What the README shows works as it is written."""

import re

import numpy as np
import pytest

from tests.support.runs import ROOT, distinf

README = (ROOT / "README.md").read_text()


def block(first_line: str) -> str:
    """The fenced block whose first line is `first_line`."""
    found = re.search(rf"```\w+\n({re.escape(first_line)}\n.*?)```", README, re.DOTALL)
    assert found, first_line
    return found[1]


def test_your_own_model_in_ten_lines_runs(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(block("# mine.py"))
    (tmp_path / "mine.yaml").write_text(block("# mine.yaml"))
    code = [line for line in block("# mine.py").splitlines() if line and line[0] != "#"]
    assert len(code) <= 10
    monkeypatch.setattr("tests.support.runs.ROOT", tmp_path)
    finished = distinf(
        "run", str(tmp_path / "mine.yaml"), "--set", "runtime.kind=local", "--out", "mine"
    )
    assert finished.returncode == 0, finished.stderr
    assert (tmp_path / "mine" / "report" / "index.html").exists()


def test_the_library_lines_run():
    import torch

    import distinf as package

    model = torch.nn.Linear(8, 2)
    random = torch.Generator().manual_seed(0)
    batch = {"x": torch.randn(30, 8, generator=random), "y": torch.arange(30) % 2}

    def loss(model, batch):
        return torch.nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")

    grads = package.per_sample_gradients(model, loss, batch)
    train = torch.cat([g[:25] for g in grads.values()], 1)
    query = torch.cat([g[25:] for g in grads.values()], 1)
    fisher = train.double().T @ train.double() / 25
    pairs = package.arnoldi(lambda v: (fisher @ v.double()).to(v), 18, steps=18, keep=6)
    scores = package.influence(
        train, query, estimator="arnoldi", curvature=pairs, damping=1e-2, variant="ell-relative"
    )
    assert scores.shape == package.influence(train, query, estimator="datainf").shape == (5, 25)
    assert np.isfinite(package.aggregate(scores, how="vote", top=0.3).numpy()).all()


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([\w./-]+)\)", README))))
def test_every_link_leads_somewhere(link):
    assert (ROOT / link).exists()
