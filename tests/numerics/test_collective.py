import pytest
import torch

from distinf.numerics.collective import Alone, sum_in_order
from distinf.numerics.randomness import signs, uniform
from tests.support.threads import run_ranks


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_ordered_sum_has_the_same_bits_at_any_number_of_ranks(size):
    parts = torch.randn(4, 33, generator=torch.Generator().manual_seed(0)) * 1e6
    expected = Alone().ordered_sum(parts)

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


def test_sum_in_order_adds_in_float64():
    parts = torch.tensor([[1e8], [1.0], [-1e8]])
    assert sum_in_order(parts).tolist() == [1.0]


def test_counter_based_numbers_depend_on_seed_purpose_stream_and_index_only():
    long = uniform(7, "a", 1000)
    assert torch.equal(uniform(7, "a", 10), long[:10])
    assert torch.equal(signs(7, "a", 70)[:65], signs(7, "a", 65))
    others = [uniform(8, "a", 1000), uniform(7, "b", 1000), uniform(7, "a", 1000, stream=1)]
    for other in others:
        assert abs(float(torch.corrcoef(torch.stack([long, other]))[0, 1])) < 0.15
    assert long.abs().max() < 1.0
    assert abs(float(long.mean())) < 0.1
    assert set(signs(0, "z", 100).tolist()) == {-1.0, 1.0}
    assert abs(float(signs(0, "z", 10_000).mean())) < 0.05
