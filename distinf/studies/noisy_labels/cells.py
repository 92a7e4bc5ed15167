"""One cell, a dataset with a seed: its rows, tokens, flips, as arrays that are stored once.

Arrays, for part in train, evaluation (the queries), test:
    <part>_tokens, <part>_offsets      token ids (renumbered if compressed) and where rows begin
    <part>_labels, <part>_clean        int64 [rows]: as given (train: noisy), and before the noise,
                                       as places among the classes
    classes, class_offsets             UTF-8: the classes' names
    <part>_rows                        int64 [rows]: the row's number in its source
    <part>_text, <part>_text_offsets   UTF-8; two texts are joined by " | "
    train_flipped                      bool [rows]
    <part>_ids, <part>_id_offsets      UTF-8: the source's own id, or the row's number
    vocabulary                         int64 [V'] where it is compressed: vocabulary[new id] = old
    pad                                int64 [1]: the padding token's id in the data
    truncated                          int64 [3]: rows cut to max_length, by part
    replaced                           int64 [1]: half characters of the source, now U+FFFD
    shared_texts                       int64 [2]: queries and tests whose text is a training text
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from distinf.errors import InputError
from distinf.studies.language.pretrained import load_tokenizer
from distinf.studies.language.tokens import Ragged, packed_texts
from distinf.studies.noisy_labels.classes import PAIR
from distinf.studies.noisy_labels.files import Table, read_table
from distinf.studies.noisy_labels.glue import Load, glue_table
from distinf.studies.noisy_labels.noise import flips, relabelled
from distinf.studies.noisy_labels.settings import DataSettings, NoisyLabelSettings
from distinf.studies.noisy_labels.splits import PARTS, split_rows
from distinf.studies.noisy_labels.tokens import tokenised
from distinf.studies.noisy_labels.vocabulary import kept_tokens, renumber

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Cell:
    """A dataset and the index of a seed."""

    dataset: str
    index: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.dataset}-{self.index}"


def cells_of(settings: NoisyLabelSettings, seed: int) -> tuple[Cell, ...]:
    """Every dataset with every seed, dataset by dataset."""
    return tuple(
        Cell(name, index, seed + index)
        for name in settings.data.names
        for index in range(settings.seeds)
    )


def load_table(settings: DataSettings, dataset: str, load: Load | None = None) -> Table:
    """The rows of the file, or of a GLUE task (`load`: see glue.py)."""
    if settings.path:
        return read_table(settings)
    return glue_table(dataset, settings.revision, load, settings.named_classes or PAIR)


@lru_cache(maxsize=8)
def file_classes(settings: DataSettings, content: str) -> tuple[str, ...]:
    """The classes of a file whose digest is `content`."""
    return settings.named_classes or read_table(settings).classes


def choose_rows(
    settings: NoisyLabelSettings, cell: Cell, load: Load | None = None
) -> tuple[Table, dict[str, np.ndarray]]:
    """The source's rows, and which of them each part has."""
    data = settings.data
    table = load_table(data, cell.dataset, load)
    sizes = {"train": data.train_rows, "evaluation": data.query_rows, "test": data.test_rows}
    return table, split_rows(table, sizes, cell.seed, shrink=not data.path)


def prepare_cell(settings: NoisyLabelSettings, cell: Cell, load: Load | None = None) -> Arrays:
    """All arrays of the cell, a function of settings, data and the cell's seed."""
    data = settings.data
    table, chosen = choose_rows(settings, cell, load)
    arrays: Arrays = {}
    for part, rows in chosen.items():
        arrays |= _part(table, part, rows)
    flipped = flips(len(chosen["train"]), data.flips, cell.seed)
    arrays["train_flipped"] = flipped
    classes = len(table.classes)
    arrays["train_labels"] = relabelled(arrays["train_clean"], flipped, classes, cell.seed)
    arrays["classes"], arrays["class_offsets"] = packed_texts(table.classes)
    training = {table.texts[row] for row in chosen["train"]}
    shared = [sum(table.texts[row] in training for row in chosen[part]) for part in PARTS[1:]]
    arrays |= {"shared_texts": np.array(shared), "replaced": np.array([table.replaced])}
    arrays |= _tokens(settings, table, chosen)
    if data.queries:
        arrays |= _from_file(settings, table, arrays, "evaluation", "queries")
    if data.candidates:
        arrays |= _from_file(settings, table, arrays, "train", "candidates")
        arrays["train_flipped"] = np.zeros(len(arrays["train_labels"]), dtype=bool)
    return arrays


