"""The same data and model in every process: what the driver saw, compared before work is done.

A task is built anew in every process. One that draws its data without a seed, or reads a file that
another node has in another version, would give each worker other rows under the same numbers.
"""

import os
import random
import socket
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from distinf.digest import sha256
from distinf.errors import InputError
from distinf.numerics.rounding import rounding_of
from distinf.numerics.undisturbed import undisturbed
from distinf.tasks.task import SPLITS, GeneratingTask, StoredTask, Task, error_context
from distinf.tasks.warm import looking

MODEL, LOSS = "model()", "loss "  # names, and the beginning of names, of what a model is needed for
SAMPLED = 64  # entries of one parameter
COARSE = 1e-5  # epsilon of arithmetic; float32 has 1e-7
NEARLY = 1e-2  # relative difference of losses that other threads or kernels may give


def stated(task: Task) -> dict[str, str]:
    """The task's digests() as they are to be: names and texts."""
    with error_context("digests()"):
        found = task.digests()
    odd = not isinstance(found, Mapping) or not all(
        isinstance(part, str) for pair in found.items() for part in pair
    )
    if odd:
        raise InputError(f"task: digests() returned {found!r:.60}; return texts by name")
    return dict(found)


def rows_of(task: Task, split: str) -> int:
    """How many rows the split has; InputError if it says none, or no number."""
    with error_context(f"rows('{split}')"):
        found = task.rows(split)
    if not isinstance(found, Integral) or found < 1:
        raise InputError(
            f"task: rows('{split}') is {found!r:.60}; a run needs one row of '{split}' at least"
        )
    return int(found)


def seen(task: Task, digests: Mapping[str, str]) -> dict[str, str]:
    """What another process must see alike: digests, numbers of rows and, of rows that the task
    has from the start, a few of them as they are. `digests` are those that it stated."""
    found = dict(digests)
    for split in SPLITS if isinstance(task, Task) else ():
        rows = rows_of(task, split)
        found[f"rows('{split}')"] = str(rows)
        if has_own_rows(task):
            ids = np.unique([0, rows // 2, rows - 1])
            found[f"batch('{split}')"] = digest_of_rows(task, split, ids)
    return found


def digest_of_rows(task: Task, split: str, ids: np.ndarray) -> str:
    """Of the numbers and texts in these rows, as the task gives them in one batch."""
    with error_context(f"batch('{split}', {ids.tolist()})"):
        batch = task.batch(split, ids)
    return sha256(*_bytes(_leaves(batch)))


def seen_model(task: Task, model: nn.Module | None = None) -> dict[str, str]:
    """A few entries of every parameter of the task's model as it starts, and by each of its losses
    those of a few rows: a loss may hold what the task drew (weights of classes, a teacher). Nothing
    of a task that `lacks_model`: one of a model that is not here, which can be planned and not run.
    """
    if not has_own_rows(task) or getattr(task, "lacks_model", False):
        return {}
    if model is None:
        with error_context("model()"), looking():
            model = task.model()
    found = {MODEL: sha256(*_entries(model))}
    try:
        with undisturbed(model):
            batch = task.batch("train", np.unique([0, rows_of(task, "train") - 1]))
            for name, loss in task.losses.items():
                found |= _losses(f"{LOSS}'{name}'", partial(loss, model.eval(), batch), model)
    except (InputError, AttributeError) as error:  # told in the rehearsal, if it comes again
        if isinstance(error.__cause__, SystemExit):
            raise
    return found


def _losses(what: str, call: Callable[[], Tensor], model: nn.Module) -> dict[str, str]:
    """Nothing where arithmetic is so coarse that other threads give visibly other losses."""
    values: list[float] = []

    def noted() -> None:
        with error_context(what), torch.enable_grad():
            values.extend(call().detach().double().tolist())

    random.seed(0)  # a loss that draws random numbers is refused for that, elsewhere
    np.random.seed(0)
    torch.manual_seed(0)
    fine = rounding_of(model, noted).epsilon < COARSE
    return {what: " ".join(f"{value:.6e}" for value in values)} if fine else {}


def needs_model(name: str) -> bool:
    """Whether it is seen_model that finds what has this name."""
    return name == MODEL or name.startswith(LOSS)


def has_own_rows(task: Task) -> bool:
    """Its rows are there with the task; they are not made, or attached, in the run."""
    if not isinstance(task, Task):
        return False
    made = isinstance(task, GeneratingTask | StoredTask)
    return not (made or (hasattr(task, "prepare") and hasattr(task, "attach")))


def refuse_other(drivers: Mapping[str, str], here: Mapping[str, str]) -> None:
    """InputError naming what this process sees otherwise than the driver did."""
    names = sorted(
        k for k in drivers.keys() | here.keys() if not _alike(k, drivers.get(k), here.get(k))
    )
    if names:
        more = ", …" if len(names) > 3 else ""
        raise InputError(
            f"task: {', '.join(names[:3])}{more} differ between two builds of the task (this one "
            f"on {socket.gethostname()}, pid {os.getpid()}); every process must have the same "
            "data, model and losses: seed what draws them, sort what has no order, read the same "
            "files, on machines of one kind"
        )


def _alike(name: str, one: str | None, other: str | None) -> bool:
    if one is None or other is None or not name.startswith(LOSS):
        return one == other
    first, second = (np.array(text.split(), dtype=np.float64) for text in (one, other))
    return len(first) == len(second) and np.allclose(
        first, second, rtol=NEARLY, atol=1e-6, equal_nan=True
    )


def _leaves(batch: Any) -> list[Any]:
    return tree_leaves(dict(batch) if isinstance(batch, Mapping) else batch)


def _bytes(leaves: Iterable[Any]) -> Iterable[bytes]:
    """Of what holds numbers or text; other objects may be printed otherwise in each process."""
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
            plain = leaf.detach().cpu().resolve_conj().contiguous().reshape(-1)
            yield f"{leaf.dtype} {tuple(leaf.shape)}".encode()
            yield plain.view(torch.uint8).numpy().tobytes()
        elif isinstance(leaf, np.ndarray) and leaf.dtype != object:
            yield f"{leaf.dtype} {leaf.shape}".encode() + leaf.tobytes()
        elif isinstance(leaf, str | bytes | bool | int | float):
            yield repr(leaf).encode()


def _entries(model: nn.Module) -> Iterable[bytes]:
    for name, values in model.state_dict().items():
        yield name.encode()
        if isinstance(values, Tensor) and values.numel() and values.device.type != "meta":
            flat = values.detach().reshape(-1)
            yield from _bytes([flat[:: -(-len(flat) // SAMPLED)], flat[-1:]])
