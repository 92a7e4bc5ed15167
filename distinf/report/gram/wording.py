"""The answer in words: what was found, and how sure this run can be of it."""

from dataclasses import dataclass

from distinf.report.formats import SPACE, count, fixed, missing, percent, rounded, signed
from distinf.report.gram.findings import FULL, RANDOM, Findings
from distinf.report.gram.method_tables import UNFILTERED
from distinf.report.gram.summaries import Row, chance, random_area, spoken
from distinf.report.gram.tables import Tables

# Below six pairs even all wins stay above 5 % in a two-sided sign test (2 · 2⁻⁵ = 6 %).
FEWEST_PAIRS = 6


@dataclass(frozen=True)
class Card:
    label: str
    value: str
    unit: str
    detail: str
    role: str = "ink"


@dataclass(frozen=True)
class Answer:
    """`verdict`: better, none (no difference from chance shown), worse, or unknown."""

    verdict: str
    lead: str
    sentences: tuple[str, ...] = ()
    cards: tuple[Card, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return " ".join((self.lead, *self.sentences))


def answer(findings: Findings, rows: Tables) -> Answer:
    """The answer from the tables alone, so that it cannot disagree with them."""
    found = {r["configuration"]: r for r in rows.get("detection", [])}
    trained = {r["configuration"]: r for r in rows.get("accuracy", [])}
    headline = findings.headline.name
    noise, after = found.get(headline), trained.get(headline)
    sentences = [*_best(findings, found), *_free(rows, noise)]
    sentences += _accuracy(findings, trained, noise is not None)
    if noise is not None:
        verdict = _verdict(findings, noise)
        lead = _detected(findings, noise, verdict)
    elif after is not None:
        verdict = _gain_verdict(after)
        lead, sentences = sentences[0], sentences[1:]
    else:
        verdict, lead = "unknown", _listed(rows)
        sentences = [_counted(findings)] if rows.get("scored") else []
    sentences += _suggested(findings)
    unlearned = _learned_nothing(findings)
    if unlearned:
        lead, sentences = unlearned, [lead, *sentences]
        verdict = "unknown" if all(c.learned_nothing for c in findings.cells) else verdict
    cards = (*_noise_cards(findings, noise), *_accuracy_cards(findings, trained))
    return Answer(verdict, lead, tuple(sentences), cards, _notes(findings, rows))


def share(findings: Findings) -> str:
    return f"{100 * findings.headline.share:g}{SPACE}%"


def _verdict(findings: Findings, noise: Row) -> str:
    by_chance = chance(findings)
    if by_chance is None:
        return "unknown"
    same_labels = _same_labels(noise)
    apart = 0.0 if same_labels is None else same_labels - noise["chance_pct"]
    if noise["ndr_mean_pct"] > by_chance[1] + max(apart, 0.0):
        return "better"
    return "worse" if noise["ndr_mean_pct"] < by_chance[0] + min(apart, 0.0) else "none"


def _same_labels(noise: Row) -> float | None:
    """The NDR in percent of rows at random with the labels of those removed, where it is known and
    a point or more away from that of any rows."""
    found: float = noise["chance_within_labels_pct"]
    return None if missing(found) or abs(found - noise["chance_pct"]) < 1 else found


def _learned_nothing(findings: Findings) -> str:
    """What stands before any rate where a model has learned nothing; else ""."""
    mine = [c for c in findings.cells if c.learned_nothing]
    ending = "what its gradients say of the rows means little."
    if not mine:
        return ""
    if len(findings.cells) == 1:
        return (
            "The model is no better than always saying the same class: it predicts "
            f"{count(mine[0].correct_queries or 0)} of {count(mine[0].queries)} queries right, and "
            f"that class alone {count(mine[0].majority_queries or 0)}; {ending}"
        )
    more = f" and {count(len(mine) - 3)} more" if len(mine) > 3 else ""
    names = ", ".join(c.name for c in mine[:3])
    return (
        f"In {count(len(mine))} of {count(len(findings.cells))} cells ({names}{more}) the model is "
        f"no better than always saying the same class; there {ending}"
    )


def _gain_verdict(after: Row) -> str:
    if after.get("vs_random_pairs", 0) < FEWEST_PAIRS:
        return "unknown"
    if after["vs_random_low_points"] > 0:
        return "better"
    return "worse" if after["vs_random_high_points"] < 0 else "none"


def _detected(findings: Findings, noise: Row, verdict: str) -> str:
    flips = sum(c.flips or 0 for c in findings.cells)
    text = f"The lowest {share(findings)} of the scores hold {percent(noise['ndr_mean_pct'])} of "
    text += f"the {count(flips)} rows whose label is known to be wrong"
    ending = {
        "better": f"; chance would put {share(findings)} of them there",
        "none": ": no more than chance would put there",
        "worse": f", fewer than the {share(findings)} that chance would put there",
        "unknown": "",
    }
    same_labels = _same_labels(noise)
    told = ""
    if same_labels is not None:
        told = f" (rows of the same labels, drawn at random: {percent(same_labels)})"
    return f"{text}{ending[verdict]}{told}."


def _listed(rows: Tables) -> str:
    if not rows.get("scored"):
        return "This run has no scores, so it does not say which rows are detrimental."
    if not rows.get("ranking"):
        return "The training rows are scored; which of their labels are wrong is not known here."
    lowest = count(max(r["rank"] for r in rows["ranking"]))
    return (
        f"The {lowest} rows that training on helps the queries least are listed below; whether "
        "their labels are wrong is for you to judge."
    )


def _counted(findings: Findings) -> str:
    """What was ranked by what, where nothing else says so."""
    scored = sum(c.rows for c in findings.cells)
    queries = sum(c.queries for c in findings.cells)
    text = f"Of {count(scored)} rows, ranked by {spoken(findings.headline.name)} for "
    text += f"{count(queries)} queries"
    right = [c.correct_queries for c in findings.cells if c.correct_queries is not None]
    return text + (f", {count(sum(right))} of them predicted right." if right else ".")


def _best(findings: Findings, found: dict[str, Row]) -> list[str]:
    headline = findings.headline.name
    if headline not in found:
        return []
    ours, told = found[headline], f"This is {spoken(headline)}"
    if not missing(ours["ndr_low_pct"]):
        span = f"{rounded(ours['ndr_low_pct'])} to {rounded(ours['ndr_high_pct'])}"
        told += f" (95{SPACE}% interval {span} over {count(ours['cells'])} cells)"
    best = next(iter(found.values()))
    if len(found) == 1:
        return [f"{told}."]
    if best["configuration"] == headline:
        return [f"{told}, which found the most of all {count(len(found))} configurations scored."]
    text = f"{told}; of all {count(len(found))} configurations scored, "
    text += f"{spoken(best['configuration'])} found the most, {percent(best['ndr_mean_pct'])}, "
    return [text + "though the best of many is partly luck."]


def _free(rows: Tables, noise: Row | None) -> list[str]:
    """What ranking without any influence finds, and whether that is as good."""
    free = rows.get("free_rankings", [])
    if noise is None or not free:
        return []
    told = [f"{percent(row['ndr_mean_pct'])} by the {row['ranking']}" for row in free]
    text = f"Rankings that cost nothing beside it find {_joined(told)}"
    equal = free[0]["ndr_mean_pct"] >= noise["ndr_mean_pct"]
    return [f"{text}: influence is no better here." if equal else f"{text}."]


def _suggested(findings: Findings) -> list[str]:
    told = [c for c in findings.cells if c.suggested_wrong is not None]
    if not told:
        return []
    wrong = count(sum(c.suggested_wrong or 0 for c in told))
    return [
        f"By the model's own predictions about {wrong} of {count(sum(c.rows for c in told))} "
        "labels are wrong (an estimate by confident learning: classes that it confuses raise it, "
        "rows that it has learned by heart lower it)."
    ]


def _accuracy(findings: Findings, trained: dict[str, Row], told_rows: bool) -> list[str]:
    ours = trained.get(findings.headline.name)
    if ours is None:
        return []
    without = "those rows" if told_rows else f"the lowest {share(findings)} of rows by "
    without += "" if told_rows else spoken(findings.headline.name)
    text = f"Trained again without {without}, the model reaches {_percent(ours['mean_pct'])} test "
    text += "accuracy"
    beside = [
        (trained.get(RANDOM), f"after {share(findings)} removed at random"),
        (trained.get(FULL), "after all known noise is removed first"),
        (trained.get(UNFILTERED), "on all rows"),
    ]
    told = [f"{_percent(row['mean_pct'])} {words}" for row, words in beside if row is not None]
    sentences = [f"{text}{', against ' + _joined(told) if told else ''}."]
    if ours.get("vs_random_pairs"):
        sentences.append(_against_random(ours))
    return sentences


def _against_random(ours: Row) -> str:
    pairs, wins = ours["vs_random_pairs"], ours["vs_random_wins"]
    points = signed(ours["vs_random_points"])
    if pairs == 1:
        return f"That is {points} points against random in one trial, too few to rule out chance."
    text = f"Against random, with the same data and seed, that is {points} points on average"
    low, high = (signed(ours[f"vs_random_{k}_points"]) for k in ("low", "high"))
    text += f" (95{SPACE}% interval {low} to {high}), and higher in {count(wins)} of "
    text += f"{count(pairs)} trials"
    if pairs < FEWEST_PAIRS:
        return f"{text}; fewer than {FEWEST_PAIRS} trials cannot rule out chance."
    includes = ours["vs_random_low_points"] <= 0 <= ours["vs_random_high_points"]
    return text + ("; the interval includes zero." if includes else ".")


def _percent(value: float) -> str:
    return f"{fixed(value)}{SPACE}%"


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _noise_cards(findings: Findings, noise: Row | None) -> list[Card]:
    if noise is None:
        return []
    by_chance = chance(findings)
    detail = f"random: {share(findings)}"
    if by_chance is not None:
        detail += f", in 95{SPACE}% of cases {rounded(by_chance[0])} to {rounded(by_chance[1])}"
    same_labels = _same_labels(noise)
    detail += "" if same_labels is None else f"; of the same labels: {percent(same_labels)}"
    label = f"wrong labels in the lowest {share(findings)}"
    cards = [Card(label, rounded(noise["ndr_mean_pct"]), "%", detail, "helpful")]
    if not missing(noise["auc_mean"]):
        area = f"random: {fixed(random_area(findings), 3)}, perfect: 1"
        cards.append(Card("noise curve, area", fixed(noise["auc_mean"], 3), "", area, "accent"))
    return cards


def _accuracy_cards(findings: Findings, trained: dict[str, Row]) -> list[Card]:
    ours, random = trained.get(findings.headline.name), trained.get(RANDOM)
    if ours is None:
        return []
    span = ""
    if not missing(ours["low_pct"]):
        span = f"{fixed(ours['low_pct'])} to {fixed(ours['high_pct'])} (95{SPACE}% interval)"
    cards = [Card("test accuracy, filtered", fixed(ours["mean_pct"]), "%", span, "helpful")]
    if random is not None:
        apart = f"filtered − random: {signed(ours['vs_random_points'])} points"
        cards.append(Card("at random", fixed(random["mean_pct"]), "%", apart, "random"))
    for name, label in ((FULL, "known noise removed"), (UNFILTERED, "on all rows")):
        if name in trained:
            row = trained[name]
            trials = f"{count(row['trials'])} trial{'' if row['trials'] == 1 else 's'}"
            cards.append(Card(label, fixed(row["mean_pct"]), "%", trials))
    return cards


def _notes(findings: Findings, rows: Tables) -> tuple[str, ...]:
    notes = []
    if rows.get("accuracy") and len(findings.cells) == 1:
        notes.append(
            "One dataset and seed: win rates, fronts and tests need several, so there are none."
        )
    silent = [c.name for c in findings.cells if c.correct_queries == 0]
    if silent:
        notes.append(
            f"No query was predicted correctly in {', '.join(silent)}: rank and vote, which count "
            "only those, have nothing there."
        )
    truncated = sum(c.truncated for c in findings.cells)
    if truncated:
        notes.append(f"{count(truncated)} rows were longer than the model reads, and were cut.")
    return tuple(notes)
