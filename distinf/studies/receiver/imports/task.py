"""An import as a task: the records, their mapping and their pilots. It has no model."""

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from distinf.digest import digest
from distinf.studies.receiver.imports.mapping import TfrecordImport
from distinf.studies.receiver.imports.pilots import PilotTables, pilot_tables
from distinf.studies.receiver.imports.tfrecords import Source, sources

RECIPE = "distinf.studies.receiver.imports.recipe:RECIPE"


class Records:
    """The TFRecord files of both splits. Nothing is read before it is asked for."""

    def __init__(self, settings: TfrecordImport):
        self.settings = settings

    @cached_property
    def files(self) -> list[Source]:
        return sources(self.settings)

    @cached_property
    def tables(self) -> PilotTables:
        return pilot_tables(self.settings)

    @property
    def pilots(self) -> Mapping[str, np.ndarray]:
        """The tables as they are stored."""
        return {"sent": self.tables.sent_DSF.numpy(), "data": self.tables.data_DSF.numpy()}

    def digests(self) -> dict[str, str]:
        """The pilots' content, and each file by its name and size."""
        pilots = [[str(a.dtype), list(a.shape), a.tobytes().hex()] for a in self.pilots.values()]
        files = {f"source.{f.path}": f"{f.split}, {f.bytes} bytes" for f in self.files}
        return {"pilots": digest(pilots), **files}


def task(settings: TfrecordImport, seed: int) -> Records:
    """The factory that a configuration names: task: receiver.imports"""
    return Records(settings)
