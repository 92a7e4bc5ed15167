"""Fast per-sample gradients against one row at a time, and losses that no method can take."""

import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from distinf.errors import InputError
from distinf.numerics import agreement
from distinf.numerics.capture import per_sample_gradients
from distinf.numerics.sparse import SparseRows

ROWS = 8


def loss(model, batch):
    return functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def data(*shape, rows=ROWS, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, *(shape or (4,)), generator=generator, dtype=dtype)
    return {"x": x, "y": torch.arange(rows) % 3}


def mlp(*more):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), *more, nn.Tanh(), nn.Linear(6, 3))


class Inside(nn.Module):
    """A small network, and what is done around it."""

    def __init__(self, before=lambda x: x, after=lambda y: y):
        super().__init__()
        self.net, self.before, self.after = mlp(), before, after

    def forward(self, x):
        return self.after(self.net(self.before(x)))


def dense(grads):
    return grads.dense().flatten(1) if isinstance(grads, SparseRows) else grads


def assert_right(model, batch, method=None, loss=loss):
    """The gradients are those of autograd for one row after the other."""
    found = per_sample_gradients(model, loss, batch, method=method)
    named = dict(model.named_parameters())
    for row in range(len(batch["y"])):
        one = {name: values[row : row + 1].clone() for name, values in batch.items()}
        model.eval()
        expected = torch.autograd.grad(loss(model, one).sum(), list(named.values()))
        for name, grad in zip(named, expected, strict=True):
            torch.testing.assert_close(dense(found[name])[row].view(grad.shape), grad)


# -- layers that see something else than the rows ---------------------------------------------


class Positions(nn.Module):
    def __init__(self, length):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.places = nn.Embedding(11, 6), nn.Embedding(length, 6)
        self.head, self.length = nn.Linear(6, 3), length

    def forward(self, ids):
        return self.head((self.words(ids) + self.places(torch.arange(self.length))).tanh().mean(1))


class RowByRow(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.each, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.stack([self.each(row).tanh().mean(0) for row in x]))


class SequenceFirst(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.each, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.each(x.transpose(0, 1)).tanh().mean(0))


def sorted_inside(x):
    order = x.sum(1).argsort()
    return x[order], order.argsort()


