"""Plans: roofline and sharing of work by hand, speeds measured on a tiny task, what is refused."""

import io
import json
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

from distinf.cli import main
from distinf.config import resolve
from distinf.errors import InputError
from distinf.gram import gradients as gram_gradients
from distinf.gram import gram
from distinf.gram import scores as gram_scores
from distinf.planning import (
    calibration,
    devices,
    fitted,
    measuring,
    plan,
    plans,
    room,
    speeds,
    staging,
)  # fmt: skip
from distinf.planning.speeds import Rate, Speeds
from distinf.progress import plan_table
from distinf.runtime import Cost, RuntimeSettings
from distinf.spectral.session import Session
from distinf.store import Rows
from distinf.tasks.shapes import Shapes
from distinf.terminal import Terminal
from tests.gram.test_gram_route import session_of as gram_session
from tests.support.blobs_task import Points, points
from tests.support.blobs_task import task as points_task
from tests.support.runs import POINTS, merged

UNIT = devices.Device("unit", "none", 1e12, 1e12, 8e12, 16e12, 1e12, 1e10)


def session_of(tmp_path, **changes) -> Session:
    config = resolve({**merged(POINTS, changes), "out": str(tmp_path / "run")})
    return Session(config.context(str(tmp_path / "run")), torch.device("cpu"))


def configured(tmp_path, **changes):
    return resolve({**merged(POINTS, changes), "out": str(tmp_path / "run")})


def staged(found) -> dict[str, staging.StagePlan]:
    return {stage.stage: stage for stage in found}


# -- roofline ------------------------------------------------------------------------------


def test_arithmetic_or_traffic_whichever_is_longer():
    arithmetic = devices.roofline(UNIT, 1e9, 1e3, {}, {"product": 4})
    assert arithmetic["forward"].sample == pytest.approx(1e9 / 0.5e12)
    assert arithmetic["train"].sample == pytest.approx(3e9 / 0.5e12)
    assert arithmetic["product"].sample == pytest.approx(9e9 / 0.5e12)
    assert arithmetic["product"].batch == 4
    moved = devices.roofline(UNIT, 1e3, 1e9, {}, {}, method="loop")
    assert moved["forward"].sample == pytest.approx(2e9 / 0.4e12)
    assert moved["train"].sample == moved["gradient"].sample == pytest.approx(6e9 / 0.4e12)
    assert moved["product"].sample == pytest.approx(18e9 / 0.4e12)
    vmap = devices.roofline(UNIT, 1e3, 1e9, {}, {}, method="vmap")
    assert vmap["gradient"].sample == 2 * moved["gradient"].sample


def test_a_precision_has_its_own_peak_and_bfloat16_half_the_traffic():
    fast = devices.roofline(UNIT, 1e9, 1e3, {"train": "tf32", "product": "bfloat16"}, {})
    assert fast["train"].sample == pytest.approx(3e9 / 4e12)
    assert fast["product"].sample == pytest.approx(9e9 / 8e12)
    assert fast["gradient"].sample == pytest.approx(3e9 / 0.5e12)
    half = devices.roofline(UNIT, 1e3, 1e9, {"train": "bfloat16"}, {})
    assert half["train"].sample == pytest.approx(3e9 / 0.4e12)
    with pytest.raises(InputError, match=r"v100 has no bfloat16 .*set train.precision"):
        devices.roofline(devices.device("v100"), 1, 1, {"train": "bfloat16"}, {})


def test_a_rate_counts_batches_and_samples():
    rate = Rate(call=2.0, sample=0.5, batch=4)
    assert rate.seconds(8) == 2 * 2.0 + 8 * 0.5
    assert rate.seconds(8, calls=3) == 3 * 2.0 + 8 * 0.5


@pytest.mark.parametrize(
    ("name", "hint"), [("h1000", "did you mean 'h100'?"), ("quantum", "known: h200, h100")]
)
def test_an_unknown_gpu_is_refused_with_the_nearest(name, hint):
    with pytest.raises(InputError, match=r"--gpu .*: unknown") as caught:
        devices.device(name)
    assert hint in str(caught.value)
    assert devices.device("H100") is devices.DEVICES["h100"]


# -- stages --------------------------------------------------------------------------------


