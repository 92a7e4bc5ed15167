"""Supervised fine-tuning as a task: which tokens are scored, by what loss, and what is refused."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("peft", reason="needs distinf[llm]")

from distinf.cli import main
from distinf.config import load, resolve
from distinf.config_file import read
from distinf.engine.run import execute
from distinf.errors import InputError
from distinf.gram.asking import query_scores
from distinf.gram.train import stored_fit, trained_model
from distinf.numerics.elements import element_shares
from distinf.numerics.parameters import Layout
from distinf.printable import printable
from distinf.report.gram.findings import findings
from distinf.studies.language import training
from distinf.studies.sft.settings import CausalSettings, DataSettings, SftSettings
from distinf.studies.sft.task import task
from tests.support.causal import write_causal
from tests.support.chats import write_chatting, write_rows
from tests.support.runs import silent

PAIRS = [{"prompt": f"{k} and ", "completion": "ab" * (1 + k % 3), "kind": k % 3} for k in range(8)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_chatting(tmp_path_factory.mktemp("model") / "tiny")


def made(folder, tmp_path, rows, queries=({"text": "abab"},), **more):
    model = {"end_token": False, **more.pop("model", {})}
    data = DataSettings(
        write_rows(tmp_path / "train.jsonl", rows), write_rows(tmp_path / "asked.jsonl", queries)
    )
    return task(SftSettings(data, CausalSettings(name=str(folder), **model), **more), 0)


def scored(mine, split="train", row=0):
    """The text of the scored tokens, and of all."""
    batch, tokenizer = mine.batch(split, np.array([row])), mine.language.tokenizer
    labels = batch["labels"][0]
    return tokenizer.decode(labels[labels >= 0]), tokenizer.decode(batch["input_ids"][0])


def test_a_prompt_is_not_scored_and_a_text_is(tiny, tmp_path):
    mine = made(tiny, tmp_path, PAIRS)
    assert scored(mine, row=1) == ("abab", "<s>1 and abab")
    assert scored(mine, "evaluation") == ("abab", "<s>abab")
    ended = made(tiny, tmp_path, PAIRS, model={"end_token": True})
    assert scored(ended, row=1) == ("abab<s>", "<s>1 and abab<s>")
    assert mine.describe(np.array([1])) == [
        {"row": 1, "text": "1 and abab", "tokens": 4, "kind": 1}
    ]


def test_a_chat_is_scored_where_the_assistant_speaks(tiny, tmp_path):
    said = [
        ("system", "be"),
        ("user", "hi"),
        ("assistant", "yo"),
        ("user", "and"),
        ("assistant", "so"),
    ]
    messages = [{"role": role, "content": content} for role, content in said]
    mine = made(tiny, tmp_path, [{"messages": messages}] * 2)
    what, whole = scored(mine)
    assert what == "yo<s>\nso<s>\n"
    assert whole.startswith("<|system|>be<s>\n<|user|>hi<s>\n<|assistant|>yo<s>")
    assert not whole.startswith("<s>")  # the template's own beginning, and no other


@pytest.mark.parametrize("loss", ["mean", "sum"])
def test_the_loss_is_eq_7_of_each_row_by_itself(tiny, tmp_path, loss):
    mine = made(tiny, tmp_path, PAIRS, loss=loss)
    model = mine.model()
    found = mine.loss(model, mine.batch("train", np.arange(8))).detach()
    tokenizer = mine.language.tokenizer
    for pair, value in zip(PAIRS, found, strict=True):
        prompt, whole = (
            tokenizer(text)["input_ids"]
            for text in (pair["prompt"], pair["prompt"] + pair["completion"])
        )
        with torch.no_grad():
            logs = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
        terms = [-float(logs[at - 1, whole[at]]) for at in range(len(prompt), len(whole))]
        wanted = sum(terms) / (len(terms) if loss == "mean" else 1)
        assert float(value) == pytest.approx(wanted, rel=1e-5)


def run_of(tiny, folder, **more):
    rows, asked = (
        write_rows(folder / "train.jsonl", PAIRS),
        write_rows(folder / "asked.jsonl", [PAIRS[4], PAIRS[1]]),
    )
    raw = {
        "task": "sft", "out": str(folder / "run"), "runtime": {"kind": "local"},
        "settings": {"data": {"path": rows, "queries": asked}, "model": {"name": str(tiny)}},
        "train": {"epochs": 2, "lr": 1e-2, "batch_size": 3}, "scores": {"estimators": ["tracin"]},
        **more,
    }  # fmt: skip
    return execute(resolve(raw), silent)


def test_a_run_tunes_the_adapters_and_scores_rows_as_autograd_does(tiny, tmp_path):
    session = run_of(tiny, tmp_path)
    cell = session.cell("")
    found = query_scores(session, cell, "tracin", "all")
    model, mine = trained_model(session, ""), session.task("")
    start = dict(mine.model().named_parameters())
    assert any(not torch.equal(p, start[name]) for name, p in model.named_parameters())
    wanted = [p for p in model.parameters() if p.requires_grad]

    def gradient(split, row):
        value = mine.loss(model, mine.batch(split, np.array([row]))).sum()
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, wanted)])

    queries, train = (
        torch.stack([gradient(s, k) for k in range(n)])
        for s, n in (("evaluation", 2), ("train", 8))
    )
    np.testing.assert_allclose(
        found, (queries @ train.T).numpy() / len(wanted), rtol=1e-3, atol=1e-8
    )
    rows = json.loads(session.blobs.get("report/ranked_rows.json"))
    assert {row["text"] for row in rows} == {p["prompt"] + p["completion"] for p in PAIRS}


def test_the_loss_of_the_first_rows_before_training_is_kept(tiny, tmp_path):
    session = run_of(tiny, tmp_path)
    (cell,) = findings(session).cells
    task, ids = session.task(""), np.arange(8)
    model, noted = task.model().eval(), stored_fit(session, "")["row_losses"]
    with torch.no_grad():
        before = task.loss(model, task.batch("train", ids)).mean()
    assert cell["loss_before"] == pytest.approx(float(before), rel=1e-5)
    assert cell["loss_after"] == pytest.approx(float(noted[1].mean()), rel=1e-6)


def test_measuring_a_loss_before_training_changes_no_bit_of_it(tiny, tmp_path, monkeypatch):
    fits = []
    for name in ("measured", "not"):
        (folder := tmp_path / name).mkdir()
        fits.append(stored_fit(run_of(tiny, folder, lora={"dropout": 0.3}), ""))
        monkeypatch.setattr(training, "_loss_before", lambda *_: 0.0)
    measured, other = fits
    assert measured.pop("loss_before") > other["loss_before"] == 0.0
    assert all(np.array_equal(values, other[name]) for name, values in measured.items())


# -- a file, a question --------------------------------------------------------------------


@pytest.fixture
def folder(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "train.jsonl", PAIRS)
    write_rows(tmp_path / "asked.jsonl", [PAIRS[4], {**PAIRS[1], "completion": "ba"}])
    return tmp_path


def score(tiny, *more, rows="train.jsonl", asked="asked.jsonl"):
    given = ["--set", f"model.name={tiny}", "--set", "runtime.kind=local", *more]
    return main(["score", rows, "--query", asked, "--set", "train.epochs=1", *given])


def test_a_file_is_scored_for_each_query(tiny, folder, capsys):
    assert score(tiny, "--top", "3") == 0
    told = capsys.readouterr().out
    assert "Training rows by query" in told
    assert "4 and abab" in told
    rows = json.loads((folder / "runs/train-score/report/by_query.json").read_text())
    assert [row["place"] for row in rows] == [1, 2, 3, -1, -2, -3] * 2
    assert [row["query_text"] for row in rows] == ["4 and abab"] * 6 + ["1 and ba"] * 6
    assert rows[0]["text"] == "4 and abab"  # the query is itself a training row
    assert rows[0]["score"] > rows[1]["score"] > rows[3]["score"]
    with open(folder / "runs/train-score/report/by_query.csv", newline="") as file:
        assert [row["text"] for row in csv.DictReader(file)] == [row["text"] for row in rows]
    assert "1 and ba" in (folder / "runs/train-score/report/index.html").read_text()


def test_a_file_alone_is_tuned_on_as_by_the_configuration_that_is_shipped():
    shipped = read(str(Path(__file__).parents[2] / "configs/sft/smollm.yaml"), verb="score")
    alone = read("my_sft.jsonl", verb="score")
    assert {name: alone[name] for name in ("train", "gradients")} == {
        name: shipped[name] for name in ("train", "gradients")
    }


def test_scores_by_query_are_those_of_a_later_question(tiny, folder):
    assert score(tiny) == 0
    (folder / "later.jsonl").write_text((folder / "asked.jsonl").read_text().splitlines()[1] + "\n")
    run = str(folder / "runs/train-score")
    assert main(["query", run, "--queries", "later.jsonl", "--top", "5"]) == 0
    (later,) = (folder / "runs/train-score/queries").glob("*/top.json")
    rows = json.loads((folder / "runs/train-score/report/by_query.json").read_text())
    mine = [row for row in rows if row["query_row"] == 1]
    for one, two in zip(json.loads(later.read_text()), mine, strict=True):
        assert (one["row"], one["place"]) == (two["row"], two["place"])
        assert one["score"] == pytest.approx(two["score"], rel=1e-3)


LONG = {"prompt": "x" * 40, "completion": "y", "kind": 0}
CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
BAD = {
    "not JSON": (['{"text": "a"}', "", '{"text": '], "row 1 (line 3) is not JSON"),
    "no object": (['{"text": "a"}', "3"], "row 1 (line 2) must be an object"),
    "mixed": ([PAIRS[0], {"text": "a"}], "row 1 (line 2) must be an object with the keys of the"),
    "two forms": ([{**PAIRS[0], "text": "a"}], "rows need text, or prompt and completion, or mess"),
    "no form": ([{"question": "a"}], "one form in a file; it has question"),
    "half a form": ([{"prompt": "a"}], "one form in a file; it has prompt"),
    "empty": ([], "has no rows"),
    "a number": ([{"text": "a"}, {"text": 3}], "row 1: text is int, not text"),
    "no text": ([{"text": None}], "row 0: text is NoneType, not text"),
    "empty completion": ([{**PAIRS[0], "completion": " "}], "row 0: completion is empty; leave"),
    "no list": ([{"messages": "a"}], "row 0: messages is no list of {role, content}"),
    "no role": (
        [{"messages": [{"content": "a"}]}],
        "a message's role is NoneType, not text",
    ),
    "no assistant": ([{"messages": CHAT["messages"][:1]}], "row 0: no assistant says anything"),
    "too long": ([PAIRS[0], LONG], "row 1: has 43 tokens, more than model.max_length, 20"),
}


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_one_line_before_any_work(tiny, folder, capsys, case, asked):
    rows, told = BAD[case]
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "bad.jsonl").write_text("\n".join(lines))
    files = {"asked": "bad.jsonl"} if asked else {"rows": "bad.jsonl"}
    assert score(tiny, "--set", "model.max_length=20", **files) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert told in line
    assert f"error: data.{'queries' if asked else 'path'}: {folder / 'bad.jsonl'}" in line
    assert not list(folder.glob("runs/*/*"))


def refused(tiny, tmp_path, rows, told, **more):
    mine = made(tiny, tmp_path, rows, **more)
    with pytest.raises(InputError, match=told):
        mine.batch("train", np.array([0]))


def test_rows_may_be_cut_and_a_cut_completion_is_refused(tiny, tmp_path):
    cut = {"max_length": 12, "too_long": "truncate"}
    mine = made(tiny, tmp_path, [{"prompt": "0123456", "completion": "abcdefgh"}] * 2, model=cut)
    assert scored(mine) == ("abcd", "<s>0123456abcd")
    assert mine.summary()["truncated"] == {"train": 2, "evaluation": 0}


CUT = ["--set", "model.max_length=12", "--set", "model.too_long=truncate"]
UNREADABLE = {  # the model, the row, further options
    "no template": (write_causal, {}, CHAT, [], "row 0: has messages, and the tokenizer of"),
    "cut": (write_chatting, {}, LONG, CUT, "has no token to score in the first 12 of its 43"),
    "context": (write_chatting, {"positions": 30}, LONG, [], "more than the positions of"),
    "token": (write_chatting, {"added": "<extra>"}, {"text": "a <extra> b"}, [],
              "the token '<extra>', number 257, and the model has rows for 257"),
}  # fmt: skip


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("case", UNREADABLE)
def test_a_row_that_the_model_cannot_read_is_one_line_before_any_work(folder, capsys, case, asked):
    write, options, row, more, told = UNREADABLE[case]
    model = write(folder / "model", **options)
    (folder / "bad.jsonl").write_text(json.dumps(row))
    files = {"asked": "bad.jsonl"} if asked else {"rows": "bad.jsonl"}
    assert score(model, *more, **files) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert told in line
    assert str(folder / "bad.jsonl") in line
    assert not list(folder.glob("runs/*/ledger/*/*"))


def test_every_parameter_is_trained_after_models_whose_weights_are_shared(tiny, tmp_path):
    made(tiny, tmp_path, PAIRS).model()  # of adapters
    assert all(
        p.requires_grad for p in made(tiny, tmp_path, PAIRS, trained="all").model().parameters()
    )


def test_a_chat_needs_a_template_that_fits_it(tmp_path):
    strict = write_chatting(tmp_path / "strict", "{{ raise_exception('no user here') }}")
    refused(strict, tmp_path, [CHAT], "the chat template of .*strict refuses it: no user here")
    last = "{% for m in messages %}{% if loop.last %}{{ m['content'] }}{% endif %}{% endfor %}"
    turns = {"messages": [*CHAT["messages"], *CHAT["messages"]]}
    told = "writes message 1 otherwise when others follow; give prompt and completion"
    refused(write_chatting(tmp_path / "last", last), tmp_path, [turns], told)


def test_a_plan_counts_what_the_vocabulary_takes(tiny, tmp_path):
    mine = made(tiny, tmp_path, PAIRS)
    vocabulary = mine.model().config.vocab_size
    tokens = mine.lengths("train").mean()
    assert mine.shapes().activation_bytes_per_sample > 3 * 4 * tokens * vocabulary


def test_queries_must_be_named(tiny, folder, capsys):
    assert main(["score", "train.jsonl", "--set", f"model.name={tiny}"]) == 2
    assert "data.queries: name the file of the outputs that are asked about (--query FILE)" in (
        capsys.readouterr().err
    )
    (folder / "own.yaml").write_text("task: tests.support.blobs_task:task\n")
    assert main(["score", "own.yaml", "--query", "asked.jsonl"]) == 2
    assert "--query asked.jsonl: the task tests.support.blobs_task:task reads none" in (
        capsys.readouterr().err
    )


def test_the_configuration_can_be_planned(tiny, folder, capsys):
    config = str(Path(__file__).parents[2] / "configs/sft/smollm.yaml")
    more = [f"model.name={tiny}", "data.path=train.jsonl", "data.queries=asked.jsonl"]
    sets = [word for each in more for word in ("--set", each)]
    assert main(["plan", config, *sets, "--gflops", "1", "--json"]) == 0
    stages = {each["stage"]: each for each in json.loads(capsys.readouterr().out)["stages"]}
    assert stages["train"]["units"] == 1
    assert stages["gradients"]["flops"] > 0


@pytest.mark.parametrize("loss", ["mean", "sum"])
def test_a_rows_score_for_a_query_is_split_over_its_tokens(tmp_path, loss):
    """Each token's share is the product with its own gradient, one token at a time by autograd, in
    float64: by a GPT-2, since Llama's norms work in float32 whatever they are given."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = write_chatting(tmp_path / "gpt2")
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 257}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(folder)
    mine = made(folder, tmp_path, PAIRS, loss=loss)
    model = mine.model().double()
    wanted = {n: p for n, p in model.named_parameters() if ".lora_" in n}
    with torch.no_grad():
        for parameter in wanted.values():  # adapters that are nothing yet have no gradient in A
            parameter.add_(0.1)
    layout = Layout.of(model, "all")

    def gradient(value):
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, [*wanted.values()])])

    query = gradient(mine.loss(model, mine.batch("evaluation", np.array([0]))).sum())
    batch = mine.batch("train", np.array([2, 3]))
    shares = element_shares(model, mine.parts, batch, layout, query)
    scored = batch["labels"][:, 1:] >= 0
    assert torch.equal(torch.isnan(shares), ~scored)
    for row in (0, 1):
        alone = {name: values[row : row + 1] for name, values in batch.items()}
        whole = query @ gradient(mine.loss(model, alone).sum())
        assert float(shares[row].nansum()) == pytest.approx(float(whole), rel=1e-10)
        for place in scored[row].nonzero().flatten().tolist():
            one = alone | {"labels": torch.full_like(alone["labels"], -100)}
            one["labels"][0, place + 1] = alone["labels"][0, place + 1]
            many = int(scored[row].sum()) if loss == "mean" else 1
            found = query @ gradient(mine.loss(model, one).sum()) / many
            assert float(shares[row, place]) == pytest.approx(float(found), rel=1e-9, abs=1e-14)


