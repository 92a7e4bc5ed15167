"""Weights in and out as safetensors: exact, the same bytes, and refused where they do not fit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from distinf.config import resolve
from distinf.engine.fingerprint import fingerprint
from distinf.engine.run import checked_session, open_session
from distinf.errors import InputError
from distinf.spectral import train
from distinf.store import open_root
from distinf.tasks import checkpoint
from tests.support.blobs_task import Points, task
from tests.support.partial import points_config, run_until

NOISY = "tests.tasks.test_checkpoint:noisy"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A points run up to the end of training."""
    return run_until("train", points_config(tmp_path_factory.mktemp("runs") / "points"))


@pytest.fixture(scope="module")
def weights(trained):
    return f"{trained.blobs.root}/{train.WEIGHTS}"


def noisy(settings: dict, seed: int):
    """A task with batch statistics and their counter."""
    made = task(Points(), seed)
    made._model = lambda: torch.nn.Sequential(
        torch.nn.Linear(4, 12), torch.nn.BatchNorm1d(12), torch.nn.Tanh(), torch.nn.Linear(12, 2)
    )
    return made


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_the_end_of_training_is_written_bit_for_bit_and_says_what_it_is(trained, weights):
    assert same(load_file(weights), train.trained_model(trained).state_dict())
    with safe_open(weights, "pt") as file:
        about = json.loads(file.metadata()["distinf"])
    assert about == {
        "task": trained.context["task"],
        "seed": 0,
        "step": 12,
        "key": trained.keys["train"],
    }


def test_it_is_the_same_bytes_again_and_written_once(trained, weights, tmp_path):
    other = run_until("train", points_config(tmp_path / "run", train={"checkpoint_every": 5}))
    path = Path(other.blobs.root, train.WEIGHTS)
    assert path.read_bytes() == Path(weights).read_bytes()
    before = path.stat().st_mtime_ns
    run_until("train", points_config(tmp_path / "run", train={"checkpoint_every": 5}))
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("left", [0, 9, -1])
def test_a_run_that_was_killed_before_or_while_it_wrote_them_writes_them(trained, tmp_path, left):
    shutil.copytree(trained.blobs.root, tmp_path / "run")
    path = tmp_path / "run" / train.WEIGHTS
    whole = path.read_bytes()
    path.write_bytes(whole[:left])
    config = points_config(tmp_path / "run")
    assert not train.is_done(open_session(config))
    run_until("train", config)
    assert path.read_bytes() == whole
    path.unlink()
    run_until("train", config)
    assert path.read_bytes() == whole


def test_another_training_that_was_accepted_replaces_them(trained, tmp_path):
    shutil.copytree(trained.blobs.root, tmp_path / "run")
    config = points_config(tmp_path / "run", train={"lr": 0.01})
    session = run_until("train", config, open_session(config, ["train.lr", "code"]))
    assert same(
        load_file(tmp_path / "run" / train.WEIGHTS), train.trained_model(session).state_dict()
    )


def test_a_variation_writes_its_own_weights_and_only_if_it_has_any(tmp_path):
    varied = {"short": {"train.steps": 6}, "damped": {"scores.damping": 0.5}}
    session = run_until("train", points_config(tmp_path / "run", variations=varied))
    main = open_root(session.blobs.root).get(train.WEIGHTS)
    for each in session.variations.values():
        run_until("train", points_config(tmp_path / "run", variations=varied), session=each)
        assert train.is_done(each)
    names = {n for n in session.blobs.names("") if n.endswith(".safetensors")}
    assert names == {"model.safetensors", "model-short.safetensors"}
    assert session.blobs.get(train.WEIGHTS) == main
    assert checkpoint.about(session.blobs.get("model-short.safetensors"))["step"] == 6


def test_with_no_step_the_model_is_the_checkpoint(weights, tmp_path):
    start = {"steps": 0, "checkpoint": weights}
    session = run_until("evaluate", points_config(tmp_path / "run", train=start))
    assert same(train.trained_model(session).state_dict(), load_file(weights))
    assert train.is_done(session)
    assert train.WEIGHTS not in session.blobs.names("")


def test_training_goes_on_from_the_checkpoint(trained, weights, tmp_path):
    start = {"steps": 3, "checkpoint": weights}
    session = run_until("train", points_config(tmp_path / "run", train=start))
    rows = train.step_rows(session, 0)
    loss = session.task.losses["cross-entropy"]
    first = loss(train.trained_model(trained), session.batch("train", rows)).mean().detach()
    assert train.loss_curve(session)[0] == pytest.approx(float(first), rel=1e-6)


def test_batch_statistics_and_counters_come_back(tmp_path):
    first = run_until("train", points_config(tmp_path / "first", task=NOISY))
    path = f"{first.blobs.root}/{train.WEIGHTS}"
    assert load_file(path)["1.num_batches_tracked"].dtype == torch.int64
    config = points_config(tmp_path / "run", task=NOISY, train={"steps": 0, "checkpoint": path})
    found = train.trained_model(run_until("train", config)).state_dict()
    assert same(found, train.trained_model(first).state_dict())