def test_units_go_to_whichever_worker_is_free():
    assert staging.makespan([3, 3, 2, 2, 2], 2) == 7
    assert staging.makespan([1] * 5, 2) == 3
    assert staging.makespan([1, 1], 8) == 1
    assert staging.makespan([], 4) == 0


FLAT = Speeds(
    flops=1.0,
    rates={n: Rate(0, 1.0) for n in ("forward", "train", "product", "gradient", "model")},
    unit_s=0.0,
    start_s=100.0,
    worker_s=0.0,
)


def test_a_gang_is_as_fast_as_the_rank_with_most_shards(tmp_path):
    session = session_of(tmp_path)  # 12 steps x 24 rows in 2 shards; products of 40 rows in 4
    for workers, train, curvature in ((1, 1.0, 1.0), (2, 0.5, 0.5), (3, 0.5, 0.5), (64, 0.5, 0.25)):
        found = staged(staging.stage_plans(session, workers, lambda _: FLAT))
        assert found["train"].seconds == pytest.approx(288 * train + 100.5, rel=1e-3)
        products, forward = 40 * (8 + 4 + 2), 40
        share = curvature * (products + forward)
        assert found["curvature"].seconds == pytest.approx(share + 0.5, rel=1e-3)
        assert found["train"].workers == min(workers, 2)
        assert found["curvature"].workers == min(workers, 4)
        assert found["gradients"].workers == min(workers, 4)  # its units
        assert found["scores"].workers == 1


def test_workers_that_a_later_stage_starts_are_waited_for(tmp_path):
    session, late = session_of(tmp_path), replace(FLAT, worker_s=7.0)
    found, before = (
        staged(staging.stage_plans(session, 4, lambda _, each=each: each)) for each in (late, FLAT)
    )
    later = {n: round(found[n].seconds - before[n].seconds, 6) for n in found if found[n].units}
    assert {name for name, seconds in later.items() if seconds} == {"curvature"}  # 4, after 2
    assert later["curvature"] == found["curvature"].parts["fixed start"] - 0.5 == 7.0


def test_fresh_products_look_at_their_rows_before(tmp_path):
    curvature = {"fresh": True}
    found = staged(
        staging.stage_plans(session_of(tmp_path, curvature=curvature), 1, lambda _: FLAT)
    )
    assert found["curvature"].seconds == pytest.approx(40 * (8 + 4 + 2 + 1 + 8) + 0.5, rel=1e-3)


def test_a_pool_is_as_fast_as_its_units_allow(tmp_path):
    session = session_of(tmp_path)  # 240 rows in units of 60
    for workers, rows in ((1, 240), (3, 120), (4, 60), (100, 60)):
        found = staged(staging.stage_plans(session, workers, lambda _: FLAT))
        assert found["gradients"].seconds == pytest.approx(rows + 0.5, rel=1e-3)


def test_bytes_that_are_read_and_that_cross_hosts(tmp_path):
    session = session_of(tmp_path)
    over = replace(FLAT, network=10.0)
    alone = staged(staging.stage_plans(session, 2, lambda _: FLAT))
    found = staged(staging.stage_plans(session, 2, lambda _: over))
    assert not any(stage.network for stage in alone.values())
    vector = 4.0 * session.outline.shapes.parameters
    model = 3 * vector  # with two moments, once for each worker
    train, curvature, gradients = (found[name] for name in ("train", "curvature", "gradients"))
    assert train.read == 0
    # Of two ranks each sends its one of 2 shards in float64, at each of 12 steps.
    assert train.network == train.bytes + 12 * 2 * 2 * vector
    assert found["evaluate"].read == model  # of one worker, as there is one unit
    assert curvature.read == model  # of the other
    products, steps, kept = 8 + 4 + 2, 8, 4
    summed = (4 * products + steps + kept) * vector  # 4 shards; the next vector; the pairs
    assert curvature.network == curvature.read + curvature.bytes + summed
    assert found["queries"].read == 2 * 4 * vector  # for solves, each rank the pairs' directions
    assert gradients.read == 2 * 2 * vector  # each worker the queries' gradients
    assert gradients.network == gradients.read + gradients.bytes
    took = train.network / 2 / 10.0 - train.parts["store writes"]
    assert train.seconds == pytest.approx(alone["train"].seconds + took, rel=1e-6)
    assert train.bound == "network"
    assert alone["train"].bound == "compute"


