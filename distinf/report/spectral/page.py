"""The page of a spectral run, as data: what it answers, its figures and its tables."""

from functools import partial
from math import isfinite

from distinf.report import provenance
from distinf.report.formats import count, fixed, identifier, number
from distinf.report.schema import Bullets, Column, Facts, Item, Page, Section, Table, Text
from distinf.report.spectral import answer, arm_figures, axis_figures, experiments, machine_figures
from distinf.report.spectral.answer import further, words_of
from distinf.report.spectral.findings import Findings, Ritz
from distinf.report.spectral.tables import Tables, tables

TOP_SHOWN = 10
TOP = ("target", "rank", "id", "score", "own_loss", "gradient_norm", "self_influence", "cosine")


def page(findings: Findings, rows: Tables | None = None) -> Page:
    """`rows`: of `tables`, where they are known."""
    rows = rows or tables(findings)
    words = words_of(findings)
    tried = experiments.experiment_sections(findings, rows)
    beside = experiments.table_1_section(findings, rows)
    label = findings.training.label if findings.training else ""
    curve = partial(machine_figures.training, rows["training"], label)
    note: list[Item] = [Text(words.say("experiments", "note"), "note"), *tried]
    return Page(
        findings.title,
        findings.task,
        answer.answer(findings, rows),
        findings.question,
        answer.verdict(answer.paired(findings, rows)),
        [*answer.cards(findings, rows)],
        [*findings.warnings, *answer.caveats(findings, rows)],
        [(s.anchor, s.title, s.intro) for s in (beside, *tried) if s.intro],
        [
            Section("effect", "Effect", _effect(findings, rows)),
            beside,
            Section("experiments", "Experiments", note if tried else []),
            experiments.variations_section(findings, rows),
            Section("targets", "Targets", _targets(findings, rows)),
            Section("scores", "Scores", _scores(findings, rows)),
            Section("attribution", "Attribution", _attribution(findings, rows)),
            Section("curvature", "Curvature", _curvature(findings, rows)),
            Section("training", "Training", [words.figure("training", curve, label=label)]),
            Section("cost", "Cost", [provenance.costs(rows["costs"])]),
            provenance.remarks(findings.deviations, findings.quarantined),
            Section("reading", "How to read this", [_reading(findings, rows)]),
            provenance.origin(findings.provenance),
        ],
    )


def _effect(findings: Findings, rows: Tables) -> list[Item]:
    words, curves = words_of(findings), findings.axis_curves
    many = sum(curves.counts) if curves is not None else 0
    draws = curves.draws if curves is not None and curves.draws else many
    failed = count(sum(r["failed"] for r in rows["summary"]))
    gap, axis = partial(arm_figures.gap, findings, rows["summary"]), axis_figures.axis
    label = experiments.labels(rows.get("effects", []))
    of = Column("of", lambda r: axis_figures.curve_label(findings, r["role"]), kind="stub")
    return [
        words.figure("gap", gap, failed=failed),
        *answer.main_tables(findings, rows),
        words.figure("steps", partial(arm_figures.steps, findings)),
        words.figure("axis", partial(axis, findings), others=count(many), draws=count(draws)),
        words.table("effects", rows.get("effects", []), [*label, of]),
    ]


def _targets(findings: Findings, rows: Tables) -> list[Item]:
    points = findings.evaluation
    numbers = dict.fromkeys(("many", "draws", "eligible", "rule"), "")
    if points is not None:
        many = points.ids_E.size
        eligible = many if points.eligible_E is None else int(points.eligible_E.sum())
        numbers = {"many": count(many), "eligible": count(eligible)}
        numbers |= {"draws": count(points.draws or many), "rule": points.rule or "any gap"}
    draw = partial(axis_figures.targets, findings)
    figure = words_of(findings).figure("targets", draw, **numbers)
    return [figure, *answer.target_tables(findings, rows)]


def _scores(findings: Findings, rows: Tables) -> list[Item]:
    words, target = words_of(findings), findings.first_scored() or 0
    mine = [r for r in rows["scores"] if r["target"] == target]
    numbers = {"target": identifier(target), "many": count(mine[0]["count"] if mine else 0)}
    numbers["lost"] = count(sum(r["nonfinite"] for r in mine))
    return [
        words.figure("scores", partial(machine_figures.scores, findings), **numbers),
        words.table("scores", rows["scores"], folded=True),
        experiments.free_rankings(findings, rows.get("free_rankings", [])),
        *experiments.classes(findings, rows.get("classes", [])),
        experiments.overlaps(findings, rows.get("overlaps", [])),
        words.figure("score-runs", partial(machine_figures.score_runs, findings)),
        *_top(findings, rows),
    ]


