"""The filter of training by Adam and LAMB: eigenpairs and scores against dense float64 algebra."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.func import functional_call, hessian

from distinf.engine.recipe import recipe_named
from distinf.engine.session import draw
from distinf.engine.stage import keys_of
from distinf.errors import InputError
from distinf.numerics.parameters import Layout
from distinf.spectral import attribution, curvature, train
from distinf.spectral.baselines import products
from distinf.spectral.evaluate import chosen_targets
from distinf.spectral.scores import stored_scores
from distinf.studies.receiver.lamb import Lamb
from distinf.tasks.tensor_task import TensorTask
from tests.benchmarks.bench_preconditioned import LEFT_OUT, measured
from tests.engine.test_stage_keys import values_of
from tests.support import blobs_task
from tests.support.partial import points_config, run_until
from tests.support.runs import merged, run_points

SIZE = 30  # parameters of the net below
LOSS = "cross-entropy"
SPECTRAL = recipe_named("spectral")
OPTIMIZERS = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "lamb": Lamb,
    "rmsprop": torch.optim.RMSprop,
}


def task(settings: dict[str, Any], seed: int) -> TensorTask:
    made = blobs_task.task(blobs_task.Points(width=4), seed)
    made._optimizer = OPTIMIZERS[settings["optimizer"]]
    return made


def settings(optimizer: str, **changes: Any) -> dict[str, Any]:
    """30 steps of rates that change, every pair, all rows in the curvature."""
    base: dict[str, Any] = {
        "task": "tests.spectral.test_preconditioning:task",
        "settings": {"optimizer": optimizer},
        "train": {"steps": 30, "weight_decay": 0.05},
        "curvature": {"steps": SIZE, "keep": SIZE, "samples": 240, "probes": 0},
        "scores": {"filter": "preconditioned", "damping": None, "negative": None},
        "actions": {"seeds": 0},
    }
    return merged(base, changes)


def dense(session, optimizer) -> dict[str, torch.Tensor]:
    """fp64: root [P] of P, A = P^1/2 H P^1/2 + decay [P, P], rows' and targets' P^1/2 g [·, P]."""
    unit = [unit for unit, _ in train.units(session.outline)][-1]
    stored = {k: torch.from_numpy(v).double() for k, v in session.arrays(unit).items()}
    model = train.trained_model(session).double()
    layout, decay, betas = Layout.of(model), 0.05, (0.9, 0.999)
    weights = {name: stored[f"model.{name}"] for name in layout.names}
    lamb, eps = optimizer == "lamb", 1e-6 if optimizer == "lamb" else 1e-8
    moments = ("mean", "square") if lamb else ("exp_avg", "exp_avg_sq")
    scale, decayed = {}, {}
    for name, w in weights.items():
        first, second = (stored[f"optimizer.{name}.{key}"] for key in moments)
        root = (second / (1 - betas[1] ** 30)).sqrt() + eps
        update = first / (1 - betas[0] ** 30) / root + decay * w
        ratio = w.norm() / update.norm() if lamb and w.ndim > 1 else 1.0
        scale[name] = ratio / root
        decayed[name] = decay * (scale[name] if optimizer == "adam" else ratio * torch.ones_like(w))
    flat_P = layout.flatten(weights).requires_grad_()

    def losses(vector_P, split, ids):
        batch = session.batch(split, np.asarray(ids))
        out = functional_call(model, layout.unflatten(vector_P), (batch["x"].double(),))
        return torch.nn.functional.cross_entropy(out, batch["label"], reduction="none")

    def gradients(split, ids):
        return torch.autograd.functional.jacobian(lambda v: losses(v, split, ids), flat_P)

    root_P = layout.flatten(scale).sqrt()
    mean = hessian(lambda v: losses(v, "train", range(240)).mean())(flat_P.detach())
    return {
        "A": root_P[:, None] * mean * root_P + torch.diag(layout.flatten(decayed)),
        "root": root_P,
        "train": gradients("train", range(240)) * root_P,
        "query": gradients("evaluation", chosen_targets(session).ids) * root_P,
    }


def by_training(session, values_P, vectors_PP):
    """[P, P]: the filter of 30 steps at their rates, of these eigenpairs; negative ones by size."""
    length = sum(map(session.settings.train.rate, range(30)))
    theta_P = values_P.abs()
    return vectors_PP @ torch.diag(-torch.expm1(-length * theta_P) / theta_P) @ vectors_PP.T


def nearly(found, expected) -> bool:
    apart = torch.from_numpy(found) - expected
    return bool(apart.abs().max() < 2e-6 * expected.abs().max())


@pytest.mark.parametrize(
    ("optimizer", "batch_size"),
    [
        ("adamw", 24),
        ("lamb", 8),
        *(pytest.param(*other, marks=pytest.mark.slow) for other in (("adamw", 8), ("lamb", 24))),
        pytest.param("adam", 24, marks=pytest.mark.slow),
    ],
)
def test_pairs_and_scores_are_those_of_dense_algebra(tmp_path, optimizer, batch_size):
    changes = settings(optimizer, train={"batch_size": batch_size})
    session = run_until("scores", points_config(tmp_path / "run", **changes))
    known = dense(session, optimizer)
    values_K, expected_P = curvature.stored_pairs(session).values, torch.linalg.eigvalsh(known["A"])
    apart_KP = (values_K[:, None] - expected_P).abs() / expected_P.abs().max()
    assert apart_KP.min(0).values.max() < 1e-6  # each one is found, equal ones once
    assert apart_KP.min(1).values.max() < 1e-6
    inverse_PP = by_training(session, *torch.linalg.eigh(known["A"]))
    classic_TN = known["query"] @ inverse_PP @ known["train"].T
    own_N = (known["train"] @ inverse_PP * known["train"]).sum(1).sqrt()
    assert nearly(stored_scores(session, variant="classic"), classic_TN)
    assert nearly(stored_scores(session), classic_TN / own_N)
    assert nearly(products(session, LOSS)["dot"], known["query"] @ known["train"].T)
    steps_TP = known["query"] @ inverse_PP * known["root"]
    assert nearly(attribution._direction(session, 0).numpy(), steps_TP[0])


def test_outside_of_a_few_pairs_stands_what_preconditioned_gradients_see(tmp_path):
    few = settings("adamw", curvature={"steps": 12, "keep": 6, "probes": 9})
    session = run_points(tmp_path / "run", **few)
    known, pairs = dense(session, "adamw"), curvature.stored_pairs(session)
    vectors_KP = pairs.vectors.double()
    seen_RP = known["train"][draw(session.seed, "seen complement", 240, None)[:9]]
    outside_RP = seen_RP - seen_RP @ vectors_KP.T @ vectors_KP
    mean = (outside_RP @ known["A"] * outside_RP).sum() / outside_RP.square().sum()
    values_P = torch.cat([pairs.values, mean.expand(SIZE - 6)])
    rest_PP = torch.linalg.svd(vectors_KP, full_matrices=True).Vh[6:]
    inverse_PP = by_training(session, values_P, torch.cat([vectors_KP, rest_PP]).T)
    expected_TN = known["query"] @ inverse_PP @ known["train"].T
    assert nearly(stored_scores(session, variant="classic"), expected_TN)
    page = session.blobs.get("report/index.html").decode()
    assert "1 / the sum of the learning rates of 30 steps of AdamW" in page
    assert "Spectrum of the preconditioned Hessian" in page


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"settings": {"optimizer": "rmsprop"}}, "RMSprop keeps no second moments that are known"),
        ({"train": {"steps": 0}}, "no step was trained here"),
        ({"task": "tests.spectral.test_damping:sgd", "curvature": {"probes": 2}},
         "what steps of Adam, AdamW or LAMB do to a direction, and SGD keeps no second "
         "moments that are known; set scores.filter to damped, or to unrolled"),
    ],
)  # fmt: skip
def test_training_without_a_preconditioner_is_refused_before_any_of_it(tmp_path, changes, line):
    with pytest.raises(InputError) as refused:
        run_points(tmp_path / "run", **settings("adamw", **changes))
    assert line in str(refused.value)
    assert not (tmp_path / "run/ledger/train").exists()


def test_another_filter_of_eigenvalues_leaves_the_curvatures_key_as_it_is():
    def keys(name):
        return keys_of(SPECTRAL.stages, values_of(SPECTRAL, **{"scores.filter": name}))

    damped, unrolled, preconditioned = map(keys, ("damped", "unrolled", "preconditioned"))
    assert damped["curvature"] == unrolled["curvature"] != preconditioned["curvature"]


def test_it_foretells_training_without_rows_better_than_the_filter_of_h_does():
    torch.set_default_dtype(torch.float64)
    try:
        found = measured(0, 100, 0.02, lamb=False, subsets=60)
    finally:
        torch.set_default_dtype(torch.float32)
    for what in LEFT_OUT:
        worth = [
            found[name, what] for name in ("filter of P^1/2 H P^1/2", "filter of H, the same T")
        ]
        assert worth[0] > worth[1] + 0.05
