"""One local cluster: its record on disk, how its nodes are started and its processes stopped."""

import contextlib
import json
import os
import random
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loopback_only import LITERAL_LOOPBACK, LOOPBACK
from processes import MARK, Process, belonging, boot_id, stop

START_TIMEOUT_S = 120
GRACE_S = 3.0
# A lost node is noticed after about 1.5 s instead of 14 s.
FAST_FAILURE = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}


class BadInput(Exception):
    """What the user asked for cannot be: exit code 2."""


class Failed(Exception):
    """It could be, but did not work: exit code 1."""


class Cluster:
    """The record of one cluster, DIR/cluster.json, and what is done with it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.file = folder / "cluster.json"
        self.record: dict[str, Any] = {}

    # -- the record ------------------------------------------------------------------------

    def load(self) -> "Cluster":
        try:
            self.record = json.loads(self.file.read_text())
        except FileNotFoundError:
            raise BadInput(f"no cluster in {self.folder}; start one with: up --dir DIR") from None
        except ValueError:
            raise BadInput(f"{self.file} is not a cluster's record") from None
        return self

    def save(self) -> None:
        temporary = self.file.with_suffix(".new")
        temporary.write_text(json.dumps(self.record, indent=2) + "\n")
        temporary.replace(self.file)

    def node(self, number: int) -> dict[str, Any]:
        for node in self.record["nodes"]:
            if node["number"] == number:
                return node
        count = len(self.record["nodes"])
        raise BadInput(f"no node {number}; there are {count}, counted from 0, the head")

    @property
    def token_file(self) -> Path:
        return self.folder / "token"

    def environment(self) -> dict[str, str]:
        """What a driver needs to join."""
        return {
            "RAY_ADDRESS": self.record["address"],
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
            LITERAL_LOOPBACK: "0",
        }

    def environment_lines(self) -> str:
        lines = [f"export {name}={shlex.quote(v)}" for name, v in self.environment().items()]
        return "\n".join(["unset RAY_AUTH_TOKEN", *lines]) + "\n"

    # -- processes -------------------------------------------------------------------------

    def processes(self, numbers: Sequence[int] | None = None) -> list[Process]:
        """Those of the nodes `numbers`, or of the whole cluster."""
        if self.record["boot"] != boot_id():
            return []
        nodes = [n for n in self.record["nodes"] if numbers is None or n["number"] in numbers]
        marks = {f"{self.record['id']}/{node['number']}" for node in nodes}
        every = f"{self.record['id']}/"
        return belonging(
            lambda mark: mark in marks or (numbers is None and mark.startswith(every)),
            [self.folder / f"n{node['number']}" for node in nodes],
            [node["session"] for node in nodes],
            [(p["pid"], p["started"]) for node in nodes for p in node["processes"]],
        )

    def stop_all(self) -> int:
        """Workers first, so that they leave a head that is still there."""
        workers = [node["number"] for node in self.record["nodes"][1:]]
        count = stop(lambda: self.processes(workers), GRACE_S) if workers else 0
        return count + stop(self.processes, GRACE_S)

    def forget(self, keep_logs: bool) -> None:
        if not keep_logs:
            for entry in self.folder.iterdir():
                if is_a_nodes(entry):
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        for file in (self.token_file, self.folder / "env.sh", self.file):
            file.unlink(missing_ok=True)

    # -- nodes -----------------------------------------------------------------------------

    def start_node(self) -> dict[str, Any]:
        """`ray start` for one more node, in a session and a folder of its own."""
        number = len(self.record["nodes"])
        folder = self.folder / f"n{number}"
        folder.mkdir()
        output = self.folder / f"n{number}.log"
        with output.open("wb") as log:
            child = subprocess.Popen(
                self._start_command(number, folder),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._start_environment(number),
                cwd=folder,
                start_new_session=True,
            )
        node: dict[str, Any] = {
            "number": number,
            "role": "worker" if number else "head",
            "state": "starting",
            "session": child.pid,
            "processes": [],
        }
        self.record["nodes"].append(node)
        self.save()
        try:
            code = child.wait(START_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise Failed(f"node {number} not up in {START_TIMEOUT_S} s; see {output}") from None
        if code != 0:
            raise Failed(f"node {number} did not start: {_last_line(output)}; see {output}")
        if number == 0:
            self.record["address"] = (folder / "ray_current_cluster").read_text().strip()
        node["state"] = "up"
        node["processes"] = [
            {"pid": p.pid, "started": p.started, "command": p.command[:200]}
            for p in self.processes([number])
        ]
        self.save()
        return node

    def _start_command(self, number: int, folder: Path) -> list[str]:
        settings = self.record["settings"]
        options: dict[str, str | int] = {
            "node-ip-address": LOOPBACK,
            "node-name": f"node-{number}",
            "temp-dir": str(folder),
            "num-cpus": settings["cpus"],
            "num-gpus": settings["gpus"],
            "object-store-memory": settings["object_store_mb"] * 1_000_000,
            "log-style": "record",
        }
        # 0: any free port. Ray's defaults are fixed ones, on which two nodes would collide.
        for server in ("node-manager", "object-manager", "min-worker", "max-worker"):
            options[f"{server}-port"] = 0
        for server in ("dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent"):
            options[f"{server}-port"] = 0
        options["metrics-export-port"] = 0
        if number == 0:
            options |= {"port": 0, "ray-client-server-port": free_port()}
            options |= {"dashboard-host": LOOPBACK, "dashboard-port": self.record["dashboard_port"]}
            options["include-dashboard"] = str(settings["dashboard"]).lower()
            if settings["fast_failure"]:
                options["system-config"] = json.dumps(FAST_FAILURE)
        else:
            # Ray would replace a plain 127.0.0.1 by the outward address; this form it leaves.
            port = self.record["address"].rpartition(":")[2]
            options["address"] = f"[::ffff:{LOOPBACK}]:{port}"
        words = [f"--{name}={value}" for name, value in options.items()]
        head = [] if number else ["--head"]
        return [sys.executable, "-m", "ray.scripts.scripts", "start", *head, *words]

    def _start_environment(self, number: int) -> dict[str, str]:
        environment = dict(os.environ)
        for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", LITERAL_LOOPBACK):
            environment.pop(name, None)
        here = str(Path(__file__).resolve().parent)
        paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
        return environment | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
            "RAY_USAGE_STATS_ENABLED": "0",
            "AUTOSCALER_METRIC_PORT": str(free_port()),
            "DASHBOARD_METRIC_PORT": str(free_port()),
            "RAY_START_HOOK": "loopback_only.apply",
            "PYTHONPATH": os.pathsep.join(paths),
            MARK: f"{self.record['id']}/{number}",
        }


def free_port() -> int:
    """Below the range that the system hands out by itself, so that nothing takes it meanwhile."""
    for port in random.SystemRandom().sample(range(20_000, 32_000), 200):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((LOOPBACK, port))
            return port
    raise Failed(f"no free port from 20000 to 32000 on {LOOPBACK}")


def is_a_nodes(entry: Path) -> bool:
    return entry.name[0] == "n" and entry.name[1:].removesuffix(".log").isdigit()


def _last_line(file: Path) -> str:
    lines = [line.strip() for line in file.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "no output")
