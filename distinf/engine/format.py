"""The format of a run's folder: how keys are made, what records say, where files lie."""

import shlex
from collections.abc import Mapping
from typing import Any

import yaml

from distinf.config_file import parsed
from distinf.errors import CorruptionError, InputError
from distinf.naming import CONFIG
from distinf.runtime import Agenda

FORMAT = 2  # 1: distinf 0.1, whose records name a stage's key otherwise


def refuse_other_format(blobs: Any) -> None:
    """InputError, naming the version that made it, for a run's folder of another format.

    What cannot be read is for others to tell.
    """
    record = _provenance(blobs)
    found = record.get("format", 1)
    if record and found != FORMAT:
        versions = record.get("versions")
        made = versions.get("distinf", "?") if isinstance(versions, Mapping) else "?"
        raise InputError(
            f"{blobs.root}: a run's folder of format {found!s:.20}, made by distinf {made!s:.20}; "
            f"this version has format {FORMAT}: look at it with that one, as by pip install "
            f"distinf=={shlex.quote(f'{made!s:.20}')}, or run again in another folder (--out)"
        )


def _provenance(blobs: Any) -> Mapping[str, Any]:
    for read in (Agenda(blobs).config, lambda: blobs.get(CONFIG)):
        try:
            stored = parsed(read())
        except (KeyError, CorruptionError, OSError, ValueError, RecursionError, yaml.YAMLError):
            continue
        record = stored.get("provenance") if isinstance(stored, dict) else None
        if isinstance(record, dict):
            return record
    return {}
