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

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distinf.errors import InputError, OtherMethod
from distinf.microbatch import is_out_of_memory
from distinf.numerics.batches import Batch, copied, lengths_of, rows, take
from distinf.numerics.batches import leaves as leaves_of
from distinf.numerics.layer_uses import REENTRANT
from distinf.numerics.losses import Loss, evaluating, sample_losses
from distinf.numerics.own_parameters import gradients_by, requiring_grad
from distinf.numerics.parameters import Layout
from distinf.numerics.projection import TwoSided
from distinf.numerics.rounding import (
    AGAIN,
    NOISE,
    Gradients,
    Rounding,
    difference,
    norm,
    rounding_of,
    widened,
)
from distinf.numerics.sparse import SparseRows
from distinf.numerics.undisturbed import random_state, undisturbed

ROWS = 3
REPEATS = 20  # of a loss that draws random numbers, before they are believed to do nothing
MOST_ENTRIES = 1 << 27  # of gradients that are held at once for the pass over many rows
OTHERS = {"hooks": ("vmap", "loop"), "vmap": ("loop",)}

Taken = Mapping[str, Tensor | SparseRows]  # by parameter, [n, entries]


class Alone(NamedTuple):
    """What a row has by itself: its place in the batch, loss and gradient."""

    place: int
    value: float
    grads: Gradients

    @property
    def finite(self) -> bool:
        return isfinite(self.value) and all(bool(g.isfinite().all()) for g in self.grads.values())


@dataclass(frozen=True)
class Subject:
    """What is differentiated, on a few of a batch's rows. gradients(method, batch): those to be
    checked.

    numbers: which rows of the whole batch these are. chunk: rows that one pass will have.
    project: what makes the gradients of `projected` smaller.
    """

    model: nn.Module
    loss: Loss
    batch: Batch
    numbers: Sequence[int]
    layout: Layout
    gradients: Callable[[str, Batch], Taken]
    chunk: int = 32
    project: TwoSided | None = None
    projected: frozenset[str] = frozenset()

    @cached_property
    def rounding(self) -> Rounding:
        return rounding_of(self.model, lambda: self.whole)

    @property
    def together(self) -> int:
        """How many rows a pass has."""
        return min(rows(self.batch), self.chunk)

    @property
    def told(self) -> int:
        """How many rows at once the check has told of: one where none differs, or is finite."""
        alike = all(_alike(leaf, self.together) for _, leaf in leaves_of(self.batch))
        finite = sum(map(isfinite, self.whole)) if self.whole else self.together
        return min(finite, 1) if alike or finite < 2 else self.together

    @cached_property
    def whole(self) -> list[float]:
        """The rows' losses; none where they cannot be had together."""
        with suppress(Exception):  # it is told where one row, or the method, fails as well
            return self.values(range(rows(self.batch)))
        return []

    def group(self, places: Sequence[int]) -> Batch:
        """These rows, as copies: a loss may change them in place."""
        return copied(take(self.batch, list(places)))

    def values(self, places: Sequence[int]) -> list[float]:
        """Their losses, together; not under no_grad, as a loss may differentiate by its inputs."""
        batch = self.group(places)
        with evaluating(self.model), torch.enable_grad():
            values = sample_losses(self.model, self.loss, batch)
        return values.detach().tolist()

    def differentiated(
        self, places: Sequence[int], weights: Sequence[float], changed: Gradients | None = None
    ) -> tuple[list[float], Gradients]:
        """Their losses and the gradient of these, weighted and summed, by autograd alone."""
        batch = self.group(places)
        with (
            evaluating(self.model), self._holding(changed or {}), torch.enable_grad(),
            requiring_grad(self.model, self.layout.names) as own,
        ):  # fmt: skip
            values = sample_losses(self.model, self.loss, batch)
            grads = gradients_by(own, (values * values.new_tensor(weights)).sum())
        found = {
            name: self._as_taken(name, torch.zeros_like(own[name]) if g is None else g)
            for name, g in grads.items()
        }
        return values.detach().tolist(), found

    @contextmanager
    def _holding(self, changed: Gradients) -> Iterator[None]:
        """The model's parameters with other values meanwhile, wherever they are reached from."""
        held = {name: self.model.get_parameter(name) for name in changed}
        before = {name: p.data for name, p in held.items()}
        try:
            for name, p in held.items():
                p.data = changed[name]
            yield
        finally:
            for name, p in held.items():
                p.data = before[name]

    def _as_taken(self, name: str, grad: Tensor) -> Tensor:
        if name in self.projected and self.project is not None:
            left, right = self.project.factors(name, tuple(grad.shape), grad.device)
            grad = left @ grad.float() @ right
        return grad.reshape(-1)