class SortedInside(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        ordered, back = sorted_inside(x)
        return self.net(ordered)[back]


def patched():
    model = mlp()
    original = model[0].forward
    model[0].forward = lambda x: original(x) * torch.tensor([1.0, 0, 2, 1, 0, 3])
    return model


def ids(length):
    batch = data(length)
    return batch | {"x": batch["x"].abs().mul(3).long().clamp(max=10)}


LENGTHS = (2, 3, ROWS)  # as many as two rows, three, or a whole pass
ODD = {
    **{f"{n} positions": (lambda n=n: Positions(n), ids(n)) for n in LENGTHS},
    **{f"rows of {n} one by one": (RowByRow, data(n, 4)) for n in LENGTHS},
    **{f"{n} steps first": (SequenceFirst, data(n, 4)) for n in LENGTHS},
    "sorted and back": (SortedInside, data()),
    "turned around and back": (lambda: Inside(lambda x: x.flip(0), lambda y: y.flip(0)), data()),
    "a patched forward": (patched, data()),
}


@pytest.mark.parametrize("name", ODD)
def test_hooks_that_differ_from_one_row_at_a_time_are_refused_and_not_chosen(name):
    make, batch = ODD[name]
    with pytest.raises(InputError, match="use method='vmap' or 'loop'"):
        per_sample_gradients(make(), loss, batch, method="hooks")
    assert_right(make(), batch)


def test_only_a_whole_pass_shows_rows_that_are_reordered_in_large_batches():
    turn = Inside(*[lambda x: x.flip(0) if len(x) > 3 else x] * 2)
    with pytest.raises(InputError, match="not those of one row at a time"):
        per_sample_gradients(turn, loss, data(), method="hooks")
    assert_right(turn, data())
    assert per_sample_gradients(turn, loss, data(), method="hooks", chunk=3)  # never so many


def test_one_row_at_a_time_by_hooks_may_come_from_a_model_that_loops():
    model, batch = RowByRow(), data(1, 4)
    found = per_sample_gradients(model, loss, batch, "each", method="hooks", chunk=1)
    expected = per_sample_gradients(model, loss, batch, "each", method="loop")
    torch.testing.assert_close(found["each.weight"], expected["each.weight"])


HOOKED = {
    "forward hook": lambda m: m.register_forward_hook(lambda _, __, y: y * torch.arange(6.0)),
    "forward pre-hook": lambda m: m.register_forward_pre_hook(lambda _, x: (x[0] * 2,)),
    "backward hook": lambda m: m.register_full_backward_hook(lambda *_: None),
}


@pytest.mark.parametrize("method", [None, "hooks", "loop"])
@pytest.mark.parametrize("name", HOOKED)
def test_hooks_of_ones_own_are_part_of_the_model(name, method):
    model = mlp()
    HOOKED[name](model[0])
    assert_right(model, data(), method)


def test_a_hook_that_comes_later_is_looked_at_again():
    model = mlp()
    per_sample_gradients(model, loss, data(), method="hooks")
    original = model[0].forward
    model[0].forward = lambda x: 2 * original(x)
    with pytest.raises(InputError, match=r"'0\.(weight|bias)' differs"):
        per_sample_gradients(model, loss, data(), method="hooks")


# -- losses that are no function of one row ----------------------------------------------------


def contrastive(model, batch):
    z = model(batch["x"])
    return functional.cross_entropy(z @ batch["x"][:, :3].T, torch.arange(len(z)), reduction="none")


def mean_over_tokens(model, batch):
    each = functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")
    shares = batch["y"] + 1.0
    return each * shares / shares.sum()


def broadcast(model, batch):
    return (model(batch["x"])[:, :1] - batch["y"].float()).square().mean(1)


def centred(model, batch):
    values = loss(model, batch)
    return values - values.mean().detach()


def training(model, batch):
    model.train()
    return loss(model, batch)


def always_dropped(model, batch):
    y = functional.dropout(model(batch["x"]), 0.5)
    return functional.cross_entropy(y, batch["y"], reduction="none")


def rarely_dropped(model, batch):
    return loss(model, batch) * (2.0 if torch.rand(()) < 0.2 else 1.0)


def seeded(model, batch):
    torch.manual_seed(0)
    return always_dropped(model, batch)


class Counting:
    def __init__(self):
        self.calls = 0

    def __call__(self, model, batch):
        self.calls += 1
        return loss(model, batch) * (1 + 1e-3 * self.calls)


NO_FUNCTION = {
    "in-batch negatives": (contrastive, "depends on the other rows"),
    "a mean over tokens": (mean_over_tokens, "depends on the other rows"),
    "a broadcast": (broadcast, "depends on the other rows"),
    "a centred loss": (centred, "depends on the other rows"),
    "one mask for every row": (seeded, "depends on the other rows"),
    "dropout": (always_dropped, "is not a function"),
    "a rare draw": (rarely_dropped, "is not a function"),
    "python's numbers": (lambda m, b: loss(m, b) * random.random(), "is not a function"),
    "numpy's numbers": (lambda m, b: loss(m, b) * np.random.rand(), "is not a function"),
    "a count of calls": (Counting(), "is not a function"),
}


@pytest.mark.parametrize("method", [None, "hooks", "vmap", "loop"])
@pytest.mark.parametrize("name", NO_FUNCTION)
def test_a_loss_that_is_no_function_of_one_row_is_refused_by_every_method(name, method):
    function, message = NO_FUNCTION[name]
    for rows in (2, ROWS):
        with pytest.raises(InputError, match=message) as raised:
            per_sample_gradients(mlp(), function, data(rows=rows), method=method)
        assert "\n" not in str(raised.value)


def test_room_for_the_first_few_rows_alone_shows_in_the_last():
    def full(model, batch):
        return loss(model, batch) * (torch.arange(len(batch["y"])) < 4)

    with pytest.raises(InputError, match=f"depends on the other rows of its batch: row {ROWS - 1}"):
        per_sample_gradients(mlp(), full, data())


@pytest.mark.parametrize("layer", [nn.Dropout(0.1), nn.BatchNorm1d(6), nn.BatchNorm1d(6).double()])
def test_training_mode_inside_the_loss_is_refused_where_it_matters_and_named(layer):
    model = mlp(layer).to(torch.float32)
    with pytest.raises(InputError, match="puts the model into training mode"):
        per_sample_gradients(model, training, data())
    assert_right(mlp(), data(), loss=training)


def test_random_numbers_that_change_nothing_are_no_reason():
    def drawing(model, batch):
        torch.rand(3)
        return loss(model, batch)

    assert_right(mlp(), data(), "hooks", loss=drawing)


def test_a_batch_that_is_changed_in_place_gives_the_right_gradients_and_stays():
    def doubling(model, batch):
        batch["x"].mul_(2)
        return loss(model, batch)

    for method in ("hooks", "vmap", "loop"):
        batch = data()
        assert_right(mlp(), batch, method, loss=doubling)
        assert torch.equal(batch["x"], data()["x"])


@pytest.mark.parametrize("largest", [0, 1, 2])
def test_rows_that_stand_in_order_are_taken_in_the_other_order_too(largest):
    batch = data(rows=3)
    batch["x"], _ = sorted_inside(batch["x"])
    batch["y"], batch["size"] = torch.tensor([0, 1, 0]), torch.ones(3)  # the second is the longest
    batch["size"][largest] = 100.0  # the row that is looked at first

    def sized(model, batch):
        return loss(model, batch) * batch["size"]

    def after_a_larger(model, batch):
        sums = batch["x"].sum(1)
        return sized(model, batch) + sums.cummax(0).values - sums

    with pytest.raises(InputError, match="use method='vmap' or 'loop'"):
        per_sample_gradients(SortedInside(), sized, batch, method="hooks")
    with pytest.raises(InputError, match="depends on the other rows"):
        per_sample_gradients(mlp(), after_a_larger, batch)


# -- what is no disagreement -----------------------------------------------------------------


def poisoned():
    batch = data()
    batch["x"][2], batch["x"][5] = float("nan"), float("inf")
    return batch


def fitted():
    model, batch = mlp(), data(rows=64)
    with torch.no_grad():
        model[2].weight.mul_(100)
    return model, batch | {"y": model(batch["x"]).argmax(1)}


FINE = {
    "scales": lambda: (mlp(), data() | {"x": data()["x"] * torch.logspace(-6, 6, ROWS)[:, None]}),
    "dead rows": lambda: (nn.Sequential(mlp(), nn.ReLU()), data() | {"x": data()["x"] * 0}),
    "rows that are not finite": lambda: (mlp(), poisoned()),
    "rows fitted to rounding": fitted,
    "one row": lambda: (mlp(), data(rows=1)),
    "two rows": lambda: (mlp(), data(rows=2)),
    "bfloat16": lambda: (mlp().bfloat16(), data(dtype=torch.bfloat16)),
    "float64": lambda: (mlp(nn.BatchNorm1d(6)).double(), data(dtype=torch.float64)),
    "bfloat16 batch norm": lambda: (mlp(nn.BatchNorm1d(6)).bfloat16(), data(dtype=torch.bfloat16)),
}


@pytest.mark.parametrize("name", FINE)
def test_rounding_zeros_and_rows_that_are_not_finite_are_no_disagreement(name):
    model, batch = FINE[name]()
    for method in (None, "hooks", "vmap", "loop"):
        found = per_sample_gradients(model, loss, batch, method=method)
        assert len(next(iter(found.values()))) == len(batch["y"])


def test_small_gradients_in_float16_do_not_overflow_the_check():
    def small(model, batch):
        return loss(model, batch) * 2**-15

    assert per_sample_gradients(mlp().half(), small, data(dtype=torch.float16))


@pytest.mark.parametrize("seed", [0, 2, 13, 54, 399])
def test_rounding_that_a_loss_multiplies_is_no_mixing(seed):
    def far(model, batch):
        return functional.huber_loss(model(batch["x"])[:, 0] * 1e6, batch["t"], reduction="none")

    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
    x = torch.randn(24, 6)
    batch = {"x": x, "t": model(x)[:, 0].detach() * 1e6}
    assert per_sample_gradients(model, far, batch)


def test_rounding_is_what_the_last_bits_do_and_no_more():
    """A difference that is small but no rounding is one."""
    model = mlp()
    original = model[0].forward
    model[0].forward = lambda x: 1.01 * original(x)
    with pytest.raises(InputError, match=r"'0\.weight' differs by 1%"):
        per_sample_gradients(model, loss, data(), "0.weight", method="hooks")


# -- what it costs and leaves behind ---------------------------------------------------------


def test_it_is_done_once_for_a_model_and_a_loss(monkeypatch):
    looked = []
    original = agreement.undisturbed
    monkeypatch.setattr(agreement, "undisturbed", lambda m: looked.append(m) or original(m))
    model = mlp()
    for _ in range(3):
        per_sample_gradients(model, lambda m, b: loss(m, b), data())
    assert len(looked) == 1
    per_sample_gradients(model, loss, data())
    per_sample_gradients(model, loss, data(), "0")
    per_sample_gradients(model.double(), loss, data(dtype=torch.float64), "0")
    per_sample_gradients(mlp(), loss, data())
    assert len(looked) == 5
    per_sample_gradients(mlp(), loss, data(), method="hooks", check=False)
    assert len(looked) == 5


@pytest.mark.parametrize("first", ["none", "one", "alike", "not finite"])
def test_a_first_batch_that_tells_nothing_of_mixing_is_not_all_that_is_looked_at(first):
    x = data()["x"]
    rows = {"none": x[:0], "one": x[:1], "alike": x[:1].expand(4, -1), "not finite": x[:4] / 0}
    model = Inside(before=lambda x: x - x.mean(0))
    y = torch.zeros(len(rows[first])).long()
    per_sample_gradients(model, loss, {"x": rows[first], "y": y})
    with pytest.raises(InputError, match="depends on the other rows"):
        per_sample_gradients(model, loss, data())


def test_without_the_check_nothing_is_refused():
    for method in ("hooks", "vmap", "loop"):
        assert per_sample_gradients(mlp(), contrastive, data(), method=method, check=False)


def test_model_and_random_numbers_are_left_as_they_were():
    def noisy(model, batch):
        model.train()
        model.requires_grad_(False)
        model.register_buffer("count", torch.ones(1)) if not hasattr(model, "count") else None
        model[0].weight.requires_grad_(True)
        return loss(model, batch) + torch.rand(()) + random.random() + np.random.rand()

    model = mlp(nn.BatchNorm1d(6))
    model[3].weight.requires_grad_(False)
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    flags = [p.requires_grad for p in model.parameters()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    with pytest.raises(InputError):
        per_sample_gradients(model, noisy, data())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(torch.equal(value, model.get_buffer(name)) for name, value in buffers.items())
    assert model.training
    assert all(p.grad is None for p in model.parameters())


# -- which method is chosen ------------------------------------------------------------------


def test_a_model_that_only_one_row_at_a_time_passes_takes_the_loop():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, x):
            assert float(x.abs().max()) < 99  # vmap has no such number
            return self.scale * x

    assert_right(Scaled(), data())
    with pytest.raises(InputError, match="use method='loop'"):
        per_sample_gradients(Scaled(), loss, data(), method="vmap")


def test_embeddings_and_projections_are_refused_as_hooks_refuse_them():
    class Unknown(Positions):
        def __init__(self):
            super().__init__(4)
            self.get_input_embeddings = lambda: self.words

    with pytest.raises(InputError, match=r"layer of 'places\.weight' sees 4 rows"):
        per_sample_gradients(Unknown(), loss, ids(4), embeddings=True)
    with pytest.raises(InputError, match="need method='hooks'"):
        per_sample_gradients(Unknown(), loss, ids(4), embeddings=True, method="loop")


def test_projected_gradients_are_checked_under_their_projection():
    from distinf.numerics.projection import TwoSided

    project = TwoSided(0, 2)
    found = per_sample_gradients(mlp(), loss, data(), project=project)
    assert found["0.weight"].shape == (ROWS, 4)
    with pytest.raises(InputError, match="not those of one row at a time"):
        per_sample_gradients(patched(), loss, data(), project=project)


# -- losses and models that are right, and looked wrong ---------------------------------------


def test_a_loss_may_differentiate_by_its_inputs():
    def steep(model, batch):
        x = batch["x"].clone().requires_grad_()
        values = loss(model, batch | {"x": x})
        (slope,) = torch.autograd.grad(values.sum(), x, create_graph=True)
        return values + slope.square().sum(1)

    assert_right(mlp(), data(), loss=steep)


@pytest.mark.filterwarnings("ignore:.*nested tensors")
def test_attention_counts_padded_positions_as_it_does_in_training():
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 1)

        def forward(self, x):
            padded = (torch.arange(x.shape[1]) > 2).expand(len(x), -1)
            return self.encoder(x, src_key_padding_mask=padded).square().sum(1)

    assert_right(Padded(), data(5, 4))


