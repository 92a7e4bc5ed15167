"""What the nodes of a joined cluster lack, before any work is given to them."""

from collections.abc import Callable, Sequence

from distinf.errors import InputError
from distinf.runtime.ray import cluster

Versions = dict[str, str | None]


def refuse_unlike(packages: Sequence[str] = ()) -> None:
    """InputError that names every node on which what the driver has is missing or of another
    version: Python, Ray, torch, distinf and these packages."""
    names = ["torch", *(name for name in packages if name != "torch")]
    here = _asked()(names)
    told = []
    for node, there in cluster.answers(cluster.alive(), _asked(), names):
        unlike = [_said(name, found, here[name]) for name, found in there.items()]
        if any(unlike):
            told.append(f"{node['NodeName']} has {', '.join(filter(None, unlike))}")
    if told:
        raise InputError(
            f"runtime: {'; '.join(told)}; install the same on every node, and restart Ray there"
        )


def _said(name: str, found: str | None, wanted: str | None) -> str:
    if found == wanted:
        return ""
    return f"{name} {found} where the driver has {wanted}" if found else f"no {name}"


def _asked() -> Callable[[Sequence[str]], Versions]:
    """What is asked of a node; defined in a function, so that it travels as code and a node
    without distinf can answer."""

    def versions(names: Sequence[str]) -> Versions:
        import importlib.metadata
        import platform

        found: Versions = {"Python": platform.python_version().rpartition(".")[0]}
        for name, package in (("Ray", "ray"), *((name, name) for name in names)):
            try:
                found[name] = importlib.metadata.version(package).partition("+")[0]
            except importlib.metadata.PackageNotFoundError:
                found[name] = None
        try:
            from distinf import __version__

            found["distinf"] = __version__
        except ImportError:
            found["distinf"] = None
        return found

    return versions
