"""The noisy-labels study as a task: cells, their arrays, batches, gradients and fine-tuning."""

import importlib.util
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("peft", reason="needs distinf[llm]")

from distinf.config import resolve
from distinf.engine.run import checked_session
from distinf.errors import InputError
from distinf.gram import task as gram
from distinf.gram.settings import TrainSettings
from distinf.numerics.capture import per_sample_gradients
from distinf.studies.language.adapters import trained_weights
from distinf.studies.language.pretrained import PACKAGED
from distinf.studies.language.training import pieces
from distinf.studies.noisy_labels import NoisyLabelSettings, cells, task
from distinf.studies.noisy_labels.settings import DataSettings, LoraSettings, ModelSettings
from distinf.studies.noisy_labels.task import NoisyLabels
from distinf.tasks.task import Task, build_task
from tests.support.noisy import WORDS, tiny_model, tokenizer, write_classes, write_texts

CPU = torch.device("cpu")
PARTS = ("train", "evaluation", "test")
RECIPE = TrainSettings(epochs=2, batch_size=16, lr=0.03, evaluation_batch=7)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("noisy")
    sizes = {"train_rows": 96, "query_rows": 24, "test_rows": 24}
    return NoisyLabelSettings(
        data=DataSettings(path=write_texts(folder / "words.tsv"), **sizes),
        model=ModelSettings(name=tiny_model(folder / "model"), max_length=12),
        lora=LoraSettings(rank=2),
        seeds=2,
    )


@pytest.fixture(scope="module")
def cell(settings):
    return attached(settings)


@pytest.fixture(scope="module")
def fitted(cell):
    return cell.fit(np.arange(96), RECIPE, CPU)


def attached(settings, seed=0, name="words-0", load=None):
    made = NoisyLabels(settings, seed, load).cells()[name]
    made.attach(made.prepare())
    return made


def with_data(settings, **changes):
    return replace(settings, data=replace(settings.data, **changes))


def with_model(settings, **changes):
    return replace(settings, model=replace(settings.model, **changes))


def loaded(cell, fit):
    model = cell.model()
    for name, values in fit.weights.items():
        model.get_parameter(name).data.copy_(torch.from_numpy(values))
    return model


def block_shapes(cell):
    """The trainable parameters by name."""
    return {n: tuple(p.shape) for n, p in cell.skeleton().named_parameters() if p.requires_grad}


def test_a_cell_is_all_that_the_gram_route_can_use(settings, cell):
    study = build_task("distinf.studies.noisy_labels.task:task", {"data": {"path": "a.tsv"}}, 3)
    assert isinstance(study, Task)
    assert isinstance(study, gram.ManyCells)
    assert list(task(settings, 3).cells()) == ["words-0", "words-1"]
    assert [c.cell.seed for c in task(settings, 3).cells().values()] == [3, 4]
    for protocol in ("Prepared", "Trainable", "Measured", "Labelled", "Described"):
        assert isinstance(cell, getattr(gram, protocol))
    assert not isinstance(cell, gram.ManyCells)


def test_cells_are_datasets_times_seeds():
    made = NoisyLabelSettings(data=DataSettings(datasets=("rte", "mrpc")), seeds=2)
    assert list(task(made, 0).cells()) == ["rte-0", "rte-1", "mrpc-0", "mrpc-1"]
    assert len(task(NoisyLabelSettings(), 0).cells()) == 80