@pytest.mark.parametrize("loss", ["mean", "sum"])
def test_sampled_tokens_are_the_models_own_and_a_rows_by_itself(tiny, tmp_path, loss):
    mine = made(tiny, tmp_path, PAIRS, loss=loss)
    model = mine.model()
    ids = np.array([2, 0, 1])
    batch = mine.batch("train", ids)
    together = mine.sampled_loss(model, batch, ids, 7)
    assert together.requires_grad
    for place in range(len(ids)):
        alone = mine.sampled_loss(model, mine.batch("train", ids[[place]]), ids[[place]], 7)
        torch.testing.assert_close(alone[0], together[place])
    with torch.no_grad():
        many = torch.stack([mine.sampled_loss(model, batch, ids, seed) for seed in range(400)])
        logs = model(input_ids=batch["input_ids"]).logits[:, :-1].log_softmax(-1)
    counted = batch["labels"][:, 1:] >= 0
    entropy = -(logs.exp() * logs).sum(-1)
    expected = (entropy * counted).sum(1) / (counted.sum(1) if loss == "mean" else 1)
    error = many.std(0) / len(many) ** 0.5
    assert ((many.mean(0) - expected).abs() < 4.5 * error).all()


def test_ekfac_scores_rows_by_tokens_drawn_from_the_model(tiny, tmp_path):
    session = run_of(tiny, tmp_path, scores={"estimators": ["ekfac"]})
    found = query_scores(session, session.cell(""), "ekfac", "all")
    assert found.shape == (2, 8)
    assert np.isfinite(found).all()
    assert (found.std(1) > 0).all()