def test_a_loss_without_a_hash_is_taken():
    @dataclass
    class Scaled:
        by: float

        def __call__(self, model, batch):
            return self.by * loss(model, batch)

    assert_right(mlp(), data(), loss=Scaled(2.0))


def test_another_loss_of_the_same_code_is_checked_anew():
    class Noisy:
        def __init__(self, p):
            self.p = p

        def loss(self, model, batch):
            logits = functional.dropout(model(batch["x"]), self.p)
            return functional.cross_entropy(logits, batch["y"], reduction="none")

    model = mlp()
    per_sample_gradients(model, Noisy(0.0).loss, data())
    with pytest.raises(InputError, match="not a function of model and row"):
        per_sample_gradients(model, Noisy(0.5).loss, data())  # may lie where the first one lay
    for p in (0.0, 0.5):

        def by_keyword(model, batch, *, p=p):
            return Noisy(p).loss(model, batch)

        if p:
            with pytest.raises(InputError, match="not a function of model and row"):
                per_sample_gradients(model, by_keyword, data())
        else:
            per_sample_gradients(model, by_keyword, data())


@pytest.mark.parametrize("settings", [[0.0], {0: 0.0}])
def test_a_loss_whose_settings_have_changed_is_checked_anew(settings):
    def dropped(model, batch):
        return loss(model, batch) + functional.dropout(batch["x"], settings[0]).sum(1)

    model = mlp()
    per_sample_gradients(model, dropped, data())
    settings[0] = 0.5
    with pytest.raises(InputError, match="not a function of model and row"):
        per_sample_gradients(model, dropped, data())


