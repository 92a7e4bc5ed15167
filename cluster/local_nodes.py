#!/usr/bin/env python3
"""A real Ray cluster of several nodes on this machine: up, status, add-node, kill-node, down.

Every server listens on 127.0.0.1 and asks for a token of this cluster's own. Needs Linux and Ray.
"""

import argparse
import contextlib
import fcntl
import importlib.util
import os
import secrets
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from local_cluster import BadInput, Cluster, Failed, free_port, is_a_nodes
from loopback_only import LOOPBACK
from processes import Process, boot_id, stop

# A Unix socket's path has at most 107 bytes; Ray appends this much to a node's folder.
LONGEST_SOCKET = len("/n99/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store.1")
LONGEST_FOLDER = 107 - LONGEST_SOCKET

# -- commands ------------------------------------------------------------------------------


def up(cluster: Cluster, arguments: argparse.Namespace) -> None:
    _refuse_unfit(cluster.folder)
    cluster.forget(keep_logs=False)  # what a cluster that failed to start had left for reading
    settings = ("cpus", "gpus", "object_store_mb", "dashboard", "fast_failure")
    cluster.record = {
        "id": secrets.token_hex(8),
        "boot": boot_id(),
        "address": "",
        "dashboard_port": free_port(),
        "settings": {name: getattr(arguments, name) for name in settings},
        "nodes": [],
    }
    try:
        cluster.token_file.touch(mode=0o600)
        cluster.token_file.write_text(secrets.token_hex(32))
        for number in range(arguments.nodes):
            cluster.start_node()
            print(f"node {number} of {arguments.nodes} is up", file=sys.stderr, flush=True)
        (cluster.folder / "env.sh").write_text(cluster.environment_lines())
    except BaseException:
        _ignore_signals()  # a second Ctrl-C would leave half of it running
        cluster.stop_all()
        cluster.forget(keep_logs=True)
        raise
    print(f"# {arguments.nodes} nodes at {cluster.record['address']}")
    if arguments.dashboard:
        print(f"# dashboard: http://{LOOPBACK}:{cluster.record['dashboard_port']}")
    print(cluster.environment_lines(), end="")
    print(f"# or: source {shlex.quote(str(cluster.folder / 'env.sh'))}")


def add_node(cluster: Cluster, arguments: argparse.Namespace) -> None:
    cluster.load()
    number = len(cluster.record["nodes"])
    try:
        cluster.start_node()
    except BaseException:
        _ignore_signals()
        stop(lambda: cluster.processes([number]), 0)
        if len(cluster.record["nodes"]) > number:
            cluster.record["nodes"][number]["state"] = "failed"
            cluster.save()
        raise
    print(f"node {number} is up")


def kill_node(cluster: Cluster, arguments: argparse.Namespace) -> None:
    node = cluster.load().node(arguments.number)
    if node["role"] == "head":
        raise BadInput("node 0 is the head, the cluster would go with it; give a worker, or: down")
    count = stop(lambda: cluster.processes([arguments.number]), 0)
    node["state"] = "killed"
    cluster.save()
    print(f"node {arguments.number}: killed {count} processes")


def status(cluster: Cluster, arguments: argparse.Namespace) -> None:
    cluster.load()
    print(f"{cluster.record['address']} in {cluster.folder}")
    lost = []
    for node in cluster.record["nodes"]:
        found = cluster.processes([node["number"]])
        state = node["state"]
        if state == "up" and not any(_is_raylet(process) for process in found):
            state = "lost"
            lost.append(str(node["number"]))
        print(f"node {node['number']} ({node['role']}): {state}, {len(found)} processes")
    if lost:
        raise Failed(f"node {', '.join(lost)} went away by itself; logs in {cluster.folder}")


def down(cluster: Cluster, arguments: argparse.Namespace) -> None:
    cluster.load()
    _ignore_signals()
    count = cluster.stop_all()
    cluster.forget(arguments.keep_logs)
    print(f"stopped {count} processes")


# -- small things --------------------------------------------------------------------------


def _make_folder(folder: Path) -> None:
    length = len(os.fsencode(folder))
    if length > LONGEST_FOLDER:
        raise BadInput(
            f"--dir {folder} has {length} bytes and Ray's sockets leave room for {LONGEST_FOLDER}: "
            "give a shorter one, such as /tmp/ray-nodes"
        )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--dir {folder}: {error.strerror}; give another folder") from None


def _refuse_unfit(folder: Path) -> None:
    """BadInput unless the folder is a place for a new cluster; closes it to other users."""
    if (folder / "cluster.json").exists():
        raise BadInput(f"there is a cluster in {folder} already; end it with: down --dir {folder}")
    strangers = [e.name for e in folder.iterdir() if not is_a_nodes(e)]
    if strangers:
        raise BadInput(f"{folder} holds {strangers[0]}, not of a cluster; give a new folder")
    if folder.stat().st_uid != os.getuid():
        raise BadInput(f"{folder} is not yours, and the token will be in it; give a new folder")
    folder.chmod(0o700)  # Ray makes its folders and sockets writable for everyone


def _is_raylet(process: Process) -> bool:
    return process.command.split(" ")[0].endswith("/raylet")


def _ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _interrupt(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One command at a time on a cluster; an advisory lock that ends with the process."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


# -- command line --------------------------------------------------------------------------


class OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"local_nodes: {message} (see --help)\n")


def _at_least(least: int) -> Any:
    def number(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least}")
        return int(text)

    return number


def parser() -> argparse.ArgumentParser:
    root = OneLineParser(prog="local_nodes.py", description=__doc__)
    commands = root.add_subparsers(required=True, metavar="command")

    def command(name: str, function: Any, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("--dir", type=Path, required=True, help="the cluster's own folder")
        added.set_defaults(function=function)
        return added

    start = command("up", up, "start a head and workers")
    start.add_argument("--nodes", type=_at_least(1), default=2, help="head included (default 2)")
    start.add_argument("--cpus", type=_at_least(1), default=1, help="per node (default 1)")
    start.add_argument("--gpus", type=_at_least(0), default=0, help="logical, per node (default 0)")
    start.add_argument("--object-store-mb", type=_at_least(80), default=200, help="per node")
    start.add_argument("--no-dashboard", dest="dashboard", action="store_false")
    start.add_argument("--fast-failure", action="store_true", help="notice a lost node in ~1.5 s")
    command("add-node", add_node, "start one more worker")
    killing = command("kill-node", kill_node, "SIGKILL all of a worker node, as if it lost power")
    killing.add_argument("number", type=_at_least(0))
    command("status", status, "which nodes are up")
    ending = command("down", down, "end every process that was started, and no other")
    ending.add_argument("--keep-logs", action="store_true", help="leave the nodes' folders")
    return root


def main(words: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(words)
    cluster = Cluster(arguments.dir.resolve())
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        if not sys.platform.startswith("linux"):
            raise BadInput("this needs Linux: processes are found in /proc")
        if arguments.function is up:
            if importlib.util.find_spec("ray") is None:
                raise BadInput(f"{sys.executable} has no ray; install distinf there first")
            _make_folder(cluster.folder)
        elif not cluster.folder.is_dir():
            raise BadInput(f"no folder {cluster.folder}")
        with _locked(cluster.folder):
            arguments.function(cluster, arguments)
    except BadInput as error:
        print(f"local_nodes: {error}", file=sys.stderr)
        return 2
    except (Failed, OSError, RuntimeError) as error:
        print(f"local_nodes: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("local_nodes: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
