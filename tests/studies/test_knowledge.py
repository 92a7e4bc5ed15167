"""The language study: domains, tokens, prompts, and a whole run of a tiny model."""

import json
import re
from functools import partial
from itertools import chain, combinations, pairwise

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("transformers", reason="needs distinf[llm]")

from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from distinf.cli import main
from distinf.config import resolve
from distinf.empirical.estimates import estimated
from distinf.empirical.matrix import measured
from distinf.engine.run import execute
from distinf.errors import InputError
from distinf.numerics.curvature import twice_differentiable
from distinf.numerics.parameters import Layout
from distinf.numerics.text_baselines import bm25
from distinf.numerics.tuning import Tuning, first_order, losses_of, of_pieces, parameters_of
from distinf.studies.knowledge import task as knowledge
from distinf.studies.knowledge.domains import domains, word
from distinf.studies.knowledge.packing import A_PASS, of_like_lengths, packed, token_loss
from distinf.studies.knowledge.task import Knowledge, task
from distinf.tasks.rehearsal import rehearse
from tests.support.causal import write_causal
from tests.support.runs import silent
from tests.support.tuned import all_together

PICTURES = True


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_causal(tmp_path_factory.mktemp("model") / "tiny")


def statements(folder, **more):
    return task(Knowledge(model=str(folder), draws=2, **more), 0)


def test_the_domains_are_those_of_the_appendix():
    found = {domain.name: domain for domain in domains("", ())}
    assert {name: len(domain.items) for name, domain in found.items()} == {
        "belongs_to": 10, "chain_induces": 5, "transitivity": 12, "squares": 6
    }  # fmt: skip
    first, second = (found["belongs_to"].drawn(0, draw) for draw in (0, 1))
    assert first != second
    assert first == found["belongs_to"].drawn(0, 0)
    assert first["elsewhere"] == second["elsewhere"]
    a, b = first["first"][0].removesuffix(".").split(" belongs to the set of ")
    assert first["reversed"] == (f"{b} belongs to the set of {a}.",)
    assert len(first["separate"]) == 2


def test_words_are_of_two_to_five_syllables():
    random = np.random.default_rng(0)
    made = {word(random) for _ in range(200)}
    assert len(made) > 190
    assert all(text.isalpha() and 4 <= len(text) <= 15 for text in made)


def test_the_loss_is_that_of_each_text_by_itself(tiny):
    """Eq. 7, in a plain loop without padding."""
    mine = statements(tiny)
    model, rows = mine.model(), np.array([0, 8, 13, 25])
    found = token_loss(model, mine.batch("train", rows)).detach()
    for row, value in zip(rows, found, strict=True):
        total, many = 0.0, 0
        for text in mine.items[row].texts:
            ids = mine._language.tokenizer(text, return_tensors="pt")["input_ids"]
            assert ids[0, 0] == 0  # it begins with the model's own token, so all are scored
            with torch.no_grad():
                logs = model(input_ids=ids).logits[0].log_softmax(-1)
            total -= float(logs[:-1].gather(1, ids[0, 1:, None]).sum())
            many += ids.shape[1] - 1
        assert float(value) == pytest.approx(total / many, rel=1e-5)


