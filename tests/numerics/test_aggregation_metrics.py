import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

import distinf
from distinf.errors import InputError
from distinf.numerics.aggregation import votes_of
from distinf.numerics.metrics import spearman

SCORES = torch.tensor([[3.0, -1.0, 0.5, -2.0], [10.0, 0.0, -5.0, 0.0]])


def test_mean_rank_and_vote_match_their_definitions_by_hand():
    assert distinf.aggregate(SCORES).tolist() == [6.5, -0.5, -2.25, -1.0]
    # strictly lower counts: row 1 [3, 1, 2, 0], row 2 [3, 1, 0, 1]
    assert distinf.aggregate(SCORES, "rank").tolist() == [6.0, 2.0, 2.0, 1.0]
    # two votes for the lowest, one for the next: row 1 [0, 1, 0, 2], row 2 [0, 1, 2, 1]
    assert distinf.aggregate(SCORES, "vote", top=2).tolist() == [0.0, -2.0, -2.0, -3.0]
    assert torch.equal(
        distinf.aggregate(SCORES, "vote", top=0.5), distinf.aggregate(SCORES, "vote", top=2)
    )


def test_blocks_count_like_further_queries():
    blocks = {"a": SCORES[:1], "b": SCORES[1:]}
    for how in ("mean", "rank", "vote"):
        assert torch.equal(distinf.aggregate(blocks, how), distinf.aggregate(SCORES, how))


@given(st.integers(0, 2**20), st.sampled_from(["mean", "rank", "vote"]))
def test_a_sample_lowest_everywhere_comes_out_most_detrimental(seed, how):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(5, 20, generator=generator)
    scores[:, 13] = -100.0
    assert int(distinf.aggregate(scores, how, top=0.3).argmin()) == 13


@pytest.mark.parametrize("how", ["rank", "vote"])
def test_ranks_and_votes_ignore_magnitude(how):
    stretched = SCORES.double() ** 3
    assert torch.equal(distinf.aggregate(stretched, how), distinf.aggregate(SCORES, how))


def test_bad_scores_and_settings_are_refused():
    with pytest.raises(InputError, match="1 training samples have scores that are not finite"):
        distinf.aggregate(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(InputError, match="how='median'"):
        distinf.aggregate(SCORES, "median")
    assert votes_of(0.3, 1202) == 360  # as many as a filter of 30 % removes
    assert votes_of(0.3, 2) == 1
    with pytest.raises(InputError, match="top=0"):
        distinf.aggregate(SCORES, "vote", top=0)
    with pytest.raises(InputError, match="same training samples"):
        distinf.aggregate({"a": SCORES, "b": SCORES[:, :2]})
    with pytest.raises(InputError, match="at least one query"):
        distinf.aggregate(SCORES[:0])
    for scores in (SCORES[0], SCORES.numpy(), SCORES[:, :0]):
        with pytest.raises(InputError, match=r"scores must be tensors \[Q, N\]"):
            distinf.aggregate(scores, "rank")


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=3, max_size=30))
def test_spearman_matches_scipy_with_ties(pairs):
    first, second = (torch.tensor(x, dtype=torch.float64) for x in zip(*pairs, strict=True))
    found = spearman(first, second)
    if len(set(first.tolist())) == 1 or len(set(second.tolist())) == 1:
        assert found != found
    else:
        assert found == pytest.approx(scipy.stats.spearmanr(first, second).statistic, abs=1e-12)


def test_spearman_refuses_nan_and_other_shapes():
    with pytest.raises(InputError, match="finite"):
        spearman(torch.tensor([1.0, float("nan")]), torch.ones(2))
    with pytest.raises(InputError, match="same length"):
        spearman(torch.ones(3), torch.ones(2))