def test_rows_are_read_by_who_works_on_them_or_once(tmp_path):
    outline = session_of(tmp_path, data={"cache_mb": 1e-3}).outline
    rows = {"train": 100.0, "evaluation": 1.0}
    large = replace(outline, shapes=replace(outline.shapes, row_bytes=rows))
    work = {"product": 40, "screen": 8, "forward": 3, "checkpoint": 1}
    assert speeds.row_bytes(large, work) == (4800.0, {"rows of evaluation": 64.0})


def test_trainings_by_gangs_go_side_by_side_as_workers_allow(tmp_path):
    zero = {"zero_optimization": {"stage": 2}}
    train = {"epochs": 3, "batch_size": 10, "devices": 2, "deepspeed": zero}
    session = gram_session(tmp_path, train=train)  # two cells of 60 rows, 2 x 12 evaluated
    flat = replace(FLAT, network=1e9, start_s=0.0)
    for workers, at_once in ((1, 1), (2, 1), (3, 1), (4, 2), (9, 2)):
        found = staged(staging.stage_plans(session, workers, lambda _: flat))["train"]
        ranks = min(workers, 2)
        one = (3 * 60 + 3 * 24) / ranks
        assert found.seconds == pytest.approx(2 * one / at_once + 0.5, rel=1e-3)
        assert found.workers == ranks * at_once
        summed = 2 * 3 * 6 * 2 * 4.0 * 86  # two cells, 3 epochs of 6 steps, both ways
        rest = found.read + found.bytes
        assert found.network - rest == pytest.approx((ranks - 1) * summed, abs=1e-3)
        assert found.asked.most == 4


def test_tiles_are_read_from_the_gradients_and_the_scores_from_the_tiles(tmp_path):
    session = gram_session(tmp_path)  # 60 rows, 12 queries; slab 0 is 36 wide, in float32
    found = {}
    for stage in (gram_gradients, gram, gram_scores):
        for unit, cost in stage.units(session.outline):
            place = unit.job.get("phase"), unit.job.get("slab"), unit.start, unit.stop
            found.setdefault((stage.NAME, *place, *unit.job.get("columns", [])), cost)
    loaded = found["gradients", None, None, 0, 17].loaded
    assert loaded == {"model": 4.0 * 300, "rows of words-0": 5760.0}
    assert found["gram", "cross", 0, 0, 25].read == 25 * 36 * 4
    assert found["gram", "cross", 0, 0, 25].loaded == {"cross words-0 0": 12 * 36 * 4}
    assert found["gram", "self", 0, 25, 50, 0, 25].read == (25 + 25) * 36 * 4
    assert found["gram", "sums", 0, 0, 60].read == 60 * 36 * 4 + 60 * 12 * 8
    assert found["gram", "correction", 0, 50, 60].read == 10 * 36 * 4
    assert found["scores", None, 0, 0, 0].read == 2 * 60 * 12 * 8  # cross and correction


@pytest.mark.parametrize(
    ("cost", "bound"),
    [
        (Cost(work={"forward": 3}), "memory bandwidth"),
        (Cost(work={"forward": 1, "train": 3}), "compute"),
        (Cost(work={"gradient": 1}), "store reads"),
        (Cost(work={"gradient": 1}, calls={"gradient": 9}), "batches"),
        (Cost(read=9e9, work={"forward": 3}), "store reads"),
        (Cost(bytes=9e9, work={"forward": 3}), "store writes"),
        (Cost(work={"model": 4, "forward": 1}), "loading"),
        (Cost(flops=4.0), "compute"),
    ],
)
def test_what_most_of_a_units_time_goes_into(cost, bound):
    rates = {
        "forward": devices.longer(0.0, 0.5, 1.0), "train": devices.longer(0.0, 1.0, 0.5),
        "gradient": Rate(0.5, 1.0).plus("store reads", 2.0), "model": Rate(0.0, 1.0),
    }  # fmt: skip
    found = Speeds(flops=1.0, rates=rates, unit_s=0.0)
    parts = found.unit_parts(cost)
    assert staging.most(parts) == bound
    assert sum(parts.values()) == pytest.approx(
        found.seconds(cost) + found.commit_s(cost) + cost.read / speeds.READ_BYTES_S
    )


