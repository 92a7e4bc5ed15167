"""Parameters of other shapes and kinds than a layer's weight; losses without a gradient."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import distinf
from distinf.errors import InputError
from distinf.numerics.capture import flat_gradients, per_sample_gradients
from distinf.numerics.curvature import hessian_product
from distinf.numerics.losses import sum_gradient
from distinf.numerics.parameters import Layout
from tests.numerics.cases import dense_hessian

METHODS = ("vmap", "loop", "hooks")
KINDS = ("hessian", "hessian-double-backward")
N = 7


def batch_of(*, words=False):
    torch.manual_seed(1)
    x = torch.randint(0, 9, (N, 5)) if words else torch.randn(N, 4).double()
    return {"x": x, "y": torch.randint(0, 3, (N,))}


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def expected(model, batch, loss=loss):
    """{name: [N, entries]}: torch.autograd.grad of each row's loss."""
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    model.eval()
    found = [
        torch.autograd.grad(row, list(named.values()), materialize_grads=True, retain_graph=True)
        for row in loss(model, batch)
    ]
    columns = zip(*found, strict=True)
    return {
        name: torch.stack([g.to_dense().reshape(-1) for g in grads])
        for name, grads in zip(named, columns, strict=True)
    }


class Scaled(nn.Module):
    """With a temperature, as CLIP's logit_scale: a parameter of shape ()."""

    def __init__(self):
        super().__init__()
        self.scale, self.head = nn.Parameter(torch.tensor(1.5)), nn.Linear(4, 3)
        self.empty = nn.Parameter(torch.zeros(0, 4))
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.head(x) * self.scale


@pytest.mark.parametrize("method", ["vmap", "loop"])
def test_a_parameter_without_dimensions_has_one_column(method):
    model, batch = Scaled().double(), batch_of()
    right = expected(model, batch)
    found = per_sample_gradients(model, loss, batch, method=method)
    assert {name: g.shape[1] for name, g in found.items()} == {
        "scale": 1, "unused": 2, "head.weight": 12, "head.bias": 3,
    }  # fmt: skip
    for name, grads in found.items():
        torch.testing.assert_close(grads, right[name])
    scores = distinf.influence(found, {n: g[:1] for n, g in found.items()}, "datainf")
    assert scores["scale"].shape == (1, N)


@pytest.mark.parametrize("kind", KINDS)
def test_curvature_over_a_parameter_without_dimensions(kind):
    model, batch = Scaled().double(), batch_of()
    del model.unused, model.empty
    matvec = hessian_product(model, loss, [batch], Layout.of(model), kind)
    vector = torch.randn(16, dtype=torch.float64)
    torch.testing.assert_close(matvec(vector), dense_hessian(model, batch) @ vector)


def test_hooks_say_which_methods_take_it():
    with pytest.raises(InputError, match=r"'scale'.*method='vmap' or 'loop'"):
        per_sample_gradients(Scaled().double(), loss, batch_of(), method="hooks")


class Words(nn.Module):
    def __init__(self, bag=False):
        super().__init__()
        kind = nn.EmbeddingBag if bag else nn.Embedding
        self.words, self.head = kind(9, 4, sparse=True), nn.Linear(4, 3)
        self.bag = bag

    def forward(self, x):
        return self.head(self.words(x) if self.bag else self.words(x).mean(1))


@pytest.mark.parametrize("method", METHODS)
def test_sparse_embeddings_give_dense_gradients_and_stay_sparse(method):
    model, batch = Words().double(), batch_of(words=True)
    right = expected(model, batch)
    flat = flat_gradients(model, loss, batch, Layout.of(model), method=method)
    torch.testing.assert_close(flat, torch.cat([*right.values()], 1))
    assert model.words.sparse
    total = sum_gradient(model, loss, batch, Layout.of(model))
    torch.testing.assert_close(total, flat.sum(0))


@pytest.mark.parametrize("kind", KINDS)
def test_curvature_through_a_sparse_embedding(kind):
    model, batch = Words().double(), batch_of(words=True)
    vector = torch.randn(51, dtype=torch.float64)
    found = hessian_product(model, loss, [batch], Layout.of(model), kind)(vector)
    model.words.sparse = False
    torch.testing.assert_close(found, dense_hessian(model, batch) @ vector)


