"""Shapes of Vitel and Chhabra's models, from their published configs: a plan needs no network."""

from typing import Any

_ROBERTA = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
    "intermediate_size": 4096, "vocab_size": 50265, "max_position_embeddings": 514,
    "type_vocab_size": 1, "pad_token_id": 1,
}  # fmt: skip
_LLAMA = {
    "hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 8192, "vocab_size": 128256, "head_dim": 64,
    "tie_word_embeddings": True, "max_position_embeddings": 131072,
}  # fmt: skip
_QWEN = {
    "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12,
    "num_key_value_heads": 2, "intermediate_size": 8960, "vocab_size": 151936,
    "tie_word_embeddings": True, "max_position_embeddings": 131072,
}  # fmt: skip
_MISTRAL = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 32768,
    "sliding_window": None, "max_position_embeddings": 32768,
}  # fmt: skip

# hub id -> (model type, configuration, their name for it)
KNOWN: dict[str, tuple[str, dict[str, Any], str]] = {
    "FacebookAI/roberta-large": ("roberta", _ROBERTA, "roberta-large"),
    "meta-llama/Llama-3.2-1B": ("llama", _LLAMA, "llama-3.2-1b"),
    "Qwen/Qwen2.5-1.5B": ("qwen2", _QWEN, "qwen-2.5-1.5b"),
    "mistralai/Mistral-7B-v0.3": ("mistral", _MISTRAL, "mistral-7b"),
}


def paper_name(model: str) -> str:
    """What Vitel and Chhabra call the model; "" for any other."""
    return KNOWN[model][2] if model in KNOWN else ""
