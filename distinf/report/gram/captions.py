"""What each picture shows and what to look for in it."""

from distinf.report.formats import SPACE, count, rounded
from distinf.report.gram.accuracy_figures import thinned
from distinf.report.gram.findings import Findings
from distinf.report.gram.summaries import chance, datasets
from distinf.report.gram.tables import Tables


def titles(findings: Findings) -> dict[str, str]:
    """Figure name -> title."""
    share = f"{100 * findings.headline.share:g}{SPACE}%"
    return {
        "curves": "Wrong labels found as the lowest-scored rows are removed",
        "grid": f"Wrong labels in the lowest {share}, by estimator, layers and aggregation [%]",
        "deciles": "Where the wrong labels are, by tenths of the ranking [%]",
        "modules": f"Wrong labels in the lowest {share}, each adapter weight by itself [%]",
        "accuracy": f"Test accuracy after filtering the lowest {share}",
        "trends": "Test accuracy by epoch, after filtering [%]",
        "proxies": "What stands in for accuracy without training again",
        "correlations": "Rank correlation of the rows' scores",
        "training": "Training of the model that was scored",
    }


def captions(findings: Findings, rows: Tables) -> dict[str, str]:
    """Figure name -> caption; numbers come from the tables."""
    return {
        "curves": _curves(findings),
        "grid": _grid(findings, rows),
        "deciles": "Share of all wrong labels in each tenth; a ranking that knows nothing has "
        "the dashed line's share everywhere. Bars at the right end are wrong labels that the "
        "model takes for helpful ones.",
        "modules": "Colour fades to none at the share that chance would find; green above, orange "
        "below.",
        "accuracy": _accuracy(findings, rows),
        "trends": _trends(findings),
        "proxies": _proxies(findings, rows),
        "correlations": "Spearman’s correlation, mean over cells: green where two agree, orange "
        "where they disagree, no colour at zero.",
        "training": _training(findings),
    }


def _curves(findings: Findings) -> str:
    many = len(findings.cells)
    text = "Mean over cells. " if many > 1 else ""
    text += "The steeper at first, the better; the dotted line is a perfect ranking, which the "
    text += "area is measured against."
    return text


def _grid(findings: Findings, rows: Tables) -> str:
    by_chance = chance(findings)
    share = f"{100 * findings.headline.share:g}"
    text = f"{count(len(rows.get('detection', [])))} configurations. Colour fades to none at "
    text += f"{share}, which chance finds"
    if by_chance is not None:
        low, high = (rounded(v) for v in by_chance)
        text += f" ({low} to {high} in 95{SPACE}% of random rankings)"
    return text + "; green above, orange below. Empty: no such configuration."


def _accuracy(findings: Findings, rows: Tables) -> str:
    first = next(iter(rows.get("accuracy", [])), {"trials": 0})
    text = "The best of all epochs on the test rows, as Vitel and Chhabra report it; that of the "
    text += f"{findings.epoch}, which no test row chooses, is among the numbers. "
    if first["trials"] > 1:
        text += f"Bars: 95{SPACE}% bootstrap intervals over {_over(findings)}; the difference "
        text += "pairs trials of the same data and seed, and is the sharper comparison. "
    else:
        text += "One trial each, so there are no intervals. "
    return text.strip()


def _training(findings: Findings) -> str:
    text = "On all training rows, before anything is filtered. Scores come from the weights of the "
    text += findings.epoch
    chosen = findings.selected_epoch != "last"
    return text + (": the queries choose it, never the test rows." if chosen else ".")


def _trends(findings: Findings) -> str:
    text = "Mean over seeds. " if len({c.seed for c in findings.cells}) > 1 else ""
    return text + "Filled marks: the estimator's best configuration; hollow: its further ones."


def _over(findings: Findings) -> str:
    return "datasets, then seeds" if len(datasets(findings)) > 1 else "seeds"


def _proxies(findings: Findings, rows: Tables) -> str:
    every = rows.get("proxy_points", [])
    shown = len(thinned(every))
    text = "One dot per configuration and trial"
    text += f" ({count(shown)} of {count(len(every))}). " if shown < len(every) else ". "
    if len(datasets(findings)) > 1:
        text += "Datasets differ in accuracy and in C, so part of any pooled correlation is theirs."
    return text.strip()