def test_tokens_of_a_querys_rows_share_their_product_with_it(tiny, folder, capsys):
    """By the command, of rows whose texts are no markup of ours."""
    rows = [{**pair, "prompt": f"<b>[red]{k} "} for k, pair in enumerate(PAIRS)]
    rows[2]["completion"] = "<i>\x1b,"
    write_rows(folder / "train.jsonl", rows)
    write_rows(folder / "asked.jsonl", [rows[2], rows[1]])
    options = ["--set", "scores.estimators=[tracin]", "--set", "model.end_token=false"]
    assert score(tiny, "--top", "2", "--tokens", *options) == 0
    told = capsys.readouterr().out
    assert "The tokens of these rows that say most" in told
    assert "\x1b" not in told
    report = folder / "runs/train-score/report"
    page = (report / "index.html").read_text()
    assert "<i>" not in page
    assert "The tokens of these rows that say most" in page
    asked, shares = (json.loads((report / f"{n}.json").read_text()) for n in ("by_query", "tokens"))
    session = execute(load(str(folder / "runs/train-score")), silent)
    cell = session.cell("")
    products = query_scores(session, cell, "tracin", "all") * len(cell.groups["all"])
    for row in asked:
        mine = [s for s in shares if all(s[k] == row[k] for k in ("query_row", "place"))]
        assert {s["row"] for s in mine} == {row["row"]}
        text = "".join(s["token"] for s in mine)
        assert rows[row["row"]]["completion"] == text
        wanted = products[row["query_row"], row["row"]]
        assert sum(s["share"] for s in mine) == pytest.approx(wanted, rel=1e-4, abs=1e-8)
    with open(report / "tokens.csv", newline="") as file:
        found = [s["token"] for s in csv.DictReader(file)]
    assert found == [printable(s["token"]) for s in shares]


