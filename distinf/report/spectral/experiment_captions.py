"""Titles and captions of the pictures of experiments and of runs beside this one."""

from distinf.report.formats import count, fixed, identifier, number
from distinf.report.spectral.captions import Tables, distinct
from distinf.report.spectral.dots import DIVERGED, MOST_ROWS
from distinf.report.spectral.experiment_words import base_note
from distinf.report.spectral.families import NAMES, kind, table_1, varied
from distinf.report.spectral.findings import Family, Findings
from distinf.report.spectral.run_tables import panels

BARS = "Dots and bars: means with their 95 % bootstrap intervals"
CLIPPED = "arms that more than doubled the gap are arrows at the edge, with their mean"


def table_1_title(findings: Findings) -> str:
    return f"Share of the {findings.metric.name} gap closed, by loss, variant and training set"


def table_1_caption(findings: Findings) -> str:
    text = f"{BARS}; dashed: random's mean."
    if findings.published:
        text += " Hollow: the published mean ± sd, of other data and another model."
    family = table_1(findings)
    if family is not None and len({o.target for o in family.outcomes}) == 1:
        text += " One target: the intervals cover its seeds alone."
    return text


def axis_caption(findings: Findings) -> str:
    text = "Above: the mean of every bin. Below: its change against before, in %; under 0 is "
    text += "better. The samples are the non-targets, which every trial measured."
    if findings.axis_curves is not None:
        text += distinct(
            findings.axis_curves.draws, int(sum(findings.axis_curves.counts)), findings
        )
    drawn = [y for *_, curves in panels(findings) for c in curves.curves.values() for y in c]
    if findings.metric.log and any(not y > 0 for y in drawn):
        text += f" Bins with {findings.metric.name} 0 cannot be drawn on a log scale."
    return text


def experiment_title(findings: Findings, family: Family) -> str:
    metric, names = findings.metric.name, [n for n in varied(family) if n != "selection"]
    shape = kind(family)
    if shape == "updates":
        return f"{metric} of the targets over fine-tuning steps, by update"
    if shape == "rates":
        return f"{metric} of the targets over fine-tuning steps, by learning rate"
    by = " and ".join(NAMES.get(n, n) for n in names) or "selection"
    return f"Gap closed, by {by.replace('_', ' ')}"


def experiment_caption(findings: Findings, family: Family, rows: Tables) -> str:
    shape = kind(family)
    if shape == "updates":
        text = "Lines: mean over targets and seeds; bands: one standard deviation. Each panel has "
        text += "its own scale. "
        if any(o.update == "ascent" for o in family.outcomes):
            text += "Ascent is shown with the harmful selection alone. "
        return text + "Dashed, where in range: the reference on the same targets."
    if shape == "rates":
        return (
            f"Each cell is the mean {findings.metric.name} over targets and seeds, coloured by how "
            "far it is from where it was before the first step: green is better, orange is worse. "
            "Ringed: the best step of each rate. Hatched, if any: beyond the scale."
        )
    mine = [r for r in rows.get("arms", []) if r["experiment"] == family.name]
    diverged = any(r["mean_pct"] < DIVERGED for r in mine)
    text = f"{BARS}; {CLIPPED}." if diverged else f"{BARS}."
    if any("vs_base_points" in r for r in mine):
        text += f" Differences pair equal targets and seeds; {base_note(findings, family)}"
        text += " (hollow)." if any(r["base"] for r in mine) else "."
    if len(mine) > MOST_ROWS:
        text += f" The first {MOST_ROWS} of {count(len(mine))} arms."
    return text


def score_runs_caption(findings: Findings) -> str:
    pool = findings.headline.pool or 50
    return (
        f"The headline's loss and variant, first target of each run; counts on a log scale. In "
        f"colour: the {count(pool)} most helpful and the {count(pool)} most harmful. Look for how "
        "few samples the tails hold."
    )


def attribution_title(findings: Findings, target: int) -> str:
    axes = next(a.axes for a in findings.attributions if a.target == target)
    noun = findings.headline.noun
    return f"Which {axes[0]}s and {axes[-1]}s of training {noun} drive target {identifier(target)}"


def attribution_caption(target: int, rows: Tables) -> str:
    mine = [r for r in rows.get("attributions", []) if r["target"] == target]
    text = "Each element's part of the sample's score; green parts help the target, orange ones "
    text += "harm it. Every map has its own scale, in its title, and so have the sums over the "
    text += "other axis, at the top and at the right."
    if any(r["left_out"] for r in mine):
        text += " Grey: elements without a loss (pilots)."
    shares = [r["top_tenth_pct"] for r in mine]
    if shares:
        low, high = fixed(min(shares), 0), fixed(max(shares), 0)
        held = low if low == high else f"{low} to {high}"
        text += f" The largest tenth of the elements holds {held} % of all absolute parts."
    return text


def truncation_caption(findings: Findings, rows: Tables) -> str:
    terms, pairs = rows["truncation"], findings.ritz
    kept = len(pairs.values_K) if pairs is not None else 0
    text = "The bound on what truncating to k terms loses, for ‖θ‖ = 1: a reconstruction of "
    values = pairs.converged_values() if pairs is not None else []
    steps = len(pairs.all_values) if pairs is not None else 0
    text += f"Schioppa et al. 2022, Lemma 1, from the {count(len(values))} Ritz values of "
    text += f"{count(steps)} Krylov steps that have converged."
    text += " They alone enter: where they end, the Frobenius norm has nothing left."
    after = [r["lowered_max_pct"] for r in terms if r["terms"] > kept]
    if after:
        at = next((r["bound_max"] for r in terms if r["terms"] == kept), None)
        text += f" Beyond the {count(kept)} kept, no term lowers the largest value by more than "
        text += f"{fixed(max(after))} %"
        text += f"; at {count(kept)} it is {number(at)}." if at is not None else "."
    return text


def variations_caption(findings: Findings) -> str:
    runs = [findings, *findings.beside.values()]
    if len({tuple(t.id for t in run.targets) for run in runs}) == 1:
        return f"{BARS}. Every run improves the same targets, each in its own model."
    return f"{BARS}. The runs' targets are not all the same: compare differences, not levels."