def test_what_is_in_the_file_counts_and_not_where_it_lies(weights, tmp_path, monkeypatch):
    copy = tmp_path / "copy.safetensors"
    shutil.copy(weights, copy)
    monkeypatch.chdir(tmp_path)
    one = points_config(tmp_path / "run", train={"checkpoint": weights})
    two = points_config(tmp_path / "run", train={"checkpoint": "copy.safetensors"})
    assert two.train.checkpoint == str(copy)
    assert one.context("x")["keys"] == two.context("x")["keys"]
    assert fingerprint(one) == fingerprint(two)
    assert (
        one.context("x")["keys"][""]["train"]
        != points_config("x").context("x")["keys"][""]["train"]
    )

    run_until("train", two)
    tensors = load_file(copy)
    tensors["0.bias"][0] += 1
    save_file(tensors, copy)
    with pytest.raises(InputError, match=r"another run \(differing: digest.checkpoint\)"):
        checked_session(two)


def test_a_bucket_will_do(weights, tmp_path):
    bucket = open_root("memory://weights")
    bucket.put("model.safetensors", Path(weights).read_bytes())
    start = {"steps": 0, "checkpoint": "memory://weights/model.safetensors"}
    session = run_until("train", points_config(tmp_path / "run", train=start))
    assert same(train.trained_model(session).state_dict(), load_file(weights))


def without(tensors):
    del tensors["0.bias"], tensors["2.bias"]


def with_more(tensors):
    tensors["head.weight"] = torch.zeros(2)


def wider(tensors):
    tensors["0.weight"] = torch.zeros(16, 4)


def poisoned(tensors):
    tensors["2.weight"][1, 3] = float("nan")
    tensors["2.weight"][1, 4] = float("inf")


def quantised(tensors):
    tensors["2.weight"] = tensors["2.weight"].to(torch.int8)


def poisoned_8_bits(tensors):
    tensors["2.weight"] = torch.full((2, 12), float("nan")).to(torch.float8_e4m3fn)


BAD = {
    quantised: r"'2.weight' is int8 in .* but float32 here; make the model the one that was saved",
    poisoned_8_bits: r"24 of 24 values of '2.weight' in .* are not finite; give",
    without: r"has no '0.bias', '2.bias'; make the model the one that was saved",
    with_more: r"has 'head.weight', which this model has not; make",
    wider: r"'0.weight' has shape \(16, 4\) in .* but \(12, 4\) here; make",
    poisoned: r"2 of 24 values of '2.weight' in .* are not finite; give",
}


@pytest.mark.parametrize("spoil", BAD)
def test_a_checkpoint_that_does_not_fit_is_refused_before_anything_is_written(
    spoil, weights, tmp_path
):
    tensors = load_file(weights)
    spoil(tensors)
    path = tmp_path / "bad.safetensors"
    save_file(tensors, path)
    refused(points_config(tmp_path / "run", train={"checkpoint": str(path)}), BAD[spoil])


def test_a_file_that_is_not_there_or_is_something_else_is_refused(tmp_path):
    (tmp_path / "text").write_text("no tensors in here, only text")
    (tmp_path / "empty").write_bytes(b"")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "pickle.pt")
    for name in ("text", "empty", "pickle.pt"):
        message = rf"{name} is not a safetensors file \(.*safetensors.torch.save_file"
        refused(
            points_config(tmp_path / "run", train={"checkpoint": str(tmp_path / name)}), message
        )
    absent = points_config(tmp_path / "run", train={"checkpoint": str(tmp_path / "absent")})
    refused(absent, r"absent: there is no such file; give a safetensors file")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "linked").symlink_to(tmp_path / "text")  # as download caches do
    linked = points_config(
        tmp_path / "run", train={"checkpoint": str(tmp_path / "snapshot" / "linked")}
    )
    refused(linked, r"linked is not a safetensors file")
    folder = points_config(tmp_path / "run", train={"checkpoint": str(tmp_path)})
    refused(folder, r"this is no regular file; give a safetensors file")


def test_another_width_of_the_receiver_names_the_setting(tmp_path):
    def config(widths, path=""):
        raw = {
            "task": "receiver",
            "out": str(tmp_path / "run"),
            "settings": {"scenario": {"prbs": 1, "train_slots": 96, "evaluation_slots": 48}},
            "train": {"steps": 0, "checkpoint": path},
            "curvature": {"steps": 4, "keep": 2},
        }
        raw["settings"]["model"] = {"widths": widths}
        return resolve(raw)

    path = str(tmp_path / "wide.safetensors")
    save_file(
        {k: v.contiguous() for k, v in config([8, 6]).identity.model().state_dict().items()}, path
    )
    message = r"'conv_in.weight' has shape \(8, 10, 3, 3\) in .* but \(4, 10, 3, 3\) here; make the"
    refused(config([4, 6], path), message + r" model .* \(settings.model.widths, ")


def refused(config, message):
    with pytest.raises(InputError, match=r"train\.checkpoint: .*" + message) as caught:
        checked_session(config)
    assert "\n" not in str(caught.value)
    assert not Path(config.out).exists()
