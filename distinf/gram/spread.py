"""A model whose frozen layers lie in parts on the ranks of a gang, where it does not fit one.

Each rank takes every size-th batch of a unit's rows, the batches being those of a single worker: so
are the bits of what is stored. A layer is gathered while it runs, hence all ranks make the same
passes one after another, and one that has no batch left makes a pass for nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from distinf.collective import Collective
from distinf.engine.session import row_ranges
from distinf.errors import InputError
from distinf.gram.session import Cell, Session, layout_of, own_parameters
from distinf.gram.settings import GradientSettings
from distinf.gram.task import Measured
from distinf.microbatch import each_part, rows_at_once
from distinf.numerics.checkpointing import layers_alike
from distinf.numerics.sparse import SparseRows
from distinf.runtime import Lever, Unit
from distinf.tasks.warm import let_go

SETTING = "gradients.devices"
GATHERED = 3.0  # layers: one that runs, the next as it arrives, and as it is put in its place
Found = TypeVar("Found")


def gang_size(settings: GradientSettings) -> int | None:
    """Workers of one unit; None where each has its own."""
    return settings.devices if settings.devices > 1 else None


def check(session: Session) -> None:
    """InputError for a model that has nothing to be spread."""
    settings = session.settings.gradients
    if settings.devices == 1:
        return
    if settings.chosen != "hooks":
        raise InputError(
            f"{SETTING}: parts of a model are for gradients by hooks, and these are by "
            f"{settings.chosen}; leave it out"
        )
    for cell in session.outline.cells.values():
        if not cell.frozen[0]:
            raise InputError(
                f"{SETTING}: spreads a list of layers alike with frozen weights of 16 or 32 bits, "
                "and this model has none (all of it is trained, or it is quantised); leave it out"
            )


def saving(settings: GradientSettings, cell: Cell) -> tuple[float, Lever | None]:
    """Bytes of a worker's device that are saved, and what to set where they are not enough."""
    layers, largest = (share * cell.shapes.model_bytes for share in cell.frozen)
    if settings.method != "hooks" or not layers:
        return 0.0, None
    ranks, arrived = settings.devices, min(GATHERED * largest, layers)
    beside = 0.0 if ranks > 1 else arrived
    lever = Lever(SETTING, ranks, layers / ranks, where="gpu", raised=beside)
    return (layers * (1 - 1 / ranks) - arrived if ranks > 1 else 0.0), lever


def moved(settings: GradientSettings, cell: Cell, batches: float) -> float:
    """Cost.summed of a unit of so many batches: layers are gathered forwards and backwards."""
    return 2.0 * batches * cell.frozen[0] * cell.shapes.model_bytes / settings.devices


@contextmanager
def shared(session: Session, collective: Collective) -> Iterator[None]:
    """Meanwhile the session's model is one that these ranks share."""
    session.sharing = collective
    session.let_go("model")
    let_go()  # no other model may hold on to the weights of one that is spread
    try:
        yield
    finally:
        session.sharing, session.in_hand = Collective(), []  # no rank tries a row by itself
        session.let_go("model")


def spread(session: Session, model: nn.Module) -> None:
    """Over the ranks that share it, if there are several."""
    if session.sharing.size == 1:
        return
    let_go()
    layers = layers_alike(model)
    whole = next(module for module in model.modules() if _runs(module, layers))
    own = own_parameters(model, layout_of(model, session.settings.gradients))
    session.sharing.spread(whole, layers, own, session.device)


def _runs(module: nn.Module, layers: Sequence[nn.Module]) -> bool:
    """Whether the module has the list of these layers."""
    return any([*child.children()] == [*layers] for child in module.children())


# -- a rank's share, and all of them again ---------------------------------------------------


def row_batches(session: Session, name: str, split: str, unit: Unit) -> Iterator[np.ndarray]:
    """Places [m] in the unit, in batches of about as many tokens, shortest rows first."""
    settings, task = session.settings.gradients, session.task(name)
    rows = unit.stop - unit.start
    if not isinstance(task, Measured):
        yield from (np.arange(a, b) for a, b in row_ranges(rows, settings.rows_per_batch))
        return
    lengths = np.asarray(task.lengths(split))[unit.start : unit.stop]
    batch: list[int] = []
    for place in np.argsort(lengths, kind="stable").tolist():
        if batch and (len(batch) + 1) * max(int(lengths[place]), 1) > settings.tokens_per_batch:
            yield np.array(batch)
            batch = []
        batch.append(place)
    if batch:
        yield np.array(batch)


def batch_setting(session: Session, name: str) -> str:
    """What the sizes of row_batches go by."""
    measured = isinstance(session.task(name), Measured)
    return f"gradients.{'tokens' if measured else 'rows'}_per_batch"


def each_row_batch(
    session: Session, name: str, split: str, unit: Unit, compute: Callable[[np.ndarray], Found]
) -> Iterator[tuple[np.ndarray, Found]]:
    """(places, compute(places)) of this rank's row_batches, in parts where memory runs out."""
    batches = row_batches(session, name, split, unit)
    yield from each_share(session, batches, compute, batch_setting(session, name))


def each_share(
    session: Session,
    batches: Iterable[np.ndarray],
    compute: Callable[[np.ndarray], Found],
    setting: str,
) -> Iterator[tuple[np.ndarray, Found]]:
    """(part, compute(part)) of this rank's batches; alone, in parts where memory runs out."""
    if session.sharing.size == 1:
        for batch in batches:
            yield from each_part(batch, compute, setting)
        return
    parts, rank, size = in_parts(batches, setting), session.sharing.rank, session.sharing.size
    for start in range(0, len(parts), size):
        if start + rank < len(parts):
            part = parts[start + rank]
            yield part, compute(part)
        else:
            compute(parts[0][:1])


def in_parts(batches: Iterable[np.ndarray], setting: str) -> list[np.ndarray]:
    """The batches, cut as small as this process had to before."""
    sizes = ((batch, rows_at_once(setting, len(batch))) for batch in batches)
    return [batch[a : a + n] for batch, n in sizes for a in range(0, len(batch), n)]


def gathered(session: Session, mine: Sequence[int], x: Tensor) -> Tensor:
    """x [rows, …], of which this rank filled the rows `mine`, with those of all ranks."""
    if session.sharing.size == 1:
        return x
    places = torch.tensor(mine, dtype=torch.int64)
    found = torch.empty_like(x)
    found[_everyone(session, places)] = _everyone(session, x[places])
    return found


def gathered_words(session: Session, mine: Sequence[int], words: SparseRows) -> SparseRows:
    """The samples of all ranks in the order of their rows; `words`: of the rows `mine`."""
    places = _everyone(session, torch.tensor(mine, dtype=torch.int64))
    lengths, ids, rows = (
        _everyone(session, part) for part in (words.lengths, words.ids, words.rows)
    )
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    return SparseRows(offsets, ids, rows, words.vocabulary).select(places.argsort())


def _everyone(session: Session, x: Tensor) -> Tensor:
    return session.sharing.all_gather(x.to(session.device)).cpu()
