"""Whether a loss is a function of one row: told on a few rows, alone and among others."""

from collections.abc import Callable, Sequence
from contextlib import suppress

import torch

from distinf.errors import InputError
from distinf.microbatch import is_out_of_memory
from distinf.numerics.batches import lengths_of, rows
from distinf.numerics.layer_uses import REENTRANT
from distinf.numerics.losses import evaluating
from distinf.numerics.rounding import AGAIN, NOISE, Gradients, difference, norm, widened
from distinf.numerics.subject import ROWS, Alone, Subject
from distinf.numerics.undisturbed import random_state

REPEATS = 20  # of a loss that draws random numbers, before they are believed to do nothing


def told_alone(subject: Subject) -> list[Alone]:
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
            f"({first_line(error)}); mend the model or the loss until "
            "loss(model, batch).sum().backward() passes on that row"
        ) from error  # fmt: skip
    said = _training_mode(subject)
    if said or subject.whole:
        among = "" if said else ", but not among others; make it a function of one row"
        raise InputError(
            f"the loss fails on a row by itself ({first_line(error)}){among}{said}"
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


def refuse_unrepeatable(subject: Subject, found: Sequence[Alone]) -> None:
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


def refuse_mixing(subject: Subject, found: Sequence[Alone]) -> None:
    """InputError where a row's loss or gradient among other rows is not what it is alone."""
    alone = {row.place: row for row in found}
    places = filled([row.place for row in found], ROWS)
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
    if beyond_rounding(subject, error, name, wanted, apart):
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


def beyond_rounding(
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


def filled(places: Sequence[int], count: int) -> list[int]:
    """At least `count` places, taken again from the first on where there are fewer."""
    return [places[k % len(places)] for k in range(max(count, len(places)))]


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
