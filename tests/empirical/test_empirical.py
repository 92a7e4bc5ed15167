"""The empirical recipe, on the vision study with images that are made here."""

import csv
import io
import json
import re
import shutil
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pytest
import torch
import yaml
from matplotlib.figure import Figure
from torch import nn

from distinf.cli import main
from distinf.config import load, resolve
from distinf.empirical.base import based_model
from distinf.empirical.matrix import finite, measured
from distinf.empirical.measures import noise, relations
from distinf.empirical.rates import _lowest
from distinf.empirical.table import in_words
from distinf.engine.run import execute
from distinf.errors import InputError
from distinf.numerics.randomness import generator
from distinf.report import maps
from distinf.report.empirical import figures
from distinf.report.empirical.figures import pairwise
from distinf.report.formats import number
from distinf.studies.fashion_digits.task import cross_entropy
from distinf.tasks.tensor_task import TensorTask
from tests.support.runs import silent

PER_CLASS = 2
STRANGE = f"{__name__}:strange"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Ten shapes, a little different each time."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    shapes = random.integers(0, 200, (10, 28, 28))
    for name, each in (("clothes", 12), ("digits", PER_CLASS + 1)):
        y = np.repeat(np.arange(10), each)
        x = np.clip(shapes[y] + random.integers(-40, 40, (len(y), 28, 28)), 0, 255)
        np.savez(folder / f"{name}.npz", x=x.astype(np.uint8), y=y)
    return folder


