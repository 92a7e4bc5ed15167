"""Quantised base weights with adapters: gradients, curvature and training, on a small Mistral."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("bitsandbytes", reason="needs distinf[llm]")
pytest.importorskip("peft", reason="needs distinf[llm]")

from distinf.config import resolve
from distinf.engine.run import execute
from distinf.errors import InputError
from distinf.gram.actions import histories
from distinf.numerics.capture import per_sample_gradients
from distinf.numerics.checkpointing import recompute_blocks
from distinf.numerics.curvature import hessian_product
from distinf.numerics.losses import sum_gradient
from distinf.numerics.parameters import Layout
from distinf.numerics.precision import precision
from distinf.numerics.second_derivatives import passing_kind
from distinf.studies.language.settings import LoraSettings, Pretrained
from distinf.studies.noisy_labels.models import load_model
from distinf.studies.noisy_labels.outputs import cross_entropy
from distinf.studies.noisy_labels.settings import ModelSettings
from tests.support.noisy import tiny_model, write_classes

CPU = torch.device("cpu")
KINDS = {
    "nf4": {"quantise": "4bit"},
    "nf4-double": {"quantise": "4bit", "double_quantise": True},
    "int8": {"quantise": "8bit"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("mistral"), "mistral")


@pytest.fixture(
    scope="module",
    params=["nf4", pytest.param("nf4-double", marks=pytest.mark.slow), "int8"],
)
def quantised(request, folder):
    """A classifier whose adapters were trained: their B is not 0."""
    return made(folder, **KINDS[request.param])


def made(folder, **changes):
    settings = ModelSettings(name=folder, max_length=20, compress_vocabulary=False, **changes)
    model = load_model(settings, LoraSettings(), seed=0, pad=1)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def tokens(lengths):
    draw = torch.Generator().manual_seed(2)
    ids = torch.randint(4, 124, (len(lengths), max(lengths)), generator=draw)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    labels = torch.randint(0, 2, (len(lengths),), generator=draw)
    return {"input_ids": ids.where(mask > 0, 1), "attention_mask": mask, "labels": labels}


BATCH = tokens([5, 9, 2, 7])


def by_autograd(model, layout):
    """[N, P]: a row at a time, without its padding."""
    found = []
    for n, length in enumerate(BATCH["attention_mask"].sum(1).tolist()):
        row = {name: values[n : n + 1] for name, values in BATCH.items()}
        row |= {name: row[name][:, :length] for name in ("input_ids", "attention_mask")}
        parameters = layout.parameters(model)
        leaves = [model.get_parameter(name) for name in parameters]
        grads = torch.autograd.grad(cross_entropy(model, row)[0], leaves)
        found.append(layout.flatten(dict(zip(parameters, grads, strict=True))))
    return torch.stack(found)


def test_every_quantised_layer_is_quantised_and_adapters_are_not(quantised):
    kinds = [type(module).__module__ for module in quantised.modules()]
    assert sum(kind.startswith("bitsandbytes") for kind in kinds) == 4 * 7
    trained = {p.dtype for p in quantised.parameters() if p.requires_grad}
    assert trained == {torch.float32}


def test_captured_gradients_are_those_of_one_row_at_a_time(quantised):
    layout = Layout.of(quantised)
    expected = by_autograd(quantised, layout)
    for method in ("hooks", "loop"):
        found = per_sample_gradients(quantised, cross_entropy, BATCH, method=method, check=False)
        assert [*found] == [*layout.names]
        for row, truth in zip(torch.cat([*found.values()], 1), expected, strict=True):
            assert float((row - truth).norm() / truth.norm()) < 2e-6


def test_a_training_step_leaves_gradients_as_they_are(quantised):
    """As of bitsandbytes on a CPU an 8-bit layer has other products in training mode, and a 4-bit
    one packs its weights when it is first evaluated."""
    before = per_sample_gradients(quantised, cross_entropy, BATCH, method="hooks")
    with torch.no_grad():
        quantised.eval()
        evaluated = cross_entropy(quantised, BATCH)
        quantised.train()
        for module in quantised.modules():
            if isinstance(module, nn.Dropout):
                module.eval()
        trained = cross_entropy(quantised, BATCH)
    quantised.eval()
    torch.testing.assert_close(evaluated, trained, rtol=0, atol=0)
    after = per_sample_gradients(quantised, cross_entropy, BATCH, method="hooks")
    for name, values in before.items():
        torch.testing.assert_close(after[name], values, rtol=0, atol=0)


def test_hessian_products_are_what_the_gradients_differences_are(quantised):
    """By the product that a run takes: SiLU has no forward derivative of its backward pass."""
    layout = Layout.of(quantised, "lora")
    kind = passing_kind(quantised, cross_entropy, BATCH, layout, "hessian")
    assert kind == "hessian-double-backward"
    vector_P = torch.randn(layout.size, generator=torch.Generator().manual_seed(3))
    found = hessian_product(quantised, cross_entropy, [BATCH], layout, kind)(vector_P)
    parameters, parts = layout.parameters(quantised), layout.unflatten(vector_P)

    def ahead(step):
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter += step * parts[name]
        return sum_gradient(quantised, cross_entropy, BATCH, layout).double()

    step = 1e-4
    difference = (ahead(step) - ahead(-2 * step)) / (2 * step)
    ahead(step)
    cosine = torch.nn.functional.cosine_similarity(found.double(), difference, dim=0)
    assert float(cosine) > 0.9999
    assert float(found.norm() / difference.norm()) == pytest.approx(1, rel=1e-2)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_every_derivative_passes_a_quantised_layer(folder, kind):
    """bitsandbytes' own functions pass neither vmap nor forward mode."""
    layer = made(folder, **KINDS[kind]).get_submodule("model.layers.0.mlp.up_proj")
    plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
    plain.weight.data = layer(torch.eye(layer.in_features, dtype=torch.float64)).T
    draw = torch.Generator().manual_seed(4)
    x, along = torch.randn(2, 3, 64, generator=draw, dtype=torch.float64)
    for transform in (
        lambda f: torch.func.jvp(f, (x,), (along,)),
        lambda f: torch.func.jvp(torch.func.grad(f), (x,), (along,)),
        lambda f: torch.func.vmap(torch.func.grad(f))(x),
    ):
        ours, theirs = (transform(lambda x, m=m: m(x).square().sum().sin()) for m in (layer, plain))
        torch.testing.assert_close(ours, theirs)


