"""The page of a spectral run, as data: what it answers, its figures and its tables."""

from functools import partial
from math import isfinite

from distinf.numerics.bootstrap import RESAMPLES
from distinf.report import provenance
from distinf.report.formats import (
    count,
    duration,
    fixed,
    identifier,
    number,
    size,
)
from distinf.report.rows import Row
from distinf.report.schema import (
    Bullets,
    Column,
    Facts,
    Figure,
    Page,
    Section,
    Table,
    Text,
    difference,
    spread,
    stub,
    text,
)
from distinf.report.spectral import machine_figures, metric_figures
from distinf.report.spectral.experiments import (
    effects,
    experiment_sections,
    overlaps,
    table_1_section,
    variations_section,
)
from distinf.report.spectral.findings import CONTROL, Findings
from distinf.report.spectral.headline import (
    answer,
    any_column,
    cards,
    caveats,
    further,
    headline_tables,
    paired,
    sources,
    target_tables,
    verdict,
)
from distinf.report.spectral.tables import Tables, panels, tables

TOP_SHOWN = 10
OUTSIDE = {
    "none": "nothing: the inverse is truncated to the pairs",
    "damping": "damping λ alone",
    "mean": "mean eigenvalue μ + damping λ",
}


def page(findings: Findings, rows: Tables | None = None) -> Page:
    """`rows`: of `tables`, where they are known."""
    rows = rows or tables(findings)
    tried = experiment_sections(findings, rows)
    beside = table_1_section(findings, rows)
    note = "Intervals are of each arm by itself: among many arms, some differ by chance."
    return Page(
        findings.title,
        findings.task,
        answer(findings, rows),
        findings.question,
        verdict(paired(findings, rows)),
        cards(findings, rows),
        [*findings.warnings, *caveats(findings, rows)],
        [(s.anchor, s.title, s.intro) for s in (beside, *tried) if s.intro],
        [
            _effect(findings, rows),
            beside,
            Section(
                "experiments", "Experiments", [Text(note if tried[1:] else "", "note"), *tried]
            ),
            variations_section(findings, rows),
            Section("targets", "Targets", _targets(findings, rows)),
            _scores(findings, rows),
            Section("attribution", "Attribution", _attribution(findings, rows)),
            _curvature(findings, rows),
            _training(findings, rows),
            _cost(rows),
            provenance.remarks(findings.deviations, findings.quarantined),
            _reading(findings),
            provenance.origin(findings.provenance),
        ],
    )


def _effect(findings: Findings, rows: Tables) -> Section:
    metric = findings.metric
    gap = f"Share of the {metric.name} gap closed, by selection [%]"
    curves, grid = findings.axis_curves, len(panels(findings)) > 1
    many = sum(curves.counts) if curves is not None else 0
    below = "Below each panel: the change against before, in %; under 0 is better. " if grid else ""
    return Section("effect", "Effect", [
        Figure(
            "gap",
            gap if metric.reference else f"Reduction of the targets' {metric.name} [%]",
            "One dot per target and seed, targets in separate lanes; right of 0 is better. Diamond "
            "and bar: mean and 95 % bootstrap interval over targets, those of one condition "
            "together, then seeds. Arrows at an edge count the trials beyond it; trials without a "
            f"finite result, {count(sum(r['failed'] for r in rows['summary']))}, are not drawn. "
            "Differences pair trials of equal target and seed.",
            partial(metric_figures.gap, findings, rows),
            "trials",
        ),
        *headline_tables(rows, metric.name),
        Figure(
            "steps",
            f"{metric.name} of the targets over fine-tuning steps",
            "Lines: mean over targets and seeds; bands: one standard deviation. Dashed, where in "
            f"range: {metric.reference or 'the reference'} on the same targets.",
            partial(metric_figures.steps, findings, rows),
            "steps",
        ),
        Figure(
            "axis",
            f"{metric.name} against {metric.axis or 'the axis'}, before and after",
            f"The mean of every bin over {count(many)} {findings.headline.noun} that were no "
            f"targets, {count(curves.draws if curves and curves.draws else many)} of them under "
            f"distinct conditions. {below}Look for where the curves part: gains on the targets can "
            "cost samples elsewhere on the axis. A log scale has no bins of 0.",
            partial(metric_figures.axis, findings),
            "axis",
        ),
        effects(findings, rows),
        *_comparison(findings, rows),
    ])  # fmt: skip