@pytest.mark.parametrize("begins", [True, False])
def test_a_text_of_several_items_is_read_once(tmp_path, begins):
    mine = statements(write_causal(tmp_path / "model", begins=begins), domains=("squares",))
    model, ids = mine.model(), np.arange(6)
    batches, shares_EP = mine.pieces(ids, 2)
    texts = {text for item in mine.items[:6] for text in item.texts}
    assert sum(len(batch["tokens"]) for batch in batches) == len(texts) == shares_EP.shape[1] < 8
    assert max(len(batch["tokens"]) for batch in batches) == 2
    losses_P = torch.cat([token_loss(model, batch) for batch in batches]).double()
    whole = token_loss(model, mine.batch("evaluation", ids)).double()
    torch.testing.assert_close(of_pieces(losses_P, shares_EP), whole, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("most", [2, 9])
def test_texts_are_batched_as_costs_least(most):
    random = np.random.default_rng(most)
    for lengths in (np.sort(random.integers(1, 60, 9)).tolist() for _ in range(5)):

        def cost(ends, lengths=lengths):
            steps = pairwise((0, *ends, len(lengths)))
            return sum((stop - start) * lengths[stop - 1] + A_PASS
                       for start, stop in steps)  # fmt: skip

        found = of_like_lengths(lengths, most)
        assert max(stop - start for start, stop in found) <= most
        every = chain.from_iterable(combinations(range(1, 9), k) for k in range(9))
        fitting = [e for e in every if max(b - a for a, b in pairwise((0, *e, 9))) <= most]
        assert cost([stop for _, stop in found[:-1]]) == min(map(cost, fitting))


def test_tokens_drawn_from_the_model_hang_on_no_other_row(tiny):
    mine = statements(tiny)
    model, ids = mine.model(), np.arange(mine.rows("train"))
    together = mine.sampled_loss(model, mine.batch("train", ids), ids, 5)
    assert together.requires_grad
    for row in ids:
        alone = mine.sampled_loss(model, mine.batch("train", ids[[row]]), ids[[row]], 5)
        torch.testing.assert_close(alone[0], together[row])
    other = mine.sampled_loss(model, mine.batch("train", ids), ids, 6)
    assert (other != together).all()


@pytest.mark.parametrize("text", ["a: !!bool maybe", "a: !!int ''", "[" * 5000])
def test_a_file_of_domains_that_is_no_yaml_is_one_line(text, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=r"settings\.domains_file: .*own\.yaml"):
        domains(str(file), [])


def test_without_a_token_to_begin_with_the_first_is_not_scored(tmp_path):
    bare = write_causal(tmp_path / "bare", begins=False)
    mine = statements(bare, domains=("squares",))
    batch = mine.batch("train", np.array([0]))
    length = len(mine.items[0].texts[0])
    assert int(batch["scored"].sum()) == length - 1
    file = tmp_path / "one.yaml"
    file.write_text("single: {items: {a: x, b: 'a {W}'}}")
    with pytest.raises(InputError, match="'a' of single: 'x' is a single token"):
        statements(bare, domains_file=str(file)).batch("train", np.array([0]))


def test_a_prompt_scores_the_same_tokens_in_both_conditions(tiny):
    mine = statements(tiny, domains=("squares",), prompts=("{sample}\n",))
    model, language = mine.model(), mine._language
    with_it, without = mine.prompted(model, 2, np.array([0, 3]))
    context = language.encoded(mine.items[2].texts[0] + "\n")
    text = language.encoded(mine.items[0].texts[0])
    ids = torch.tensor([language.begin + context + text])
    with torch.no_grad():
        logs = model(input_ids=ids).logits[0].log_softmax(-1)
    scores = logs[:-1].gather(1, ids[0, 1:, None])[-len(text) :]
    assert float(with_it[0]) == pytest.approx(-float(scores.mean()), rel=1e-5)
    assert not torch.allclose(with_it, without)
    unrelated, again = mine.prompted(model, 4, np.array([0, 3]))
    assert torch.allclose(without, again) == (
        len(language.encoded(mine.items[4].texts[0])) == len(context) - 1
    )
    assert not torch.allclose(with_it, unrelated)


def test_a_prompt_read_once_is_the_prompt_read_before_every_text(tiny, monkeypatch):
    mine = statements(tiny, domains=("chain_induces", "squares"), separator=" ")
    model, ids = mine.model(), np.arange(8)  # some of one text, some of several, of other lengths
    once = mine.prompted(model, 4, ids)
    kept = []
    whole = knowledge.kept_of
    monkeypatch.setattr(knowledge, "kept_of", lambda *given: kept.append(whole(*given)))
    for mean, each in zip(once, mine.prompted(model, 4, ids), strict=True):
        assert torch.allclose(mean, each, rtol=1e-5)
    assert all(kept), "the model keeps nothing: this compares a thing with itself"


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_the_error_of_the_first_order_falls_as_the_rate_does(tiny, optimizer):
    """Eq. 2 and 3 of a language model in float64 (Llama's norms would be in float32): relative to
    the influence, a log-log slope of 1."""
    mine = statements(tiny, domains=("belongs_to",))
    torch.manual_seed(0)
    model = (
        GPT2LMHeadModel(GPT2Config(vocab_size=257, n_embd=32, n_layer=2, n_head=4)).double().eval()
    )
    start = parameters_of(model, Layout.of(model, "all"))
    own, every = (
        losses_of(model, token_loss, [mine.batch("train", np.array(ids))])
        for ids in ([7], range(10))
    )
    rates, errors = np.array([1e-6, 3e-6, 1e-5, 3e-5]), []
    with twice_differentiable(model):
        for rate in rates:
            end = Tuning(start, partial(optimizer, lr=rate, weight_decay=0.0)).on([own]).parameters
            with torch.no_grad():
                influence_E = every(start) - every(end)
            error_E = influence_E - first_order(every, start, end)
            errors.append(float(error_E.norm() / influence_E.norm()))
    assert errors[-1] > 1e-9
    assert np.polyfit(np.log(rates), np.log(errors), 1)[0] == pytest.approx(1.0, abs=0.05)


TIED = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(
        vocab_size=257, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=257, n_embd=32, n_layer=2, n_head=4, tie_word_embeddings=True)),
}  # fmt: skip
STEPS = {
    "sgd": partial(torch.optim.SGD, lr=1e-2, momentum=0.9, weight_decay=0.1),
    "adamw": partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.1),
}


