"""The paper's own numbers, to print beside a run's: facts to compare with, not to meet.

Source: Vitel and Chhabra, arXiv 2511.04715. Table 3 gives ranks and win rates of layers (mean
aggregation, Pareto threshold 0.5). Tables 4 to 6 give every method's front, win rate and best test
accuracy after filtering 30 %, mean and sd over 10 seeds (threshold 0.75): published_methods.csv,
one row a method in the paper's order, accuracies in percent. It was read from a text in which the
tables' characters were recognised by machine. Read were numbers of the tables' one form,
dd.d ± d.d, also with points lost, with the sign lost or drawn as another mark (often 4), with l
and I for 1, T for 7, and a letter beside the digit that it stands for (T76.0, O91.1). What can
then still be read in two ways (T before 1, a mean of four digits, 1 for the sign) is empty. Where
names and numbers stand apart (65 rows of Table 5, 13 of Table 4), they are paired by their order.
"""

import csv
import math
from importlib.resources import files
from typing import Any

TABLE_3_SOURCE = "Vitel and Chhabra, Table 3"
SOURCES = {
    "roberta-large": "Vitel and Chhabra, Table 4",
    "llama-3.2-1b": "Vitel and Chhabra, Table 5",
    "mistral-7b": "Vitel and Chhabra, Table 6",
}
PACKAGE, METHODS_FILE = "distinf.studies.noisy_labels", "published_methods.csv"
LAYERS = (
    "tracin-we-top10", "tracin-we", "embedding",
    "attention-1", "attention-2", "attention-3", "attention-4", "head",
)  # fmt: skip
DATASETS = ("qnli", "mrpc", "sst2", "qqp", "cola", "mnli", "rte", "stsb")
# model, estimator, then rank/win rate for each of LAYERS
TABLE_3 = """
roberta-large  datainf      -     -     - 4/.29 4/.30 2/.40 1/.55 3/.36
roberta-large  tracin   1/.49 2/.48 1/.54 3/.50 5/.40 4/.44 6/.36 7/.17
roberta-large  cosine       -     - 2/.41 3/.35 2/.40 1/.56 1/.54 4/.15
llama-3.2-1b   datainf      -     -     - 1/.53 1/.58 2/.42 3/.23 4/.18
llama-3.2-1b   tracin   1/.56 2/.52 3/.44 2/.54 1/.54 4/.38 5/.22 6/.17
llama-3.2-1b   cosine       -     - 3/.42 1/.53 1/.53 2/.45 4/.28 5/.15
qwen-2.5-1.5b  datainf      -     -     - 1/.49 1/.48 1/.49 2/.31 3/.16
qwen-2.5-1.5b  tracin   2/.49 1/.51 3/.40 2/.42 1/.57 2/.48 4/.30 5/.22
qwen-2.5-1.5b  cosine       -     - 3/.19 2/.45 1/.60 1/.61 2/.40 3/.18
mistral-7b     datainf      -     -     - 2/.53 1/.60 2/.39 3/.20 3/.20
mistral-7b     tracin   1/.58 2/.50 2/.50 1/.61 2/.48 3/.29 4/.20 4/.20
mistral-7b     cosine       -     - 1/.58 1/.60 2/.55 3/.37 4/.23 5/.09
"""
NONE = "-"


def layers(model: str) -> list[dict[str, Any]]:
    """Rows of layers.csv: Table 3 for that model ("mistral-7b"); none for one not in the paper."""
    found: list[dict[str, Any]] = []
    for line in TABLE_3.strip().splitlines():
        name, estimator, *cells = line.split()
        for group, cell in zip(LAYERS, cells, strict=True):
            if name == model and cell != NONE:
                rank, rate = cell.split("/")
                row = {"layer": group, "estimator": estimator, "source": TABLE_3_SOURCE}
                found.append(row | {"model": model, "rank": int(rank), "win_rate": float(rate)})
    return found


def methods(model: str) -> list[dict[str, Any]]:
    """Rows of methods.csv: Table 4, 5 or 6 for that model, in their order; none for one without."""
    text = files(PACKAGE).joinpath(METHODS_FILE).read_text(encoding="utf-8")
    return [_method(row) for row in csv.DictReader(text.splitlines()) if row["model"] == model]


def _method(row: dict[str, str]) -> dict[str, Any]:
    """A number that could not be read is NaN, a front (`rank`) None."""
    estimator, how, group = row["estimator"], row["how"], row["group"]
    found = {"configuration": f"{estimator}/{group}/{how}" if group else estimator}
    found |= {"estimator": estimator, "how": how, "group": group, "source": SOURCES[row["model"]]}
    told = {"model": row["model"], "rank": int(row["rank"]) if row["rank"] else None}
    numbers = {key: float(row[key] or math.nan) for key in row if key not in (*found, *told)}
    return found | told | numbers