def _comparison(findings: Findings, rows: Tables) -> list[Table]:
    """Every arm in Findings.outcomes, where there are more than the headline's."""
    ours, printed = rows["comparison"], rows["published"]
    if len(ours) <= len(findings.by_selection()) and (not printed or "table_1" in rows):
        return []
    names = ("loss", "variant", "selection")
    known = {tuple(p[n] for n in names): p for p in printed}
    both = [
        r | {f"published_{k}": v for k, v in known.get(tuple(r[n] for n in names), {}).items()}
        for r in ours
    ]
    columns = [stub(n, n) for n in ("aim", "update") if len({r[n] for r in ours}) > 1]
    columns += [stub("loss", lambda r: r["loss"] or CONTROL), stub("variant", "variant")]
    columns += [text("selection", "selection"), Column("trials", "trials", count)]
    columns += [spread("gap closed [%]"), difference(f"minus {CONTROL} [points]", "vs_random_")]
    columns += [spread("published [%]", "published_")]
    title = "Every loss and variant that was run: mean ± sd, below it the 95 % interval"
    return [
        Table(title, both, columns, "comparison", "" if "table_1" in rows else sources(findings))
    ]


def _targets(findings: Findings, rows: Tables) -> list[Figure | Table]:
    points, noun = findings.evaluation, findings.headline.noun
    many = 0 if points is None else int(points.ids_E.size)
    known = points is not None and points.eligible_E is not None
    eligible = int(points.eligible_E.sum()) if known else many  # type: ignore[union-attr]
    return [
        Figure(
            "targets",
            f"Where the model falls short, against {findings.metric.axis or 'the axis'}",
            f"{count(many)} evaluation {noun} before fine-tuning, "
            f"{count((points and points.draws) or many)} of them under distinct conditions; "
            f"{count(eligible)} eligible as targets ({(points and points.rule) or 'any gap'}). "
            "Ringed: the targets, named where there is room. Where points are very many, an evenly "
            "spaced part of them is drawn; gaps above the eligible range are cut off.",
            partial(metric_figures.targets, findings),
            "targets",
        ),
        *target_tables(findings, rows),
    ]


def _scores(findings: Findings, rows: Tables) -> Section:
    head, target = findings.headline, findings.first_scored()
    first = [r for r in rows["scores"] if r["target"] == target] or [{"count": 0, "nonfinite": 0}]
    lost, pool = sum(r["nonfinite"] for r in first), count(head.pool or 50)
    columns = [
        stub("loss", "loss"),
        stub("variant", "variant"),
        Column("target", "target", identifier),
        Column("samples", "count", count),
        Column("above 0", "helpful", count),
        *(Column(k, k) for k in ("min", "median", "max")),
        Column("variance from outside the pairs [%]", "outside_share", lambda v: f"{100 * v:.1f}"),
        Column("non-finite", lambda r: count(r["nonfinite"] or None).replace("n/a", "")),
        Column("denominators ≤ 0", "nonpositive_denominators", lambda v: count(v) if v else ""),
    ]
    return Section("scores", "Scores", [
        Figure(
            "scores",
            f"Influence scores of the training {head.noun}, one target",
            f"{count(first[0]['count'])} training {head.noun}, target {identifier(target or 0)}; "
            f"counts on a log scale, {count(lost)} non-finite scores left out. Above 0: training "
            "on the sample lowers the target's loss. The tails are what fine-tuning draws from.",
            partial(machine_figures.scores, findings),
            "scores",
        ),
        Table("Scores by loss, variant and target", rows["scores"], columns, "scores", folded=True),
        overlaps(findings, rows.get("overlaps", [])),
        Figure(
            "score-runs",
            f"Influence scores of the training {head.noun}, by run",
            "The headline's loss and variant, first target of each run; counts on a log scale. In "
            f"colour: the {pool} most helpful and the {pool} most harmful. Look for how few "
            "samples the tails hold.",
            partial(machine_figures.score_runs, findings),
        ),
        *_top(rows["top_samples"]),
    ])  # fmt: skip


