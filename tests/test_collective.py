import pytest
import torch

from distinf.collective import Collective
from tests.support.threads import run_ranks


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_ordered_sum_has_the_same_bits_at_any_number_of_ranks(size):
    parts = torch.randn(4, 33, generator=torch.Generator().manual_seed(0)) * 1e6
    expected = Collective().ordered_sum(parts)

    def body(collective):
        owned = collective.owned(4)
        return collective.ordered_sum(parts[owned.start : owned.stop])

    for found in run_ranks(size, body):
        assert found.dtype == torch.float64
        assert torch.equal(found, expected)


def test_owned_covers_all_shards_once():
    for size in (1, 2, 3, 7):
        owned = run_ranks(size, lambda collective: list(collective.owned(5)))
        assert [shard for shards in owned for shard in shards] == list(range(5))


def test_an_ordered_sum_adds_in_float64():
    parts = torch.tensor([[1e8], [1.0], [-1e8]])
    assert Collective().ordered_sum(parts).tolist() == [1.0]
