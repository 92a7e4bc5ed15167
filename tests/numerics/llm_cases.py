"""Tiny random language models of every architecture that is named, with LoRA and a head."""

import peft
import torch
import transformers
from torch import Tensor, nn

from distinf.numerics.parameters import Layout
from distinf.numerics.sparse import SparseRows

VOCABULARY, PADDING = 211, 1
SIZE = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_labels": 3,
        "max_position_embeddings": 40, "pad_token_id": PADDING}  # fmt: skip


def _decoder(heads: int, groups: int) -> dict[str, int]:
    return {"num_attention_heads": heads, "num_key_value_heads": groups, "intermediate_size": 96,
            "bos_token_id": 2, "eos_token_id": 3}  # fmt: skip


ENCODER = {"num_attention_heads": 4, "intermediate_size": 96}
ARCHITECTURES = {
    "Roberta": (SIZE | ENCODER, ["query", "value"]),
    "Bert": (SIZE | ENCODER, ["query", "value"]),
    "GPT2": (
        {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 40,
         "pad_token_id": PADDING, "num_labels": 3, "bos_token_id": 2, "eos_token_id": 3},
        ["c_attn"],
    ),
    "Llama": (SIZE | _decoder(4, 1), ["q_proj", "v_proj"]),
    "Qwen2": (SIZE | _decoder(6, 1) | {"hidden_size": 96}, ["q_proj", "v_proj"]),
    "Mistral": (SIZE | _decoder(4, 1) | {"sliding_window": None}, ["q_proj", "v_proj"]),
    "Phi3": (SIZE | _decoder(4, 4), ["qkv_proj"]),
}  # fmt: skip


def classifier(name: str, dtype: torch.dtype = torch.float64, **changes: object) -> nn.Module:
    """A sequence classifier of random weights, its padding id's embedding zero where it is set."""
    torch.manual_seed(0)
    settings, _ = ARCHITECTURES[name]
    config = getattr(transformers, f"{name}Config")(**(settings | changes))
    model = getattr(transformers, f"{name}ForSequenceClassification")(config)
    return model.to(dtype)


def with_lora(model: nn.Module, targets: list[str]) -> nn.Module:
    """LoRA of rank 4 whose B is not zero (else A would have no gradient), and a trained head."""
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=4, lora_alpha=4, lora_dropout=0.1, target_modules=targets,
        fan_in_fan_out="c_attn" in targets,
    )  # fmt: skip
    adapted = peft.get_peft_model(model, config)
    torch.manual_seed(1)
    for parameter_name, parameter in adapted.named_parameters():
        if "lora_B" in parameter_name:
            nn.init.normal_(parameter, std=0.3)
    return adapted


def adapted(name: str, dtype: torch.dtype = torch.float64, **changes: object) -> nn.Module:
    """The two together."""
    return with_lora(classifier(name, dtype, **changes), ARCHITECTURES[name][1])


def tokens(lengths: list[int], longest: int = 0, seed: int = 0) -> dict[str, Tensor]:
    """Samples of these lengths, some tokens repeated, padded on the right."""
    random = torch.Generator().manual_seed(seed)
    longest = max(longest, *lengths)
    ids = torch.randint(4, 30, (len(lengths), longest), generator=random)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    labels = torch.randint(0, 3, (len(lengths),), generator=random)
    return {"input_ids": ids.where(mask > 0, PADDING), "attention_mask": mask, "labels": labels}


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """[N]: cross-entropy."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return nn.functional.cross_entropy(logits, batch["labels"], reduction="none")


def one_by_one(model: nn.Module, batch: dict[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """{name: [N, entries]} by autograd: one sample at a time, without its padding."""
    model.eval()
    parameters = [model.get_parameter(name) for name in layout.names]
    flags = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_()
    found: list[tuple[Tensor, ...]] = []
    for n, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        sample = {key: value[n : n + 1] for key, value in batch.items()}
        sample |= {key: sample[key][:, :length] for key in ("input_ids", "attention_mask")}
        found.append(torch.autograd.grad(loss(model, sample)[0], parameters))
    for parameter, flag in zip(parameters, flags, strict=True):
        parameter.requires_grad_(flag)
    columns = zip(*found, strict=True)
    return {n: torch.stack(c).flatten(1) for n, c in zip(layout.names, columns, strict=True)}


def dense(grads: Tensor | SparseRows) -> Tensor:
    """[N, entries]"""
    return grads.dense().flatten(1) if isinstance(grads, SparseRows) else grads


def largest_error(
    found: dict[str, Tensor | SparseRows], expected: dict[str, Tensor]
) -> tuple[float, str]:
    """Over blocks: the largest difference of any entry over the block's largest entry."""
    assert list(found) == list(expected)
    errors = []
    for name, values in expected.items():
        scale = values.abs().max()
        assert scale > 0, name
        errors.append((float((dense(found[name]) - values).abs().max() / scale), name))
    return max(errors)