def test_tokens_are_of_rows_of_queries_and_of_tasks_that_have_some(tiny, folder, capsys):
    def refused_with(*arguments):
        assert main(["score", *arguments, "--tokens"]) == 2
        (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
        return line

    files = ["train.jsonl", "--set", f"model.name={tiny}", "--set", "data.queries=asked.jsonl"]
    assert "--tokens: are of each query's rows; give --query FILE too" in refused_with(*files)
    blobs = ["tests.support.blobs_task:task", "--set", "report.per_query=2"]
    assert "report.tokens: needs a task with parts(model, batch)" in refused_with(*blobs)


@pytest.mark.parametrize("lost", ["lm_head.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_causal_model_without_all_its_weights_is_refused(tmp_path, lost):
    """transformers draws what lacks at random, another time otherwise."""
    folder = write_causal(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors[lost]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"lack 1 weights .*{lost} first"):
        made(folder, tmp_path, PAIRS).model()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: truncate(folder / "model.safetensors"), "could not be loaded"),
        (lambda folder: told_of(folder, hidden_size=64), "weights have other sizes than"),
        (lambda folder: told_of(folder, num_hidden_layers=1), "have layers that the model has not"),
        (lambda folder: told_of(folder, quantization_config={"quant_method": "gptq", "bits": 4}),
         "could not be loaded"),
    ],
    ids=["cut short", "wider", "fewer layers", "quantised by others"],
)  # fmt: skip
def test_a_folder_whose_files_do_not_fit_each_other_is_one_line(tmp_path, damage, said):
    folder = write_causal(tmp_path / "model")
    damage(folder)
    with pytest.raises(InputError, match=f"^model.name: .*{said}"):
        made(folder, tmp_path, PAIRS).model()


def truncate(file):
    file.write_bytes(file.read_bytes()[:-50])


def told_of(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_model_whose_folder_holds_a_folder_or_a_pipe(tmp_path):
    """A pipe would be waited for; a folder of any name is nothing of the model's."""
    folder = write_causal(tmp_path / "model")
    (folder / "runs.json").mkdir()
    before = made(folder, tmp_path, PAIRS).digests()
    assert before["model"]
    os.mkfifo(folder / "more.json")
    with pytest.raises(InputError, match=r"^model.name: .*more.json: Not a file that ends"):
        made(folder, tmp_path, PAIRS).digests()


def test_a_model_with_a_weight_that_is_no_number_ranks_nothing(tiny, tmp_path):
    folder = write_causal(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"no train row of cell '' has a finite loss and gradient"):
        run_of(folder, tmp_path, settings={
            "data": {"path": write_rows(tmp_path / "rows.jsonl", PAIRS),
                     "queries": write_rows(tmp_path / "three.jsonl", PAIRS[:3])},
            "model": {"name": str(folder)}, "fine_tune": False,
        }, train={})  # fmt: skip
