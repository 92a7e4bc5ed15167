"""What a user can be told in one line, each with its own exit code (1 is kept for our bugs)."""

import re

SEE = "see `distinf verify`"


class DistinfError(Exception):
    """An error with one clear line for the user; `exit_code` is what the command line returns."""

    exit_code = 1


class InternalError(DistinfError):
    """A bug of ours: another try ends in the same way."""


class InputError(DistinfError, ValueError):
    """The configuration or the input is wrong: what, where, and what to change."""

    exit_code = 2


class CorruptionError(DistinfError):
    """Bytes on disk are not those that were committed."""

    exit_code = 3


class Interrupted(DistinfError):
    """Stopped before the end; running the same command again resumes."""

    exit_code = 4


class ClusterEnded(Interrupted):
    """The cluster that this process started is dead, and so is what of it lives in this process:
    leave by `os._exit`, as Ray's own end would wait for it or crash."""


def in_one_line(error: DistinfError | OSError, name: str) -> str:
    """One line on what is wrong with `name`."""
    if isinstance(error, OSError):
        return f"{error.filename or name} cannot be read: {error.strerror or error}"
    return str(error)


def install_command(extra: str) -> str:
    """What installs the packages of an extra, from any folder and however distinf was installed."""
    from importlib import metadata  # a tenth of a second, for errors alone

    needed = metadata.requires("distinf") or []
    parts = [line.partition(";") for line in needed if re.search(rf"""['"]{extra}['"]""", line)]
    return "pip install " + " ".join(f'"{name.strip()}"' for name, _, _ in parts)


class OtherMethod(InputError):
    """Per-sample gradients that need another method: why, and which methods may do.

    The line names the library's argument; `in_a_run` is the same with the run's key.
    """

    def __init__(self, reason: str, methods: tuple[str, ...], otherwise: str = "") -> None:
        self.reason, self.methods, self.otherwise = reason, methods, otherwise
        named = " or ".join(repr(method) for method in methods)
        super().__init__(f"{reason}: use method={named}{otherwise}")

    def __reduce__(self) -> tuple[type, tuple[str, tuple[str, ...], str]]:
        return type(self), (self.reason, self.methods, self.otherwise)

    def in_a_run(self) -> InputError:
        """For who has a configuration instead of a call."""
        ways = " or ".join(f"--set gradients.method={method}" for method in self.methods)
        return InputError(f"{self.reason}: {ways}{self.otherwise}")
