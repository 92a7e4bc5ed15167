import pytest
import torch
from torch import nn

from distinf.errors import InputError
from distinf.numerics.capture import finite_rows, flat_gradients, per_sample_gradients
from distinf.numerics.parameters import Layout
from tests.numerics.cases import CrossEntropy, classifier


def expected_gradients(model, batch):
    model.eval()
    losses = CrossEntropy()(model, batch)
    return torch.stack(
        [
            torch.cat(
                [
                    g.view(-1)
                    for g in torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
                ]
            )
            for loss in losses
        ]
    )


@pytest.mark.smoke
@pytest.mark.parametrize("method", ["vmap", "loop"])
@pytest.mark.parametrize("chunk", [1, 5, 100])
def test_each_row_is_that_samples_gradient_whatever_the_chunk(method, chunk):
    model, batch = classifier()
    model.train()
    layout = Layout.of(model)
    found = flat_gradients(model, CrossEntropy(), batch, layout, chunk=chunk, method=method)
    assert model.training
    torch.testing.assert_close(found, expected_gradients(model, batch))


def test_blocks_are_columns_of_the_flat_gradients():
    model, batch = classifier()
    blocks = per_sample_gradients(model, CrossEntropy(), batch, blocks=r"^4\.")
    flat = expected_gradients(model, batch)
    assert list(blocks) == ["4.weight", "4.bias"]
    torch.testing.assert_close(torch.cat(list(blocks.values()), 1), flat[:, -15:])


def test_batches_may_be_tuples_or_tensors():
    model, batch = classifier()
    layout = Layout.of(model)

    def pair_loss(m, b):
        return nn.functional.cross_entropy(m(b[0]), b[1], reduction="none")

    found = flat_gradients(model, pair_loss, (batch["x"], batch["y"]), layout)
    torch.testing.assert_close(found, expected_gradients(model, batch))
    squares = flat_gradients(model, lambda m, x: m(x).square().sum(1), batch["x"], layout)
    assert squares.shape == (12, layout.size)


def test_a_loss_that_is_not_finite_marks_its_sample_only():
    model, batch = classifier()
    batch["x"][3] = float("nan")
    batch["x"][7] = float("inf")
    blocks = per_sample_gradients(model, CrossEntropy(), batch)
    mask = finite_rows(blocks)
    assert torch.nonzero(~mask).view(-1).tolist() == [3, 7]
    assert torch.isnan(blocks["0.weight"][3]).all()
    flat = flat_gradients(model, CrossEntropy(), batch, Layout.of(model))
    assert torch.equal(finite_rows(flat), mask)


def test_a_layer_that_vmap_cannot_pass_names_the_loop():
    class Branching(nn.Linear):
        def forward(self, x):
            return super().forward(x) * (2.0 if x.abs().max().item() < 99 else 1.0)

    model = Branching(3, 2).double()
    x = torch.randn(4, 3, dtype=torch.float64)

    def loss(m, b):
        return m(b).sum(1)

    with pytest.raises(InputError, match="use method='loop'"):
        per_sample_gradients(model, loss, x, method="vmap")
    for method in (None, "loop"):
        assert per_sample_gradients(model, loss, x, method=method)["weight"].shape == (4, 6)


def test_mean_losses_empty_batches_and_bad_settings():
    model, batch = classifier()
    with pytest.raises(InputError, match="one value per sample"):
        per_sample_gradients(model, lambda m, b: CrossEntropy()(m, b).mean(), batch)
    with pytest.raises(InputError, match="chunk 0"):
        per_sample_gradients(model, CrossEntropy(), batch, chunk=0)
    none = {name: value[:0] for name, value in batch.items()}
    assert per_sample_gradients(model, CrossEntropy(), none)["4.bias"].shape == (0, 3)
