"""The code blocks of README and docs: found, checked without running, and run in order."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.runs import REPOSITORY

PAGES = [
    "README.md", "docs/noisy-labels.md", "docs/receiver.md", "docs/tfrecords.md",
    "docs/configuration.md", "CONTRIBUTING.md", "cluster/README.md",
]  # fmt: skip
FENCE = re.compile(r"((?:^<!-- [^\n]* -->\n)*)^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# In place of the commands that a block calls: `distinf` with more settings for some
# configurations, and nothing at all for what a test cannot do inside itself.
DISTINF = """#!{python} -W ignore
import json, os, sys
more = json.loads(os.environ["MORE"])
words = sys.argv[1:]
words += [word for name in sys.argv[1:] for word in more.get(name, [])]
os.execv({python!r}, [{python!r}, "-W", "ignore", "-m", "distinf", *words])
"""
NOTHING = "#!/bin/sh\n"


@dataclass(frozen=True)
class Block:
    """not_run: why it is only looked at. file: what it is written to, by its first line."""

    page: str
    line: int
    language: str
    text: str
    not_run: str = ""

    @property
    def file(self) -> str | None:
        found = re.match(r"# ([\w-]+\.(?:py|yaml))\n", self.text)
        return found[1] if found else None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """Each command of a shell block, as one line."""
        joined = self.text.replace("\\\n", " ")
        lines = [part for line in joined.splitlines() for part in line.split("&&")]
        return [line.partition(" #")[0].strip(" &") for line in lines if line.strip(" &")]


def blocks(page: str) -> Iterator[Block]:
    """The page's blocks that say which language they are in."""
    text = (REPOSITORY / page).read_text()
    for found in FENCE.finditer(text):
        why = re.search(r"<!-- not run: (.+?) -->", found[1])
        if found[2]:
            line = text[: found.start(2)].count("\n") + 1
            yield Block(page, line, found[2], found[3], why[1] if why else "")


def play(folder: Path, given: Sequence[Block], more: Mapping[str, Sequence[str]]) -> str:
    """Run the blocks in their order in one folder, as a reader would -> what the last one printed.

    more: what is added to a command in which the word occurs, to take less time. The Python
    blocks of a page go on from each other.
    """
    commands = folder / ".commands"
    commands.mkdir()
    for name in ("pip", "pytest", "ruff", "mypy"):
        (commands / name).write_text(NOTHING)
    (commands / "distinf").write_text(DISTINF.format(python=sys.executable))
    for command in commands.iterdir():
        command.chmod(0o755)
    environment = {
        **os.environ,
        "MORE": json.dumps(more),
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
    }
    before: dict[str, str] = {}
    printed = ""
    for block in given:
        if block.not_run:
            continue
        if block.file:
            (folder / block.file).write_text(block.text)
            continue
        if block.language == "python":
            before[block.page] = before.get(block.page, "") + block.text
            words = [sys.executable, "-W", "ignore", "-c", before[block.page]]
        elif block.language == "bash":
            words = ["bash", "-euo", "pipefail", "-c", block.text]
        else:
            continue
        done = subprocess.run(
            words, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{block}: {done.stderr[-2000:]}"
        printed = done.stdout
    return printed
