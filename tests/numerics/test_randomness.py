import torch

from distinf.numerics.randomness import signs, uniform


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