@pytest.mark.parametrize("name", TIED)
@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("rows", [[7], [7, 8, 9]])
def test_a_parameter_at_a_time_is_all_at_once_bit_for_bit(tiny, name, kind, rows):
    """Of language models whose head is their embedding, which steps once, after both uses."""
    mine = statements(tiny, domains=("belongs_to",))
    torch.manual_seed(0)
    model, optimizer = TIED[name]().eval(), partial(STEPS[kind], fused=True)
    start = parameters_of(model, Layout.of(model, "all"))
    assert "lm_head.weight" not in start
    each = [losses_of(model, token_loss, [mine.batch("train", np.array([row]))]) for row in rows]
    with twice_differentiable(model):
        found = Tuning(start, optimizer).on(each).parameters
        wanted = all_together(start, optimizer, each)
    for key, value in wanted.items():
        assert torch.equal(found[key], value), key
        assert not torch.equal(value, start[key]), key


def test_padding_on_the_right_is_not_seen(tiny):
    model = statements(tiny).model()
    short, long = [([0], [5, 6, 7])], [([0], list(range(1, 40)))]
    alone = token_loss(model, packed([short]))
    together = token_loss(model, packed([short, long]))
    torch.testing.assert_close(alone[0], together[0], rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    raw = {
        "task": "knowledge", "recipe": "empirical",
        "out": str(tmp_path_factory.mktemp("knowledge") / "run"),
        "settings": {"model": str(tiny), "draws": 5, "domains": ["squares", "chain_induces"]},
        "tune": {"optimizer": "adamw", "lr": 1e-3}, "runtime": {"kind": "local"},
        "variations": {"prompted": {"tune.optimizer": "prompt"}},
    }  # fmt: skip
    return execute(resolve(raw), silent)


def test_rows_are_measured_on_their_own_draw_alone(run):
    found = measured(run)
    draws = [(item.domain, item.draw) for item in run.task.items]
    same = np.array([[a == b for b in draws] for a in draws])
    np.testing.assert_array_equal(np.isfinite(found.influence_NE), same)
    assert np.diag(found.influence_NE).min() > 0
    assert not found.diverged_N.any()
    row, model = 7, run.task.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    ids = np.flatnonzero(same[row])
    batch = run.task.batch("evaluation", ids)
    with torch.no_grad():
        before = token_loss(model, batch)
    token_loss(model, run.task.batch("train", np.array([row]))).mean().backward()
    optimizer.step()
    with torch.no_grad():
        wanted = before - token_loss(model, batch)
    np.testing.assert_allclose(found.influence_NE[row, ids], wanted, atol=3e-5)


def test_texts_are_learned_in_turn_where_that_is_asked_for(tiny, tmp_path):
    raw = {
        "task": "knowledge", "recipe": "empirical", "out": str(tmp_path / "run"),
        "settings": {"model": str(tiny), "draws": 1, "domains": ["squares"], "in_turn": True},
        "tune": {"optimizer": "adamw", "lr": 1e-3}, "runtime": {"kind": "local"},
    }  # fmt: skip
    session = execute(resolve(raw), silent)
    row = [item.name for item in session.task.items].index("separate")
    model, batch = session.task.model(), session.task.batch("evaluation", np.arange(6))
    with torch.no_grad():
        before = token_loss(model, batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    for text in session.task.items[row].texts:
        optimizer.zero_grad()
        ids = session.task._language.tokenizer(text, return_tensors="pt")["input_ids"]
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    with torch.no_grad():
        wanted = before - token_loss(model, batch)
    np.testing.assert_allclose(measured(session).influence_NE[row], wanted, atol=3e-5)
    assert not any("in one step" in line for line in session.task.wording.deviations)


def test_prompted_influence_stands_beside(run):
    found, ids = measured(run.variations["prompted"]), np.arange(6)
    with_it, without = run.task.prompted(run.task.model(), 1, ids)
    np.testing.assert_allclose(found.influence_NE[1, ids], without - with_it, atol=1e-5)


def test_contrasts_are_of_the_matrix(run):
    report = json.loads(run.blobs.get("report/contrasts.json"))
    assert {row["run"] for row in report} == {"", "prompted"}
    (row,) = [r for r in report if not r["run"] and r["contrast"] == "causality, two steps"]
    found = measured(run)
    differences = []
    for draw in range(5):
        square = found.block("", "", ("chain_induces", draw))
        names = found.groups(("chain_induces", draw)).tolist()
        after, right, wrong = map(names.index, ("short chain", "implied", "reversed"))
        differences.append(square[after, right] - square[after, wrong])
    assert row["mean"] == pytest.approx(np.mean(differences))
    assert row["low"] < row["mean"] < row["high"]
    own = np.mean([found.block("", "", ("chain_induces", k))[after, after] for k in range(5)])
    assert row["within_pct"] == pytest.approx(100 * max(-row["low"], row["high"]) / own)
    page = run.blobs.get("report/index.html").decode()
    assert "contrasts" in page
    assert "squares: prompted" in page


def test_one_text_is_held_against_two(run):
    report = json.loads(run.blobs.get("report/contrasts.json"))
    (row,) = [r for r in report if not r["run"] and r["contrast"].startswith("combined")]
    both = {
        r["after"]: r["mean"] for r in report if not r["run"] and r["contrast"].startswith("onto")
    }
    assert row["after"] == "joined less separate"
    assert row["mean"] == pytest.approx(both["joined"] - both["separate"])


def test_words_and_meaning_are_regressed_side_by_side(run):
    report = json.loads(run.blobs.get("report/meanings.json"))
    assert {(r["run"], r["matrix"], r["regressor"]) for r in report} >= {
        (name, "squares", regressor)
        for name in ("", "prompted")
        for regressor in ("shared tokens", "their order", "what follows")
    }
    parts = json.loads(run.blobs.get("report/variances.json"))
    mine = {r["part"]: r["value"] for r in parts if (r["run"], r["matrix"]) == ("", "squares")}
    assert sum(mine.values()) == pytest.approx(1.0)
    assert "Word against meaning" in run.blobs.get("report/index.html").decode()


def test_wordings_say_the_same_of_the_same_words(tiny):
    mine = statements(tiny, wordings=2, domains=["squares"])
    assert mine.wordings == {"squares": ["squares", "squares, wording 2"]}
    said = {(item.domain, item.draw, item.name): item.texts for item in mine.items}
    (own,), (other,) = (said[name, 1, "second"] for name in mine.wordings["squares"])
    assert own.replace("belongs to the set of", "is one of the") == other != own


def test_claims_are_first_sentences_of_other_abstracts_in_each_draw(tmp_path):
    file = tmp_path / "abstracts.txt"
    file.write_text("\n".join(f"We show {k} {{x}}. And more." for k in range(30)))
    (claims,) = domains("", ["random_claim"], str(file))
    first, again, other = (claims.drawn(0, draw) for draw in (0, 0, 1))
    assert first == again != other
    assert len({*first.values()}) == 10
    assert all(text.startswith("We show ") and text.endswith("{x}.") for (text,) in first.values())
    with pytest.raises(InputError, match="no 'random_claim_100' among"):
        domains("", ["random_claim_100"], str(file))


def test_a_model_that_is_only_tried_out_takes_no_memory_of_its_own(tiny):
    def places(model):
        return {name: parameter.data_ptr() for name, parameter in model.named_parameters()}

    mine = statements(tiny)
    frozen = mine._language.model(frozen=True).requires_grad_(False)
    tried, own = rehearse(mine), mine.model()
    assert places(tried) == places(frozen)
    assert not set(places(own).values()) & set(places(tried).values())
    for model, trained in ((tried, True), (own, True), (frozen, False)):
        assert {parameter.requires_grad for parameter in model.parameters()} == {trained}


def test_adapters_alone_are_tuned_where_that_is_asked_for(tiny):
    pytest.importorskip("peft")
    model = statements(tiny, trained="lora").model()
    names = Layout.of(model, "all").names
    assert {".lora_" in name for name in names} == {True}
    own = statements(tiny, trained="lora").model().state_dict()
    assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "file", "why"),
    [
        ({"domains": ["nowhere"]}, None, "settings.domains: no 'nowhere' among belongs_to"),
        ({}, "d: {items: {a: 'x {} y'}}", "'a' has a place for a word without a name"),
        ({}, "d: {items: {a: 'x {A y'}}", "'a' has a place for a word without a name"),
        ({}, "d: {items: {a: 'x {A:d} y'}}", "'a' has a place for a word without a name"),
        ({"prompts": ["{sample} {other}"]}, None, "has braces beside {sample}"),
        ({"domains": ["squares", "squares"]}, None, "domains: name each once"),
        ({}, "d: {items: {a: ''}}", "'a' has an empty text"),
        ({}, "d: {items: {a: b}, contrasts: {c: [a, a, z]}}", "contrast 'c' must be"),
        ({}, "d: 3", "'d' needs items"),
        ({}, "d: {items: {a: b}, follows: {a: [z]}}", "'z' follows or contradicts, but is no item"),
        ({}, "d: {items: {a: b}, wordings: [{x: y}]}", "no text has the phrase 'x' of a wording"),
        ({}, "d: {items: {a: b}, wordings: [{b: 'y {'}]}", "a wording leaves a brace"),
        ({"wordings": 3}, None, "settings.wordings: belongs_to has 2, its own among them"),
        ({"abstracts": "/nowhere"}, None, "settings.abstracts: [Errno 2]"),
        (
            {"model": "/nowhere/model"},
            None,
            "model.name: /nowhere/model at revision main could not be loaded",
        ),
        ({"prompts": ["no place"]}, None, "prompts"),
    ],
)
def test_bad_input_is_one_line(tiny, tmp_path, capsys, settings, file, why):
    own = {"model": str(tiny), "draws": 1, **settings}
    if file:
        (tmp_path / "own.yaml").write_text(file)
        own["domains_file"] = str(tmp_path / "own.yaml")
    raw = {"task": "knowledge", "recipe": "empirical", "settings": own,
           "out": str(tmp_path / "run"), "runtime": {"kind": "local"}}  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(raw))
    assert main(["run", str(tmp_path / "run.yaml")]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert why in line


PROMPTED = {"variations": {"prompted": {"tune.optimizer": "prompt"}}}
UNREADABLE = {
    "a text": ({"positions": 40}, {}, r"task: 'f\w+' of squares: \d+ tokens are more than the mod"),
    "a prompt": ({"positions": 150}, PROMPTED, r"settings.prompts: '.*' of squares in a prompt: "),
    "an estimate": ({"positions": 150}, {"estimates": {"estimators": ["prompt"]}}, "in a prompt: "),
    "a token": ({"added": "belongs"}, {}, "gives 'first' of squares the token 'belongs'"),
    "a prompt's token": ({"added": "We"}, PROMPTED, "squares in a prompt the token 'We'"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_the_model_cannot_read_is_one_line_before_any_work(tmp_path, capsys, case):
    model, more, why = UNREADABLE[case]
    raw = {
        "task": "knowledge", "recipe": "empirical", "out": str(tmp_path / "run"),
        "settings": {"model": str(write_causal(tmp_path / "model", **model)), "draws": 1,
                     "domains": ["squares"]},
        "runtime": {"kind": "local"}, **more,
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(raw))
    assert main(["run", str(tmp_path / "run.yaml")]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert re.search(why, line), line
    assert not list(tmp_path.glob("run/ledger/*/*"))


def test_a_task_without_prompts_cannot_be_prompted(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(
        "task: tests.support.blobs_task:task\nrecipe: empirical\ntune: {optimizer: prompt}\n"
        f"runtime: {{kind: local}}\nout: {tmp_path / 'run'}\n"
    )
    assert main(["run", str(tmp_path / "run.yaml")]) == 2
    assert "tune.optimizer: prompt needs a task with prompted" in capsys.readouterr().err


def test_a_variation_with_domains_of_its_own_has_its_own_contrasts(tiny, tmp_path):
    raw = {
        "task": "knowledge", "recipe": "empirical", "out": str(tmp_path / "run"),
        "settings": {"model": str(tiny), "draws": 1, "domains": ["squares"]},
        "tune": {"lr": 1e-2}, "runtime": {"kind": "local"},
        "variations": {"chain": {"settings.domains": ["chain_induces"]}},
    }  # fmt: skip
    found = execute(resolve(raw), silent)
    report = json.loads(found.blobs.get("report/contrasts.json"))
    assert {(r["run"], r["matrix"]) for r in report} == {
        ("", "squares"),
        ("chain", "chain_induces"),
    }
    page = found.blobs.get("report/index.html").decode()
    assert "chain_induces: chain" in page
    other = measured(found.variations["chain"])
    row = next(r for r in report if r["contrast"] == "causality, two steps")
    names = other.groups(("chain_induces", 0)).tolist()
    after, right, wrong = map(names.index, ("short chain", "implied", "reversed"))
    square = other.block("", "", ("chain_induces", 0))
    assert row["mean"] == pytest.approx(square[after, right] - square[after, wrong])


def test_texts_have_words_and_states_for_the_yardstick(tiny, tmp_path):
    raw = {
        "task": "knowledge", "recipe": "empirical", "out": str(tmp_path / "run"),
        "settings": {"model": str(tiny), "draws": 2, "domains": ["squares", "belongs_to"]},
        "runtime": {"kind": "local"}, "tune": {"optimizer": "adamw", "lr": 1e-3},
        "estimates": {
            "estimators": ["length", "bm25", "embeddings", "prompt", "tracin"],
            "spaces": {"attention": "self_attn"},
        },
    }  # fmt: skip
    session = execute(resolve(raw), silent)
    found, mine = estimated(session), session.task
    draw = np.flatnonzero([(i.domain, i.draw) == ("squares", 1) for i in mine.items])
    of = np.ix_(draw, draw)
    texts = [mine._encoded[row] for row in draw]
    lengths = [sum(map(len, each)) for each in texts]
    np.testing.assert_array_equal(found["length"][of], np.tile(lengths, (6, 1)).T)
    flat = [np.array([token for ids in each for token in ids]) for each in texts]
    words = np.concatenate(flat), np.cumsum([0, *lengths])
    np.testing.assert_allclose(found["bm25"][of], bm25(words, words, 257).T)
    model, states = mine.model(), []
    for each in texts:
        with torch.no_grad():
            parts = [model(torch.tensor([[0, *ids]]), output_hidden_states=True) for ids in each]
        states.append(torch.cat([part.hidden_states[-1][0, 1:] for part in parts]).mean(0))
    units = torch.nn.functional.normalize(torch.stack(states))
    np.testing.assert_allclose(found["embeddings"][of], units @ units.T, atol=1e-5)
    after, unrelated = mine.prompted(model, int(draw[2]), draw)
    np.testing.assert_allclose(found["prompt"][draw[2], draw], unrelated - after, atol=1e-5)
    rows = json.loads(session.blobs.get("report/yardstick.json"))
    assert {(r["matrix"], r["estimator"], r["of"]) for r in rows} >= {
        ("squares", "bm25", ""), ("belongs_to", "tracin", "attention")
    }  # fmt: skip
