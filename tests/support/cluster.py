"""A local Ray cluster of several nodes for tests, by cluster/local_nodes.py.

Drivers join from a process of their own (`LocalNodes.driver`): Ray reads its authentication mode
once, when it is imported.
"""

import contextlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "cluster" / "local_nodes.py"
AUTHENTICATION = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN")


def local_nodes(*words: str | Path, timeout_s: float = 100) -> subprocess.CompletedProcess[str]:
    """Runs the script with these words."""
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)


@dataclass(frozen=True)
class LocalNodes:
    folder: Path
    address: str

    def run(self, command: str, *words: str) -> subprocess.CompletedProcess[str]:
        return local_nodes(command, "--dir", self.folder, *words)

    def kill_node(self, number: int) -> None:
        _succeed(self.run("kill-node", str(number)))

    def add_node(self) -> None:
        _succeed(self.run("add-node"))

    def environment(self) -> dict[str, str]:
        """This process's environment with what env.sh says on top."""
        environment = {k: v for k, v in os.environ.items() if k not in AUTHENTICATION}
        for line in (self.folder / "env.sh").read_text().splitlines():
            if line.startswith("export "):
                name, _, value = line.removeprefix("export ").partition("=")
                environment[name] = shlex.split(value)[0]
        return environment

    def driver(self, code: str, **changes: str | None) -> subprocess.Popen[str]:
        """Starts `code` in a process that joins; `changes` go to its environment, None unsets."""
        return self._start("-c", code, **changes)

    def _start(self, *words: str, **changes: str | None) -> subprocess.Popen[str]:
        environment = self.environment() | changes
        return subprocess.Popen(
            [sys.executable, *words],
            env={name: value for name, value in environment.items() if value is not None},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )

    def distinf(self, *arguments: str, **changes: str | None) -> subprocess.Popen[str]:
        """Starts the command line in a process that joins."""
        return self._start("-m", "distinf", *arguments, **changes)

    def processes(self) -> dict[int, str]:
        """Living processes with this folder in their command line or in a node's session."""
        record = json.loads((self.folder / "cluster.json").read_text())
        sessions = {str(node["session"]) for node in record["nodes"]}
        listing = subprocess.run(
            ["ps", "-eo", "pid=,sid=,stat=,args=", "-ww"],
            capture_output=True,
            text=True,
            check=True,
        )
        found = {}
        for line in listing.stdout.splitlines():
            pid, session, state, arguments = line.split(None, 3)
            of_this = session in sessions or f"{self.folder}/" in arguments
            if of_this and not state.startswith("Z"):
                found[int(pid)] = arguments
        return found


@contextlib.contextmanager
def started(nodes: int = 2, *options: str, dashboard: bool = False) -> Iterator[LocalNodes]:
    """A cluster with fast failure detection, ended afterwards."""
    with tempfile.TemporaryDirectory(prefix="nodes-", dir="/tmp") as name:  # short: Ray's sockets
        folder = Path(name)
        more = [] if dashboard else ["--no-dashboard"]
        words = ("--nodes", str(nodes), "--fast-failure", *more, *options)
        _succeed(local_nodes("up", "--dir", folder, *words))
        try:
            record = json.loads((folder / "cluster.json").read_text())
            yield LocalNodes(folder, record["address"])
        finally:
            if (folder / "cluster.json").exists():
                _succeed(local_nodes("down", "--dir", folder))


def _succeed(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stderr