def test_work_without_a_rate_goes_by_its_flops():
    known = Cost(flops=6.0, work={"forward": 2, "checkpoint": 1})
    assert FLAT.seconds(known) == 2.0
    assert FLAT.seconds(Cost(flops=6.0, work={"unheard of": 2})) == 6.0
    assert FLAT.seconds(Cost(flops=6.0)) == 6.0
    assert Speeds(flops=3.0).seconds(known) == 2.0


def test_a_variation_is_planned_for_what_it_adds(tmp_path):
    changes = {"more damping": {"scores.damping": 0.1}}
    alone = staged(plans.quick_plans(session_of(tmp_path), configured(tmp_path).runtime))
    config = configured(tmp_path, variations=changes)
    session = Session(config.context(str(tmp_path / "run")), torch.device("cpu"))
    found = staged(plans.quick_plans(session, config.runtime))
    assert "more damping: curvature" not in found
    assert found["curvature"].units == alone["curvature"].units
    assert found["more damping: scores"].units == alone["scores"].units
    assert list(found)[-1] == "report"


def test_rows_that_memory_does_not_hold_are_read_again(tmp_path):
    session = session_of(tmp_path, data={"cache_mb": 1e-3})
    outline = session.outline
    rates = {"random row": Rate(0, 0.25), "row in order": Rate(0, 0.125)}
    slow = Speeds(flops=1.0, rates={**FLAT.rates, **rates})
    small = replace(outline, shapes=replace(outline.shapes, row_bytes={"train": 1.0}))
    large = replace(outline, shapes=replace(outline.shapes, row_bytes={"train": 100.0}))
    session.outline = small
    assert [lever.bytes for lever in session.kept_rows()] == [240]
    session.outline = large
    assert not session.kept_rows()
    assert speeds.reading(slow, small).rates["train"].sample == 1.0
    read = speeds.reading(slow, large).rates
    assert (read["train"].sample, read["product"].sample) == (1.25, 1.25)
    assert read["screen"].sample == 1.25
    assert (read["gradient"].sample, read["forward"].sample) == (1.125, 1.0)


def test_speeds_of_another_model_go_by_its_flops(tmp_path):
    outline = session_of(tmp_path).outline
    shapes = outline.shapes
    twice = replace(outline, shapes=replace(shapes, flops_per_sample=2 * shapes.flops_per_sample))
    found = speeds.scaled(FLAT, outline, twice).rates
    assert found["train"].sample == 2.0
    assert found["model"].sample == 1.0


# -- measured ------------------------------------------------------------------------------


class Made:
    """The points task, its rows made in the data stage; the first time takes longer."""

    def __init__(self, seed: int):
        self._inner = points_task(Points(), seed)
        self._rows: dict = {}
        self._started = False

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def rows_per_unit(self, split):
        return 60 if split == "train" else 32

    def generate(self, split, start, stop):
        until = time.process_time() + (0.01 if self._started else 0.3)
        while time.process_time() < until:
            pass
        self._started = True
        return {name: values.numpy() for name, values in points(stop - start, start).items()}

    def attach(self, split, rows):
        self._rows[split] = rows

    def batch(self, split, ids):
        taken = self._rows[split].take(ids)
        return {name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in taken.items()}


def made(settings: Points, seed: int) -> Made:
    return Made(seed)


def broken(settings: Points, seed: int):
    """A task that fails as soon as rows are made."""
    task = Made(seed)
    task.generate = lambda split, start, stop: 1 / 0
    return task


def test_speeds_are_measured_on_as_many_processes_as_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "SECONDS", 0.02)
    seen = []
    measured = calibration.measured
    monkeypatch.setattr(
        calibration, "measured", lambda *arguments: seen.append(measured(*arguments)) or seen[0]
    )
    changes = {"task": "tests.test_planning:made", "runtime": {"kind": "ray", "workers": 2}}
    found = plan(configured(tmp_path, **changes))
    assert not (tmp_path / "run").exists()
    assert "on 2 processes at once" in found.notes[0]
    rates, busy = seen[0].rates, 1 / seen[0].share
    started, again = rates["generate train"].first, rates["generate train"].sample * 60
    assert started == pytest.approx(0.29 * busy, rel=0.2)
    assert again == pytest.approx(0.01 * busy, rel=0.5)
    assert rates["train"].batch == 12
    for name in ("forward", "train", "product", "gradient"):
        assert 0 < rates[name].seconds(12, 1) < 0.5 * busy
    stages = staged(found.stages)
    assert stages["data"].units == 6
    assert stages["data"].seconds > seen[0].start_s + started + 3 * again
    assert all(stage.seconds > 0 for stage in found.stages if stage.units)
    fixed = len([stage for stage in found.stages if stage.units]) * speeds.STAGE_S
    slowed = (found.seconds - fixed - speeds.REPORT_S) * seen[0].share
    assert found.idle_seconds - fixed - speeds.REPORT_S == pytest.approx(slowed, rel=0.05)


