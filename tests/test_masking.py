"""Secrets in a task's settings are in no file of a run, and a resumed run still knows them."""

import json
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from distinf import cli
from distinf.masking import MASK, given_again, mask, masked, unknown, variable, without
from distinf.tasks.tensor_task import TensorTask
from tests.support.blobs_task import loss, points

TOKEN = "hf_0aXq93kfmw82hdnsiq17fkw0"
PIN = 4711

SECRET = {
    "token": "abc", "hub_token": "abc", "apiToken": "abc", "API_KEY": "abc", "apikey": "abc",
    "key": "abc", "secret_access_key": "abc", "wandb-key": "abc", "password": "abc",
    "db_password": 4711, "client_secret": "abc", "passphrase": "a b c", "HF_TOKEN": "abc",
    "row_key": "9f86d081884c7d659a2f", "url": "https://me:hunter2@host/data",
    "tokens": ["abc", "def"], "credentials": {"user": "me", "id": 7},
}  # fmt: skip
PLAIN = {
    "pad_token": "<pad>", "max_tokens": 512, "tokens_per_batch": "many", "tokenizer": "bert",
    "sort_key": "label", "row_key": "label", "keys": 3, "key_dim": 64, "monkey": "abc",
    "passes": 3, "url": "https://host/a:b@c", "token": "", "password": None, "use_secret": True,
    "path": "/data/0123456789abcdef0123456789",
}  # fmt: skip


@pytest.mark.parametrize("name", SECRET)
def test_a_secret_is_masked(name):
    found = masked({"a": {name: SECRET[name]}, "b": 1})
    leaves = list(found["a"][name].values()) if name == "credentials" else found["a"][name]
    leaves = leaves if isinstance(leaves, list) else [leaves]
    assert all(MASK.fullmatch(leaf) for leaf in leaves)
    assert found["b"] == 1
    assert masked(found) == found


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_no_secret_stays(name):
    assert masked({name: PLAIN[name]}) == {name: PLAIN[name]}


@pytest.mark.slow
def test_another_secret_has_another_mask_and_a_short_one_shares_its_own_with_many():
    long = {mask("settings.token", f"{TOKEN}{k}") for k in range(50)}
    assert len(long) == 50
    pins = [mask("settings.pin", f"{k:04d}") for k in range(200)]
    assert max(pins.count(each) for each in set(pins)) > 5
    assert len(set(pins)) <= 16


@given(st.text(min_size=1))
def test_a_mask_is_of_one_secret_and_has_nothing_of_it(secret):
    found = mask("settings.token", secret)
    assert found == mask("settings.token", secret)
    assert MASK.fullmatch(found)
    assert len(found) - len("(secret, not stored: )") <= max(1, len(secret) // 3)


def test_what_only_a_mask_is_known_of_is_taken_from_the_environment(monkeypatch):
    stored = masked({"hub": {"token": TOKEN}, "keys": ["a", "b"], "rows": 3})
    assert unknown(stored) == ["settings.hub.token", "settings.keys.0", "settings.keys.1"]
    monkeypatch.setenv(variable("settings.hub.token"), TOKEN)
    again = given_again(stored)
    assert again["hub"]["token"] == TOKEN
    assert again["rows"] == 3
    assert unknown(again) == ["settings.keys.0", "settings.keys.1"]


def test_a_text_loses_the_secrets_that_are_in_it():
    settings = {"token": TOKEN, "password": PIN, "key": "a"}
    told = without(f"401 for {TOKEN} (pin {PIN}, a day)", settings)
    assert told == "401 for (secret) (pin (secret), a day)"


def task(settings: dict, seed: int) -> TensorTask:
    if settings["hub"]["token"] != os.environ["THE_TOKEN"]:
        raise PermissionError("no such token")
    data = {"train": points(40, 1), "evaluation": points(8, 2)}
    return TensorTask(lambda: nn.Linear(4, 2), data, {"own": loss}, seed=seed)


def failing(settings: dict, seed: int) -> TensorTask:
    def lost(model: nn.Module, batch: dict) -> torch.Tensor:
        if len(batch["label"]) > 8:  # not before the run is begun
            raise ConnectionError(f"refused: {settings['hub']['token']}")
        return loss(model, batch)

    data = {"train": points(40, 1), "evaluation": points(8, 2)}
    return TensorTask(lambda: nn.Linear(4, 2), data, {"own": lost}, seed=seed)


def everything(folder) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_run_with_a_secret_keeps_it_nowhere_resumes_and_is_compared_by_it(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("THE_TOKEN", TOKEN)
    (tmp_path / "mine.yaml").write_text(
        f"task: {__name__}:task\nruntime: {{kind: local}}\nrecipe: gram\n"
        f"settings: {{hub: {{token: {TOKEN}}}, password: {PIN}}}\n"
    )
    out = tmp_path / "run"
    words = ["run", str(tmp_path / "mine.yaml"), "--out", str(out)]
    assert cli.main(words) == 0
    kept = everything(out)
    assert TOKEN.encode() not in kept
    assert b"password: " in kept
    assert b"4711" not in (out / "config.yaml").read_bytes()
    findings = json.loads((out / "report" / "findings.json").read_text())
    assert "(secret, not stored: " in findings["provenance"]["config_yaml"]
    capsys.readouterr()

    assert cli.main(words) == 0
    assert "done" not in capsys.readouterr().err  # nothing was left to do
    assert cli.main([*words, "--set", "settings.hub.token=another-0123456789-token"]) == 2

    monkeypatch.setenv("THE_TOKEN", "another-0123456789-token")
    assert cli.main([*words, "--set", "settings.hub.token=another-0123456789-token"]) == 2
    assert "differing: settings.hub.token" in capsys.readouterr().err

    monkeypatch.setenv("THE_TOKEN", TOKEN)
    assert cli.main(["run", str(out)]) == 2
    assert "DISTINF_SETTINGS_HUB_TOKEN" in capsys.readouterr().err
    monkeypatch.setenv("DISTINF_SETTINGS_HUB_TOKEN", TOKEN)
    monkeypatch.setenv("DISTINF_SETTINGS_PASSWORD", str(PIN))
    assert cli.main(["run", str(out)]) == 0
    assert cli.main(["report", str(out)]) == 0
    assert TOKEN.encode() not in everything(out)


def test_a_failure_s_record_has_no_secret(tmp_path, capsys):
    out = tmp_path / "run"
    words = ["--set", f"settings.hub.token={TOKEN}", "--set", "runtime.kind=local"]
    code = cli.main(["score", f"{__name__}:failing", "--out", str(out), *words])
    assert code in (2, 4)
    assert list(out.rglob("failure-*.txt"))
    assert json.loads((out / "heartbeat.json").read_text())["why"]
    assert TOKEN.encode() not in everything(out)
