"""Checks that the settings of all recipes share."""

import math


def at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name}: {value} must be at least {least}")


def not_negative(name: str, value: float) -> None:
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}: {value} must be 0 or more")


def positive(name: str, value: float) -> None:
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name}: {value} must be more than 0")
