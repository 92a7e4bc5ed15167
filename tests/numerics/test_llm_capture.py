"""Per-sample gradients of language models: LoRA, head and input embedding."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from distinf.errors import InputError
from distinf.numerics.capture import per_sample_gradients
from distinf.numerics.hooks import block_gradients, hook_gradients
from distinf.numerics.parameters import Layout
from distinf.numerics.sparse import SparseRows

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from tests.numerics.llm_cases import (  # noqa: E402
    ARCHITECTURES,
    adapted,
    classifier,
    dense,
    largest_error,
    loss,
    one_by_one,
    tokens,
    with_lora,
)

LENGTHS = [5, 9, 2, 7]


@pytest.mark.smoke
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_padded_batches_agree_with_autograd_one_sample_at_a_time(name):
    model = adapted(name)
    layout = Layout.of(model, embeddings=True)
    batch = tokens(LENGTHS)
    expected = one_by_one(model, batch, layout)
    found = block_gradients(model, loss, batch, layout)
    error, where = largest_error(found, expected)
    assert error < 1e-12, where
    assert [n for n in found if isinstance(found[n], SparseRows)] == [_embedding(layout)]
    single = block_gradients(model.float(), loss, batch, layout)
    error, where = largest_error(single, expected)
    assert error < 1e-5, where


def _embedding(layout):
    (name,) = [name for name in layout.names if "lora_" not in name and "modules_to" not in name]
    return name


@pytest.mark.parametrize("name", ["Roberta", "GPT2"])
def test_every_parameter_of_a_model_without_adapters_agrees(name):
    """Biases, layer norms and GPT-2's Conv1D; not the position and token type embeddings."""
    model = classifier(name)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    layout = Layout.of(model, r"^(?!.*(position_embeddings|token_type|\.wpe)).*weight|bias")
    batch = tokens(LENGTHS)
    found = block_gradients(model, loss, batch, layout)
    expected = one_by_one(model, batch, layout)
    key_biases = [n for n in found if n.endswith("key.bias")]  # softmax does not depend on them
    for name in key_biases:
        torch.testing.assert_close(found.pop(name), expected.pop(name), rtol=0, atol=1e-12)
    assert len(found) > 20
    assert largest_error(found, expected)[0] < 1e-12


def test_gradients_do_not_depend_on_the_batch():
    model = adapted("Roberta")
    layout = Layout.of(model, embeddings=True)
    batch = tokens([5, 9, 2, 7, 3], longest=12)
    whole = block_gradients(model, loss, batch, layout)
    for size in (1, 2):
        for start in range(0, 5, size):
            part = {key: value[start : start + size] for key, value in batch.items()}
            rows = torch.arange(start, min(start + size, 5))
            found = block_gradients(model, loss, part, layout)
            for name in layout.names:
                expected = whole[name]
                if isinstance(expected, SparseRows):
                    expected = expected.select(rows)
                    assert found[name].ids.tolist() == expected.ids.tolist()
                    assert found[name].offsets.tolist() == expected.offsets.tolist()
                    torch.testing.assert_close(found[name].rows, expected.rows)
                else:
                    torch.testing.assert_close(found[name], expected[rows])