def test_rows_are_read_from_many_units(tmp_path, monkeypatch):
    opened = []

    class Watched(Rows):
        def _checked(self, owner):
            opened.append(owner)
            return super()._checked(owner)

    monkeypatch.setattr(measuring, "Rows", Watched)
    session = session_of(tmp_path, task="tests.test_planning:made")
    meter = measuring.Meter(session, {}, 0.01, 1)
    meter.generate()
    assert meter.rows()["random row"]["sample"] > 0
    assert sorted(opened) == [0, 1, 2, 3]  # 240 rows in units of 60, opened once each


def test_a_task_that_cannot_be_measured_says_so_in_one_line(tmp_path):
    config = configured(tmp_path, task="tests.test_planning:broken")
    with pytest.raises(InputError, match=r"ZeroDivisionError.*as in --gflops 10$"):
        plan(config)
    assert plan(config, gflops=10).seconds > 0


# -- refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--gpu", "h1oo"], "did you mean 'h100'?"),
        (["--gpu", "h100", "--gpus", "0"], "--gpus 0: give at least 1"),
        (["--gpus", "8"], "say of which kind, as in --gpu h100"),
        (["--gpu", "h100", "--gflops", "3"], "leave it out with --gpu"),
        (["--gflops", "-1"], "give a number above 0"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, capsys, arguments, told):
    file = tmp_path / "points.yaml"
    file.write_text(yaml.safe_dump({**POINTS, "out": str(tmp_path / "run")}))
    assert main(["plan", str(file), *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert told in lines[-1]


def test_what_no_gpu_and_no_machine_holds_is_refused_with_its_setting(tmp_path):
    wide = {"settings": {"width": 100_000}, "gradients": {"chunk": 20_000}}
    with pytest.raises(InputError, match=r"a worker needs .* of GPU memory .*t4.*gradients.chunk="):
        plan(configured(tmp_path, **wide), gpu="t4")
    with pytest.raises(InputError, match=r"but this machine has .* GB; .*gradients.chunk="):
        plan(configured(tmp_path, **wide), gflops=10)


def test_what_fits_is_printed_as_settings_that_then_plan(tmp_path, capsys):
    file, wide = tmp_path / "points.yaml", {"settings": {"width": 100_000}}
    raw = merged(POINTS, {**wide, "gradients": {"chunk": 20_000}, "out": str(tmp_path / "run")})
    file.write_text(yaml.safe_dump(raw))
    assert main(["plan", str(file), "--gpu", "t4"]) == 2
    capsys.readouterr()
    assert main(["plan", str(file), "--gpu", "t4", "--fit"]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert line.startswith("fits with: --set gradients.chunk=")
    assert main(["plan", str(file), "--gpu", "t4", *line.split()[2:]]) == 0


def test_settings_are_lowered_until_nothing_is_refused():
    needed = [{"train.batch_size": 8}, {"gradients.chunk": 4}]

    def planned(changes):
        for way in needed:
            if way.items() - changes.items():
                set_to = " and ".join(f"set {key}={value}" for key, value in way.items())
                raise room.Overfull("train: too much", [set_to], "take a larger GPU")
        return "a plan"

    assert fitted(planned) == ("a plan", {"train.batch_size": 8, "gradients.chunk": 4})
    needed.append({"train.batch_size": 16})  # which the first one takes back
    with pytest.raises(InputError, match=r"--fit: nothing fits"):
        fitted(planned)
    needed[:] = []
    assert fitted(planned) == ("a plan", {})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to measure")
def test_a_gpu_that_is_not_here_cannot_be_measured(tmp_path):
    with pytest.raises(InputError, match=r"no GPU here to measure; name one, as in --gpu h100"):
        plan(configured(tmp_path, runtime={"kind": "ray", "num_gpus": 1}))


# -- memory by part ------------------------------------------------------------------------


@pytest.mark.parametrize("gpus", [0.0, 1.0])
def test_a_peak_is_the_sum_of_its_parts(tmp_path, gpus):
    runtime = RuntimeSettings(kind="ray", num_gpus=gpus, address="elsewhere:1")
    session = session_of(tmp_path, scores={"ekfac": True}, trajectory={"checkpoints": 2})
    for stage in plans.quick_plans(session, runtime):
        if stage.units:
            assert sum(stage.memory_parts.values()) == pytest.approx(stage.memory)
            assert sum(stage.gpu_parts.values()) == pytest.approx(stage.gpu_memory)
            assert stage.memory_parts["process"] == speeds.PROCESS_BYTES
    held = staged(plans.quick_plans(session, runtime))["train"]
    parts = held.gpu_parts if gpus else held.memory_parts
    trained = 4.0 * session.outline.shapes.parameters
    known = (parts["weights"], parts["gradients"], parts["optimizer"])
    assert known == (trained, trained, 2 * trained)


def test_a_row_is_padded_to_the_longest_of_those_drawn_with_it():
    shapes = Shapes(1, 1.0, 1.0, lengths=(2, 4, 6))
    assert shapes.padded(1) == pytest.approx(1.0)
    # Of two draws of three the longest is 2, 4, 6 in 1, 3 and 5 of 9.
    assert shapes.padded(2) == pytest.approx((2 + 3 * 4 + 5 * 6) / 9 / 4)
    assert shapes.padded() == 6 / 4
    assert Shapes(1, 1.0, 1.0).padded(8) == 1.0


def test_frozen_weights_and_recomputed_layers_are_counted():
    whole, adapters = Shapes(100, 1.0, 8.0), Shapes(100, 1.0, 8.0, trained=10)
    assert whole.forwards == {"forward": 1.0, "train": 3.0, "gradient": 3.0, "product": 9.0}
    assert adapters.forwards["gradient"] == pytest.approx(2.1)
    assert adapters.forwards["product"] == pytest.approx(4.5)
    known = replace(whole, recomputed_bytes_per_sample=3.0)
    assert [known.activations(again) for again in (False, True)] == [8.0, 3.0]
    assert whole.activations(True) == 8.0


def test_a_plan_says_what_the_driver_and_the_peak_of_a_worker_hold(tmp_path):
    found = plan(configured(tmp_path), gpu="h100", gpus=2)
    out = io.StringIO()
    plan_table(found, Terminal(file=out, width=200))
    text = out.getvalue()
    assert "most of a worker's GPU, in " in text
    assert "most of a worker's host, in " in text
    assert "(process 400 MB, " in text
    assert "the driver's host: " in text
    assert found.as_json()["driver"] == found.driver
    assert sum(found.driver.values()) > speeds.PROCESS_BYTES


# -- printed -------------------------------------------------------------------------------


def test_nothing_is_cut_off_however_narrow_the_output(tmp_path):
    found = plan(configured(tmp_path), gpu="h100", gpus=8)
    out = io.StringIO()
    plan_table(found, Terminal(file=out, width=30))
    text = out.getvalue()
    assert "…" not in text
    assert "Plan for 8 x h100" in text
    for stage in found.stages:
        assert not stage.units or stage.stage in text
    assert "GPU-hours" in text
    assert all(word in text for word in ("stored", "read", "network", "bound by"))
    assert "bound by memory bandwidth" in text or "bound by fixed start" in text
    assert "roofline at 50% of peak FLOP/s and 40% of memory bandwidth" in text


def test_the_numbers_of_a_plan_as_json(tmp_path, capsys):
    file = tmp_path / "points.yaml"
    file.write_text(yaml.safe_dump({**POINTS, "out": str(tmp_path / "run")}))
    assert main(["plan", str(file), "--gpu", "a100", "--gpus", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["workers"] == found["gpus"] == 2
    assert found["seconds"] == pytest.approx(sum(s["seconds"] for s in found["stages"]))
    for each in (found, *(stage for stage in found["stages"] if stage["units"])):
        assert each["parts"][each["bound"]] == max(each["parts"].values())
    assert all(s["network"] >= s["read"] + s["bytes"] for s in found["stages"])
    total = sum(s["parts"].get("compute", 0) for s in found["stages"])
    assert found["parts"].get("compute", 0) == pytest.approx(total)
