"""Two gangs of two on Ray, each at its own units; one of them loses a rank."""

import pytest

from distinf.runtime import RuntimeSettings, open_runtime
from tests.support.bodies import at_once, calls, shared_records

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_a_gang_that_fails_leaves_another_alone_and_what_is_left_is_shared_out_anew(tmp_path):
    root, opened = str(tmp_path), open_runtime(RuntimeSettings(workers=4, num_cpus=0.5))
    try:
        found = shared_records(opened, root, 2, seconds=0.5, **{"0": {"before1": "die"}})
    finally:
        opened.close()
    assert calls(root, "gang0") == 2
    ranks = [tuple(record["ranks"]) for record in found]
    assert {len(pair) for pair in ranks} == {2}
    assert ranks[1] == ranks[3] == ranks[5]  # of the gang that went on
    assert ranks[0] == ranks[4] != ranks[2]  # of the two that shared the rest
    assert not set(ranks[0]) & set(ranks[2])
    assert at_once(found[0], found[2])
    assert max(found[k]["ended"] for k in (1, 3, 5)) <= min(found[k]["began"] for k in (0, 2, 4))
