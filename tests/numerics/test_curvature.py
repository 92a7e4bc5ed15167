import pytest
import torch
from torch import nn

from distinf.collective import Collective
from distinf.errors import InputError
from distinf.numerics.curvature import hessian_product, microbatch_rows, sharded_mean_product
from distinf.numerics.losses import sum_gradient
from distinf.numerics.parameters import Layout
from tests.numerics.cases import CrossEntropy, classifier, dense_hessian, symmetric
from tests.support.threads import run_ranks


def dense(matvec, dim):
    return torch.stack([matvec(row) for row in torch.eye(dim, dtype=torch.float64)], 1)


def microbatches(batch, size):
    count = len(batch["y"])
    return [{k: v[i : i + size] for k, v in batch.items()} for i in range(0, count, size)]


@pytest.mark.parametrize("kind", ["hessian", "hessian-double-backward"])
def test_hessian_product_matches_the_dense_hessian_and_leaves_the_model_as_it_was(kind):
    model, batch = classifier()
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layout = Layout.of(model)
    matvec = hessian_product(model, CrossEntropy(), [batch], layout, kind)
    torch.testing.assert_close(dense(matvec, layout.size), dense_hessian(model, batch))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_sums_do_not_depend_on_microbatches_and_batches_may_be_fresh_each_time():
    model, batch = classifier()
    layout = Layout.of(model)
    vector = torch.randn(layout.size, dtype=torch.float64)
    whole = hessian_product(model, CrossEntropy(), [batch], layout)(vector)
    calls = []

    def fresh():
        calls.append(1)
        return iter(microbatches(batch, 5))

    product = hessian_product(model, CrossEntropy(), fresh, layout)
    torch.testing.assert_close(product(vector), whole)
    torch.testing.assert_close(product(vector), whole)
    assert len(calls) == 2


def test_a_block_of_parameters_gives_the_hessians_sub_block():
    model, batch = classifier()
    layout, everything = Layout.of(model, r"^4\."), Layout.of(model)
    found = dense(hessian_product(model, CrossEntropy(), [batch], layout), layout.size)
    start = everything.spans["4.weight"].start
    torch.testing.assert_close(found, dense_hessian(model, batch)[start:, start:])


def test_gauss_newton_is_jacobian_curvature_jacobian():
    model, batch = classifier()
    model.eval()
    layout = Layout.of(model)
    found = dense(
        hessian_product(model, CrossEntropy(), microbatches(batch, 5), layout, "gauss-newton"),
        layout.size,
    )
    expected = torch.zeros_like(found)
    for i in range(len(batch["y"])):
        logits = model(batch["x"][i : i + 1])[0]
        rows = [
            layout.flatten(
                dict(
                    zip(
                        layout.names,
                        torch.autograd.grad(z, list(model.parameters()), retain_graph=True),
                        strict=True,
                    )
                )
            )
            for z in logits
        ]
        jacobian, p = torch.stack(rows), logits.detach().softmax(0)
        expected += jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian
    torch.testing.assert_close(found, expected)
    assert float(torch.linalg.eigvalsh(found)[0]) > -1e-12


def test_unusable_losses_and_kinds_are_refused_with_the_remedy():
    model, batch = classifier()
    layout = Layout.of(model)
    vector = torch.zeros(layout.size, dtype=torch.float64)

    def plain(model, batch):
        return CrossEntropy()(model, batch)

    with pytest.raises(InputError, match=r"\.outputs.*use kind 'hessian'"):
        hessian_product(model, plain, [batch], layout, "gauss-newton")
    with pytest.raises(InputError, match="curvature kind 'fisher' is unknown"):
        hessian_product(model, plain, [batch], layout, "fisher")
    averaged = hessian_product(model, lambda m, b: plain(m, b).mean(), [batch], layout)
    with pytest.raises(InputError, match="one value per sample"):
        averaged(vector)


def test_gradients_are_sums_over_samples():
    model, batch = classifier()
    layout = Layout.of(model)
    model.eval()
    loss = CrossEntropy()(model, batch)
    expected = torch.autograd.grad(loss.sum(), list(model.parameters()))
    total = sum_gradient(model, CrossEntropy(), batch, layout)
    torch.testing.assert_close(total, torch.cat([g.view(-1) for g in expected]))


def test_an_unused_parameter_has_a_zero_gradient_and_product():
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "idle": nn.Linear(2, 2)}).double()
    batch = {"x": torch.randn(4, 2, dtype=torch.float64)}

    def loss(m, b):
        return m["used"](b["x"]).tanh().sum(1)

    layout = Layout.of(model)
    ones = torch.ones(layout.size, dtype=torch.float64)
    idle = layout.spans["idle.weight"]
    assert not sum_gradient(model, loss, batch, layout)[idle].any()
    for kind in ("hessian", "hessian-double-backward"):
        assert not hessian_product(model, loss, [batch], layout, kind)(ones)[idle].any()


def test_attention_has_second_derivatives():
    torch.manual_seed(0)
    model = nn.Linear(4, 4).double()
    batch = {"x": torch.randn(3, 5, 4, dtype=torch.float64)}

    def loss(m, b):
        h = m(b["x"])[:, None]
        return nn.functional.scaled_dot_product_attention(h, h, h).square().sum((1, 2, 3))

    layout = Layout.of(model)
    vector = torch.randn(layout.size, dtype=torch.float64)
    first = hessian_product(model, loss, [batch], layout)(vector)
    second = hessian_product(model, loss, [batch], layout, "hessian-double-backward")(vector)
    torch.testing.assert_close(first, second)
    assert first.abs().max() > 0


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_sharded_mean_has_the_same_bits_at_any_number_of_ranks(size):
    matrices = [symmetric(20, seed).float() for seed in range(4)]
    vector = torch.randn(20, generator=torch.Generator().manual_seed(1))

    def mean(collective, reduction="ordered"):
        products = {s: matrices[s].mv for s in collective.owned(4)}
        matvec = sharded_mean_product(products, count=8, collective=collective, reduction=reduction)
        return matvec(vector)

    expected = mean(Collective())
    torch.testing.assert_close(
        expected, (sum(matrices).double() / 8) @ vector.double(), rtol=1e-5, atol=1e-5
    )
    for found in run_ranks(size, mean):
        assert torch.equal(found, expected)
    for found in run_ranks(size, lambda c: mean(c, "allreduce")):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_sharded_mean_refuses_no_samples_and_unknown_reductions():
    with pytest.raises(InputError, match="at least one sample"):
        sharded_mean_product({}, count=0, collective=Collective())
    with pytest.raises(InputError, match="reduction 'tree'"):
        sharded_mean_product({}, count=1, collective=Collective(), reduction="tree")


def test_microbatch_rows_fill_the_budget_and_refuse_what_cannot_fit():
    assert microbatch_rows(100, 1000) == 10
    assert microbatch_rows(100, 199) == 1
    with pytest.raises(InputError, match="raise the memory budget"):
        microbatch_rows(100, 99)
