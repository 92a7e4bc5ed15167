"""The measured matrix as a table of its own, with names, by a sign that its header says."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from distinf.empirical.matrix import Matrix

SIGNS = {
    "influence": (1.0, "influence: above 0, tuning on the row lowers the loss of the column"),
    "eq4": (-1.0, "Eq. 4: loss after less before, below 0 where the column is learned"),
}


def in_words(matrix: Matrix, sign: str) -> Iterator[dict[str, Any]]:
    """A line for each row that is tuned on, a column for each that is evaluated; the heading of the
    names says the sign. Pairs that were not measured are empty, and so are infinite ones."""
    scale, heading = SIGNS[sign]
    names, columns = (_names(of) for of in (matrix.rows, matrix.columns))
    for name, values in zip(names, scale * matrix.influence_NE, strict=True):
        yield {heading: name, **dict(zip(columns, values.tolist(), strict=True))}


def _names(columns: Mapping[str, np.ndarray]) -> list[str]:
    """As a person knows the rows, each once: they differ in matrix, draw, sample or level."""
    wanted = ("matrix", "draw", "sample", "group", "level")
    every = zip(*(columns[key].tolist() for key in wanted), strict=True)
    found = []
    for matrix, draw, sample, group, level in every:
        place = f"{matrix}, draw {draw}, " if matrix else ""
        found.append(f"{place}sample {sample} {group}".rstrip() + f", noise {level}" * bool(level))
    return found
