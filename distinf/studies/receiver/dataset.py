"""A folder of imported slots: what its import says of them, and its rows, verified as read.

It is the folder of a run of imports/recipe.py. The last stage's commit record says what the dataset
is, so a folder that has one is whole.

Shapes: D pilot patterns, S = 14 symbols, F subcarriers.
"""

import platform
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distinf.errors import SEE, CorruptionError, InputError
from distinf.runtime import Agenda, Ledger, digest
from distinf.runtime.ledger import Record
from distinf.store import Blobs, Rows, open_root, read_group
from distinf.studies.receiver.scenario import ScenarioConfig

FORMAT = "distinf receiver slots 3"
PILOTS, COUNT, ROWS, DATASET = "pilots", "count", "rows", "dataset"  # an import's stages
BEFORE = "dataset.json"  # had the facts in format 2
SHARED = ("prbs", "rx_antennas", "bits_per_symbol")  # what slots and network must agree on


def content(records: Iterable[Record]) -> str:
    """Digest of what committed units hold, whichever attempt wrote them, in row order."""
    ordered = sorted(records, key=lambda record: record["start"])
    return digest([[r["start"], r["stop"], r["manifest"]["files"]] for r in ordered])


def _finished(blobs: Blobs) -> tuple[bool, Mapping[str, Any] | None]:
    """Whether an import lies there; what it says of its slots, None before it is finished."""
    try:
        part = next(p for p in Agenda(blobs).parts() if p.title == DATASET)
    except (KeyError, StopIteration):
        is_older = BEFORE in blobs.names("")
        return is_older, {} if is_older else None
    if not part.is_over or not part.units:
        return True, None
    record = Ledger(blobs, DATASET).read().get(part.units[0])
    if record is None:
        raise CorruptionError(f"{blobs.root}: ledger/{DATASET} has no record; {SEE}")
    return True, record["summary"]


class Dataset:
    """An imported dataset. Nothing is read before it is asked for."""

    def __init__(self, root: str):
        self._root = root

    @cached_property
    def _blobs(self) -> Any:
        return open_root(self._root)

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """What the import says of its slots. InputError if there is none, or of another format."""
        begun, found = _finished(self._blobs)
        if found is None:
            why = "finish its import" if begun else "give an imported dataset"
            raise InputError(
                f"settings.dataset: {self._root} is no finished import as {platform.node()} sees "
                f"it; {why}, on a folder that every node sees"
            )
        if found.get("format") != FORMAT:
            raise InputError(
                f"settings.dataset: {self._root} is not of format '{FORMAT}'; import it again"
            )
        return found

    def check(self, scenario: ScenarioConfig) -> None:
        """InputError unless the slots have the scenario's shape."""
        for name in SHARED:
            ours, theirs = getattr(scenario, name), self.facts["scenario"][name]
            if ours != theirs:
                raise InputError(
                    f"settings.scenario.{name}={ours}: the slots of {self._root} have {theirs}; "
                    f"set it to {theirs}"
                )

    @property
    def digest(self) -> str:
        """Identity of the slots, wherever they lie and whichever attempts wrote them."""
        return digest([self.facts[name] for name in ("scenario", "labels", "rows", "digests")])

    def has(self, split: str, column: str) -> bool:
        return column in self.facts["columns"][split]

    def count(self, split: str) -> int:
        return int(self.facts["rows"][split])

    def row_bytes(self, split: str) -> float:
        """Stored bytes of one row."""
        columns = self.facts["columns"][split].values()
        return float(sum(np.dtype(c["dtype"]).itemsize * np.prod(c["shape"]) for c in columns))

    def rows(self, split: str) -> Rows:
        """The split's rows. CorruptionError if its commit records are not those it was made of."""
        records = [r for r in self._records(ROWS) if r["job"]["split"] == split]
        self._refuse_other(split, records)
        return Rows(self._blobs, [(r["start"], r["stop"], r["manifest"]) for r in records])

    @cached_property
    def pilot_tables(self) -> tuple[Tensor, Tensor]:
        """(sent pilots complex64 [D, S, F], data mask bool [D, S, F]) by a row's `dmrs`."""
        records = self._records(PILOTS)
        self._refuse_other(PILOTS, records)
        arrays = read_group(self._blobs, records[0]["manifest"])
        return torch.from_numpy(arrays["sent"]), torch.from_numpy(arrays["data"])

    def _records(self, stage: str) -> list[Record]:
        key = self.facts["keys"][stage]
        return [r for r in Ledger(self._blobs, stage).read().values() if r["key"] == key]

    def _refuse_other(self, name: str, records: Sequence[Record]) -> None:
        if content(records) != self.facts["digests"][name]:
            raise CorruptionError(
                f"{self._root}: commit records of '{name}' are missing or not those that the "
                f"dataset was made of; {SEE}"
            )