def raw(files, out, tune=None, **more):
    settings = {
        "clothes": str(files / "clothes.npz"), "digits": str(files / "digits.npz"),
        "per_class": PER_CLASS, "noise": [0.5], "epochs": 1, **more.pop("settings", {}),
    }  # fmt: skip
    return {
        "task": "fashion_digits", "recipe": "empirical", "out": str(out), "settings": settings,
        "runtime": {"kind": "local"}, "tune": {"lr": 0.05, "first_order": True} | (tune or {}),
        **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("empirical") / "run"
    variations = {"adamw": {"tune.optimizer": "adamw", "tune.lr": 0.001}}
    asked = raw(files, out, variations=variations, report={"matrix": "eq4"})
    return execute(resolve(asked), silent)


def test_the_matrix_is_that_of_training_on_each_row_in_a_plain_loop(run):
    found = measured(run)
    task, base = run.task, based_model(run)
    everything = task.batch("evaluation", np.arange(task.rows("evaluation")))
    with torch.no_grad():
        before_E = cross_entropy(base, everything).double()
    np.testing.assert_allclose(found.before_E, before_E, atol=1e-6)
    for row in (0, 7, 25, 39):
        model = based_model(run)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        cross_entropy(model, task.batch("train", np.array([row]))).mean().backward()
        optimizer.step()
        with torch.no_grad():
            influence_E = before_E - cross_entropy(model, everything).double()
        np.testing.assert_allclose(found.influence_NE[row], influence_E, atol=2e-6)
    assert found.influence_NE.shape == (4 * 10 * PER_CLASS // 2, 4 * 10 * PER_CLASS // 2)
    assert np.diag(found.influence_NE).min() > 0  # training on a row helps the row


def test_the_base_is_trained_once_and_other_units_give_the_same_matrix(run, files, tmp_path):
    assert len(run.ledger("base").read()) == 1  # the variation shares it
    other = raw(files, tmp_path / "run", {"rows_per_unit": 7})
    again = execute(resolve(other), silent)
    assert len(again.ledger("tuning").read()) == 6
    np.testing.assert_array_equal(measured(again).influence_NE, measured(run).influence_NE)


def test_a_run_that_lost_units_makes_them_again_bit_for_bit(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run.blobs.root, folder)
    lost = sorted((folder / "ledger/tuning").iterdir())[0]
    lost.unlink()
    again = execute(load(str(folder)), silent)
    np.testing.assert_array_equal(measured(again).influence_NE, measured(run).influence_NE)
    assert main(["verify", str(folder)]) == 0


def test_a_measured_influence_is_not_evaluated(run, capsys):
    assert main(["evaluate", run.blobs.root]) == 2
    told = capsys.readouterr().err
    assert "its influence is not foretold but measured, by training on one row at a time" in told
    assert "Traceback" not in told


def test_tables_are_of_the_matrix(run):
    report = json.loads(run.blobs.get("report/noise.json"))
    found = finite(measured(run))
    clean, noisy = found.block("", ""), found.block("0.5", "")
    groups = found.groups()
    same = (groups[:, None] == groups[None]) & ~np.eye(len(groups), dtype=bool)
    wanted = (noisy - clean)[same].mean()
    (row,) = [r for r in report if r["contrast"].startswith("from noisy") and not r["run"]
              and r["relation"] == "same class"]  # fmt: skip
    assert row["mean"] == pytest.approx(wanted)
    assert row["holds_pct"] == pytest.approx(100 * ((noisy - clean)[same] < 0).mean())
    own = [r for r in relations(found) if r["relation"] == "itself" and r["trained"] == "clean"]
    assert own[0]["mean"] == pytest.approx(np.diag(clean).mean())
    order = json.loads(run.blobs.get("report/first_order.json"))
    told = found.block("", "", first_order=True)
    r2 = 1 - ((clean - told) ** 2).sum() / (clean**2).sum()
    assert order[0]["r2"] == pytest.approx(r2)
    stored = np.load(f"{run.blobs.root}/report/influence.npy", allow_pickle=False)
    np.testing.assert_array_equal(stored, measured(run).influence_NE)


def test_costs_are_of_the_variations_too(run):
    *each, total = json.loads(run.blobs.get("report/costs.json"))
    names = ["base", "rates", "tuning", "adamw: rates", "adamw: tuning"]
    assert [row["stage"] for row in each] == names
    assert total["units"] == sum(row["units"] for row in each) == 1 + 2 * (3 + 4)


def test_each_picture_of_noise_has_colours_of_its_own(run):
    """Noisy samples have far larger influences, which would all be of full colour."""
    canvas, found = Figure(), finite(measured(run))
    figures.blocks(found, canvas)
    titles = [axes.title.get_text() or axes.get_title(loc="left") for axes in canvas.axes]
    sizes = [np.abs(found.block(*of)) for of in product(("", "0.5"), repeat=2)]
    wanted = [number(float(np.percentile(size, figures.STRONG))) for size in sizes]
    assert [title.rpartition(" ")[2] for title in titles] == wanted
    assert len({*wanted}) == 4


def test_the_whole_matrix_is_a_table_whose_heading_says_its_sign(run):
    lines = csv.DictReader(io.StringIO(run.blobs.get("report/matrix.csv").decode()))
    found, (heading, *columns) = measured(run), lines.fieldnames
    assert heading == "Eq. 4: loss after less before, below 0 where the column is learned"
    rows = list(lines)
    assert [row[heading] for row in rows] == columns
    assert columns[3::20] == ["sample 3 1", "sample 3 1, noise 0.5"]
    values = np.array([[float(row[name]) for name in columns] for row in rows])
    np.testing.assert_array_equal(values, -found.influence_NE)
    ours = [list(row.values()) for row in in_words(found, "influence")]
    assert ours[7][1:] == found.influence_NE[7].tolist()
    assert next(iter(next(in_words(found, "influence")))).startswith("influence: above 0, tuning")


def test_the_kernel_view_is_drawn_beside_what_was_measured(run, monkeypatch):
    drawn = []
    monkeypatch.setattr(maps, "show", lambda axes, values: drawn.append(values))
    found = finite(measured(run))
    told = replace(found, influence_NE=found.first_order_NE)
    pairwise({"measured": found, "first order": told}, Figure())
    strong = np.percentile(np.abs(found.block("", "")), 99)
    for values, first_order in zip(drawn, (False, True), strict=True):
        wanted = found.block("", "", first_order=first_order) / strong
        np.testing.assert_allclose(values, wanted)
    assert "Measured, and its first order" in run.blobs.get("report/index.html").decode()


def test_the_same_noise_in_both_copies_is_asked_for(files, tmp_path):
    same = resolve(raw(files, tmp_path / "a", settings={"same_noise": True})).identity
    own = resolve(raw(files, tmp_path / "b")).identity
    rows = np.arange(40)
    pairs = [(t.batch("train", rows)["x"], t.batch("evaluation", rows)["x"]) for t in (same, own)]
    assert torch.equal(*pairs[0])
    assert torch.equal(pairs[1][0][:20], pairs[1][1][:20])  # clean ones
    assert not torch.equal(pairs[1][0][20:], pairs[1][1][20:])
    noise = (pairs[1][0][20:] - pairs[1][0][:20]).std()
    assert noise == pytest.approx(0.5, rel=0.02)
    variance = resolve(raw(files, tmp_path / "c", settings={"noise_is": "variance"})).identity
    x = variance.batch("train", rows)["x"]
    assert (x[20:] - x[:20]).std() == pytest.approx(0.5**0.5, rel=0.02)


@pytest.mark.parametrize(
    ("tune", "settings", "why"),
    [
        ({"lr": 1e-11}, {}, r"tune.lr: steps at 1e-11 are too small .* on 8 rows; raise tune.lr"),
        ({"blocks": "nothing"}, {}, "blocks"),
        ({}, {"per_class": 4}, "settings.per_class: .* has 3 images of 0, fewer than 4"),
        ({}, {"digits": "nowhere.npz"}, "no such file"),
        ({}, {"noise": [0.0]}, "noise"),
        ({}, {"noise": [0.5, 0.5]}, "noise: .* has a level twice"),
    ],
)
def test_what_cannot_be_measured_is_one_line(files, tmp_path, capsys, tune, settings, why):
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump(raw(files, tmp_path / "run", tune, settings=settings))
    )
    assert main(["run", str(tmp_path / "run.yaml")]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert re.search(why, line), line


@dataclass(frozen=True)
class Nothing:
    """No settings."""


def strange(settings: Nothing, seed: int):
    """A task that says nothing of its rows; tuning on its last row diverges."""
    x = torch.linspace(-1, 1, 24).view(8, 3)
    x[-1] = 1e20
    return TensorTask(
        lambda: nn.Linear(3, 1),
        {"train": {"x": x}, "evaluation": {"x": x[:5] + 0.01}},
        {"squared": lambda model, batch: model(batch["x"])[:, 0] ** 2},
        seed=seed,
    )


def test_rows_on_which_it_diverges_are_kept_and_marked(tmp_path, capsys):
    raw = {"task": STRANGE, "recipe": "empirical", "out": str(tmp_path / "run"),
           "runtime": {"kind": "local"}, "tune": {"lr": 0.1}}  # fmt: skip
    found = measured(execute(resolve(raw), silent))
    bad = ~np.isfinite(found.influence_NE).all(1)
    assert bad.tolist() == [False] * 7 + [True]
    assert finite(found).influence_NE.shape == (7, 5)
    assert not list(noise(found))
    assert main(["report", str(tmp_path / "run")]) == 0
    page = (tmp_path / "run/report/index.html").read_text()
    assert "diverged on 1 of 8 rows (7), which are left out" in page


def test_relations_of_another_length_are_refused(run, monkeypatch):
    monkeypatch.setattr(type(run.task), "relations", lambda self, split: {"sample": np.arange(3)})
    with pytest.raises(InputError, match=r"relations\('train'\) has 'sample' of shape \(3,\)"):
        measured(run)


def known(settings: Nothing, seed: int):
    """Half of the rows have next to no gradient, so that rounding swallows their steps."""
    x = torch.linspace(-1, 1, 24).view(8, 3)
    weight = torch.where(torch.arange(8) % 2 == 0, 1.0, 1e-9)
    return TensorTask(
        lambda: nn.Linear(3, 1),
        {"train": {"x": x, "w": weight}, "evaluation": {"x": x[:5] + 0.01, "w": weight[:5]}},
        {"squared": lambda model, batch: batch["w"] * model(batch["x"])[:, 0] ** 2},
        seed=seed,
    )


def test_rows_that_are_known_already_stop_no_run(tmp_path):
    raw = {"task": f"{__name__}:known", "recipe": "empirical", "out": str(tmp_path / "run"),
           "runtime": {"kind": "local"}, "tune": {"lr": 0.1}}  # fmt: skip
    found = measured(execute(resolve(raw), silent))
    assert (found.taken_N[::2] > 0.99).all()
    assert (found.taken_N[1::2] < 0.9).all()


def related(columns, evaluated=None, rows=8, model=None, x=None):
    """A task whose rows belong together as the columns say."""
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(0)) if x is None else x
    data = {"x": x, "label": torch.arange(rows) % 3}

    class Told(TensorTask):
        def relations(self, split):
            return columns if split == "train" or evaluated is None else evaluated

    def loss(model, batch):
        scores = model(batch["x"].to(next(model.parameters()).dtype))
        return nn.functional.cross_entropy(scores, batch["label"], reduction="none")

    data = {"train": data, "evaluation": data}
    return Told(model or (lambda: nn.Linear(4, 3)), data, {"ce": loss}, shared_rows=True)


TASKS = {
    "some": lambda: related(
        {"sample": [3, 2, 1, 0, 4, 3, 1, 2], "level": [""] * 5 + ["n"] * 3, "group": [*"babababc"]}
    ),
    "one split": lambda: related(
        {"sample": [0, 1, 2, 3] * 2, "level": [""] * 4 + ["n"] * 4}, {"sample": range(8)}
    ),
    "text": lambda: related({"sample": ["a"] * 8}),
    "missing": lambda: related({"sample": [*range(7), np.nan]}),
    "none": lambda: related({"group": [None] * 8}),
    "number": lambda: related({"level": [0.0] * 8}),
    "twice": lambda: related({"sample": [*range(7), 6]}),
}


@dataclass(frozen=True)
class Named:
    name: str


def told(settings: Named, seed: int):
    return TASKS[settings.name]()


def raw_told(name, out, **tune):
    return {"task": f"{__name__}:told", "recipe": "empirical", "settings": {"name": name},
            "out": str(out), "runtime": {"kind": "local"}, "tune": {"lr": 0.1, **tune}}  # fmt: skip


def test_samples_that_stand_at_some_levels_are_compared_with_themselves(tmp_path):
    found = measured(execute(resolve(raw_told("some", tmp_path / "run")), silent))
    both = [3, 1, 2]  # clean in the groups b, b, a
    clean, noisy, asked = [0, 2, 1], [5, 6, 7], ~np.eye(3, dtype=bool)
    whole = found.influence_NE
    wanted = whole[np.ix_(noisy, clean)] - whole[np.ix_(clean, clean)]
    rows = [r for r in noise(found) if r["contrast"].startswith("from noisy")]
    assert sorted(found.samples(("", 0), ["", "n"], [""])) == sorted(both)
    alike = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=bool)
    same = next(r for r in rows if r["relation"] == "same class")
    assert same["mean"] == pytest.approx(wanted[alike & asked].mean())
    others = next(r for r in rows if r["relation"] == "other classes")
    each = [np.mean(row[mask]) for row, mask in zip(wanted, ~alike, strict=True)]
    assert others["mean"] == pytest.approx(np.mean(each))


