"""Which curvature product passes which model, against dense matrices."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian, jacrev

from distinf.errors import InputError
from distinf.numerics.curvature import hessian_product
from distinf.numerics.parameters import Layout
from distinf.numerics.second_derivatives import passing_kind
from tests.numerics.cases import ByHand, CrossEntropy

BATCH = {"x": torch.randn(2, 8, generator=torch.Generator().manual_seed(1)), "y": torch.arange(2)}


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.cells(x[..., None])[0][:, -1])


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.tanh())
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad * (1 - ctx.saved_tensors[0] ** 2)


class Through(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.first, self.last, self.function = nn.Linear(8, 3), nn.Linear(3, 2), function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


def made(middle: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    return Recurrent() if middle is None else Through(middle)


@pytest.mark.parametrize(
    ("middle", "exact", "newton"),
    [
        (nn.Tanh(), "hessian", "gauss-newton"),
        (nn.SiLU(), "hessian-double-backward", "gauss-newton"),
        (nn.Mish(), "hessian-double-backward", "gauss-newton"),
        (None, "hessian-double-backward", "gauss-newton-double-backward"),
    ],
)
def test_forward_mode_is_left_where_it_does_not_pass(middle, exact, newton):
    model = made(middle)
    layout = Layout.of(model, "all")
    assert passing_kind(model, CrossEntropy(), BATCH, layout, "hessian") == exact
    assert passing_kind(model, CrossEntropy(), BATCH, layout, "gauss-newton") == newton


@pytest.mark.parametrize("function", [Once.apply, nn.Hardsigmoid()])
def test_a_model_that_no_product_passes_is_refused(function):
    model = made(function)
    with pytest.raises(InputError, match="no product of hessian passes"):
        passing_kind(model, CrossEntropy(), BATCH, Layout.of(model, "all"), "hessian")


def test_a_functions_wrong_second_derivative_is_told_apart_from_its_right_first_one():
    model = made(ByHand.apply)
    with pytest.raises(InputError, match="another matrix than the gradient's differences"):
        passing_kind(model, CrossEntropy(), BATCH, Layout.of(model, "all"), "hessian")


class Cut(ByHand):
    """Whose backward forgets what it is differentiated by."""

    @staticmethod
    def backward(ctx, grad):
        return ByHand.backward(ctx, grad.detach())


def test_a_functions_wrong_outputs_ahead_are_told_apart_too():
    model = made(lambda x: x + Cut.apply(x))
    with pytest.raises(InputError, match="another matrix than the gradient's differences"):
        passing_kind(model, CrossEntropy(), BATCH, Layout.of(model, "all"), "gauss-newton")


@pytest.mark.parametrize("middle", [nn.SiLU(), None])
def test_the_products_by_double_backward_are_the_dense_matrices(middle):
    model = made(middle).double()
    layout, loss = Layout.of(model, "all"), CrossEntropy()
    batch = {"x": BATCH["x"].double(), "y": BATCH["y"]}
    theta = layout.flatten({n: p.detach() for n, p in layout.parameters(model).items()})

    def outputs(theta):
        return functional_call(model, layout.unflatten(theta), (batch["x"],))

    jacobian = jacrev(outputs)(theta).flatten(0, 1)  # [N * 2, P]
    at = outputs(theta)
    curved = hessian(lambda out: loss.from_outputs(out.view(2, 2), batch).sum())(at.flatten())
    products = {"gauss-newton-double-backward": jacobian.T @ curved @ jacobian}
    if middle is not None:  # an LSTM has no forward mode for torch.func.hessian
        total = lambda t: loss.from_outputs(outputs(t), batch).sum()  # noqa: E731
        products["hessian-double-backward"] = jacrev(jacrev(total))(theta)
    for kind, dense in products.items():
        product = hessian_product(model, loss, [batch], layout, kind)
        found = torch.stack([product(row) for row in torch.eye(layout.size).double()])
        assert torch.allclose(found, dense, atol=1e-10)
