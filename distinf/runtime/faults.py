"""Whose an error is, and what it says in one line.

The user's errors end a run with exit code 2, ours with 1, and passing ones (memory, connections,
devices) can be gone at the next try. What comes twice in the same way does not pass.
"""

import os
import re
import sysconfig
import traceback
from pathlib import Path
from typing import Literal

import torch

from distinf.microbatch import is_out_of_memory
from distinf.printable import printable

Whose = Literal["user", "ours", "passing"]

OURS = f"{Path(__file__).resolve().parents[1]}{os.sep}"
LIBRARIES = tuple({f"{sysconfig.get_path(name)}{os.sep}" for name in ("stdlib", "platstdlib")})
INSTALLED = ("site-packages", "dist-packages")
TORCH = f"{Path(torch.__file__).parent}{os.sep}"
GANG = str(Path(__file__).with_name("process_group.py"))
NEVER_THERE = (
    FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError,
)  # fmt: skip
PASSING = (OSError,)
# Of packages that speak with other machines, whose errors have no class in common.
REMOTE = ("aiohttp", "botocore", "fsspec", "httpcore", "httpx", "obstore", "requests", "urllib3")
PASSING_WORDS = re.compile(
    r"CUDA error(?!: device-side assert)|CUBLAS_STATUS|CUDNN_STATUS|NCCL error|gloo"
    r"|[Cc]onnection (closed|reset|refused|timed out)",
)
MOST = 300  # characters of an error's own words
_packages: set[str] = set()


def whose(error: BaseException) -> Whose:
    """Whom to tell."""
    files = _files(error)
    of_user = any(is_users(file) for file in files)
    if _passes(error, of_user) or GANG in files:
        return "passing"
    if of_user or isinstance(error, Warning | SystemExit):
        return "user"
    # What torch refuses is the user's model or loss; what we ask of torch amiss ends in our file.
    return "user" if files and files[-1].startswith(TORCH) else "ours"


def _passes(error: BaseException, of_user: bool) -> bool:
    if is_out_of_memory(error):
        return True
    seen: BaseException | None = error
    while seen is not None:
        missing = isinstance(seen, NEVER_THERE) and of_user
        remote = type(seen).__module__.partition(".")[0] in REMOTE
        if (isinstance(seen, PASSING) and not missing) or remote:
            return True
        seen = seen.__cause__
    return isinstance(error, RuntimeError) and bool(PASSING_WORDS.search(text(error)))


def note_task(path: str) -> None:
    """The package of "module:function" is the user's from now on, even where it is installed."""
    _packages.add(path.partition(":")[0].partition(".")[0])


def is_users(file: str) -> bool:
    """Not ours, no library's, and of a real file."""
    if file.startswith(OURS) or (file.startswith("<") and file != "<stdin>"):
        return False
    parts = Path(file).parts
    installed = [k for k, part in enumerate(parts[:-1]) if part in INSTALLED]
    if installed:
        return parts[installed[-1] + 1].removesuffix(".py") in _packages
    return not file.startswith(LIBRARIES)


def told(error: BaseException) -> str:
    """ "at mine.py:12: IndexError: Target 2 is out of bounds", the line being the user's own."""
    return f"at {place(error)}: {named(error)}"


def place(error: BaseException) -> str:
    """file:line, the innermost of the user's; without any, the innermost there is."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if is_users(frame.filename)]
    if not frames:
        return "an unknown place"
    return f"{(own or frames)[-1].filename}:{(own or frames)[-1].lineno}"


def named(error: BaseException) -> str:
    """Type and words on one line, whatever the error does when it is printed."""
    words = text(error)
    if isinstance(error, SystemExit):
        return f"SystemExit: sys.exit({words}) ends no run; raise an error or return"
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def text(error: BaseException, most: int = MOST) -> str:
    """Its own words on one line of printable letters, not too many."""
    try:
        words = " ".join(str(error).split())
    except Exception:
        return "(its text cannot be had)"
    words = printable(words)
    return words if len(words) <= most else f"{words[:most]}…"


def full_trace(error: BaseException) -> str:
    """The traceback; of an error that cannot be printed, its frames alone."""
    try:
        return "".join(traceback.format_exception(error))
    except Exception:
        return "".join(traceback.format_tb(error.__traceback__)) + named(error)


def alike(one: str, two: str) -> bool:
    """Whether two errors say the same, addresses in memory aside."""
    return re.sub(r"0x[0-9a-fA-F]+", "0x", one) == re.sub(r"0x[0-9a-fA-F]+", "0x", two)


def _files(error: BaseException) -> list[str]:
    return [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