def test_levels_of_one_split_are_compared_where_they_can_be(tmp_path):
    session = execute(resolve(raw_told("one split", tmp_path / "run")), silent)
    found = measured(session)
    whole = found.influence_NE
    (row,) = noise(found)
    difference = (whole[4:, :4] - whole[:4, :4])[~np.eye(4, dtype=bool)]
    assert row["mean"] == pytest.approx(difference.mean())


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("text", "has 'sample' of <U1; give whole numbers"),
        ("missing", "has 'sample' of float64; give whole numbers"),
        ("none", "has 'group' of object; give texts"),
        ("number", "has 'level' of float64; give texts"),
        ("twice", "has two rows of sample 6, level '', matrix '', draw 0"),
    ],
)
def test_relations_of_another_kind_are_one_line(tmp_path, capsys, name, why):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(raw_told(name, tmp_path / "run")))
    assert main(["run", str(tmp_path / "run.yaml")]) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    assert why in line
    assert not list((tmp_path / "run").glob("ledger/*/*"))


class Half(nn.Module):
    """Stored in bfloat16, with a running mean and a frozen layer."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)
        self.bfloat16()
        self.a.weight.requires_grad_(False)

    def forward(self, x):
        return self.b(torch.relu(self.norm(self.a(x))))


TASKS["half"] = lambda: related({"sample": range(8)}, model=Half)


@pytest.mark.parametrize(("blocks", "tuned"), [("all", 5), ("norm", 2)])
def test_part_of_a_model_in_half_precision_is_tuned_in_float32(tmp_path, blocks, tuned):
    raw = raw_told("half", tmp_path / "run", blocks=blocks, first_order=True)
    session = execute(resolve(raw), silent)
    found, task = measured(session), session.task
    model = task.model().float().eval()
    chosen = [
        p for n, p in model.named_parameters() if n != "a.weight" and blocks in ("all", n[:4])
    ]
    everything, loss = task.batch("evaluation", np.arange(8)), task.losses["ce"]
    assert len(chosen) == tuned
    before = loss(model, everything)
    slopes = torch.stack(
        [torch.cat([g.ravel() for g in torch.autograd.grad(each, chosen, retain_graph=True)])
         for each in before]
    )  # fmt: skip
    np.testing.assert_allclose(found.first_order_NE, 0.1 * slopes @ slopes.T, atol=1e-5)
    with torch.no_grad():
        for p, g in zip(chosen, slopes[3].split([p.numel() for p in chosen]), strict=True):
            p -= 0.1 * g.view_as(p)
        wanted = before - loss(model, everything)
    np.testing.assert_allclose(found.influence_NE[3], wanted.numpy(), atol=1e-5)


def test_a_row_on_which_it_diverges_hides_no_lost_steps(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(
        f"task: {STRANGE}\nrecipe: empirical\nout: {tmp_path / 'run'}\n"
        "runtime: {kind: local}\ntune: {lr: 1.0e-10}\n"
    )
    assert main(["run", str(tmp_path / "run.yaml")]) == 2
    assert "are too small for the weights" in capsys.readouterr().err


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_leaving_one_out_is_training_on_all_rows_with_and_without_it(tmp_path, optimizer):
    TASKS["plain"] = lambda: related({"sample": range(8)})
    raw = raw_told("plain", tmp_path / optimizer, leave_one_out=True, steps=2, optimizer=optimizer)
    session = execute(resolve(raw), silent)
    task, everything = session.task, np.arange(8)
    chosen = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[optimizer]
    order = [
        int(row)
        for each in range(2)
        for row in generator(session.seed, f"order {('', 0)} {each}").permutation(8)
    ]
    assert sorted(order[:8]) == sorted(order[8:]) == list(range(8))

    def after(without):
        model = based_model(session).double()
        steps = chosen(model.parameters(), lr=0.1, weight_decay=0.0)
        for row in order:
            if row != without:
                steps.zero_grad()
                task.losses["ce"](model, task.batch("train", np.array([row]))).mean().backward()
                steps.step()
        with torch.no_grad():
            return task.losses["ce"](model, task.batch("evaluation", everything)).numpy()

    wanted = np.stack([after(row) for row in range(8)]) - after(None)
    np.testing.assert_allclose(measured(session).influence_NE, wanted, atol=3e-6)
    assert np.abs(wanted).max() > 0.01


def test_the_plateau_is_where_the_matrix_hardly_depends_on_the_rate(tmp_path):
    TASKS["plain"] = lambda: related({"sample": range(8)})

    def ran(name, **tune):
        return execute(resolve(raw_told("plain", tmp_path / name, **tune)), silent)

    session, off = ran("swept", lr=2.0**-10, sweep=14), ~np.eye(8, dtype=bool)
    rows = json.loads(session.blobs.get("report/rates.json"))
    assert [row["rate"] for row in rows] == [2.0 ** (k - 24) for k in range(29)]
    for k in (10, 20, 24):  # all eight rows are tried
        one, other = (measured(ran(f"{k}.{up}", lr=2.0 ** (k - 24 + up))) for up in (0, 1))
        wanted = np.corrcoef(one.influence_NE[off], other.influence_NE[off])[0, 1]
        assert rows[k]["correlation"] == pytest.approx(wanted, abs=1e-9)
        assert rows[k]["taken"] == pytest.approx(np.average(one.taken_N), abs=1e-4)
    on = [row["plateau"] for row in rows]
    start, stop = on.index(True), len(on) - on[::-1].index(True)
    assert all(on[start:stop])
    assert 0 < start < stop < len(on) - 1
    assert rows[stop]["correlation"] < 0.99
    edge = rows[start - 1]
    assert edge["correlation"] < 0.99 or edge["taken"] < 0.9
    assert start < 14 < stop  # so that there is nothing to warn of
    page, warned = session.blobs.get("report/index.html").decode(), "tune.lr is not where"
    assert "Rates around it" in page
    assert warned not in page
    assert warned in ran("high", lr=1.0, sweep=2).blobs.get("report/index.html").decode()


def test_of_stretches_of_good_rates_the_lowest_is_the_plateau():
    assert _lowest([True, False, True, True, False, True, True, True]) == (2, 4)
    assert _lowest([False, True, True]) == (1, 3)
    assert _lowest([False, True]) == (0, 0)
