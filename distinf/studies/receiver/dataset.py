"""A folder of imported slots: what its dataset.json says, and its rows, verified as they are read.

    import.json    what is imported: the configuration and the source files; written first
    ledger/        commit records of counted files, pilot tables and row ranges
    import.zarr/   <unit>/<attempt>/ groups of rows
    dataset.json   written last, so what has one is whole

Shapes: D pilot patterns, S = 14 symbols, F subcarriers.
"""

import platform
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distinf.errors import CorruptionError, InputError
from distinf.runtime import Ledger, digest
from distinf.runtime.ledger import Record, unseal
from distinf.store import Blobs, Rows, open_root, read_group
from distinf.studies.receiver.scenario import ScenarioConfig

STARTED, FILE = "import.json", "dataset.json"
FORMAT = "distinf receiver slots 2"
STAGES = COUNTS, PILOTS, ROWS = "index", "pilots", "import"
SHARED = ("prbs", "rx_antennas", "bits_per_symbol")  # what slots and network must agree on


def is_import(blobs: Blobs) -> bool:
    """Whether the folder holds an import, begun or done."""
    for name in (STARTED, FILE):
        try:
            return bool(blobs.get(name))
        except KeyError:
            continue
    return False


def content(records: Sequence[Record]) -> str:
    """Digest of what committed units hold, whichever attempt wrote them, in row order."""
    ordered = sorted(records, key=lambda record: record["start"])
    return digest([[record["start"], record["stop"], record["files"]] for record in ordered])


def not_as_finished(blobs: Blobs) -> list[str]:
    """One line for each part of an import that is not there as its import.json and dataset.json
    say; damaged records are left to who reads them all."""
    facts: dict[str, Any] = {}
    for name in (STARTED, FILE):
        try:
            facts = unseal(blobs.get(name), name)
        except KeyError:
            facts = {"digests": {}}  # nothing is finished
        except CorruptionError as error:
            return [str(error)]
    try:
        return [
            f"ledger/{PILOTS if name == PILOTS else ROWS}: the records of '{name}' are not those "
            f"that {FILE} was made of, or are missing"
            for name, expected in facts["digests"].items()
            if not _is_whole(blobs, name, facts["key"], expected)
        ]
    except (LookupError, TypeError, AttributeError):
        return [f"{FILE} is not what an import writes"]


def _is_whole(blobs: Blobs, name: str, key: str, expected: str) -> bool:
    examined = Ledger(blobs, PILOTS if name == PILOTS else ROWS).examine()
    mine = [record for record in examined.records.values() if record["key"] == key]
    records = [r for r in mine if name == PILOTS or r["job"]["split"] == name]
    return bool(examined.problems) or content(records) == expected


class Dataset:
    """An imported dataset. Nothing is read before it is asked for."""

    def __init__(self, root: str):
        self._root = root

    @cached_property
    def _blobs(self) -> Any:
        return open_root(self._root)

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """dataset.json. InputError if it is not there, or of another format."""
        try:
            found = unseal(self._blobs.get(FILE), f"{self._root}/{FILE}")
        except KeyError:
            begun = is_import(self._blobs)
            why = "finish its import" if begun else "give an imported dataset"
            raise InputError(
                f"settings.dataset: {self._root} has no {FILE} as {platform.node()} sees it; "
                f"{why}, on a folder that every node sees"
            ) from None
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
        records = [r for r in self._records(ROWS).values() if r["job"]["split"] == split]
        if content(records) != self.facts["digests"][split]:
            raise CorruptionError(
                f"{self._root}: commit records of '{split}' are missing or not those that "
                f"{FILE} was made of; run its import again"
            )
        return Rows(self._blobs, [(r["start"], r["stop"], r["manifest"]) for r in records])

    @cached_property
    def pilot_tables(self) -> tuple[Tensor, Tensor]:
        """(sent pilots complex64 [D, S, F], data mask bool [D, S, F]) by a row's `dmrs`."""
        records = list(self._records(PILOTS).values())
        if content(records) != self.facts["digests"][PILOTS]:
            raise CorruptionError(f"{self._root}: its pilot tables are missing; import it again")
        arrays = read_group(self._blobs, records[0]["manifest"])
        return torch.from_numpy(arrays["sent"]), torch.from_numpy(arrays["data"])

    def _records(self, stage: str) -> Mapping[str, Record]:
        found = Ledger(self._blobs, stage).read()
        return {k: r for k, r in found.items() if r["key"] == self.facts["key"]}