def _top(rows: list[Row]) -> list[Table]:
    """Per target its most helpful and most harmful samples; the first target's are open."""
    columns = [
        Column("rank", "rank", identifier),
        Column("sample", "id", identifier, kind="text"),
        Column("score", "score"),
        *(any_column(k, rows) for k in further(rows, ("target", "rank", "id", "score"))),
    ]
    found: list[Table] = []
    for target in dict.fromkeys(r["target"] for r in rows):
        mine = [r for r in rows if r["target"] == target and abs(r["rank"]) <= TOP_SHOWN]
        mine.sort(key=lambda r: (r["rank"] < 0, abs(r["rank"])))
        title = f"Target {identifier(target)}: the most helpful (1, 2, …) and harmful (−1, −2, …)"
        found.append(Table(f"{title} samples", mine, columns, "top_samples", folded=bool(found)))
    return found


def _attribution(findings: Findings, rows: Tables) -> list[Figure | Table]:
    """Per target which elements of the pictured samples drive their scores."""
    found: list[Figure | Table] = []
    every = rows.get("attributions", [])
    places = [k for k in further(every, ()) if k.startswith("strongest_")]
    columns = [
        Column("rank", "rank", identifier),
        Column("sample", "id", identifier, kind="text"),
        Column("score", "score"),
        Column("sum of parts", "sum"),
        Column("elements", "elements", count),
        Column("above 0 [%]", "above_0_pct", fixed),
        Column("held by the largest tenth [%]", "top_tenth_pct", fixed),
        *(Column(k.replace("_", " "), k, count) for k in places),
    ]
    for target in dict.fromkeys(r["target"] for r in every):
        mine = [r for r in every if r["target"] == target]
        drawn = [a for a in findings.attributions if a.target == target]
        shares, who = [r["top_tenth_pct"] for r in mine], f"target {identifier(target)}"
        which = " and ".join(f"{name}s" for name in dict.fromkeys(drawn[0].axes))
        found += [
            Figure(
                f"attribution-{target}",
                f"Which {which} of training {findings.headline.noun} drive {who}",
                "Each element's part of the sample's score; green parts help the target, orange "
                "ones harm it, grey have no loss (pilots). Every map has its own scale, in its "
                "title, and so have the sums over the other axis, at the top and at the right. The "
                f"largest tenth of the elements holds {fixed(min(shares), 0)} to "
                f"{fixed(max(shares), 0)} % of all absolute parts.",
                partial(machine_figures.attribution, drawn),
                "attribution_sums",
            ),
            Table(
                f"{who.capitalize()}: how the pictured samples' scores are spread over elements",
                mine,
                columns,
                "attributions",
            ),
        ]
    return found


