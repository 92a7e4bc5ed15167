"""Supervised fine-tuning as a task: which tokens are scored, by what loss, and what is refused."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("peft", reason="needs distinf[llm]")

from distinf.config import resolve
from distinf.engine.run import execute
from distinf.gram.asking import query_scores
from distinf.gram.train import trained_model
from distinf.studies.sft.settings import CausalSettings, DataSettings, SftSettings
from distinf.studies.sft.task import task
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
