"""Numbers as a reader sees them: true minus signs, narrow spaces before units, no false digits."""

import math
from collections.abc import Mapping
from typing import Any

SPACE = "\u202f"  # narrow, no break
MISSING = "n/a"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def fixed(value: float | None, digits: int = 1) -> str:
    """`digits` decimals, thousands separated, and never a negative zero."""
    if value is None or missing(float(value)):
        return MISSING
    text = f"{value:,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def rounded(value: float | None) -> str:
    """For running text: whole numbers, one decimal below 1 in size."""
    if value is None or missing(float(value)):
        return MISSING
    return fixed(value, 0 if abs(value) >= 0.95 or value == 0 else 1)


def signed(value: float | None, digits: int = 1) -> str:
    text = fixed(value, digits)
    positive = text != MISSING and value is not None and float(value) > 0
    return f"+{text}" if positive and text.strip("0.") else text


def percent(value: float | None) -> str:
    return with_unit(rounded(value), "%")


def with_unit(text: str, unit: str) -> str:
    return text if text == MISSING else f"{text}{SPACE}{unit}"


def power(exponent: int) -> str:
    return "10" + str(exponent).translate(SUPERSCRIPTS)


def number(value: Any, digits: int = 3) -> str:
    """`digits` significant digits, as a power of ten outside 1e-3 to 1e6; text as it is.

    A list or mapping, as a note may be one, in its first words.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple | Mapping):
        return shortened(str(value), 80)
    if missing(value):
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):  # of any size
        return f"{value:,}".replace("-", "−")
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    places = int(exponent)
    if places < -3 or places >= 6:
        return f"{mantissa.replace('-', '−')}·{power(places)}"
    return fixed(value, max(0, digits - 1 - places))


def count(value: int | None) -> str:
    return MISSING if value is None else f"{value:,}"


def shortened(text: str, most: int = 28) -> str:
    """Text for a figure, where a long name from the data would leave no room for it."""
    return text if len(text) <= most else text[: most - 1] + "…"


def identifier(value: int) -> str:
    return str(value).replace("-", "−")


def duration(seconds: float | None) -> str:
    if seconds is None or missing(float(seconds)):
        return MISSING
    if seconds < 60:
        return with_unit(number(float(seconds), 2), "s")
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{SPACE}min {rest:02d}{SPACE}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,}{SPACE}h {minutes:02d}{SPACE}min"


def size(value: float | None) -> str:
    if value is None or missing(float(value)):
        return MISSING
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 1000 or unit == "TB":
            break
        value /= 1000
    return with_unit(fixed(value, 0 if unit == "B" or value >= 100 else 1), unit)