@pytest.mark.parametrize(
    "lengths",
    [[2] * 40 + [4] * 60, [4] * 40 + [2] * 60, [2] * 50 + [4] + [2] * 49],
    ids=["shortest first", "longest first", "one in the middle"],
)
def test_rows_that_are_mixed_only_behind_the_first_chunk_are_seen(lengths):
    """A mean over the batch's tokens, of rows that are equally long at first: a chunk of these has
    each row's own mean."""
    batch = data(5, rows=100)
    batch["x"] = torch.randint(1, 9, (100, 5)).float()
    batch["mask"] = (torch.arange(5) < torch.tensor(lengths)[:, None]).float()
    batch["x"] = batch["x"] * batch["mask"]
    torch.manual_seed(0)
    model = nn.Linear(5, 3)

    def mixing(model, batch):
        each = loss(model, batch) * batch["mask"].sum(1)
        return each * len(each) / batch["mask"].sum()

    with pytest.raises(InputError, match="depends on the other rows"):
        per_sample_gradients(model, mixing, batch)
    found = per_sample_gradients(model, loss, batch)["weight"]
    row = {name: values[99:] for name, values in batch.items()}
    (wanted,) = torch.autograd.grad(loss(model, row).sum(), [model.weight])
    torch.testing.assert_close(found[99].view_as(wanted), wanted)
