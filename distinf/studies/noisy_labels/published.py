"""The paper's own numbers, to print beside a run's: facts to compare with, not to meet.

Source: Vitel and Chhabra, arXiv 2511.04715. Table 3 gives ranks and win rates of
layers (mean aggregation, Pareto threshold 0.5); of Tables 4 to 6, the rows whose digits could be
checked (best test accuracy after filtering 30 %, mean and sd over 10 seeds; threshold 0.75).
"""

from distinf.stages.gram.page.findings import PublishedLayer, PublishedMethod

TABLE_3_SOURCE, TABLES_456_SOURCE = "Vitel and Chhabra, Table 3", "Vitel and Chhabra, Tables 4 to 6"
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
# by model: estimator, aggregation, layers, win rate, then mean/sd in percent for each of DATASETS
TABLES_456 = {
    "roberta-large": """
datainf mean 18-23 .66 87.4/2.1 78.1/2.1 94.4/0.6 80.0/3.1 83.3/1.2 85.5/2.2 60.5/5.6 86.7/1.5
random  -    -     .40 84.3/1.9 77.2/2.1 93.6/1.1 78.5/2.4 80.4/2.0 81.6/2.2 57.8/2.6 85.2/2.0
""",
    "llama-3.2-1b": """
full    -    -     .97 83.8/1.5 79.9/2.5 93.5/0.9 84.4/1.9 83.4/0.5 82.0/1.7 64.9/4.3 85.9/1.3
random  -    -     .64 76.7/5.1 71.6/2.5 89.5/2.0 80.2/2.1 80.5/0.9 73.3/2.7 56.3/3.9 82.2/2.5
datainf mean 04-07 .63 76.5/3.6 70.9/3.9 88.1/6.4 77.5/3.3 78.1/2.6 73.6/4.2 63.0/4.1 78.9/3.9
""",
    "mistral-7b": """
full    -    -     .96 87.1/1.6 77.2/1.2 93.8/1.1 84.2/2.1 83.4/1.3 82.1/2.8 69.0/3.5 78.5/3.2
datainf vote 00-07 .84 82.9/1.7 74.2/2.4 89.3/2.2 80.7/2.3 80.6/1.9 79.0/3.0 66.6/2.9 77.2/3.2
tracin  vote 00-07 .83 83.5/1.6 74.1/2.7 89.2/2.1 80.3/2.4 80.1/1.6 78.5/2.8 66.6/3.2 76.7/3.1
datainf vote 08-15 .82 83.9/2.0 72.5/1.6 90.2/2.3 78.9/2.4 77.1/1.9 79.4/3.0 66.6/4.0 78.1/3.1
datainf vote all   .82 84.1/1.9 72.5/1.5 89.5/2.1 77.0/2.3 76.6/1.9 79.7/2.5 67.6/3.7 78.5/3.1
datainf mean 08-15 .63 82.5/4.0 71.6/3.6 82.1/11.4 76.2/4.3 76.6/2.6 76.1/2.1 66.2/3.9 74.0/4.1
tracin  mean 00-07 .59 80.4/1.7 72.0/1.2 82.0/5.6 76.4/3.7 77.7/2.5 75.7/2.9 63.8/4.7 73.8/3.3
random  -    -     .43 76.9/2.3 69.4/2.3 80.8/3.2 76.3/2.5 77.9/1.7 73.2/3.7 60.5/3.3 73.5/3.2
""",
}
NONE = "-"


def layers(model: str) -> tuple[PublishedLayer, ...]:
    """Table 3 for that model ("mistral-7b"); empty for one that is not in the paper."""
    found = []
    for line in TABLE_3.strip().splitlines():
        name, estimator, *cells = line.split()
        for group, cell in zip(LAYERS, cells, strict=True):
            if name == model and cell != NONE:
                rank, rate = cell.split("/")
                told = (TABLE_3_SOURCE, model, estimator, group, int(rank), float(rate))
                found.append(PublishedLayer(*told))
    return tuple(found)


def methods(model: str) -> tuple[PublishedMethod, ...]:
    """The rows of Tables 4 to 6 for that model; empty for one that is not in them."""
    found = []
    for line in TABLES_456.get(model, "").strip().splitlines():
        estimator, how, group, rate, *cells = line.split()
        accuracy = {}
        for dataset, cell in zip(DATASETS, cells, strict=True):
            mean, sd = cell.split("/")
            accuracy[dataset] = (float(mean), float(sd))
        how, group = ("" if part == NONE else part for part in (how, group))
        told = (TABLES_456_SOURCE, model, estimator, how, group, float(rate), accuracy)
        found.append(PublishedMethod(*told))
    return tuple(found)
