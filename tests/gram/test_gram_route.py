"""The Gram route on a tiny text classifier: every estimator against dense float64 algebra, and the
same scores whatever the batches, the workers, and wherever it is killed."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import distinf
from distinf.config import resolve
from distinf.engine import running
from distinf.errors import InputError
from distinf.gram import (
    actions,
    baselines,
    data,
    factors,
    gradients,
    gram,
    ranking,
    scores,
    stored_gradients,
    tiles,
    train,
)
from distinf.gram.configurations import all_scores, configurations, headline
from distinf.gram.scores import right_queries
from distinf.gram.sensitivity import sensitivity
from distinf.gram.session import QUERY, TRAIN, Session
from distinf.gram.settings import (
    BLOCKWISE,
    EKFAC,
    HOWS,
    JOINT,
    OF_WORDS,
    ScoreSettings,
    StageSettings,
)
from distinf.numerics.aggregation import aggregate, alike
from distinf.numerics.capture import flat_gradients
from distinf.numerics.ekfac import sampled_labels
from distinf.numerics.metrics import ndr, ndr_auc, spearman
from distinf.numerics.parameters import Layout
from distinf.report.formats import SPACE
from distinf.report.gram import cells, findings, terminal
from distinf.report.gram.page import answer
from distinf.report.gram.tables import tables
from distinf.runtime import RuntimeSettings, open_runtime
from tests.support import words_task

ESTIMATORS = [*BLOCKWISE, JOINT, *OF_WORDS]
TASK = "tests.support.words_task:task"
PLAIN = "tests.support.words_task:plain"
UNTRAINED = {"epochs": 1, "lr": 1e-9}
CHAIN = (data, train, gradients, factors, gram, scores, baselines)


def session_of(out, **changes) -> Session:
    raw = {
        "task": TASK, "recipe": "gram", "out": str(out), "runtime": {"kind": "local"},
        "settings": {"double": True},
        "train": {"epochs": 3, "lr": 0.05, "batch_size": 10},
        "gradients": {"embeddings": True, "rows_per_unit": 17, "slab": 60,
                      "tokens_per_batch": 40, **changes.pop("gradients", {})},
        "gram": {"rows_per_tile": 25},
        "scores": {"estimators": ESTIMATORS, **changes.pop("scores", {})},
        **changes,
    }  # fmt: skip
    session = resolve(raw).session(str(out), torch.device("cpu"))
    session.blobs.put("config.yaml", b"{}")  # which a run writes
    return session


def scored(session: Session) -> Session:
    runtime = open_runtime(RuntimeSettings(kind="local"))
    for stage in CHAIN:
        stage.run(session, runtime)
    return session


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Session:
    return scored(session_of(tmp_path_factory.mktemp("gram") / "run"))


def terminal_lines(session: Session) -> str:
    found = findings.findings(session)
    return "\n".join(terminal.answer_lines(found, tables(found))).replace(SPACE, " ")


def dense(session: Session, name: str) -> tuple[dict, dict]:
    """{block: fp64 [rows, entries]} of the training rows and of the queries, sample by sample."""
    model, task = train.trained_model(session, name).double(), session.task(name)
    layout = Layout.of(model, "all", embeddings=True)
    loss = task.losses["cross-entropy"]
    found = []
    for split in (TRAIN, QUERY):
        rows = [
            flat_gradients(model, loss, task.batch(split, np.array([i])), layout, method="loop")
            for i in range(task.rows(split))
        ]
        grads = torch.cat(rows).double()
        found.append({block: grads[:, span] for block, span in layout.spans.items()})
    return found[0], found[1]


def expected_scores(estimator, train_NP, query_QP, entries, of_MP=None, factor=1.0):
    """fp64 [Q, M] straight from the definitions, with dense matrices in parameter space: of rows
    `of_MP`, without them of the training rows, whose curvature it is; at so many dampings."""
    of_MP = train_NP if of_MP is None else of_MP
    count = len(train_NP)
    sqnorm_N = train_NP.square().sum(1)
    if estimator == "tracin":
        return query_QP @ of_MP.T
    if estimator == "cosine":
        return query_QP @ of_MP.T / (query_QP.norm(dim=1)[:, None] * of_MP.norm(dim=1))
    if estimator == "datainf":
        damping = factor * float(sqnorm_N.sum()) / (10 * count * entries)
        identity = torch.eye(train_NP.shape[1], dtype=torch.float64)
        inverse = torch.zeros_like(identity)
        for g in train_NP:
            inverse += (identity - torch.outer(g, g) / (damping + g @ g)) / (damping * count)
        return query_QP @ inverse @ of_MP.T
    assert estimator == "fisher", "write it out here"
    damping = factor * float(sqnorm_N.mean()) / 10
    fisher = train_NP.T @ train_NP / count
    fisher += damping * torch.eye(len(fisher), dtype=torch.float64)
    return query_QP @ torch.linalg.solve(fisher, of_MP.T)


@pytest.mark.parametrize("estimator", [name for name in BLOCKWISE if name != EKFAC])
def test_every_estimator_is_the_dense_one_in_every_group_and_aggregation(run, estimator):
    for name, cell in run.outline.cells.items():
        train_of, query_of = dense(run, name)
        right_Q = torch.from_numpy(right_queries(run, cell))
        assert 0 < right_Q.sum() < len(right_Q)
        blocks = {
            block: expected_scores(
                estimator, train_of[block], query_of[block], train_of[block].shape[1]
            )
            for block in train_of
        }
        found = all_scores(run, cell)
        for group, members in cell.groups.items():
            chosen = {block: blocks[block] for block in members}
            right = {block: alike(values[right_Q]) for block, values in chosen.items()}
            for how in HOWS:
                wanted = aggregate(chosen if how == "mean" else right, how, 0.3).numpy()
                got = found[estimator, group, how]
                if how == "mean":
                    agree(got, wanted)
                else:  # a rank moves by one where two scores lie at the edge of a rounding
                    assert np.abs(got - wanted).max() <= 2 * len(members)
                    assert np.abs(got - wanted).mean() <= 0.2 * len(members)


def agree(got, wanted):
    np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-5 * abs(wanted).max())


@pytest.mark.parametrize("estimator", ["datainf", "fisher", JOINT, EKFAC])
def test_a_ranking_is_compared_with_those_at_a_tenth_and_at_ten_times_the_damping(run, estimator):
    """Query by query, over all trained blocks, with the dense ones."""
    every = []
    for name, cell in run.outline.cells.items():
        members = cell.groups["all"]
        train_of, query_of = dense(run, name)
        first_of = {block: query_of[block][:10] for block in members}
        if estimator == EKFAC:
            members = [block.name for block in cell.blocks.dense]
            ekfac, given = factors.curvature(run, cell), {m: first_of[m] for m in members}
            at = {f: ekfac.solve(given, None, f) for f in (1.0, 0.1, 10.0)}
            found = {f: sum(at[f][m] @ train_of[m].T for m in members) for f in at}
        elif estimator == JOINT:
            joined = [torch.cat([of[m] for m in members], 1) for of in (train_of, first_of)]
            found = {f: expected_scores("fisher", *joined, 0, factor=f) for f in (1.0, 0.1, 10.0)}
        else:
            found = {
                f: sum(
                    expected_scores(
                        estimator, train_of[m], first_of[m], train_of[m].shape[1], factor=f
                    )
                    for m in members
                )
                for f in (1.0, 0.1, 10.0)
            }
        wanted = {f: [spearman(*p) for p in zip(found[f], found[1.0], strict=True)] for f in found}
        rows = {r["factor"]: r for r in sensitivity(run, cell) if r["estimator"] == estimator}
        for said, factor in (("λ / 10", 0.1), ("10 λ", 10.0)):
            assert rows[said]["queries"] == 10
            assert rows[said]["spearman"] == pytest.approx(np.mean(wanted[factor]), abs=5e-4)
            assert rows[said]["least"] == pytest.approx(min(wanted[factor]), abs=2e-3)
        every += [row["spearman"] for row in rows.values()]
    assert min(every) < 0.9999


def test_fisher_of_blocks_wider_than_there_are_rows_goes_through_the_gram_matrix(tmp_path):
    settings = {"double": True, "rows": 30, "seeds": 1}
    session = scored(session_of(tmp_path / "run", settings=settings))
    (cell,) = session.outline.cells.values()
    train_of, query_of = dense(session, cell.name)
    seen = set()
    for block in cell.blocks.dense:
        seen.add(tiles.narrow(cell, block))
        grads = train_of[block.name], query_of[block.name]
        wanted = expected_scores("fisher", *grads, 0).mean(0).numpy()
        agree(scores.block_totals(session, cell)["fisher", block.name][0], wanted)
    assert seen == {True, False}


def test_the_joint_inverse_is_that_of_all_blocks_of_a_group_together(run):
    for name, cell in run.outline.cells.items():
        train_of, query_of = dense(run, name)
        for group, members in cell.groups.items():
            joined = [torch.cat([of[block] for block in members], 1) for of in (train_of, query_of)]
            wanted = expected_scores("fisher", *joined, 0).mean(0).numpy()
            got = all_scores(run, cell)["fisher-joint", group, "mean"]
            agree(got, wanted)


def test_ekfac_is_the_librarys_in_every_layer_but_the_embedding(run):
    """Which test_ekfac.py compares with dense algebra."""
    for name, cell in run.outline.cells.items():
        model, task = train.trained_model(run, name).double(), run.task(name)
        rows = np.arange(task.rows(TRAIN))

        def sampled(model, batch, rows=rows):
            logits = model(batch["input_ids"])
            labels = sampled_labels(logits, torch.from_numpy(rows), run.seed)
            return torch.nn.functional.cross_entropy(logits, labels, reduction="none")

        factors = distinf.ekfac(model, sampled, [task.batch(TRAIN, rows)])
        train_of, query_of = (
            {block: grads[block] for block in factors.eigenvalues | {"classifier.bias": 0}}
            for grads in dense(run, name)
        )
        wanted = distinf.influence(train_of, query_of, EKFAC, curvature=factors)
        found = scores.block_totals(run, cell)
        for block, scores_QN in wanted.items():
            agree(found[EKFAC, block][0], scores_QN.mean(0).numpy())
        groups = {group for estimator, group, _ in all_scores(run, cell) if estimator == EKFAC}
        assert groups == {"all", "00-00", "01-01", "head"}
        named = {name for name in configurations(run.outline, cell) if EKFAC in name}
        assert named == {f"{EKFAC}/{group}/{how}" for group in groups for how in HOWS}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gradients": {"method": "loop", "embeddings": False}}, "needs gradients.method: hooks"),
        ({"gradients": {"projection": 2, "project_above": 0}}, "set gradients.projection: 0"),
        ({"task": "tests.support.words_task:silent"}, "this task does not tell"),
    ],
)
def test_ekfac_is_refused_before_anything_runs_where_it_cannot_be_had(tmp_path, changes, said):
    session = session_of(tmp_path / "run", scores={"estimators": [EKFAC]}, **changes)
    with pytest.raises(
        InputError, match=f"(?i)scores.estimators: ek-?fac.*{said}.*leave ekfac out"
    ):
        factors.check(session)


def test_words_are_matched_by_token_and_the_ten_largest_of_the_training_row_are_kept(run):
    name, cell = next(iter(run.outline.cells.items()))
    train_of, query_of = dense(run, name)
    block = cell.blocks.embedding.name
    shape = (-1, 30, 6)
    train_NVD, query_QVD = train_of[block].view(shape), query_of[block].view(shape)
    kept = [g.clone() for g in (train_NVD, query_QVD)]
    for grads in kept:
        for row in grads:
            order = torch.argsort(row.norm(dim=1), descending=True)
            row[order[10:]] = 0.0
    for estimator, query in (("tracin-we-top10", query_QVD), ("tracin-we-both10", kept[1])):
        wanted = torch.einsum("qvd,nvd->qn", query, kept[0]).mean(0).numpy()
        got = all_scores(run, cell)[estimator, "embedding", "mean"]
        agree(got, wanted)


def values(session: Session) -> dict:
    return {
        (name, *key): scores_N
        for name, cell in session.outline.cells.items()
        for key, scores_N in all_scores(session, cell).items()
    }


def close(found: dict, wanted: dict, share: float = 2e-5) -> None:
    assert found.keys() == wanted.keys()
    for key, scores_N in wanted.items():
        if key[-1] == "mean":
            np.testing.assert_allclose(
                found[key], scores_N, rtol=1e-3, atol=share * abs(scores_N).max()
            )
        else:
            assert np.abs(found[key] - scores_N).mean() <= 0.5


@pytest.mark.parametrize(
    "tokens",
    [pytest.param(1, marks=pytest.mark.slow), 63, pytest.param(10_000, marks=pytest.mark.slow)],
)
def test_scores_do_not_depend_on_the_batches(run, tmp_path, tokens):
    other = scored(session_of(tmp_path / "run", gradients={"tokens_per_batch": tokens}))
    close(values(other), values(run))


@pytest.mark.slow
def test_nor_on_how_rows_are_cut_into_units_tiles_and_what_is_held_at_once(
    run, tmp_path, monkeypatch
):
    monkeypatch.setattr(tiles, "SCORES_AT_ONCE", 3 * len(next(iter(values(run).values()))))
    changes = {"gradients": {"rows_per_unit": 100, "slab": 10_000}, "gram": {"rows_per_tile": 7}}
    close(values(scored(session_of(tmp_path / "run", **changes))), values(run))


@pytest.mark.slow
def test_half_precision_store_changes_little(run, tmp_path):
    other = scored(session_of(tmp_path / "run", gradients={"store": "bfloat16"}))
    for key, scores_N in values(run).items():
        if key[-1] == "mean":
            assert np.corrcoef(values(other)[key], scores_N)[0, 1] > 0.999


def test_a_row_whose_gradient_is_not_finite_is_left_out_by_name_and_changes_no_other(tmp_path):
    session = scored(
        session_of(tmp_path / "run", settings={"double": True, "poison": 7, "seeds": 1})
    )
    (cell,) = session.outline.cells.values()
    found = all_scores(session, cell)
    units = stored_gradients.split_units(session.settings, cell, TRAIN)
    assert session.record(units[0])["summary"]["quarantined"] == [7]
    for scores_N in found.values():
        assert np.flatnonzero(np.isnan(scores_N)).tolist() == [7]
    train_of, query_of = dense(session, cell.name)
    block = next(iter(train_of))
    keep = torch.arange(len(train_of[block])) != 7
    name = next(b.name for b in cell.blocks.dense)
    wanted = expected_scores("fisher", train_of[name][keep], query_of[name], 0).mean(0).numpy()
    got = scores.block_totals(session, cell)["fisher", name][0][keep.numpy()]
    agree(got, wanted)


@pytest.mark.slow
def test_so_is_a_row_or_a_query_whose_loss_alone_is_not_finite(tmp_path):
    settings = {"double": True, "dark": 3, "seeds": 1}
    session = scored(session_of(tmp_path / "run", settings=settings, train=UNTRAINED))
    (cell,) = session.outline.cells.values()
    for scores_N in all_scores(session, cell).values():
        assert np.flatnonzero(np.isnan(scores_N)).tolist() == [3]
    assert not right_queries(session, cell)[3]
    found = findings.findings(session)
    assert found.quarantined == {"words-0 train": [1003], "words-0 evaluation": [3]}
    train_of, query_of = dense(session, cell.name)
    name = cell.blocks.dense[0].name
    mean_P = query_of[name][torch.arange(12) != 3].mean(0)
    wanted = (train_of[name][torch.arange(60) != 3] @ mean_P).numpy()
    agree(np.delete(scores.block_totals(session, cell)["tracin", name][0], 3), wanted)


def test_a_damping_below_rounding_names_its_block_and_setting(tmp_path):
    for name, block in (("fisher-joint", "all"), ("fisher", "layers.0")):
        damping = {"damping": {name: 1e-30}, "estimators": [name]}
        session = session_of(tmp_path / name, settings={"seeds": 1}, scores=damping)
        with pytest.raises(InputError, match=rf"scores.damping.{name}: '{block}.*larger one"):
            scored(session)


def test_the_own_loss_and_the_gradients_norm_stand_beside_each_score(run):
    for name, cell in run.outline.cells.items():
        task, model = run.task(name), train.trained_model(run, name)
        batch = task.batch(TRAIN, np.arange(60))
        losses_N = task.losses["cross-entropy"](model, batch).detach()
        train_of, _ = dense(run, name)
        kept = [train_of[block.name].square().sum(1) for block in cell.blocks.dense]
        norms_N = torch.stack(kept).sum(0).sqrt()
        for row in ranking.cell_ranking(run, cell):
            place = row["row"] - 1000
            assert list(row)[:5] == ["place", "score", "own_loss", "gradient_norm", "flipped"]
            assert row["own_loss"] == pytest.approx(float(losses_N[place]), rel=1e-4)
            assert row["gradient_norm"] == pytest.approx(float(norms_N[place]), rel=1e-4)
            assert row["suggested_label"] == ("many", "few")[row["label"]]  # of two: the other


def test_rankings_that_cost_nothing_are_rated_like_the_estimators(run):
    found, noise = findings.findings(run), actions.flipped_rows(run, "words-0")
    own = ranking.own_columns(run, run.cell("words-0"))
    for made in found.free[:2]:
        values = torch.from_numpy(-own[made["configuration"].replace(" ", "_")])
        assert made["ndr"] == ndr(values, torch.from_numpy(noise), 0.3)
        assert made["auc"] == ndr_auc(values, torch.from_numpy(noise))
    assert [(made["cell"], made["configuration"]) for made in found.free] == [
        (cell, name.replace("_", " "))
        for cell in ("words-0", "words-1")
        for name in ("own_loss", "gradient_norm", *baselines.OF_TEXTS, "self_influence", "combined")
    ]
    told = terminal_lines(run)
    beside = re.search(r"Beside it: (.*)\.", told)[1]
    for name in ("own loss", "gradient norm", "embedding neighbours", "bm25", "self influence"):
        assert re.search(rf"{name} \d+ %", beside)
    assert re.search(r"influence and losses combined \d+ %", beside)
    probabilities = stored_gradients.columns(run, "words-0", TRAIN, gradients.PREDICTED)
    np.testing.assert_allclose(probabilities.sum(1), 1.0, rtol=1e-6)
    wrong = [cell["suggested_wrong"] for cell in found.cells]
    assert f"about {sum(wrong)} of 120 labels are wrong" in told
    assert f"about {sum(wrong)} of 120 labels are wrong" in answer(found, tables(found))[1][-1]


@pytest.mark.parametrize(("ahead", "said"), [(True, True), (False, False)])
def test_it_is_said_where_influence_finds_no_more_than_what_costs_nothing(
    run, monkeypatch, ahead, said
):
    """The known noise is what the loss (or the headline) itself puts lowest."""
    cell = run.cell("words-0")
    first = all_scores(run, cell)[headline(run, cell)]
    lowest = ranking.own_columns(run, cell)["own_loss"] * -1.0 if ahead else first
    noise = np.zeros(60, dtype=bool)
    noise[np.argsort(lowest)[:12]] = True
    monkeypatch.setattr(cells, "flipped_rows", lambda *_: noise)
    assert ("influence is no better here" in terminal_lines(run)) is said


def test_cancellation_by_norms_is_that_of_whole_groups(run):
    found = {(c["cell"], c["group"]): c for c in findings.findings(run).cancellation}
    for name, cell in run.outline.cells.items():
        train_of, _ = dense(run, name)
        assert max(map(len, cell.groups.values())) > 1
        for group, members in cell.groups.items():
            grads_NP = torch.cat([train_of[block] for block in members], 1)
            by_norms = grads_NP.norm(dim=1).sum() / grads_NP.sum(0).norm()
            l1 = grads_NP.abs().sum() / grads_NP.sum(0).abs().sum()
            assert found[name, group]["norm"] == pytest.approx(float(by_norms), rel=1e-4)
            assert found[name, group]["l1"] == pytest.approx(float(l1), rel=1e-4)


@pytest.mark.parametrize(("most", "warned"), [(0.0, False), (1.0, True)])
def test_a_model_no_better_than_saying_one_class_is_warned_of(run, monkeypatch, most, warned):
    told = {"largest_class": {QUERY: most}, "empty": {TRAIN: 2, QUERY: 0}, "replaced": 3}
    monkeypatch.setattr(words_task.Cell, "summary", lambda self: told)
    lines = [line for line in findings.findings(run).warnings if "always saying" in line]
    assert len(lines) == (len(run.outline.cells) if warned else 0)
    assert "words-0: 2 texts of 'train' are empty." in findings.findings(run).warnings
    replaced = "words-0: 3 half characters of the file are U+FFFD here."
    assert replaced in findings.findings(run).warnings
    assert ("warning: words-0: the model gets" in terminal_lines(run)) is warned


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_rates_are_at_the_share_that_is_filtered(run, tmp_path, share):
    raw = {"configurations": ["random"], "fraction": share}
    session = session_of(Path(run.blobs.root), actions=raw)
    actions.run(session, open_runtime(RuntimeSettings(kind="local")))
    for found in findings.findings(session).scored:
        scores_N = all_scores(run, run.cell(found["cell"]))[
            tuple(found["configuration"].split("/"))
        ]
        flipped = run.task(found["cell"]).flipped()
        lowest = np.argsort(scores_N, kind="stable")[: int(share * len(scores_N))]
        assert found["ndr"] == pytest.approx(flipped[lowest].sum() / flipped.sum())
    _, first, second, *_ = terminal_lines(session).splitlines()
    assert first.startswith("warning: words-1: the model gets 8 of 12 queries right")
    assert f"chance: {100 * share:.0f} %" in second


def test_chance_within_the_given_label_is_that_of_flips_moved_within_it(run):
    """Against flips that are moved among the rows of their own label, many times."""
    share, rng = run.settings.actions.fraction, np.random.default_rng(0)
    for name in run.outline.cells:
        task = run.task(name)
        labels, flipped = task.given(), task.flipped()
        for found in [s for s in findings.findings(run).scored if s["cell"] == name][:2]:
            scores_N = all_scores(run, run.cell(name))[tuple(found["configuration"].split("/"))]
            lowest = np.argsort(scores_N, kind="stable")[: int(share * len(scores_N))]
            rates = []
            for _ in range(2_000):
                moved = flipped.copy()
                for label in np.unique(labels):
                    moved[labels == label] = rng.permutation(flipped[labels == label])
                rates.append(moved[lowest].sum() / flipped.sum())
            error = np.std(rates) / np.sqrt(len(rates))
            assert found["within_labels"] == pytest.approx(np.mean(rates), abs=4 * error)
    (cell,) = [c for c in findings.findings(run).cells if c["name"] == "words-1"]
    assert cell["learned_nothing"]
    assert cell["majority_queries"] == round(
        run.task("words-1").summary()["largest_class"][QUERY] * 12
    )
    _, (lead, *_), _ = answer(findings.findings(run), tables(findings.findings(run)))
    assert lead.startswith("words-1: the model gets 8 of 12 queries right")


def test_a_trained_embedding_is_among_all_that_is_trained(tmp_path, monkeypatch):
    cell = session_of(tmp_path / "run").cell("words-0")
    assert cell.blocks.embedding.name not in cell.groups["all"]
    frozen = words_task.Cell.model

    def model(self):
        found = frozen(self)
        found.embedding.weight.requires_grad_()
        return found

    monkeypatch.setattr(words_task.Cell, "model", model)
    cell = session_of(tmp_path / "run").cell("words-0")
    assert cell.groups["all"] == tuple(block.name for block in cell.blocks.every)


def test_the_seed_is_part_of_projected_gradients_alone(tmp_path):
    def basis(**changes):
        (cell,) = session_of(tmp_path / "run", **changes).outline.cells.values()
        return cell.keys["gradients"]

    projected = {"projection": 2, "project_above": 0}
    fixed = {"task": PLAIN}
    assert basis(seed=0, **fixed) == basis(seed=1, **fixed)
    first, second = (basis(seed=k, gradients=dict(projected), **fixed) for k in (0, 1))
    assert first != second


@pytest.mark.parametrize(
    ("estimators", "first"),
    [
        (("tracin", "cosine", "datainf", "fisher"), "fisher"),
        (("tracin", "cosine", "datainf"), "datainf"),
        (("cosine", "tracin"), "cosine"),
    ],
)
def test_rows_are_ranked_by_the_votes_of_the_first_there_is(monkeypatch, estimators, first):
    scores = ScoreSettings(estimators=estimators)
    session = SimpleNamespace(settings=StageSettings(scores=scores))
    found = {(name, "all", how): np.zeros(1) for name in estimators for how in HOWS}
    monkeypatch.setattr("distinf.gram.configurations.all_scores", lambda *_: found)
    assert headline(session, None) == (first, "all", "vote")


# -- actions -------------------------------------------------------------------------------


CONFIGURATIONS = ["random", "full", "tracin/all/mean", "datainf/all/vote", "grid"]


@pytest.fixture(scope="module")
def acted(tmp_path_factory) -> Session:
    session = scored(
        session_of(
            tmp_path_factory.mktemp("acted") / "run", actions={"configurations": CONFIGURATIONS}
        )
    )
    actions.run(session, open_runtime(RuntimeSettings(kind="local")))
    return session


def test_configurations_that_keep_the_same_rows_are_one_job(acted):
    every = actions.filterings(acted)
    jobs = actions.jobs(acted)
    assert len({f.job.id for f in every}) == len(jobs) < len(every)
    assert actions.is_done(acted)
    by_rows = {(f.cell, f.kept.tobytes()) for f in every}
    assert len(by_rows) == len(jobs)
    assert {f.configuration for f in every[:4]} == {"random", "full"}  # they say most, so first


def test_what_is_left_out_is_the_lowest_share(acted):
    for filtered in actions.filterings(acted):
        rows = acted.cell(filtered.cell).rows[TRAIN]
        assert len(filtered.kept) == rows - int(0.3 * rows)
        assert (np.diff(filtered.kept) > 0).all()
        if filtered.configuration in ("random", "full"):
            continue
        key = tuple(filtered.configuration.split("/"))
        scores_N = all_scores(acted, acted.cell(filtered.cell))[key]
        out = np.setdiff1d(np.arange(rows), filtered.kept)
        assert scores_N[out].max() <= scores_N[filtered.kept].min()


def test_one_line_of_the_accuracies_is_of_the_model_trained_on_all_rows(acted):
    found = findings.findings(acted)
    (table,) = terminal.filtered(found, tables(found))
    assert "Test accuracy" in table.title
    names, best, _, runs = (list(column.cells) for column in table.columns)
    stored = [train.stored_fit(acted, cell) for cell in acted.outline.cells]
    place = names.index("all rows")
    assert runs[place] == "2"
    assert best[place] == f"{100 * np.mean([s['test_accuracy'].max() for s in stored]):.1f}"
    wanted = {f.configuration for f in actions.filterings(acted)}
    assert {*names} == {*wanted, "all rows"}


def test_full_leaves_out_all_noise_first(acted):
    for filtered in actions.filterings(acted):
        if filtered.configuration == "full":
            assert not acted.task(filtered.cell).flipped()[filtered.kept].any()


def test_without_a_wrong_label_full_is_not_random_under_another_name(tmp_path):
    both = {"configurations": ["random", "full"]}
    clean = session_of(tmp_path / "run", actions=both, settings={"flips": 0})
    data.run(clean, open_runtime(RuntimeSettings(kind="local")))
    assert {f.configuration for f in actions.filterings(clean)} == {"random"}


def test_a_job_is_the_fit_of_the_rows_that_it_keeps(acted):
    filtered = actions.filterings(acted)[-1]
    stored = acted.arrays(filtered.job)
    fit = acted.task(filtered.cell).fit(filtered.kept, acted.settings.train, torch.device("cpu"))
    assert stored["query_loss"].tolist() == list(fit.history["query_loss"])
    assert int(stored["best"]) == fit.best


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"actions": {"configurations": ["lissa/all/vote"]}},
            "'lissa/all/vote' is not among the scores",
        ),
        ({"actions": {"configurations": ["vote"]}}, "neither random, full nor grid"),
        ({"scores": {"damping": {"tracin": 1.0}}}, "'tracin' has none"),
        ({"scores": {"top": 0.0}}, "top: 0.0 must be a share"),
        ({"scores": {"groups": {"middle": "layers.7"}}}, "matches no block"),
        ({"gradients": {"exclude": "."}}, "leaves no block"),
        ({"gradients": {"method": "vmap"}}, "need hooks"),
        ({"train": {"lr_of": {"words": -1}}}, "lr_of.words: -1"),
        ({"train": {"selected_epoch": "test_accuracy"}}, "train.selected_epoch: .*'last'"),
        ({"train": {"clip": -1}}, "clip: -1.0 must be 0 or more"),
        ({"report": {"ranking": "datinf/all/vote"}}, "did you mean 'datainf/all/vote'"),
        ({"report": {"ranking": "vote"}}, "use one each of .*/ all, .*/ mean, rank, vote"),
    ],
)
def test_bad_settings_are_one_line(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        running.check(session_of(tmp_path / "run", **changes))


def test_the_selected_epoch_is_part_of_the_key_of_all_that_follows_it(tmp_path):
    one, other = (
        session_of(tmp_path / rule, train={"epochs": 3, "selected_epoch": rule})
        for rule in ("least_query_loss", "last")
    )
    for name, cell in one.outline.cells.items():
        theirs = other.outline.cells[name].keys
        assert cell.keys["data"] == theirs["data"]
        for stage in ("train", "gradients", "gram", "scores", "actions"):
            assert cell.keys[stage] != theirs[stage]


def test_full_without_known_noise_and_layers_without_a_rule_are_refused_first(
    tmp_path, monkeypatch
):
    full = {"configurations": ["full"]}
    with pytest.raises(InputError, match="cell '' does not know any"):
        running.check(session_of(tmp_path / "run", task=PLAIN, actions=full))

    class Own(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x)

    known = words_task.Cell.model

    def model(self):
        found = known(self)
        found.classifier = Own(words_task.WIDTH, words_task.CLASSES)
        return found

    monkeypatch.setattr(words_task.Cell, "model", model)
    with pytest.raises(InputError, match=r"classifier.weight.*weight of a Own"):
        running.check(session_of(tmp_path / "run"))


def test_no_query_right_is_said(tmp_path, monkeypatch):
    def evaluate(self, model, batch):
        losses = words_task.cross_entropy(model, batch)
        return {"loss": losses, "correct": torch.zeros_like(losses)}

    monkeypatch.setattr(words_task.Cell, "evaluate", evaluate)
    session = session_of(tmp_path / "run", settings={"seeds": 1})
    with pytest.raises(InputError, match="gets no query of cell 'words-0' right"):
        scored(session)


def test_more_seeds_keep_the_work_of_the_others(run, tmp_path):
    more = session_of(Path(run.blobs.root), settings={"double": True, "seeds": 3})
    wanted = [unit for unit, _ in gradients.units(more.outline)]
    done = more.done(wanted)
    assert 0 < len(done) < len(wanted)
    assert {u.id for u, _ in gradients.units(run.outline)} <= set(done)


def test_records_hold_no_arrays(run):
    for stage in CHAIN:
        for record in run.done([unit for unit, _ in stage.units(run.outline)]).values():
            assert len(json.dumps(record["summary"])) < 5_000