@pytest.mark.parametrize(
    ("group", "values", "said"),
    [
        (DataSettings, {"path": "a.tsv", "datasets": ("rte",)}, "path: a file must come without"),
        (DataSettings, {"datasets": ("wnli",)}, "datasets: 'wnli' must be one of qnli"),
        (DataSettings, {"datasets": ("rte", "rte")}, "datasets: every name must come once"),
        (DataSettings, {"flips": 0.5}, "flips: 0.5 must be at least 0 and below 0.5"),
        (DataSettings, {"flips": math.nan}, "flips: nan must be"),
        (DataSettings, {"train_rows": 1}, "train_rows: 1 must be at least 2"),
        (DataSettings, {"text": ("a", "b", "c")}, "text: 3 columns given, there must be one"),
        (DataSettings, {"label": ""}, "label: must name"),
        (
            DataSettings,
            {"path": "a.csv", "classes": ("a",)},
            "classes: ['a'] must be two different",
        ),
        (DataSettings, {"path": "a.csv", "classes": ("1", 1)}, "classes: ['1', '1'] must be"),
        (DataSettings, {"path": "a.csv", "classes": ("a", " ")}, "classes: ['a', ''] must be"),
        (DataSettings, {"datasets": ("rte",), "classes": (0, 1, 2)}, "classes: are a file's"),
        (ModelSettings, {"name": ""}, "name: must be"),
        (ModelSettings, {"quantise": "2bit"}, "quantise: '2bit' must be one of none, 4bit, 8bit"),
        (ModelSettings, {"dtype": "float16"}, "dtype: 'float16' must be one of"),
        (ModelSettings, {"too_long": "drop"}, "too_long: 'drop' must be one of"),
        (ModelSettings, {"max_length": 3}, "max_length: 3 must be at least 4"),
        (LoraSettings, {"rank": 0}, "rank: 0 must be at least 1"),
        (LoraSettings, {"alpha": 0.0}, "alpha: 0.0 must be above 0"),
        (LoraSettings, {"dropout": 1.0}, "dropout: 1.0 must be"),
        (NoisyLabelSettings, {"seeds": 0}, "seeds: 0 must be at least 1"),
    ],
)
def test_bad_settings_are_refused(group, values, said):
    with pytest.raises(ValueError) as error:
        group(**values)
    assert str(error.value).startswith(said)


def test_arrays_hold_all_that_there_is_to_know(settings, cell):
    arrays = cell.prepare()
    assert all(array.dtype != object for array in arrays.values())
    assert [cell.rows(part) for part in PARTS] == [96, 24, 24]
    rows = np.concatenate([arrays[f"{part}_rows"] for part in PARTS])
    assert len(np.unique(rows)) == 144
    assert cell.flipped().sum() == int(0.2 * 96) == 19
    np.testing.assert_array_equal(cell.flipped(), arrays["train_labels"] != arrays["train_clean"])
    np.testing.assert_array_equal(arrays["test_labels"], arrays["test_clean"])
    lines = Path(settings.data.path).read_text().splitlines()[1:]
    for told in cell.describe(np.arange(96)):
        assert lines[told["row"]] == f"{told['clean_label']}\t{told['text']}"
        assert told["id"] == str(told["row"])
    assert cell.summary()["rows"] == {"train": 96, "evaluation": 24, "test": 24}
    assert sum(cell.summary()["truncated"].values()) > 0


def test_a_cell_is_a_function_of_its_seed(settings, cell):
    again, other = attached(settings), attached(settings, name="words-1")
    found, drawn, others = cell.prepare(), again.prepare(), other.prepare()
    for name, values in found.items():
        np.testing.assert_array_equal(drawn[name], values)
    assert set(others["train_rows"]) != set(found["train_rows"])
    assert other.digests()["data"] != cell.digests()["data"] == again.digests()["data"]


def test_batches_are_the_texts_padded_to_the_longest(cell):
    kept = cell.prepare()["vocabulary"]
    words = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", *WORDS]
    for part in PARTS:
        batch = cell.batch(part, np.array([5, 0, 9]))
        lengths = cell.lengths(part)[[5, 0, 9]]
        assert batch["input_ids"].shape == (3, lengths.max())
        np.testing.assert_array_equal(batch["attention_mask"].sum(1), lengths)
        assert (batch["input_ids"][batch["attention_mask"] == 0] == 1).all()
    texts = [told["text"].split() for told in cell.describe(np.array([5, 0, 9]))]
    batch = cell.batch("train", np.array([5, 0, 9]))
    for ids, mask, text in zip(batch["input_ids"], batch["attention_mask"], texts):
        read = [words[kept[token]] for token in ids[mask.bool()]]
        assert read == ["[CLS]", *text[:10], "[SEP]"]


