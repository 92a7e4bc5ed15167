"""The sums of a gang's process group: real processes over gloo."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch

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
