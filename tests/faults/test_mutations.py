"""The table of guards is about the code as it is."""

import ast

import pytest

from tests.faults.mutations import MUTATIONS, REPOSITORY


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.guard)
def test_the_guard_and_its_test_are_there(mutation):
    text = (REPOSITORY / "distinf" / mutation.file).read_text()
    assert text.count(mutation.old) == 1
    ast.parse(text.replace(mutation.old, mutation.new))
    file, _, name = mutation.test.partition("::")
    assert f"def {name}(" in (REPOSITORY / "tests" / file).read_text()
