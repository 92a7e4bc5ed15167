"""A causal language model of a few thousand parameters, with a tokenizer of single bytes."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BEGIN = "<s>"


def write_causal(folder: Path, begins: bool = True, positions: int = 512, added: str = "") -> Path:
    """`begins`: texts begin with a token of their own. `added`: a token that the model has no row
    for."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {BEGIN: 0, **{char: k for k, char in enumerate(alphabet, 1)}}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    if begins:
        made.post_processor = processors.TemplateProcessing(
            single=f"{BEGIN} $A", special_tokens=[(BEGIN, 0)]
        )
    names = {"bos_token": BEGIN} if begins else {}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, **names)
    tokenizer.add_tokens([added] if added else [])
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=positions,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