def test_losses_depend_on_no_other_row(quantised):
    """LLM.int8() takes a column of activations apart where one entry of the batch is large."""
    embedding = quantised.get_input_embeddings()
    kept = embedding.weight.detach().clone()
    alone = {name: values[:1, :5] if values.dim() == 2 else values[:1]
             for name, values in BATCH.items()}  # fmt: skip
    with torch.no_grad():
        embedding.weight[BATCH["input_ids"][1, 0]] *= 100
        apart, among = cross_entropy(quantised, alone), cross_entropy(quantised, BATCH)[:1]
        embedding.weight.copy_(kept)
    torch.testing.assert_close(apart, among, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_bfloat16_computes_what_float32_does_to_its_digits(folder, bits):
    """Of nf4 weights the same bits are behind both; products alone are rounded."""
    exact = made(folder, quantise=bits)
    whole = per_sample_gradients(exact, cross_entropy, BATCH, check=False)
    expected = torch.cat([*whole.values()], 1)
    for changes in ({"compute_dtype": "bfloat16"}, {"dtype": "bfloat16"}):
        rounded = made(folder, quantise=bits, **changes)
        found = per_sample_gradients(rounded, cross_entropy, BATCH)
        assert {values.dtype for values in found.values()} == {torch.float32}
        found_NP = torch.cat([*found.values()], 1)
        cosine = torch.nn.functional.cosine_similarity(found_NP, expected)
        assert 0.98 < float(cosine.min()) < 1 - 1e-6, changes
    with precision("bfloat16", CPU):
        found = per_sample_gradients(exact, cross_entropy, BATCH, method="hooks")
    found_NP = torch.cat([*found.values()], 1)
    assert float(torch.nn.functional.cosine_similarity(found_NP, expected).min()) > 0.98


def test_settings_that_go_with_nothing_are_refused():
    with pytest.raises(ValueError, match="double_quantise: is for the scales of quantise: 4bit"):
        Pretrained("x", quantise="8bit", double_quantise=True)
    with pytest.raises(ValueError, match="compute_dtype: is for quantised weights"):
        Pretrained("x", compute_dtype="bfloat16")


@pytest.mark.slow
def test_quantised_weights_are_as_far_from_the_whole_as_their_bits_say(folder):
    plain = per_sample_gradients(made(folder), cross_entropy, BATCH, method="hooks")
    whole = torch.cat([*plain.values()], 1).numpy()
    errors = []
    for changes in KINDS.values():
        found = per_sample_gradients(made(folder, **changes), cross_entropy, BATCH, method="hooks")
        rows = torch.cat([*found.values()], 1).numpy()
        errors.append(np.linalg.norm(rows - whole) / np.linalg.norm(whole))
    nf4, double, int8 = errors
    assert 1e-3 < int8 < 0.1 < nf4 < 0.8
    assert double != nf4
    assert double == pytest.approx(nf4, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_run_scores_a_quantised_model_and_trains_it_again(folder, tmp_path, bits):
    raw = {
        "task": "noisy_labels", "out": str(tmp_path / "run"), "seeds": 1,
        "data": {"path": write_classes(tmp_path / "rows.csv", ("good", "bad"), rows=72),
                 "train_rows": 40, "query_rows": 16, "test_rows": 16, "flips": 0.2},
        "model": {"name": folder, "max_length": 12, "quantise": bits,
                  "double_quantise": bits == "4bit"},
        "runtime": {"kind": "local"},
        "train": {"epochs": 6, "batch_size": 10, "lr": 0.02},
        "scores": {"estimators": ["tracin", "datainf"]},
        "actions": {"configurations": ["random", "datainf/all/vote"]},
    }  # fmt: skip
    session = execute(resolve(raw), lambda *_: nullcontext())
    found = {filtered.configuration: arrays for filtered, arrays in histories(session)}
    assert found.keys() == {"random", "datainf/all/vote"}
    for arrays in found.values():
        assert len(arrays["kept"]) == 28
        assert arrays["train_loss"][-1] < 0.8 * arrays["train_loss"][0]


def test_weights_that_were_repacked_are_refused():
    """bitsandbytes does so on CPUs with AVX512-BF16; the mark is all that is looked at."""
    layer = nn.Linear(2, 2)
    layer.weight.quant_state = type("QuantState", (), {"packing_format_for_cpu": True})()
    with pytest.raises(InputError, match="no gradient passes"):
        per_sample_gradients(nn.Sequential(nn.Linear(2, 2), layer), lambda m, x: m(x).sum(1),
                             torch.ones(2, 2), blocks="^0")  # fmt: skip


# -- gradient checkpointing ------------------------------------------------------------------


def kept_bytes(model, batch):
    """(per-sample gradients, the most that autograd kept for them at once)."""
    alive, most = [0], [0]

    class Kept:
        def __init__(self, tensor):
            self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
            alive[0] += self.size
            most[0] = max(most[0], alive[0])

        def __del__(self):
            alive[0] -= self.size

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        found = per_sample_gradients(model, cross_entropy, batch, method="hooks", check=False)
    return found, most[0]


def test_checkpointed_capture_is_the_same_and_keeps_less(folder):
    batch = tokens([40] * 16)
    model = made(folder)
    whole, before = kept_bytes(model, batch)
    product = hessian_product(
        model, cross_entropy, [BATCH], Layout.of(model), "hessian-double-backward"
    )
    vector_P = torch.ones(Layout.of(model).size)
    curved = product(vector_P)
    recompute_blocks(model)
    again, after = kept_bytes(model, batch)
    for name, values in whole.items():
        assert torch.equal(values, again[name])
    assert after < 0.5 * before  # a layer of four, and the others' inputs
    torch.testing.assert_close(product(vector_P), curved)


def test_a_model_without_blocks_is_not_checkpointed():
    with pytest.raises(InputError, match="checkpointing: the model has no list"):
        recompute_blocks(nn.Linear(2, 2))
