"""Per-sample gradients checked against one row at a time, and the method that they are taken by.

One row at a time is what "per sample" means, so it is the truth here. Two things can be wrong:

* the loss is no function of one row: it draws random numbers, counts its calls, or takes in the
  other rows of the batch. No method gives the gradients of such a loss; it is refused.
* a fast method does not see what one row at a time sees: a layer whose first dimension has as many
  entries as there are rows by chance, rows in another order, a hook or a patched forward. That
  method is refused, or another one is taken.

Three rows are taken from the batch, unlike in loss and length: alone, two and three together, in
both orders, and among as many rows as a pass will have. That takes about 10 gradients of a row by
autograd, and by the method those of 5 rows and a pass (tests/benchmarks/RESULTS.md has seconds).
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from math import isfinite

import torch
from torch import Tensor

from distinf.errors import InputError, OtherMethod
from distinf.microbatch import is_out_of_memory
from distinf.numerics.batches import rows
from distinf.numerics.one_row import (
    beyond_rounding,
    filled,
    first_line,
    refuse_mixing,
    refuse_unrepeatable,
    told_alone,
)
from distinf.numerics.rounding import Gradients, difference
from distinf.numerics.sparse import SparseRows
from distinf.numerics.subject import ROWS, Alone, Subject, Taken
from distinf.numerics.undisturbed import undisturbed

MOST_ENTRIES = 1 << 27  # of gradients that are held at once for the pass over many rows
OTHERS = {"hooks": ("vmap", "loop"), "vmap": ("loop",)}


def agreed_method(subject: Subject, methods: Sequence[str]) -> str:
    """The first of `methods` whose gradients of a few rows are those of one row at a time.

    Leaves the model and all random numbers as they were. Raises InputError for a loss that is no
    function of one row, and the last method's own error where none agrees. An empty batch shows
    nothing, and rows without a finite gradient are no disagreement.
    """
    if not rows(subject.batch):
        return methods[0]
    with undisturbed(subject.model):
        found = told_alone(subject)
        refuse_unrepeatable(subject, found)
        found = [row for row in found if row.finite]
        if found:
            refuse_mixing(subject, found)
        for method in methods[:-1]:
            with suppress(InputError):
                _refuse_disagreement(subject, method, found)
                return method
        _refuse_disagreement(subject, methods[-1], found)
    return methods[-1]


def passing_method(subject: Subject, methods: Sequence[str]) -> str:
    """The first of `methods` that passes two rows at all, unchecked."""
    if rows(subject.batch):
        with undisturbed(subject.model):
            for method in methods[:-1]:
                with suppress(InputError):
                    _taken(subject, method, range(min(subject.together, 2)))
                    return method
    return methods[-1]


def _refuse_disagreement(subject: Subject, method: str, found: Sequence[Alone]) -> None:
    """OtherMethod where the method's gradients are others than those of one row at a time."""
    if method == "loop":  # the truth itself
        return
    alone = {row.place: row for row in found}
    width = 1
    for group in _groups(subject, method, list(alone)):
        width = max(width, _compare(subject, method, group, alone))
    whole = [*range(min(subject.together, MOST_ENTRIES // width))]
    if method == "hooks" and len(whole) > ROWS:
        _compare(subject, method, whole, alone)


def _groups(subject: Subject, method: str, places: list[int]) -> list[list[int]]:
    """Rows to take together: two numbers of them, in both orders, as many as passes have."""
    if not places:  # no row has a finite gradient: only whether the method works at all
        return [[0]]
    three = filled(places, ROWS)
    if method == "vmap":
        return [three]
    if subject.chunk == 1:
        return [[place] for place in places]
    return [three[:2], three[::-1][: subject.chunk]]


def _compare(
    subject: Subject, method: str, group: Sequence[int], alone: Mapping[int, Alone]
) -> int:
    """Entries of a row's dense gradients; OtherMethod where they differ from the row's alone."""
    taken = _taken(subject, method, group)
    for k, place in enumerate(group):
        if place not in alone:
            continue
        row = alone[place]
        grads = {name: _row(grads, k) for name, grads in taken.items()}
        error, name = difference(grads, row.grads)

        def again(changed: Gradients, place: int = place) -> Gradients:
            return subject.differentiated([place], [1.0], changed)[1]

        if beyond_rounding(subject, error, name, row.grads, again):
            _raise_disagreement(method, subject.numbers[place], error, name)
    return sum(g[:1].numel() for g in taken.values() if isinstance(g, Tensor))


def _taken(subject: Subject, method: str, group: Sequence[int]) -> Taken:
    try:
        return subject.gradients(method, subject.group(group))
    except InputError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise OtherMethod(
            f"per-sample gradients by {method} failed ({first_line(error)})", OTHERS[method]
        ) from error


def _raise_disagreement(method: str, place: int, error: float, name: str) -> None:
    why = {
        "hooks": "a layer may have something else than the rows along its first dimension, or a "
        "hook or a forward of its own may change what it returns",
        "vmap": "an operation may be vectorised otherwise than it is computed",
    }[method]
    amount = f"by {error:.0%} of its size" if isfinite(error) else "without bound"
    raise OtherMethod(
        f"per-sample gradients by {method} are not those of one row at a time: {name!r} differs "
        f"{amount} in row {place} of the batch ({why})",
        OTHERS[method],
    )


def _row(grads: Tensor | SparseRows, place: int) -> Tensor:
    if isinstance(grads, SparseRows):
        return grads.select(torch.tensor([place], device=grads.ids.device)).dense().reshape(-1)
    return grads[place].reshape(-1)
