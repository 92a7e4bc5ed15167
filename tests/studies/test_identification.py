"""The rows of influential-data identification: what their kinds share, and what tells them."""

import re

import pytest

from tests.benchmarks.identification import ORDERS, ORDINALS, QUERY, SETS, TRAIN, VOCABULARY, rows


@pytest.mark.parametrize("name", [*SETS])
def test_every_kind_has_its_rows_and_no_prompt_stands_twice(name):
    train, query = rows(name)
    kinds = SETS[name][1]
    assert len(kinds) == 10
    for mine, each in ((train, TRAIN), (query, QUERY)):
        assert [row["kind"] for row in mine] == [kind for kind in kinds for _ in range(each)]
    assert len({row["prompt"] for row in train + query}) == 10 * (TRAIN + QUERY)
    assert rows(name) == (train, query) != rows(name, seed=1)


def test_hard_kinds_share_all_words_and_their_answers_are_what_the_prompt_asks():
    train, query = rows("hard")
    asked, bags = {}, {}
    for row in train + query:
        words = re.findall(r"\w+", row["prompt"])
        drawn = [word for word in words if word in VOCABULARY.split()]
        order = [ORDINALS.index(word) for word in words if word in ORDINALS]
        assert row["completion"].split() == [drawn[place] for place in order]
        asked.setdefault(row["kind"], set()).add(tuple(order))
        bag = tuple(sorted(word for word in words if word not in VOCABULARY.split()))
        bags.setdefault(row["kind"], set()).add(bag)
    assert asked == {kind: {order} for kind, order in ORDERS.items()}
    assert len({frozenset(mine) for mine in bags.values()}) == 1
