"""Whose an error is: by its type and words, and by the files that it went through."""

import pytest
import torch

from distinf.numerics.parameters import Layout
from distinf.runtime import faults


def raised(call) -> BaseException:
    """What the call raises, as if it had not begun in this file, which is a user's."""
    with pytest.raises(BaseException) as caught:
        call()
    error = caught.value
    return error.with_traceback(error.__traceback__.tb_next.tb_next)


def remote(name: str) -> BaseException:
    return type("Odd", (Exception,), {"__module__": name})("no answer")


def of_torch():
    torch.nn.Linear(4, 2)(torch.ones(1, 3))


@pytest.mark.parametrize(
    ("error", "whose"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "passing"),
        (RuntimeError("CUDA error: device-side assert triggered"), "user"),
        (RuntimeError("[enforce fail] can't allocate memory"), "passing"),
        (RuntimeError("NCCL error in: x.cpp"), "passing"),
        (ValueError("out of memory"), "user"),
        (torch.OutOfMemoryError("a batch too large"), "passing"),
        (FileNotFoundError(2, "No such file"), "user"),
        (OSError(28, "No space left on device"), "passing"),
        (remote("botocore.exceptions"), "passing"),
        (remote("mine.exceptions"), "user"),
    ],
)
def test_what_may_pass_is_known_by_its_type_and_words(error, whose):
    assert faults.whose(raised_here(error)) == whose


def raised_here(error: BaseException) -> BaseException:
    with pytest.raises(type(error)) as caught:
        raise error
    return caught.value


def test_a_cause_that_may_pass_makes_its_error_one():
    outer = ValueError("could not load")
    outer.__cause__ = ConnectionResetError("by peer")
    assert faults.whose(raised_here(outer)) == "passing"


def test_what_torch_refuses_is_the_users_and_what_ends_in_our_files_is_ours():
    assert faults.whose(raised(of_torch)) == "user"
    assert faults.whose(raised(lambda: Layout.of(None))) == "ours"
