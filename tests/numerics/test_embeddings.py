"""Embeddings by hooks: sparse rows, and what cannot be captured."""

import pytest
import torch
from torch import nn

from distinf.errors import InputError
from distinf.numerics.capture import finite_rows, flat_gradients, per_sample_gradients
from distinf.numerics.hooks import block_gradients, projected_gradients
from distinf.numerics.parameters import Layout
from distinf.numerics.sparse import SparseRows


def loss(model, batch):
    """[N]: of any output, different for every sample."""
    return model(batch).tanh().square().flatten(1).sum(1)


def ids(rows=4, length=6):
    return torch.randint(0, 9, (rows, length), generator=torch.Generator().manual_seed(0))


class Words(nn.Module):
    """The same embedding called twice, then a layer, at different places of the sequence."""

    def __init__(self, **settings):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(9, 4, **settings)
        self.mix = nn.Linear(4, 3)

    def forward(self, tokens):
        first, second = self.words(tokens[:, :4]), self.words(tokens[:, 2:].contiguous())
        return self.mix(first.tanh()) * self.mix(second)


@pytest.mark.parametrize("settings", [{}, {"padding_idx": 3}, {"sparse": True}])
def test_an_embedding_used_twice_agrees_with_autograd(settings):
    model = Words(**settings).double()
    layout = Layout.of(model)
    found = block_gradients(model, loss, ids(), layout)
    dense = Words(**(settings | {"sparse": False})).double()
    expected = flat_gradients(dense, loss, ids(), layout, method="loop")
    rows = found["words.weight"]
    assert isinstance(rows, SparseRows)
    assert len(rows.ids) < 4 * 6 + 1
    flat = torch.cat([rows.dense().flatten(1), found["mix.weight"], found["mix.bias"]], 1)
    torch.testing.assert_close(flat, expected)
    hooks = flat_gradients(model, loss, ids(), layout, method="hooks")
    torch.testing.assert_close(hooks, expected)
    directions = torch.randn(5, layout.size, dtype=torch.float64)
    coordinates, sqnorm = projected_gradients(model, loss, ids(), layout, directions)
    torch.testing.assert_close(coordinates, expected @ directions.T)
    torch.testing.assert_close(sqnorm, expected.square().sum(1))


def test_a_frozen_embedding_is_wanted_by_name_only():
    model = Words().double().requires_grad_(False)
    model.mix.bias.requires_grad_()
    assert Layout.of(model).names == ("mix.bias",)
    layout = Layout.of(model, "bias", embeddings=True)
    assert layout.names == ("words.weight", "mix.bias")
    found = block_gradients(model, loss, ids(), layout)
    expected = block_gradients(Words().double(), loss, ids(), layout)
    assert found["words.weight"].rows.abs().max() > 0
    torch.testing.assert_close(found["words.weight"].rows, expected["words.weight"].rows)
    assert not model.words.weight.requires_grad


def test_the_public_form_gives_sparse_rows_for_any_chunk():
    model = Words()
    whole = per_sample_gradients(model, loss, ids(), "mix", embeddings=True)
    parts = per_sample_gradients(model, loss, ids(), "mix", embeddings=True, chunk=3)
    assert [*whole] == [*parts] == ["words.weight", "mix.weight", "mix.bias"]
    assert isinstance(parts["words.weight"], SparseRows)
    assert parts["words.weight"].offsets.tolist() == whole["words.weight"].offsets.tolist()
    torch.testing.assert_close(parts["words.weight"].rows, whole["words.weight"].rows)
    torch.testing.assert_close(parts["mix.weight"], whole["mix.weight"])
    assert finite_rows(whole).tolist() == [True] * 4
    assert len(per_sample_gradients(model, loss, ids()[:0], method="hooks")["words.weight"]) == 0
    with pytest.raises(InputError, match="embeddings and project need method='hooks'"):
        per_sample_gradients(model, loss, ids(), embeddings=True, method="vmap")


def test_a_broken_sample_is_found_by_its_rows():
    model = Words()
    with torch.no_grad():
        model.words.weight[8] = torch.nan
    tokens = torch.arange(6).repeat(3, 1)
    tokens[1, 0] = 8
    found = per_sample_gradients(model, loss, tokens, "words", method="hooks")
    assert finite_rows(found).tolist() == [True, False, True]


def test_an_embedding_that_is_not_used_has_no_rows():
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.Embedding(5, 3)})
    found = block_gradients(
        model, lambda m, x: m["used"](x).sum(1), torch.ones(4, 2), Layout.of(model)
    )
    assert (len(found["unused.weight"]), len(found["unused.weight"].ids)) == (4, 0)
    assert found["unused.weight"].dense().shape == (4, 5, 3)


class TiedHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.mix, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9)
        self.head.weight = self.words.weight

    def forward(self, tokens):
        return self.head(self.mix(self.words(tokens)))


class TiedByHand(Words):
    def forward(self, tokens):
        return self.mix(self.words(tokens)) @ self.mix.weight @ self.words.weight.T


class Positions(Words):
    def __init__(self):
        super().__init__()
        self.places = nn.Embedding(6, 4)

    def forward(self, tokens):
        return self.mix(self.words(tokens) + self.places(torch.arange(6)[None]))


REFUSED = {
    "a tied head": (TiedHead(), r"'words\.weight' of an embedding is also another layer's"),
    "tied by hand": (TiedByHand(), r"'words\.weight' is also used outside its layer"),
    "positions": (Positions(), r"'places\.weight' sees 1 rows for 4 samples.*leave it out"),
    "max_norm": (Words(max_norm=1.0), r"'words\.weight' .*; its max_norm changes the weight"),
    "by frequency": (Words(scale_grad_by_freq=True), "scale_grad_by_freq counts tokens over"),
    "another kind": (nn.EmbeddingBag(9, 4), r"'weight' \(weight of a EmbeddingBag\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_sparse_form_is_refused_by_name(name):
    model, message = REFUSED[name]
    blocks = "words|places|^weight"
    with pytest.raises(InputError, match=message):
        block_gradients(model, loss, ids(), Layout.of(model, blocks))


@pytest.mark.parametrize("name", ["a tied head", "positions", "max_norm"])
def test_what_is_refused_may_stand_outside_the_blocks(name):
    model = REFUSED[name][0]
    found = block_gradients(model, loss, ids(), Layout.of(model, r"mix\."))
    expected = per_sample_gradients(model, loss, ids(), r"mix\.", method="loop")
    torch.testing.assert_close(found, expected)


def test_the_input_embedding_is_the_models_own_or_the_only_one():
    model = Positions()
    with pytest.raises(InputError, match=r"the model has 2 nn\.Embedding layers"):
        Layout.of(model, "mix", embeddings=True)
    model.get_input_embeddings = lambda: model.words
    layout = Layout.of(model, "mix", embeddings=True)
    assert layout.names == ("words.weight", "mix.weight", "mix.bias")
    model.get_input_embeddings = lambda: nn.Embedding(9, 4)
    with pytest.raises(InputError, match="no parameter of it"):
        Layout.of(model, "mix", embeddings=True)