def _curvature(findings: Findings, rows: Tables) -> Section:
    pairs, terms = findings.ritz, rows.get("truncation", [])
    facts: list[tuple[str, str]] = []
    out = kept = values = 0
    if pairs is not None:
        places, every = pairs.converged(), len(pairs.values_K)
        out, kept = every - len(places), sum(map(pairs.is_kept, {*range(every)} - {*places}))
        values = len(pairs.converged_values())
        shares = [
            100 * v for s in findings.scores for v in s.outside_shares.values() if isfinite(v)
        ]
        facts = [
            ("operator", pairs.operator),
            ("pairs kept", f"{count(pairs.kept)} of {count(every)}"),
            ("pairs converged", f"{count(len(places))} of {count(every)}"),
            ("kept pairs below 0", count(sum(r["kept"] and r["value"] < 0 for r in rows["ritz"]))),
            ("damping λ", f"{pairs.damping:g}"),
            ("outside the pairs", OUTSIDE.get(pairs.complement, "")),
            ("mean eigenvalue of the rest μ", number(pairs.complement_mean)),
            (
                "classic scores' variance from there",
                f"{min(shares):.1f} to {max(shares):.1f} %" if shares else "",
            ),
            ("trace (estimated)", number(pairs.trace)),
            ("where θ + λ ≤ 0", pairs.policy),
            ("pairs that this acted on", count(pairs.dropped) if pairs.policy else ""),
            ("orthogonality max |QᵀQ − I|", number(pairs.orthogonality)),
            ("asymmetry ‖T − Tᵀ‖ / ‖T‖", number(pairs.asymmetry)),
        ]
    terms_kept = len(pairs.values_K) if pairs is not None else 0
    after = [r["lowered_max_pct"] for r in terms if r["terms"] > terms_kept]
    solves = [
        Column("target", "target", identifier, kind="stub"),
        text("loss", "loss"),
        text("outcome", "status"),
        Column("steps", "steps", count),
        Column("relative residual", "residual"),
    ]
    return Section("curvature", "Curvature", [
        Figure(
            "ritz",
            f"Spectrum of the {pairs.operator if pairs else 'curvature'}",
            f"The Ritz pairs that have converged; {count(out)} have not, their residual above a "
            f"tenth of the value's size, and {count(kept)} of those are kept all the same. A flat "
            "tail means that keeping more changes little.",
            partial(machine_figures.ritz, findings),
            "ritz",
        ),
        Figure(
            "truncation",
            "By how much each Ritz value lowers the truncation bound",
            "The bound on what truncating to k terms loses, for ‖θ‖ = 1: a reconstruction of "
            f"Schioppa et al. 2022, Lemma 1, from the {count(values)} Ritz values of "
            f"{count(len(pairs.all_values) if pairs else 0)} Krylov steps that have converged. "
            "They alone enter: where they end, the Frobenius norm has nothing left. Beyond the "
            f"{count(terms_kept)} kept, no term lowers the largest value by more than "
            f"{fixed(max(after, default=0.0))} %.",
            partial(machine_figures.truncation, terms, terms_kept),
            "truncation",
        ),
        Facts(facts),
        Table("Refined queries: how each solve ended", rows["solves"], solves, "solves"),
    ])  # fmt: skip


def _training(findings: Findings, rows: Tables) -> Section:
    label = findings.training.label if findings.training else ""
    draw, said = partial(machine_figures.training, rows["training"], label), "Pale: each step."
    title = f"{label[:1].upper()}{label[1:]} by step"
    figure = Figure("training", title, f"{said} Solid: running mean.", draw, "training")
    return Section("training", "Training", [figure])


def _cost(rows: Tables) -> Section:
    total = rows["costs"][-1] if rows["costs"] else {"seconds": 0, "worker_seconds": 0, "bytes": 0}
    said = (
        f"{duration(total['seconds'])} in all, {duration(total['worker_seconds'])} of worker time"
    )
    caption = f"{said}, {size(total['bytes'])} stored."
    draw = partial(machine_figures.costs, rows["costs"])
    figure = Figure("costs", "Wall time by stage [s]", caption, draw, "costs")
    return Section("cost", "Cost", [figure, provenance.costs(rows["costs"])])


def _reading(findings: Findings) -> Section:
    metric = findings.metric
    gap = f"There is no reference: the gap is {metric.name} itself, and the reduction is the part"
    if metric.reference:
        gap = f"A target's gap is ({metric.name} − reference) / reference, with the "
        gap += f"{metric.reference} as reference. Gap closed is the part"
    return Section("reading", "How to read this", [Bullets([
        ("Gap.", f"{gap} of it that fine-tuning removed, in %; below 0 it grew."),
        (
            "Scores.",
            "Above 0: training on the sample lowers the target's loss (helpful). Below 0: it "
            "raises it (harmful).",
        ),
        (
            "Intervals.",
            f"95 % percentile bootstrap, {count(RESAMPLES)} draws: targets are drawn with "
            "replacement, those under the same conditions together, then the trials of each. ± is "
            "one sample standard deviation over trials.",
        ),
        (
            "Paired trials.",
            "Same target and same seed, another selection. If the interval of the difference "
            "includes zero, the run does not show a difference.",
        ),
    ])])  # fmt: skip
