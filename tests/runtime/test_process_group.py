"""The sums of a gang's process group: real processes over gloo."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from torch import nn

from distinf.numerics.checkpointing import recompute_blocks
from distinf.numerics.hooks import block_gradients
from distinf.numerics.parameters import Layout
from distinf.runtime.process_group import join_group
from distinf.runtime.worker import free_address

SHARDS = torch.tensor([[1e8], [1.0], [-1e8]])  # in float32, 1e8 + 1 is 1e8


def summed(rank, size, address):
    collective = join_group(rank, size, address, backend="gloo", timeout_s=60.0)
    owned = collective.owned(len(SHARDS))
    total = collective.ordered_sum(SHARDS[owned.start : owned.stop])
    return total.dtype, total.tolist()


@pytest.mark.parametrize("size", [1, 2])
def test_the_ordered_sum_of_a_gang_is_taken_in_float64(size):
    address = free_address("127.0.0.1")
    with ProcessPoolExecutor(size, mp_context=get_context("spawn")) as pool:
        calls = [pool.submit(summed, rank, size, address) for rank in range(size)]
        assert [call.result(timeout=120) for call in calls] == [(torch.float64, [1.0])] * size


class Layer(nn.Module):
    """Frozen but for an adapter, with a buffer."""

    def __init__(self):
        super().__init__()
        self.norm, self.wide = nn.LayerNorm(6), nn.Linear(6, 7)  # 7 rows do not halve
        self.requires_grad_(False)
        self.down, self.up = nn.Linear(6, 2, bias=False), nn.Linear(2, 7, bias=False)
        self.narrow = nn.Linear(7, 6).requires_grad_(False)
        self.register_buffer("scale", torch.rand(6))

    def forward(self, x):
        h = self.norm(x) * self.scale
        return x + self.narrow(torch.relu(self.wide(h) + self.up(self.down(h))))


class Words(nn.Module):
    """An embedding that is the head too."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(9, 6).requires_grad_(False)
        self.layers = nn.ModuleList(Layer() for _ in range(3))

    def forward(self, ids):
        x = self.words(ids)
        for layer in self.layers:
            x = layer(x)
        return x @ self.words.weight.T


def words_loss(model, ids):
    return model(ids).logsumexp(-1).sum(1)


def gradients_of_words(rank, size, address):
    """Of this rank's rows, by the model and by one that is spread: whether they are the same bits,
    plain and with activations computed again, and what is held of a layer."""
    collective = join_group(rank, size, address, backend="gloo", timeout_s=60.0)
    torch.manual_seed(0)
    model, found, seen = Words().eval(), [], []
    layout = Layout.of(model)
    ids = torch.arange(12).reshape(2, 6).add(rank) % 9
    whole = sum(p.numel() for p in model.layers[0].parameters() if not p.requires_grad)
    for change in ("", "spread", "recompute"):
        if change == "spread":
            own = {model.get_parameter(name) for name in layout.names}
            collective.spread(model, [*model.layers], own, torch.device("cpu"))
            model.layers[1].register_forward_pre_hook(lambda *_: seen.append(held(model.layers[0])))
        elif change:
            recompute_blocks(model)
        found.append(list(block_gradients(model, words_loss, ids, layout).values()))
    same = [all(map(torch.equal, found[0], each)) for each in found]
    return len(found[0]), same, {*seen, *map(held, model.layers)}, whole


def held(layer):
    frozen = [p for p in layer.parameters() if not p.requires_grad]
    return sum(p.to_local().numel() for p in frozen if hasattr(p, "to_local"))


def test_gradients_by_hooks_of_a_spread_model_are_those_of_the_model():
    address = free_address("127.0.0.1")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        calls = [pool.submit(gradients_of_words, rank, 2, address) for rank in range(2)]
        (blocks, *told), (_, *others) = (call.result(timeout=300) for call in calls)
    assert blocks == 6  # two of each layer
    assert told[0] == others[0] == [True] * 3
    (ours,), (theirs,) = told[1], others[1]  # as much while the next layer runs as at the end
    assert ours + theirs == told[2]