def test_losses_and_gradients_agree_with_and_without_compression(settings, cell):
    whole = attached(with_model(settings, compress_vocabulary=False))
    ids = np.arange(6)
    found = []
    for made in (cell, whole):
        model, batch = made.model(), made.batch("train", ids)
        values = made.evaluate(model, batch)
        torch.testing.assert_close(made.losses["cross-entropy"](model, batch), values["loss"])
        losses = made.losses["cross-entropy"]
        hooks = per_sample_gradients(model, losses, batch, method="hooks")
        loop = per_sample_gradients(model, losses, batch, method="loop")
        assert hooks.keys() == block_shapes(made).keys()
        for name, grads in hooks.items():
            torch.testing.assert_close(grads, loop[name], rtol=1e-4, atol=1e-6)
        found.append((values["loss"], hooks["classifier.weight"]))
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)
    assert set(values["correct"].tolist()) <= {0.0, 1.0}


@pytest.mark.smoke
def test_training_is_deterministic_and_keeps_the_best_epoch(cell, fitted):
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    own = replace(RECIPE, lr=9.0, lr_of={"words": RECIPE.lr})  # its rate, by its dataset's name
    again = cell.fit(np.arange(96), own, CPU)
    assert torch.equal(torch.get_rng_state(), state[0])
    np.testing.assert_array_equal(np.random.get_state()[1], state[1])
    assert again.history == fitted.history
    for name, values in fitted.weights.items():
        np.testing.assert_array_equal(again.weights[name], values)
    assert fitted.history.keys() == set(gram.METRICS)
    assert {len(values) for values in fitted.history.values()} == {2}
    assert fitted.best == int(np.argmin(fitted.history["query_loss"]))
    assert fitted.weights.keys() == block_shapes(cell).keys()


def test_the_history_is_what_the_weights_give(cell, fitted):
    model = loaded(cell, fitted)
    for name, part in (("query", "evaluation"), ("test", "test")):
        values = cell.evaluate(model, cell.batch(part, np.arange(24)))
        assert fitted.history[f"{name}_loss"][fitted.best] == pytest.approx(
            values["loss"].mean().item(), rel=1e-5
        )
        assert fitted.history[f"{name}_accuracy"][fitted.best] == pytest.approx(
            values["correct"].mean().item()
        )


def test_every_rows_loss_is_noted_in_the_step_that_takes_it(settings, fitted, tmp_path):
    assert fitted.row_losses.shape == (2, 96)
    means = fitted.row_losses.mean(1)  # six batches of 16: the mean of means, dropout and all
    np.testing.assert_allclose(means, fitted.history["train_loss"], rtol=1e-5)
    still = with_model(settings, name=tiny_model(tmp_path / "model", "llama"))
    cell = attached(replace(still, lora=LoraSettings(rank=2, dropout=0.0)))
    kept = np.arange(3, 80)
    found = cell.fit(kept, replace(RECIPE, batch_size=77, warmup=0.0), CPU).row_losses
    first = cell.evaluate(cell.model(), cell.batch("train", kept))["loss"]
    np.testing.assert_allclose(found[0], first.numpy(), rtol=1e-4)
    assert not np.allclose(found[1], found[0], rtol=1e-3)


def test_it_learns_what_can_be_learnt(settings):
    clean = attached(with_data(settings, flips=0.0))
    history = clean.fit(np.arange(96), replace(RECIPE, epochs=6), CPU).history
    assert max(history["test_accuracy"]) > 0.7
    assert history["train_loss"][-1] < history["train_loss"][0] - 0.03


def test_of_a_files_own_labels_none_is_called_clean(settings):
    clean = attached(with_data(settings, flips=0.0))
    assert clean.flipped() is None
    assert set(clean.describe(np.arange(1))[0]) == {"row", "id", "text", "label"}
    assert clean.summary()["flipped"] == 0


