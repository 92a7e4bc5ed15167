"""The command line: parse, call, print. What a user can mend is one line and an exit code."""

import errno
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from distinf.cli.arguments import parser
from distinf.errors import ClusterEnded, DistinfError, InputError, Interrupted
from distinf.printable import shortened, show
from distinf.saying import Voice

STAYS = (FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)  # at each try


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 a bug of ours, 2 bad config or input, 3 corrupted, 4 resumable."""
    options = parser().parse_args(arguments)
    try:
        sys.path.append(os.getcwd())  # a user's `task: module:function` lies where they are
    except FileNotFoundError:
        return _fail("error: the folder that you are in was deleted; cd to another", 2)
    signal.signal(signal.SIGTERM, _terminate)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, _terminate)
    options.voice = voice = Voice()
    try:
        return int(options.call(options) or 0)
    except ClusterEnded as error:
        code = _fail(f"error: {error}", error.exit_code)
        voice.rest()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    except DistinfError as error:
        if os.environ.get("DISTINF_TRACE"):
            raise
        return _fail(f"error: {error}", error.exit_code)
    except KeyboardInterrupt:
        return _fail("stopped; run the same command to resume", Interrupted.exit_code)
    except BaseException as error:  # sys.exit in a task among them
        return _told(error)
    finally:
        voice.rest()
        _drop_what_nobody_reads()


def _drop_what_nobody_reads() -> None:
    """Of `distinf ... | head` the rest; Python would say that the pipe is closed."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (AttributeError, OSError, ValueError):  # closed before; a full disk, told at the end
        pass


def _told(error: BaseException) -> int:
    """One line for what is the user's or may pass; a bug of ours is raised, with its traceback."""
    from distinf.runtime import faults

    whose = faults.whose(error)
    if whose == "ours" or os.environ.get("DISTINF_TRACE"):
        raise error
    if whose == "user":
        return _fail(f"error: the task failed {faults.told(error)}", InputError.exit_code)
    what = faults.told(error)
    if isinstance(error, OSError) and error.strerror:  # a disk that is full, a folder that went
        what = error.strerror + (f": {error.filename}" if error.filename else "")
        if isinstance(error, STAYS) or error.errno in (errno.ENAMETOOLONG, errno.EROFS):
            return _fail(f"error: {what}; that has to be put right first", InputError.exit_code)
    return _fail(f"error: {what}; run the same command to resume", Interrupted.exit_code)


def _fail(line: str, code: int) -> int:
    show(shortened(line), file=sys.stderr)
    return code


def _terminate(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
