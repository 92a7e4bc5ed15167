"""Files that somebody else changed, or that a disk tore, looked at by whoever reads them.

Each case is a function of dice: what it changes follows from their seed. A DistinfError is what may
come of it; `Unclean` is something that a reader did besides.
"""

import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from distinf.config import dump, load, resolve
from distinf.engine.heartbeat import last_heartbeat
from distinf.engine.rewriting import rewrite_report
from distinf.engine.run import reopen
from distinf.engine.standing import status_of
from distinf.engine.verifying import set_aside, verify
from distinf.errors import DistinfError
from distinf.runtime import Agenda
from distinf.runtime.records import seal, unseal
from distinf.store import open_root
from tests.faults.mutating import changed, torn
from tests.support.hostile import put_metadata, signed
from tests.support.runs import POINTS, REPOSITORY

VARIED = {"variations": {"reduced": {"train.steps": 3}, "other": {"scores.damping": 0.1}}}
TASK = "tests.support.blobs_task:task"


class Unclean(AssertionError):
    """A reader did what it may not."""


class Configurations:
    """Those of both routes, every key in them, and those that the project has."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "torn.yaml"
        points = resolve({**POINTS, "out": "x"}).stored_form()
        words = resolve({"task": TASK, "recipe": "gram", "out": "x"}).stored_form()
        trees = [yaml.safe_load(p.read_text()) for p in (REPOSITORY / "configs").glob("*.yaml")]
        published = [tree for tree in trees if "task" in tree and "extends" not in tree]
        self._trees = [points, {**points, **VARIED}, words, *published]
        self._texts = [yaml.safe_dump(tree).encode() for tree in self._trees]

    def tree(self, dice: random.Random) -> None:
        """Other values and keys; what is taken can be written, and read back the same."""
        raw = changed(dice.choice(self._trees), dice)
        if isinstance(raw, dict):
            config = _refused(lambda: resolve(raw))
            if config is not None and dice.random() < 0.1:
                again = resolve({**yaml.safe_load(dump(config, {})), "provenance": None})
                if repr(again.stored_form()) != repr(config.stored_form()):
                    raise Unclean("a configuration is another when it is read back")

    def text(self, dice: random.Random) -> None:
        self._file.write_bytes(torn(dice.choice(self._texts), dice))
        _refused(lambda: load(str(self._file)))

    def override(self, dice: random.Random) -> None:
        key, value = dice.choice(list(dice.choice(self._trees).items()))
        while isinstance(value, dict) and value and dice.random() < 0.8:
            inner = dice.choice(sorted(value))
            key, value = f"{key}.{inner}", value[inner]
        data = torn(f"{key}={json.dumps(value)}".encode(), dice).replace(b"\0", b"")
        _refused(lambda: load(TASK, [data.decode(errors="replace")]))


class Folder:
    """A finished run's folder, one of whose files is changed, signed again where it was signed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._blobs = open_root(str(root))
        self._names = [n for n in self._blobs.names("") if n.endswith((".json", ".yaml"))]
        self._whole = root.parent / f"{root.name}-whole"
        shutil.copytree(root, self._whole)

    @contextmanager
    def _one_changed(self, dice: random.Random) -> Iterator[None]:
        kind = dice.choice(sorted({name.split("/")[0] for name in self._names}))
        name = dice.choice([n for n in self._names if n.split("/")[0] == kind])
        kept = {name: self._blobs.get(name)}
        kept |= self._put_changed(name, kept[name], dice)
        try:
            yield
        finally:
            for each, data in kept.items():
                self._blobs.put(each, data)

    def _put_changed(self, name: str, data: bytes, dice: random.Random) -> dict[str, bytes]:
        """-> what else was changed, as it was."""
        folder, last = name.split("/")[0], name.split("/")[-1]
        if dice.random() < 0.1:
            self._blobs.put(name, torn(data, dice))
        elif last == "zarr.json":
            return self._with_record(name, changed(json.loads(data), dice))
        elif folder in ("ledger", "agenda", "handed"):
            self._blobs.put(name, signed(changed(unseal(data, name), dice)))
        else:
            plain = yaml.safe_load(data) if last.endswith(".yaml") else json.loads(data)
            self._blobs.put(name, json.dumps(changed(plain, dice)).encode())
        return {}

    def _with_record(self, name: str, value: Any) -> dict[str, bytes]:
        unit_id = name.split("/")[1]
        (record,) = [n for n in self._blobs.names("ledger") if n.endswith(f"/{unit_id}.json")]
        kept = self._blobs.get(record)
        content = unseal(kept, record)
        key = name.removeprefix(f"{content['manifest']['group']}/")
        content["manifest"] = put_metadata(self._blobs, content["manifest"], key, value)
        self._blobs.put(record, seal(content))
        return {record: kept}

    def look(self, dice: random.Random) -> None:
        """By status, verify, and `distinf run` on the folder."""
        looks: Sequence[Callable[[], Any]] = (
            lambda: status_of(str(self._root), self._blobs).as_json(),
            lambda: verify(self._blobs),
            lambda: last_heartbeat(str(self._root)),
            lambda: load(str(self._root)),
            lambda: Agenda(self._blobs).config(),
        )
        with self._one_changed(dice):
            for each in looks:
                _refused(each)

    def report(self, dice: random.Random) -> None:
        """By `distinf report`."""
        with self._one_changed(dice):
            _refused(lambda: rewrite_report(reopen(str(self._root))))
        for part in ("report", "handed"):
            shutil.copytree(self._whole / part, self._root / part, dirs_exist_ok=True)

    def repair(self, dice: random.Random) -> None:
        """What `verify --repair` sets aside lies in the folder, and stays in it."""
        outside = sorted(self._root.parent.iterdir())
        with self._one_changed(dice):
            _refused(lambda: set_aside(self._blobs, verify(self._blobs)))
        if sorted(self._root.parent.iterdir()) != outside:
            raise Unclean("something was moved out of the run's folder")
        shutil.rmtree(self._root)
        shutil.copytree(self._whole, self._root)


def _refused(call: Callable[[], Any]) -> Any:
    """What the call gives; None if it refuses, which the command line says in one line."""
    with suppress(DistinfError):
        return call()
    return None