def test_fewer_rows_start_from_the_same_weights_and_end_elsewhere(cell, fitted):
    before = cell.model().state_dict()
    fit = cell.fit(np.arange(0, 96, 4), replace(RECIPE, epochs=1), CPU)
    assert all(
        torch.equal(values, before[name]) for name, values in cell.model().state_dict().items()
    )
    assert not np.array_equal(fit.weights["classifier.weight"], fitted.weights["classifier.weight"])


def test_a_loss_that_is_not_finite_names_the_epoch(cell):
    with pytest.raises(InputError) as error:
        cell.fit(np.arange(96), replace(RECIPE, lr=1e30, warmup=0.0), CPU)
    assert "in epoch 1; lower train.lr" in str(error.value)
    assert "\n" not in str(error.value)


def test_rows_whose_loss_is_not_finite_from_the_start_are_named(settings):
    cell = attached(settings)
    arrays = dict(cell._arrays)
    token = arrays["train_tokens"][arrays["train_offsets"][7] + 1]
    bad = [row for row in range(len(arrays["train_labels"])) if token in _row(arrays, row)]
    load = cell.model

    def model():
        found = load()
        with torch.no_grad():
            found.get_input_embeddings().weight[token] = torch.nan
        return found

    cell.model = model
    with pytest.raises(InputError) as error:
        cell.fit(np.arange(96), RECIPE, CPU)
    numbers = str(arrays["train_rows"][bad[:5]].tolist())[1:-1]
    assert f"the loss of {len(bad)} rows" in str(error.value)
    assert f"(rows {numbers})" in str(error.value)


def _row(arrays, row):
    return arrays["train_tokens"][slice(*arrays["train_offsets"][row : row + 2])]


def test_too_few_rows_are_told_before_anything_is_begun(settings):
    made = NoisyLabels(with_data(settings, train_rows=10_000), 0).cells()["words-0"]
    with pytest.raises(InputError, match=r"data.train_rows=10000.* there are only"):
        made.check()
    NoisyLabels(settings, 0).cells()["words-0"].check()


def test_one_name_needs_no_list():
    assert DataSettings(path="a.csv", text="sentence") == DataSettings("a.csv", text=("sentence",))
    assert LoraSettings(targets="query").targets == ("query",)


def test_the_summary_tells_the_largest_class_and_empty_texts(cell):
    told, arrays = cell.summary(), cell._arrays
    share = np.bincount(arrays["evaluation_clean"]).max() / len(arrays["evaluation_clean"])
    assert told["largest_class"]["evaluation"] == share
    assert told["empty"] == {"train": 0, "evaluation": 0, "test": 0}
    assert told["replaced"] == 0


def test_rows_without_a_token_are_refused_by_number(settings, tmp_path, monkeypatch):
    path = tmp_path / "texts.tsv"
    lines = ["label\tsentence", *(f"{k % 2}\t{'' if k == 5 else 'good film'}" for k in range(40))]
    path.write_text("\n".join(lines))
    bare = tokenizer()
    bare.backend_tokenizer.post_processor = None
    monkeypatch.setattr(cells, "load_tokenizer", lambda _: bare)
    data = replace(settings.data, path=str(path), train_rows=20, query_rows=10, test_rows=10)
    with pytest.raises(InputError, match="1 rows have no token, row 5 first"):
        attached(replace(settings, data=data), name="texts-0")


def test_pieces_of_a_batch_have_its_gradient(cell):
    batch = cell.batch("train", np.arange(20))
    model = cell.model()
    model(**batch).loss.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    parts = list(pieces(batch))
    assert [len(part["labels"]) for part in parts] == [8, 8, 4]
    assert parts[0]["input_ids"].shape[1] < batch["input_ids"].shape[1]
    sum(model(**part).loss * (len(part["labels"]) / 20) for part in parts).backward()
    for name, grad in expected.items():
        torch.testing.assert_close(model.get_parameter(name).grad, grad, rtol=1e-4, atol=1e-6)