def agreed_method(subject: Subject, methods: Sequence[str]) -> str:
    """The first of `methods` whose gradients of a few rows are those of one row at a time.

    Leaves the model and all random numbers as they were. Raises InputError for a loss that is no
    function of one row, and the last method's own error where none agrees. An empty batch shows
    nothing, and rows without a finite gradient are no disagreement.
    """
    if not rows(subject.batch):
        return methods[0]
    with undisturbed(subject.model):
        found = _told_alone(subject)
        _refuse_unrepeatable(subject, found)
        found = [row for row in found if row.finite]
        if found:
            _refuse_mixing(subject, found)
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


def _told_alone(subject: Subject) -> list[Alone]:
    found = []
    for place in _telling_rows(subject):
        try:
            found.append(_alone(subject, place))
        except InputError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            _refuse_failing_alone(subject, place, error)
            raise
    return found


def _refuse_failing_alone(subject: Subject, place: int, error: Exception) -> None:
    """InputError where a row's loss passes but not its gradient, or only among others."""
    passes = False
    with suppress(Exception):
        passes = bool(subject.values([place]))
    if passes:
        raise InputError(
            REENTRANT if "use_reentrant" in str(error) else
            f"the loss of row {subject.numbers[place]} cannot be differentiated "
            f"({_line(error)}); mend the model or the loss until "
            "loss(model, batch).sum().backward() passes on that row"
        ) from error  # fmt: skip
    said = _training_mode(subject)
    if said or subject.whole:
        among = "" if said else ", but not among others; make it a function of one row"
        raise InputError(
            f"the loss fails on a row by itself ({_line(error)}){among}{said}"
        ) from error


def _telling_rows(subject: Subject) -> list[int]:
    """Places of up to three rows: largest finite loss, longest (late if equal), shortest, last."""
    count = rows(subject.batch)
    _ = subject.rounding  # sees what `whole` is computed in
    losses, lengths = torch.tensor(subject.whole or [0.0] * count), lengths_of(subject.batch)
    finite = torch.isfinite(losses)
    ranked = [
        int(torch.where(finite, losses, -torch.inf).argmax()),
        count - 1 - int(torch.where(finite, lengths, -1.0).flip(0).argmax()),
        int(torch.where(finite, lengths, torch.inf).argmin()),
        *(place for place in reversed(range(count)) if finite[place]),
        *range(count),
    ]
    return list(dict.fromkeys(ranked))[:ROWS]


def _alone(subject: Subject, place: int) -> Alone:
    values, grads = subject.differentiated([place], [1.0])
    return Alone(place, values[0], grads)


# -- is the loss a function of one row? ------------------------------------------------------


def _refuse_unrepeatable(subject: Subject, found: Sequence[Alone]) -> None:
    """InputError where the same row has another loss or gradient at another call."""
    rounding = subject.rounding
    for k, row in enumerate(reversed(found)):
        before = random_state(subject.model)
        again = _alone(subject, row.place) if k == 0 else row  # of one the gradient too
        values = subject.values([row.place]) if k else [again.value]
        if before != random_state(subject.model):
            values += [subject.values([row.place])[0] for _ in range(REPEATS)]
        for value in values:
            if not rounding.same(row.value, value, AGAIN):
                _raise_unrepeatable(subject, row, f"{row.value:.6g} and then {value:.6g}")
        if row.finite and difference(again.grads, row.grads)[0] > AGAIN * rounding.tolerance:
            _raise_unrepeatable(subject, row, f"{row.value:.6g} with two different gradients")


def _raise_unrepeatable(subject: Subject, row: Alone, what: str) -> None:
    raise InputError(
        f"the loss is not a function of model and row: called twice on row "
        f"{subject.numbers[row.place]} it gives "
        f"{what}; draw no random numbers in it (dropout that is always on needs "
        f"training=self.training), and keep no count of its calls{_training_mode(subject)}"
    )


