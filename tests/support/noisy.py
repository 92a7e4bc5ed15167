"""Tiny language models, tokenizers and labelled texts for the noisy-labels study."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

WORDS = [f"w{k}" for k in range(120)]
SPECIAL = ["[CLS]", "[PAD]", "[SEP]", "[UNK]"]
TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 124}
CONFIGS = {
    "bert": ("BertConfig", {**TINY, "intermediate_size": 24}),
    "roberta": ("RobertaConfig", {**TINY, "intermediate_size": 24, "pad_token_id": 1}),
    "llama": ("LlamaConfig", {**TINY, "intermediate_size": 24, "num_key_value_heads": 1}),
    "mistral": (  # Mistral-7B's shape, 1/64 as wide and with an eighth of its layers
        "MistralConfig",
        {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 124,
         "num_key_value_heads": 1, "intermediate_size": 224, "sliding_window": None},
    ),
    "phi3": ("Phi3Config", {**TINY, "intermediate_size": 24, "pad_token_id": 1}),
    "gpt2": ("GPT2Config", {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 124}),
}  # fmt: skip
LONGEST = 40


def tiny_model(folder: Path, kind: str = "bert", wide: int = 1, **tokens: str | None) -> str:
    """Save a random model of 2 layers with its tokenizer.

    wide: times 16 is the hidden size; tokens: other special tokens than the tokenizer's.
    """
    import transformers

    name, sizes = CONFIGS[kind]
    longest = {"n_positions": LONGEST} if kind == "gpt2" else {"max_position_embeddings": LONGEST}
    for key in [key for key in sizes if "size" in key and "vocab" not in key]:
        sizes = {**sizes, key: sizes[key] * wide}
    config = getattr(transformers, name)(**sizes, **longest)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = transformers.AutoModel.from_config(config)
        for parameter in model.parameters():  # biases and norms too: they could hide a mistake
            parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    tokenizer(**tokens).save_pretrained(folder)
    return str(folder)


def tokenizer(**tokens: str | None):
    """Words to ids, 4 upwards; [CLS] a [SEP] b [SEP]."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: k for k, word in enumerate([*SPECIAL, *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 0), ("[SEP]", 2)],
    )
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", **tokens}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **named)


def write_classes(path: Path, classes: Sequence[str], rows: int = 160, seed: int = 0) -> str:
    """A CSV of texts; each class has words of its own."""
    draw = np.random.default_rng(seed)
    lines = ["text,label"]
    for row in range(rows):
        place = row % len(classes)
        words = draw.integers(0, 20, draw.integers(3, 9)) + 20 * place
        lines.append(f"{' '.join(WORDS[word] for word in words)},{classes[place]}")
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def write_texts(path: Path, rows: int = 160, pairs: bool = False, seed: int = 0) -> str:
    """A TSV of texts with 3 to 12 words; those of class 1 are mostly of other words."""
    draw = np.random.default_rng(seed)
    lines = ["label\tquestion\tsentence" if pairs else "label\tsentence"]
    for row in range(rows):
        label = row % 2
        fields = []
        for _ in range(1 + pairs):
            words = draw.integers(0, 40, draw.integers(3, 13)) + 30 * label
            fields.append(" ".join(WORDS[word] for word in words))
        lines.append("\t".join([str(label), *fields]))
    path.write_text("\n".join(lines) + "\n")
    return str(path)