def test_rows_that_are_too_long_are_refused_where_that_is_asked(settings):
    with pytest.raises(InputError) as error:
        attached(with_model(settings, too_long="refuse"))
    assert "rows have more than 12 tokens" in str(error.value)
    assert attached(with_model(settings, too_long="refuse", max_length=16))


def test_a_glue_task_becomes_a_cell(settings):
    datasets = pytest.importorskip("datasets", reason="needs distinf[llm]")
    draw = np.random.default_rng(0)
    texts = [[" ".join(draw.choice(WORDS, 4)) for _ in range(50)] for _ in range(2)]
    columns = {"sentence1": texts[0], "sentence2": texts[1], "label": [0, 1] * 25}
    source = datasets.Dataset.from_dict(columns)
    made = attached(
        with_data(settings, path="", datasets=("rte",)),
        name="rte-0",
        load=lambda name, revision: {"train": source, "validation": source},
    )
    assert [made.rows(part) for part in PARTS] == [50, 24, 24]
    told = made.describe(np.array([0]))[0]
    assert told["text"] == f"{texts[0][told['row']]} | {texts[1][told['row']]}"
    assert made.summary()["texts_shared_with_train"] == {"evaluation": 24, "test": 24}


QUEUES = ("billing", "delivery", "other", "praise", "returns")


def test_five_named_classes_are_learned_flipped_and_told_by_name(settings, tmp_path):
    path = write_classes(tmp_path / "queues.csv", QUEUES[::-1])
    made = attached(with_data(settings, path=path, flips=0.1), name="queues-0")
    assert made.classes() == task(with_data(settings, path=path), 0).classes() == QUEUES
    assert block_shapes(made)["classifier.weight"] == (5, 16)
    told = made.describe(np.arange(96))
    assert {row["label"] for row in told} == set(QUEUES)
    wrong = [row["label"] != row["clean_label"] for row in told]
    np.testing.assert_array_equal(wrong, made.flipped())
    assert sum(wrong) == 9
    recipe = replace(RECIPE, epochs=8, lr=0.05)
    fit = made.fit(np.arange(96), recipe, CPU)
    assert max(fit.history["test_accuracy"]) > 0.3  # chance 0.2
    assert loaded(made, fit)(made.batch("test", np.arange(4))["input_ids"]).logits.shape == (4, 5)
    assert made.summary()["largest_class"]["train"] == pytest.approx(0.2, abs=0.02)


def test_settings_that_came_later_do_not_change_the_digest_of_a_run_without_them(settings, cell):
    assert cell.digests() == attached(with_data(settings, classes=(), group="")).digests()
    assert cell.digests() != attached(with_data(settings, classes=(1, 0))).digests()


def test_rows_are_needed_before_a_model(settings):
    made = task(settings, 0)
    assert made.rows("train") == 96
    with pytest.raises(ValueError, match="no rows attached to words-0"):
        made.model()
    assert block_shapes(made)["classifier.weight"] == (2, 16)


def test_shapes_come_before_data_and_agree_with_them_afterwards(settings, cell):
    planned, known = task(settings, 0).shapes(), cell.shapes()
    assert planned.flops_per_sample == pytest.approx(known.flops_per_sample, rel=0.1)
    per_layer = 4 * 16 * 16 + 2 * 16 * 24 + 2 * 2 * 2 * 16  # attention, both of the MLP, adapters
    weights = 2 * per_layer + 16 * 16 + 2 * 16  # pooler, head
    tokens = cell.lengths("train").mean()
    expected = 2 * tokens * weights + 4 * tokens**2 * 16 * 2
    assert known.flops_per_sample == pytest.approx(expected)
    assert known.activation_bytes_per_sample > 0


def test_digests_follow_content_and_settings(settings, cell):
    own = cell.digests()
    assert attached(with_data(settings, flips=0.1)).digests()["model"] == own["model"]
    assert attached(with_data(settings, flips=0.1)).digests()["data"] != own["data"]
    assert attached(replace(settings, lora=LoraSettings())).digests()["model"] != own["model"]
    assert attached(replace(settings, seeds=5)).digests() == own