def _refuse_mixing(subject: Subject, found: Sequence[Alone]) -> None:
    """InputError where a row's loss or gradient among other rows is not what it is alone."""
    alone = {row.place: row for row in found}
    places = _filled([row.place for row in found], ROWS)
    norms = [norm(alone[p].grads) for p in places]
    most = 1 / subject.rounding.epsilon  # float16 has no room for more
    shares = [min(max(norms) / n, most) if n else 1.0 for n in norms]
    # Powers of two: no signs of three gradients along one line make their sum vanish.
    weights = [2.0**k * share for k, share in enumerate(shares)]
    try:
        values, together = subject.differentiated(places, weights)
        backwards = subject.values(places[::-1])[::-1]
        groups = [*zip(places, values), *zip(places, backwards), *enumerate(subject.whole)]
        for place, value in groups:
            row = alone.get(place)
            if row and not subject.rounding.same(row.value, value) and _moved(subject, row, value):
                _raise_mixing(subject, place, f"has the loss {row.value:.6g} alone "
                                  f"and {value:.6g} among others")  # fmt: skip
    except InputError:
        raise
    except Exception:  # a loss of one row only: a method that takes more fails by itself
        return

    def apart(changed: Gradients) -> Gradients:
        return _summed([subject.differentiated([p], [1.0], changed)[1] for p in places], weights)

    wanted = _summed([alone[p].grads for p in places], weights)
    error, name = difference(together, wanted)
    if _beyond_rounding(subject, error, name, wanted, apart):
        _raise_mixing(subject, places[0], f"has a gradient that differs by {error:.1%} in "
                      f"{name!r} when it is among others")  # fmt: skip


def _moved(subject: Subject, row: Alone, value: float) -> bool:
    """Whether a row's loss is further from what it is alone than the last bits take it."""
    changes = []

    def again(changed: Gradients) -> Gradients:
        values, grads = subject.differentiated([row.place], [1.0], changed)
        changes.append(abs(values[0] - row.value))
        return grads

    subject.rounding.noise(subject.model, row.grads, again, next(iter(row.grads)))
    return not abs(value - row.value) <= NOISE * max(changes)


def _summed(parts: Sequence[Gradients], weights: Sequence[float]) -> Gradients:
    return {
        name: torch.stack([w * widened(p[name]) for p, w in zip(parts, weights)]).sum(0)
        for name in parts[0]
    }


def _raise_mixing(subject: Subject, place: int, what: str) -> None:
    raise InputError(
        f"the loss of a row depends on the other rows of its batch: row "
        f"{subject.numbers[place]} {what}; return "
        "what each row has by itself, [N] (no in-batch negatives, no mean over the batch's tokens, "
        f"no [N, 1] beside an [N], no statistics of the batch){_training_mode(subject)}"
    )


def _training_mode(subject: Subject) -> str:
    """A reason more, where the loss puts the model into training mode."""
    with evaluating(subject.model):
        with suppress(Exception), torch.no_grad():
            subject.loss(subject.model, subject.group([0]))
        trains = any(module.training for module in subject.model.modules())
    return "; the loss puts the model into training mode: leave its mode alone" if trains else ""


# -- does a fast method see what one row at a time sees? -------------------------------------


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
    three = _filled(places, ROWS)
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

        if _beyond_rounding(subject, error, name, row.grads, again):
            _raise_disagreement(method, subject.numbers[place], error, name)
    return sum(g[:1].numel() for g in taken.values() if isinstance(g, Tensor))


def _beyond_rounding(
    subject: Subject,
    error: float,
    name: str,
    wanted: Gradients,
    again: Callable[[Gradients], Gradients],
) -> bool:
    rounding = subject.rounding
    if error <= rounding.tolerance:
        return False
    return error > NOISE * rounding.noise(subject.model, wanted, again, name)


def _taken(subject: Subject, method: str, group: Sequence[int]) -> Taken:
    try:
        return subject.gradients(method, subject.group(group))
    except InputError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise OtherMethod(
            f"per-sample gradients by {method} failed ({_line(error)})", OTHERS[method]
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


def _alike(leaf: Any, count: int) -> bool:
    """Whether the first `count` rows of a tensor, or list of texts, are all the same."""
    if isinstance(leaf, Tensor):
        return bool((leaf[:count] == leaf[:1]).all())
    return len(set(leaf[:count])) < 2


def _filled(places: Sequence[int], count: int) -> list[int]:
    """At least `count` places, taken again from the first on where there are fewer."""
    return [places[k % len(places)] for k in range(max(count, len(places)))]


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