def _from_file(
    settings: NoisyLabelSettings, table: Table, arrays: Arrays, part: str, setting: str
) -> Arrays:
    """A part's arrays from a file of its own. Tokens that no row before has are numbered after
    those that have, so that the others' numbers are as they were."""
    asked = _read(settings.data, table, setting)
    rows, tokenizer = np.arange(len(asked.texts)), load_tokenizer(settings.model)
    (tokens, offsets), cut = tokenised(tokenizer, asked.texts, settings.model)
    _refuse_empty(asked, rows, (tokens, offsets))
    found = _part(asked, part, rows) | {f"{part}_offsets": offsets}
    if "vocabulary" in arrays:
        kept = arrays["vocabulary"]
        found["vocabulary"] = kept = np.concatenate([kept, np.setdiff1d(tokens, kept)])
        order = np.argsort(kept)
        tokens = order[renumber(tokens, kept[order])]
    truncated = arrays["truncated"].copy()
    truncated[PARTS.index(part)] = cut
    return found | {f"{part}_tokens": tokens, "truncated": truncated}


def _read(data: DataSettings, table: Table, setting: str) -> Table:
    """All rows of data.<setting>, a file like data.path."""
    path = getattr(data, setting)
    try:
        return read_table(replace(data, path=path, classes=table.classes, split="", group=""))
    except InputError as error:
        raise InputError(f"data.{setting}: {str(error).removeprefix('data.path: ')}") from None


def _part(table: Table, part: str, rows: np.ndarray) -> Arrays:
    text, text_offsets = packed_texts([" | ".join(table.texts[row]) for row in rows])
    ids, id_offsets = packed_texts([table.ids[row] for row in rows])
    return {
        f"{part}_labels": table.labels[rows],
        f"{part}_clean": table.labels[rows],
        f"{part}_rows": table.rows[rows],
        f"{part}_text": text,
        f"{part}_text_offsets": text_offsets,
        f"{part}_ids": ids,
        f"{part}_id_offsets": id_offsets,
    }


def _tokens(settings: NoisyLabelSettings, table: Table, chosen: Mapping[str, np.ndarray]) -> Arrays:
    """Tokens of all parts, renumbered together where the vocabulary is compressed."""
    tokenizer = load_tokenizer(settings.model)
    found: dict[str, Ragged] = {}
    truncated = []
    for part, rows in chosen.items():
        texts = [table.texts[row] for row in rows]
        found[part], cut = tokenised(tokenizer, texts, settings.model)
        _refuse_empty(table, rows, found[part])
        truncated.append(cut)
    pad = tokenizer.pad_token_id
    kept = None
    if settings.model.compress_vocabulary:
        occurring = [tokens for tokens, _ in found.values()]
        kept = kept_tokens(occurring, tokenizer.all_special_ids, pad)
        found = {part: (renumber(ids, kept), offsets) for part, (ids, offsets) in found.items()}
        pad = int(renumber(np.array(pad), kept))
    arrays = {f"{part}_tokens": tokens for part, (tokens, _) in found.items()}
    arrays |= {f"{part}_offsets": offsets for part, (_, offsets) in found.items()}
    arrays |= {"pad": np.array([pad]), "truncated": np.array(truncated)}
    return arrays if kept is None else arrays | {"vocabulary": kept}


def _refuse_empty(table: Table, rows: np.ndarray, tokens: Ragged) -> None:
    empty = table.rows[rows[np.diff(tokens[1]) == 0]]
    if len(empty):
        raise InputError(
            f"data.text: {len(empty)} rows have no token, row {empty.min()} first; leave rows "
            "without a text out"
        )