@pytest.mark.skipif(importlib.util.find_spec(PACKAGED["minilm"][0]) is None, reason="needs MiniLM")
def test_minilm_compressed_gives_the_logits_of_the_whole(tmp_path):
    lines = ["0\tA dull and tiresome film.", "1\tI love this place!"] * 5
    path = tmp_path / "real.tsv"
    path.write_text("\n".join(["label\tsentence", *lines]) + "\n")
    data = DataSettings(path=str(path), train_rows=4, query_rows=2, test_rows=2)
    logits = []
    for compressed in (True, False):
        model = ModelSettings(compress_vocabulary=compressed)
        made = attached(NoisyLabelSettings(data=data, model=model), name="real-0")
        batch = made.batch("train", np.arange(4))
        with torch.no_grad():
            logits.append(made.model()(batch["input_ids"], batch["attention_mask"]).logits)
        size = sum(int(np.prod(shape)) for shape in block_shapes(made).values())
        assert size == 36_864 + 770  # facts: rank 4 on query and value of 6 layers; the head
    torch.testing.assert_close(*logits, rtol=0, atol=1e-6)


@pytest.mark.smoke
@pytest.mark.slow
@pytest.mark.parametrize("quantise", ["4bit", "8bit"])
def test_a_quantised_model_is_trained_from_the_same_start(settings, tmp_path, quantise):
    pytest.importorskip("bitsandbytes", reason="needs distinf[llm]")
    settings = with_model(settings, name=tiny_model(tmp_path, "llama", wide=8))
    plain = attached(settings)
    made = attached(with_model(settings, quantise=quantise))
    start, expected = trained_weights(made.model()), trained_weights(plain.model())
    assert start.keys() == expected.keys() == block_shapes(made).keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(start[name], values)
    model, batch = made.model(), made.batch("train", np.arange(4))
    device = next(model.parameters()).device
    batch = {name: values.to(device) for name, values in batch.items()}
    losses = made.losses["cross-entropy"]
    before = per_sample_gradients(model, losses, batch, method="hooks")
    made.evaluate(model, batch)  # bitsandbytes' own packing would hide gradients from here on
    after = per_sample_gradients(model, losses, batch, method="hooks")
    for name, values in before.items():
        assert ".lora_A." in name or values.abs().max() > 0  # B starts at 0, so A's gradient is 0
        torch.testing.assert_close(after[name], values, rtol=0, atol=0)
    fit = made.fit(np.arange(96), RECIPE, device)
    assert all(not np.array_equal(fit.weights[name], start[name]) for name in start)


# -- which epoch's weights ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def courses(cell):
    """The same training of five epochs, by each rule; its epochs are told apart by the queries."""
    recipe = replace(RECIPE, epochs=5, lr=0.2)
    return {
        rule: cell.fit(np.arange(96), replace(recipe, selected_epoch=rule), CPU)
        for rule in ("least_query_loss", "best_query_accuracy", "last")
    }


def test_the_selected_epoch_is_the_one_that_is_asked_for(courses):
    histories = [fit.history for fit in courses.values()]
    assert histories[0] == histories[1] == histories[2]
    losses, right = histories[0]["query_loss"], histories[0]["query_accuracy"]
    assert courses["least_query_loss"].best == losses.index(min(losses))
    most = [k for k, value in enumerate(right) if value == max(right)]
    assert courses["best_query_accuracy"].best == min(most, key=lambda k: losses[k])
    assert courses["last"].best == 4
    assert len({fit.best for fit in courses.values()}) > 1  # or the three rules say the same here


def test_its_weights_give_that_epochs_numbers_on_queries_and_tests(cell, courses):
    for fit in courses.values():
        model = loaded(cell, fit)
        for name, part in (("query", "evaluation"), ("test", "test")):
            found = cell.evaluate(model, cell.batch(part, np.arange(24)))
            loss = fit.history[f"{name}_loss"][fit.best]
            assert loss == pytest.approx(found["loss"].mean().item(), rel=1e-5)
            accuracy = fit.history[f"{name}_accuracy"][fit.best]
            assert accuracy == pytest.approx(found["correct"].mean().item())