def test_a_sparse_bag_by_the_loop():
    model, batch = Words(bag=True).double(), batch_of(words=True)
    found = per_sample_gradients(model, loss, batch, method="loop")
    torch.testing.assert_close(found["words.weight"], expected(model, batch)["words.weight"])


def sparse_function_loss(model, batch):
    """torch's sparse gradient asked for in the forward pass itself, where no module says so."""
    rows = nn.functional.embedding(batch["x"], model.weight, sparse=True)
    return nn.functional.cross_entropy(rows.mean(1), batch["y"], reduction="none")


def test_a_sparse_gradient_from_a_function_by_the_loop():
    model, batch = nn.Embedding(9, 3).double(), batch_of(words=True)
    found = per_sample_gradients(model, sparse_function_loss, batch, method="loop")
    torch.testing.assert_close(found, expected(model, batch, sparse_function_loss))


class Spectral(nn.Module):
    """A complex weight, as a Fourier layer's, and a real one."""

    def __init__(self):
        super().__init__()
        self.waves = nn.Parameter(torch.randn(4, 3, dtype=torch.complex128))
        self.shift = nn.Parameter(torch.randn(3).double())

    def forward(self, x):
        return (x.to(torch.complex128) @ self.waves).abs() + self.shift


class Parts(nn.Module):
    """The same with its real and imaginary parts as parameters of their own."""

    def __init__(self, twin):
        super().__init__()
        self.waves = nn.Parameter(torch.view_as_real(twin.waves.detach()).clone())
        self.shift = nn.Parameter(twin.shift.detach().clone())

    def forward(self, x):
        return (x.to(torch.complex128) @ torch.view_as_complex(self.waves)).abs() + self.shift


@pytest.mark.parametrize("method", ["vmap", "loop"])
@pytest.mark.parametrize("estimator", ["tracin", "cosine", "datainf", "fisher"])
def test_complex_parameters_score_as_their_real_and_imaginary_parts(method, estimator):
    model, batch = Spectral(), batch_of()
    found = per_sample_gradients(model, loss, batch, method=method)
    right = per_sample_gradients(Parts(model), loss, batch, method=method)
    assert not found["shift"].is_complex()
    torch.testing.assert_close(torch.view_as_real(found["waves"]).flatten(1), right["waves"])
    torch.testing.assert_close(
        distinf.influence(found, found, estimator), distinf.influence(right, right, estimator)
    )


def test_complex_parameters_are_refused_by_name_where_they_are_not_taken():
    with pytest.raises(InputError, match=r"'waves' is complex.*leave it out of the blocks"):
        Layout.of(Spectral())
    assert Layout.of(Spectral(), "shift").names == ("shift",)
    with pytest.raises(InputError, match=r"'waves'.*complex.*vmap"):
        per_sample_gradients(Spectral(), loss, batch_of(), method="hooks")
    linear = nn.Linear(4, 3, dtype=torch.complex64)

    def sizes(model, batch):
        return model(batch["x"].to(torch.complex64)).abs().sum(1)

    with pytest.raises(InputError, match=r"'weight'.*complex"):
        per_sample_gradients(linear, sizes, batch_of(), method="hooks")


@pytest.mark.parametrize("method", METHODS)
def test_models_without_values_or_shapes_are_refused(method):
    batch = {"x": torch.randn(2, 4), "y": torch.tensor([0, 1])}
    with torch.inference_mode():
        made_inside = nn.Linear(4, 3)
    for model, said in (
        (nn.Linear(4, 3, device="meta"), "'weight' is on the meta device"),
        (nn.LazyLinear(3), "'weight' has no shape yet.*run the model once"),
        (made_inside, "'weight' was made under torch.inference_mode"),
    ):
        with pytest.raises(InputError, match=said):
            per_sample_gradients(model, loss, batch, method=method)
    lazy = nn.LazyLinear(3)
    lazy(batch["x"])
    assert len(per_sample_gradients(lazy, loss, batch, method=method)["weight"]) == 2


