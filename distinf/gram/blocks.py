"""Blocks: the parameters whose gradients are kept apart, where they are stored, how they group.

Blocks that fit are stored side by side in one array, a slab; a slab is what one worker works on.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from distinf.errors import InputError
from distinf.gram.settings import GradientSettings, ScoreSettings
from distinf.numerics.projection import TwoSided

EMBEDDING, HEAD, ALL = "embedding", "head", "all"
SPARSE = -1  # the slab of the embedding
LAYER = re.compile(r"\.(?:layers?|h|block|blocks)\.(\d+)\.")
HEAD_NAMES = ("score", "classifier", "pre_classifier", "classification_head", "head", "lm_head")
HEADS = re.compile(rf"(?:^|\.)(?:{'|'.join(HEAD_NAMES)})(?:\.|$)")
ATTENTION_GROUPS = 4


@dataclass(frozen=True)
class Block:
    """A parameter tensor: `entries` of it, `width` of them stored (fewer under a projection),
    from `start` on in its slab. A frozen one is an embedding that was asked for; `words`: it is an
    embedding's, sparse or dense."""

    name: str
    entries: int
    width: int
    slab: int
    start: int
    trained: bool = True
    words: bool = False

    @property
    def span(self) -> slice:
        return slice(self.start, self.start + self.width)


@dataclass(frozen=True)
class Blocks:
    """All blocks of a cell in stored order; the embedding, if any, is the last."""

    every: tuple[Block, ...]

    @property
    def slabs(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(block.slab for block in self.every))

    @property
    def dense(self) -> tuple[Block, ...]:
        return tuple(block for block in self.every if block.slab != SPARSE)

    @property
    def embedding(self) -> Block | None:
        return next((block for block in self.every if block.slab == SPARSE), None)

    def of(self, slab: int) -> tuple[Block, ...]:
        return tuple(block for block in self.every if block.slab == slab)

    def width(self, slab: int) -> int:
        return sum(block.width for block in self.of(slab))


def blocks_of(
    shapes: Mapping[str, Sequence[int]],
    settings: GradientSettings,
    embedding: tuple[str, Sequence[int], bool] | None,
    linear: Sequence[str],
    words: Sequence[str] = (),
) -> Blocks:
    """From the names and shapes of dense parameters, in order, and of the embedding (and whether
    it is trained).

    `linear` names the weights of linear layers, which a projection can make smaller, `words` those
    of embeddings that are dense.
    """
    found: list[Block] = []
    project = TwoSided(0, settings.projection) if settings.projection else None
    slab = start = 0
    for name, shape in shapes.items():
        entries = prod(shape)
        width = entries
        if project and name in linear and project.shrinks(tuple(shape), settings.project_above):
            width = project.rank**2
        if start and start + width > settings.slab:
            slab, start = slab + 1, 0
        found.append(Block(name, entries, width, slab, start, words=name in words))
        start += width
    if embedding is not None:
        name, shape, trained = embedding
        found.append(Block(name, prod(shape), shape[-1], SPARSE, 0, trained, words=True))
    return Blocks(tuple(found))


def groups_of(blocks: Blocks, settings: ScoreSettings) -> dict[str, tuple[str, ...]]:
    """Group -> names of its blocks. By default: all that are trained, head, four stretches of
    layers named by their first and last, and the embedding; those that have blocks."""
    names = [block.name for block in blocks.dense]
    word = blocks.embedding
    if settings.groups:
        every = [*names, word.name] if word else names
        found = {group: _matching(group, regex, every) for group, regex in settings.groups.items()}
    else:
        trained = tuple(block.name for block in blocks.every if block.trained)
        found = {ALL: trained, **_layer_groups(names)}
        found[HEAD] = tuple(name for name in names if HEADS.search(name) and not layer(name)[1])
        found[EMBEDDING] = tuple(block.name for block in blocks.every if block.words)
    return {group: members for group, members in found.items() if members}


def layer(name: str) -> tuple[int, bool]:
    """(its number, whether it is in a numbered layer at all)."""
    match = LAYER.search(f".{name}")
    return (int(match[1]), True) if match else (0, False)


def _layer_groups(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    numbers = sorted({layer(name)[0] for name in names if layer(name)[1]})
    if len(numbers) < 2:
        return {}
    stretches = np.array_split(np.array(numbers), min(ATTENTION_GROUPS, len(numbers)))
    found = {}
    for stretch in stretches:
        members = {int(number) for number in stretch}
        title = f"{min(members):02d}-{max(members):02d}"
        found[title] = tuple(n for n in names if layer(n)[1] and layer(n)[0] in members)
    return found


def _matching(group: str, regex: str, names: Sequence[str]) -> tuple[str, ...]:
    try:
        found = tuple(name for name in names if re.search(regex, name))
    except re.error as error:
        raise InputError(f"scores.groups.{group}: '{regex}' is not a regex: {error}") from None
    if not found:
        raise InputError(f"scores.groups.{group}: '{regex}' matches no block, such as {names[0]}")
    return found