def test_test_rows_choose_no_epoch(cell, courses):
    """With other labels on every test row the same epoch and weights are kept."""
    other = attached(cell.settings)
    arrays = {**other._arrays, "test_labels": 1 - other._arrays["test_labels"]}
    other.attach(arrays)
    for rule in ("least_query_loss", "best_query_accuracy"):
        recipe = replace(RECIPE, epochs=5, lr=0.2, selected_epoch=rule)
        again = other.fit(np.arange(96), recipe, CPU)
        assert again.history["test_accuracy"] != courses[rule].history["test_accuracy"]
        assert again.best == courses[rule].best
        for name, values in courses[rule].weights.items():
            np.testing.assert_array_equal(again.weights[name], values)


@pytest.mark.parametrize(
    ("rule", "epoch"), [("least_query_loss", 1), ("best_query_accuracy", 3), ("last", 4)]
)
def test_equal_accuracies_go_by_the_loss_and_nan_is_never_chosen(rule, epoch):
    history = {
        "query_loss": [math.nan, 0.5, 0.7, 0.6, 0.8],
        "query_accuracy": [math.nan, 0.7, 0.8, 0.8, 0.6],
        "test_accuracy": [0.9, 0.1, 0.1, 0.1, 0.1],
    }
    assert gram.selected_epoch(history, rule) == epoch


def test_steps_are_clipped_at_the_norm_that_is_set(cell):
    def course(clip):
        return cell.fit(np.arange(96), replace(RECIPE, clip=clip), CPU).history["query_loss"]

    assert course(0.0) == course(1e9)  # none, and a norm that no gradient has
    assert course(0.0) != course(0.01)


# -- memory and optimizers ---------------------------------------------------------------------


def test_a_step_in_parts_or_recomputed_is_the_same_training(settings, tmp_path):
    """Of a model that draws no dropout of its own."""
    settings = with_model(settings, name=tiny_model(tmp_path, "llama"))
    cell = attached(replace(settings, lora=replace(settings.lora, dropout=0.0)))
    whole = cell.fit(np.arange(96), RECIPE, CPU)
    for changes in ({"accumulation": 5}, {"checkpointing": True}):
        found = cell.fit(np.arange(96), replace(RECIPE, **changes), CPU)
        np.testing.assert_allclose(found.row_losses, whole.row_losses, rtol=1e-4, atol=1e-5)
        for name, values in whole.weights.items():
            np.testing.assert_allclose(found.weights[name], values, rtol=1e-3, atol=1e-5)


def test_moments_in_8_bits_train_nearly_as_those_in_32(settings):
    pytest.importorskip("bitsandbytes", reason="needs distinf[llm]")
    cell = attached(settings)
    whole = cell.fit(np.arange(96), RECIPE, CPU)
    found = cell.fit(np.arange(96), replace(RECIPE, optimizer="adamw-8bit"), CPU)
    assert found.history["train_loss"][-1] == pytest.approx(
        whole.history["train_loss"][-1], rel=0.05
    )


def test_more_parts_than_rows_are_refused():
    with pytest.raises(ValueError, match="accumulation: 9 parts of batch_size 8 rows"):
        replace(RECIPE, batch_size=8, accumulation=9)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train": {"optimizer": "paged-adamw-8bit"}}, "train.optimizer: paged-adamw-8bit needs"),
        ({"runtime": {"kind": "local", "num_gpus": 1}}, "runtime.num_gpus: 1, but torch sees no"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_missed_before_anything_runs(tmp_path, changes, told):
    raw = {"task": "noisy_labels", "out": str(tmp_path / "run"), "runtime": {"kind": "local"},
           "data": {"path": write_texts(tmp_path / "rows.tsv"), "train_rows": 8, "query_rows": 4,
                    "test_rows": 4},
           "model": {"name": tiny_model(tmp_path / "model"), "max_length": 12}}  # fmt: skip
    with pytest.raises(InputError, match=told):
        checked_session(resolve(raw | changes))