def test_a_scripted_model_is_refused_and_taken_as_the_error_says():
    batch = {"x": torch.randn(2, 4), "y": torch.tensor([0, 1])}
    linear = nn.Linear(4, 3)
    scripted = torch.jit.script(linear)
    with pytest.raises(InputError, match=r"scripted model.*torch\.nn\.Sequential\(model\)"):
        per_sample_gradients(scripted, loss, batch)
    found = per_sample_gradients(nn.Sequential(scripted), loss, batch)
    expected = per_sample_gradients(linear, loss, batch, method="loop")
    torch.testing.assert_close(found["0.weight"], expected["weight"])


@pytest.mark.parametrize("method", ["vmap", "loop"])
def test_parametrised_tied_frozen_and_mixed_parameters(method):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = weight_norm(nn.Linear(4, 4)).double()
            self.second = nn.Linear(4, 4).double()
            self.tied = self.second
            self.steps = nn.Parameter(torch.arange(3), requires_grad=False)
            self.narrow = nn.Linear(4, 3)  # float32 between float64

        def forward(self, x):
            return self.narrow(self.tied(self.second(self.first(x))).float()).double()

    torch.manual_seed(2)
    model, batch = Mixed(), batch_of()
    found = per_sample_gradients(model, loss, batch, method=method)
    right = expected(model, batch)
    assert found.keys() == right.keys()
    for name, grads in found.items():
        torch.testing.assert_close(grads.double(), right[name].double(), rtol=1e-5, atol=1e-6)


class OldStyle(torch.autograd.Function):
    """As functions were written before torch.func: context in forward, no vmap."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (x > 0)


class Clipped(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 5).double(), nn.Linear(5, 3).double()

    def forward(self, x):
        return self.last(OldStyle.apply(self.first(x)))


def test_functions_of_the_old_style_by_the_methods_that_the_error_names():
    model, batch = Clipped(), batch_of()
    with pytest.raises(InputError, match="method='loop'"):
        per_sample_gradients(model, loss, batch, method="vmap")
    right = expected(model, batch)
    for method in ("loop", "hooks"):
        found = per_sample_gradients(model, loss, batch, method=method)
        torch.testing.assert_close(found, right)


def without_grad(model, batch):
    with torch.no_grad():
        return loss(model, batch)


NO_GRADIENT = {
    "no_grad": without_grad,
    "detached": lambda model, batch: loss(model, batch).detach(),
    "accuracy": lambda model, batch: (model(batch["x"]).argmax(1) != batch["y"]).double(),
    "others": lambda model, batch: batch["x"].square().sum(1),
    "elsewhere": lambda model, batch: batch["x"][:, 0] * torch.ones(1, requires_grad=True),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", NO_GRADIENT)
def test_a_loss_without_a_gradient_is_refused(kind, method):
    model = nn.Linear(4, 3).double()
    with pytest.raises(InputError, match=r"no gradient with respect to .* \(weight, bias\)"):
        per_sample_gradients(model, NO_GRADIENT[kind], batch_of(), method=method)


@pytest.mark.parametrize("method", METHODS)
def test_rows_whose_gradient_is_zero_are_legal(method):
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3)).double()
    nn.init.constant_(model[0].bias, -100.0)  # dead for every row
    found = per_sample_gradients(model, loss, batch_of(), "0", method=method)
    assert not any(g.any() for g in found.values())
    one = {key: value[:1] for key, value in batch_of().items()}
    assert len(per_sample_gradients(model, loss, one, "0", method=method)["0.bias"]) == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_of_another_type_is_refused(method):
    model = nn.Linear(4, 3).double()
    for odd, said in (
        (lambda m, b: m(b["x"]).argmax(1) != b["y"], "bool"),
        (lambda m, b: m(b["x"]).to(torch.complex128).sum(1), "complex"),
        (lambda m, b: 3.0, "float"),
    ):
        with pytest.raises(InputError, match=f"the loss returned.*{said}"):
            per_sample_gradients(model, odd, batch_of(), method=method)
