"""Recipes: the kinds of run there are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from distinf.runtime.worker import resolve

RECIPES = {  # named here, imported on demand
    "basis": "distinf.recipes.spectral:RECIPE",
    "gram": "distinf.recipes.gram:RECIPE",
}


@dataclass(frozen=True)
class Recipe:
    """A kind of run.

    stages  in their order; the last is the report
    check   InputError for what can only fail later, hours into the run -> the method by which it
            takes gradients
    """

    stages: Sequence[ModuleType]
    check: Callable[[Any], str]


def recipe_named(name: str) -> Recipe:
    """One of RECIPES."""
    found: Any = resolve(RECIPES[name])
    return found  # type: ignore[no-any-return]
