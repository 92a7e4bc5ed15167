"""GLUE tasks with two classes, as Vitel and Chhabra has them, through Hugging Face's `datasets`.

MNLI without its third class unless three are asked for; STS-B's similarities cut at 3.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from distinf.errors import InputError, install_command
from distinf.studies.language.pretrained import asked
from distinf.studies.noisy_labels.classes import PAIR, class_names, class_numbers
from distinf.studies.noisy_labels.files import Table

HUB = "nyu-mll/glue"
TEXTS = {
    "qnli": ("question", "sentence"),
    "mrpc": ("sentence1", "sentence2"),
    "qqp": ("question1", "question2"),
    "sst2": ("sentence",),
    "cola": ("sentence",),
    "mnli": ("premise", "hypothesis"),
    "rte": ("sentence1", "sentence2"),
    "stsb": ("sentence1", "sentence2"),
}
SIMILAR = 3.0  # of STS-B's 0 to 5: class 1 from here

Load = Callable[[str, str], Mapping[str, Any]]  # (name, revision) -> splits, as datasets has them


def glue_table(
    name: str,
    revision: str = "main",
    load: Load | None = None,
    classes: tuple[str, ...] = PAIR,
) -> Table:
    """The train and validation rows; `rows` number each of the two from 0.

    classes: those of mnli that are kept; all other tasks have two.
    """
    splits = (load or from_hub)(name, revision)
    validation = "validation_matched" if name == "mnli" else "validation"
    parts = [_part(name, splits, key, classes) for key in ("train", validation)]
    sizes = [len(rows) for rows, _, _ in parts]
    rows = np.concatenate([rows for rows, _, _ in parts])
    splits_of = np.repeat(["train", "validation"], sizes)
    return Table(
        texts=[text for _, _, texts in parts for text in texts],
        labels=np.concatenate([labels for _, labels, _ in parts]),
        rows=rows,
        ids=[f"{split}-{row}" for split, row in zip(splits_of, rows)],
        splits=splits_of,
        classes=classes,
    )


def commit_of(revision: str) -> str:
    """The commit that the revision is, or was when it was downloaded; its name if nobody says."""
    return asked(HUB, revision, "dataset")[0]


def from_hub(name: str, revision: str) -> Mapping[str, Any]:
    """The dataset from the hub, of the commit that `commit_of` says, or from its cache."""
    try:
        import datasets  # type: ignore[import-untyped]
    except ImportError:
        raise InputError(f"data.datasets: GLUE needs datasets: {install_command('llm')}") from None
    commit, is_offline = asked(HUB, revision, "dataset")
    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(HUB, name, revision=revision if is_offline else commit)
    except Exception as error:  # of many kinds: hub, network, file system
        reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"
        raise InputError(
            f"data.datasets: {name}: {HUB} could not be loaded ({reason}); check the network, or "
            "give data.path a file of your own"
        ) from None
    finally:
        if bars:
            datasets.enable_progress_bars()


def _part(
    name: str, splits: Mapping[str, Any], key: str, classes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, list[tuple[str, ...]]]:
    """(row numbers, labels, texts) of one split, those without a class left out."""
    if key not in splits:
        raise InputError(f"data.datasets: {name} has no split '{key}', only {', '.join(splits)}")
    raw = np.asarray(splits[key]["label"])
    if name == "stsb":
        labels = (raw >= SIMILAR).astype(np.int64)
        rows = np.arange(len(raw))
    else:
        third = name == "mnli" and len(classes) == len(PAIR)
        rows = np.flatnonzero(raw != 2) if third else np.arange(len(raw))
        where = f"data.datasets: {name}, {key}"
        labels = class_numbers(class_names(raw[rows].tolist(), where), classes, where)
    columns = [list(splits[key][column]) for column in TEXTS[name]]
    return rows, labels, [tuple(column[row] for column in columns) for row in rows]
