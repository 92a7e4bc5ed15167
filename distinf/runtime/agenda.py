"""What a run has to do, kept beside its ledger: whoever looks at the run needs no task for it.

agenda/start.json  config.yaml as it was written, and the parts of the run in order
agenda/0003.json   the units of the part in place 3, as soon as they are known
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from distinf.blobs import Blobs
from distinf.errors import SEE, CorruptionError
from distinf.runtime.records import RECORD_BYTES, seal, unseal

FOLDER = "agenda"
ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
START = f"{FOLDER}/start.json"
MOST_BYTES = 4 * RECORD_BYTES  # ten million units
KINDS = {"title": str, "stage": str, "planned": int, "words": str}  # of a part, as it is stored


@dataclass(frozen=True)
class Part:
    """A stage of the run or of a variation.

    title    its name, a variation's before it
    stage    whose ledger has its units
    planned  how many units there are, as far as could be told at the start
    words    what it does, a variation's name before it
    units    their ids; None where that hangs on stages before it. Of a part that is over, those
             that it needed
    is_over  nothing was left to do
    """

    title: str
    stage: str
    planned: int
    words: str = ""
    units: tuple[str, ...] | None = None
    is_over: bool = False


class Agenda:
    """The parts of a run, in the order in which they are carried out. One writer: the driver."""

    def __init__(self, blobs: Blobs):
        self._blobs = blobs
        self._known: dict[int, Part] = {}

    def begin(self, config: str, parts: Sequence[Part]) -> None:
        """Keep both. With another config than before, what is known of units is forgotten."""
        if self._is_begun_with(config, parts):
            return
        for name in self._blobs.names(FOLDER):
            if name != START:
                self._blobs.delete(name)
        self._known.clear()
        plain = [{key: getattr(p, key) for key in KINDS} for p in parts]
        self._blobs.put(START, seal({"config": config, "parts": plain}))

    def _is_begun_with(self, config: str, parts: Sequence[Part]) -> bool:
        try:
            before = [(part.title, part.stage) for part in self._start()]
            return self.config() == config and before == [(p.title, p.stage) for p in parts]
        except (KeyError, CorruptionError):
            return False

    def config(self) -> str:
        """config.yaml as it was written; KeyError if nothing was begun."""
        return str(self._content()["config"])

    def know(self, place: int, units: Collection[str], is_over: bool = False) -> None:
        """Say which units the part in this place has, or, once it is over, which it needed.

        What was over stays so: should a unit of it be lost, that it was there remains known.
        """
        before = self._known.get(place) or self._part(place, Part("", "", 0))
        now = Part("", "", 0, "", tuple(sorted(units)), is_over)
        if before is None or (now != before and not (before.is_over and not is_over)):
            self._blobs.put(_name(place), seal({"units": now.units, "over": is_over}))
            before = now
        self._known[place] = before

    def parts(self, problems: dict[str, str] | None = None) -> list[Part]:
        """What is known of every part; KeyError if nothing was begun.

        problems  takes one line by file that cannot be believed, or that is missing although a
                  later one is there; without it such a file is a CorruptionError
        """
        parts = self._start()
        found = list(parts)
        for place in reversed(range(len(parts))):  # a driver may work: later ones are said later
            try:
                found[place] = self._part(place, parts[place]) or parts[place]
            except (CorruptionError, OSError) as error:
                if problems is None:
                    raise
                problems[_name(place)] = str(error)
        known = [place for place, part in enumerate(found) if part.units is not None]
        for place in range(max(known, default=0)):
            if not found[place].is_over and problems is not None:
                why = f"does not say that '{parts[place].title}' is over, though later stages began"
                problems.setdefault(_name(place), f"{_name(place)} is missing, or {why}")
        return found

    def _part(self, place: int, part: Part) -> Part | None:
        name = _name(place)
        try:
            content = unseal(self._blobs.get(name, most=MOST_BYTES), name)
        except KeyError:
            return None
        units, over = content.get("units"), content.get("over")
        if type(over) is not bool or not _ids(units):
            raise CorruptionError(f"{name} is no list of units; {SEE}")
        return replace(part, units=tuple(units), is_over=over)

    def _start(self) -> list[Part]:
        return [Part(*(p[key] for key in KINDS)) for p in self._content()["parts"]]

    def _content(self) -> dict[str, Any]:
        content = unseal(self._blobs.get(START, most=MOST_BYTES), START)
        parts = content.get("parts")
        if type(content.get("config")) is not str or not isinstance(parts, list) or not all(
            isinstance(part, dict) and all(type(part.get(k)) is kind for k, kind in KINDS.items())
            for part in parts
        ):  # fmt: skip
            raise CorruptionError(f"{START} does not say what the run has to do; {SEE}")
        return content


def _name(place: int) -> str:
    return f"{FOLDER}/{place:04d}.json"


def _ids(value: Any) -> TypeGuard[list[str]]:
    """Names of units: they become those of files."""
    return isinstance(value, list) and all(isinstance(x, str) and ID.fullmatch(x) for x in value)
