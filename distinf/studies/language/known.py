"""Shapes of models on the hub, from their published configurations: a plan needs no network."""

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

# hub id -> (model type, what of its configuration is not that type's default)
KNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "FacebookAI/roberta-large": ("roberta", _ROBERTA),
    "meta-llama/Llama-3.2-1B": ("llama", _LLAMA),
    "Qwen/Qwen2.5-1.5B": ("qwen2", _QWEN),
    "mistralai/Mistral-7B-v0.3": ("mistral", _MISTRAL),
    "microsoft/Phi-3-mini-4k-instruct": ("phi3", {}),
}