def _top(findings: Findings, rows: Tables) -> list[Table]:
    """Per target its most helpful and most harmful samples; the first target's are open."""
    every = sorted(rows["top_samples"], key=lambda r: (r["rank"] < 0, abs(r["rank"])))
    columns = further(every, TOP)
    found: list[Table] = []
    for target in dict.fromkeys(r["target"] for r in rows["top_samples"]):
        mine = [r for r in every if r["target"] == target and abs(r["rank"]) <= TOP_SHOWN]
        told, name = words_of(findings), identifier(target)
        found.append(told.table("top_samples", mine, columns, folded=bool(found), target=name))
    return found


def _attribution(findings: Findings, rows: Tables) -> list[Item]:
    """Per target which elements of the pictured samples drive their scores."""
    words, every = words_of(findings), rows.get("attributions", [])
    places = dict.fromkeys(k for r in every for k in r if k.startswith("strongest_"))
    columns = [Column(k.replace("_", " "), k, count) for k in places]
    found: list[Item] = []
    for target in dict.fromkeys(r["target"] for r in every):
        mine = [r for r in every if r["target"] == target]
        drawn = [a for a in findings.attributions if a.target == target]
        which = " and ".join(f"{name}s" for name in dict.fromkeys(drawn[0].axes))
        least, most = (fixed(f(r["top_tenth_pct"] for r in mine), 0) for f in (min, max))
        numbers = {"target": identifier(target), "which": which, "least": least, "most": most}
        draw, name = partial(machine_figures.attribution, drawn), f"attribution-{target}"
        found.append(words.figure("attribution", draw, name, **numbers))
        found.append(words.table("attributions", mine, columns, target=identifier(target)))
    return found


def _scatter(pairs: Ritz) -> str:
    """Of the complement as training gradients see it."""
    each = sorted(pairs.quotients_R)
    if not each:
        return ""
    middle = ", ".join(number(each[round(share * (len(each) - 1))]) for share in (0, 0.5, 1))
    least = f"{count(len(each))} gradients: least, median and most {middle}"
    return f"{number(pairs.complement_error)}; {least}"


def _curvature(findings: Findings, rows: Tables) -> list[Item]:
    words, pairs, terms = words_of(findings), findings.ritz, rows.get("truncation", [])
    if pairs is None:
        return []
    every, out = len(pairs.values_K), [r for r in rows["ritz"] if not r["converged"]]
    negative = sum(r["kept"] and r["value"] < 0 for r in rows["ritz"])
    outside = [100 * v for s in findings.scores for v in s.outside_shares.values() if isfinite(v)]
    share = f"{min(outside):.1f} to {max(outside):.1f} %" if outside else ""
    facts = [
        ("operator", pairs.operator),
        ("pairs kept", f"{count(pairs.kept)} of {count(every)}"),
        ("pairs converged", f"{count(every - len(out))} of {count(every)}"),
        ("kept pairs below 0", count(negative)),
        ("damping λ", f"{pairs.damping:g}"),
        ("filter", words.of("filter").get(pairs.filter, "")),
        ("outside the pairs", words.of("outside").get(pairs.complement, "")),
        ("mean eigenvalue of the rest μ", number(pairs.complement_mean)),
        ("standard error of μ, and what single gradients see", _scatter(pairs)),
        ("classic scores' variance from there", share),
        ("trace (estimated)", number(pairs.trace)),
        ("where θ + λ ≤ 0", pairs.policy),
        ("pairs that this acted on", count(pairs.dropped) if pairs.policy else ""),
        ("orthogonality max |QᵀQ − I|", number(pairs.orthogonality)),
        ("asymmetry ‖T − Tᵀ‖ / ‖T‖", number(pairs.asymmetry)),
    ]
    ritz = {"operator": pairs.operator, "out": count(len(out))}
    ritz["kept"] = count(sum(r["kept"] for r in out))
    after = max((r["lowered_max_pct"] for r in terms if r["terms"] > every), default=0.0)
    bound = {"values": count(len(pairs.converged_values())), "terms": count(every)}
    bound |= {"steps": count(len(pairs.all_values)), "after": fixed(after)}
    return [
        words.figure("ritz", partial(machine_figures.ritz, rows["ritz"], findings), **ritz),
        words.figure("truncation", partial(machine_figures.truncation, terms, every), **bound),
        Facts(facts),
        *([Text(findings.refined)] if findings.refined else []),
        words.table("sensitivity", rows.get("sensitivity", [])),
        words.table("solves", rows["solves"]),
    ]


def _reading(findings: Findings, rows: Tables) -> Bullets:
    words = words_of(findings)
    tried = [r["selection"] for r in rows["summary"] if r["selection"] in findings.descriptions]
    told = [(f"{name[:1].upper()}{name[1:]}:", findings.descriptions[name]) for name in tried]
    fixed = [(lead, rest.format(**words.numbers)) for lead, rest in words.of("reading")]
    return Bullets(fixed + told)
