import subprocess
import sys

import pytest
import torch
from torch import nn

import distinf

HEAVY = {"torch", "numpy", "ray", "zarr", "pydantic", "sionna", "transformers"}


def test_importing_distinf_loads_nothing_heavy():
    code = "import sys, distinf; print(*sorted(m.split('.')[0] for m in sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(found.stdout.split())


def test_numerics_load_no_storage_runtime_or_process_group():
    code = (
        "import sys, distinf.numerics.influence, distinf.numerics.solve, distinf.numerics.capture,"
        " distinf.numerics.aggregation, distinf.numerics.metrics; print(*sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(found.stdout.split())
    assert not {"ray", "zarr", "pydantic", "yaml"} & loaded
    assert not [m for m in loaded if m.startswith(("distinf.runtime", "distinf.store"))]


def test_public_names_resolve_and_others_do_not():
    for name in distinf.__all__:
        assert getattr(distinf, name)
        assert name in dir(distinf)
    with pytest.raises(AttributeError, match="no attribute 'scores'"):
        _ = distinf.scores


def test_the_documented_example_runs_from_gradients_to_a_ranking():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    train = {"x": torch.randn(30, 4), "y": torch.randint(0, 2, (30,))}
    query = {"x": torch.randn(5, 4), "y": torch.randint(0, 2, (5,))}

    def loss(m, b):
        return nn.functional.cross_entropy(m(b["x"]), b["y"], reduction="none")

    train_grads = distinf.per_sample_gradients(model, loss, train)
    query_grads = distinf.per_sample_gradients(model, loss, query)
    assert {n: g.shape for n, g in train_grads.items()} == {
        n: (30, p.numel()) for n, p in model.named_parameters()
    }
    scores = distinf.influence(train_grads, query_grads, estimator="datainf", damping=None)
    assert scores["0.weight"].shape == (5, 30)
    total = distinf.aggregate(scores, how="vote", top=0.3)
    assert total.shape == (30,)
    flat = torch.cat(list(train_grads.values()), 1).double()
    fisher = flat.T @ flat / 30
    pairs = distinf.arnoldi(lambda v: fisher @ v.double(), flat.shape[1], steps=20, keep=5, seed=0)
    joint = distinf.influence(
        train_grads,
        query_grads,
        estimator="arnoldi",
        curvature=pairs,
        damping=1e-2,
        variant="ell-relative",
    )
    assert torch.isfinite(joint["all"]).all()