class Shapes(TorchDispatchMode):
    """The shapes of all matrices that are computed."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if "mm" in func.overloadpacket.__name__:
            self.seen.add(tuple(sorted(result.shape)))
        return result


def test_frozen_weights_have_no_gradient_computed():
    model = adapted("Llama")
    frozen = {tuple(sorted(p.shape)) for n, p in model.named_parameters() if "gate_proj" in n}
    layout = Layout.of(model, embeddings=True)
    with Shapes() as shapes:
        block_gradients(model, loss, tokens(LENGTHS), layout)
    assert not frozen & shapes.seen
    model.requires_grad_()
    with Shapes() as shapes:
        loss(model, tokens(LENGTHS)).sum().backward()
    assert frozen <= shapes.seen


@pytest.mark.smoke
@pytest.mark.parametrize("bits", [4, 8])
def test_gradients_pass_quantised_layers(bits, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    classifier("Llama", torch.float32).save_pretrained(tmp_path)
    settings = transformers.BitsAndBytesConfig(
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        bnb_4bit_quant_type="nf4",
        llm_int8_skip_modules=["score"],
    )
    model = with_lora(
        transformers.LlamaForSequenceClassification.from_pretrained(
            tmp_path, quantization_config=settings, dtype=torch.float32
        ),
        ["q_proj", "v_proj"],
    )
    kind = bitsandbytes.nn.Linear4bit if bits == 4 else bitsandbytes.nn.Linear8bitLt
    assert sum(isinstance(module, kind) for module in model.modules()) == 14
    layout = Layout.of(model, embeddings=True)
    expected = one_by_one(model, tokens(LENGTHS), layout)
    error, where = largest_error(block_gradients(model, loss, tokens(LENGTHS), layout), expected)
    assert error < 1e-4, where
    plain = one_by_one(adapted("Llama", torch.float32), tokens(LENGTHS), layout)
    assert largest_error(expected, plain)[0] > 1e-3  # it is quantised


def test_gradients_of_bfloat16_models_are_float32():
    model = adapted("Llama", torch.bfloat16)
    layout = Layout.of(model, embeddings=True)
    found = block_gradients(model, loss, tokens(LENGTHS), layout)
    assert {dense(grads).dtype for grads in found.values()} == {torch.float32}
    model = adapted("Llama", torch.bfloat16).float()
    expected = one_by_one(model, tokens(LENGTHS), layout)
    assert largest_error(found, expected)[0] < 0.1


def test_products_of_bfloat16_are_summed_in_float32():
    torch.manual_seed(0)
    model = nn.Linear(4, 3, dtype=torch.bfloat16)
    x = torch.rand(2, 4096, 4).bfloat16()
    found = hook_gradients(model, lambda m, x: m(x).flatten(1).sum(1), x, Layout.of(model))
    expected = x.double().sum(1).repeat(1, 3)
    torch.testing.assert_close(found[:, :12].double(), expected, rtol=1e-6, atol=0)
    assert found[:, 12:].eq(4096).all()


# -- gradient checkpointing ----------------------------------------------------------------


class Checkpointed(nn.Module):
    """Two regions of two layers that are computed again in the backward pass."""

    def __init__(self, **settings):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(9, 4)
        self.first = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4))
        self.second = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4))
        self.head = nn.Linear(4, 2)
        self.settings = settings

    def forward(self, tokens):
        hidden = self.words(tokens)
        for region in (self.first, self.second, self.first):  # the first one twice
            hidden = (
                checkpoint(region, hidden, **self.settings) if self.settings else region(hidden)
            )
        return self.head(hidden)


def squares(model, batch):
    return model(batch).square().flatten(1).sum(1)


@pytest.mark.parametrize("blocks", ["", "first", "second.0.weight|head", "words"])
@pytest.mark.parametrize("early_stop", [True, False])
def test_checkpointed_gradients_are_those_without(blocks, early_stop):
    ids = torch.arange(20).view(5, 4) % 9
    model = Checkpointed().double()
    layout = Layout.of(model, blocks)
    expected = one_pass = hook_gradients(model, squares, ids, layout)
    model.settings = {"use_reentrant": False, "early_stop": early_stop}
    assert torch.equal(hook_gradients(model, squares, ids, layout), one_pass)
    assert expected.abs().max() > 0


def test_checkpointing_keeps_no_input_of_a_layer_inside():
    kept = []

    def keep(tensor):
        kept.append(tuple(tensor.shape))
        return tensor

    for settings in ({}, {"use_reentrant": False}):
        model, inputs = Checkpointed(**settings), torch.zeros(5, 4, dtype=torch.int64)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            hook_gradients(model, squares, inputs, Layout.of(model))
        if not settings:
            assert (5, 4, 6) in kept
            kept.clear()
    assert kept
    assert (5, 4, 6) not in kept


@pytest.mark.parametrize("blocks", ["", "first", "words", "second.2.bias"])
@pytest.mark.parametrize("frozen", [True, False])
def test_reentrant_checkpointing_is_refused_with_what_to_change(blocks, frozen):
    model = Checkpointed(use_reentrant=True)
    layout = Layout.of(model, blocks)
    model.words.requires_grad_(not frozen)
    with pytest.raises(InputError, match="use_reentrant=False"):
        hook_gradients(model, squares, torch.zeros(5, 4, dtype=torch.int64), layout)
    assert model.words.weight.requires_grad != frozen


def test_a_head_behind_reentrant_checkpoints_needs_no_gradient_through_them():
    model = Checkpointed(use_reentrant=True)
    layout, ids = Layout.of(model, "head"), torch.arange(20).view(5, 4) % 9
    found = hook_gradients(model.requires_grad_(False), squares, ids, layout)
    assert torch.equal(found, hook_gradients(Checkpointed(), squares, ids, layout))
    assert found.abs().max() > 0


@pytest.mark.parametrize("embeddings", [True, False])
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_model_that_trains_with_checkpoints_has_none_in_evaluation_mode(reentrant, embeddings):
    """PEFT then lets the embedding's output require grad, where the graph begins."""
    model = adapted("Llama")
    layout = Layout.of(model, embeddings=embeddings)
    expected = block_gradients(model, loss, tokens(LENGTHS), layout)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    model.train()
    found = block_gradients(model, loss, tokens(LENGTHS), layout)
    assert largest_error(found, {n: dense(g) for n, g in expected.items()})[0] == 0
    assert model.training


def test_rows_whose_gradients_lie_along_one_line_do_not_seem_to_mix():
    """Two classes, texts that say nothing: three rows' gradients are nearly a, a and -a."""
    torch.manual_seed(7)
    config = transformers.BertConfig(
        vocab_size=54, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=40, pad_token_id=2, num_labels=2,
    )  # fmt: skip
    adapters = peft.LoraConfig(
        r=8, target_modules=["query", "value"], modules_to_save=["classifier"], task_type="SEQ_CLS"
    )
    model = peft.get_peft_model(transformers.BertForSequenceClassification(config), adapters)
    tokens = torch.randint(4, 54, (240, 8))
    tokens[:, 0], tokens[:, -1] = 0, 1
    batch = {"tokens": tokens, "labels": (torch.rand(240) < 0.35).long()}

    def of_class(model, batch):
        scores = model(input_ids=batch["tokens"]).logits
        return functional.cross_entropy(scores, batch["labels"], reduction="none")

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    for start in range(0, 240, 40):
        optimizer.zero_grad()
        part = {name: values[start : start + 40] for name, values in batch.items()}
        of_class(model.train(), part).mean().backward()
        optimizer.step()
    for start in range(0, 240, 24):
        part = {name: values[start : start + 24] for name, values in batch.items()}
        per_sample_gradients(model, lambda *given: of_class(*given), part)  # checked each time
