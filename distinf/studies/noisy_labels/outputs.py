"""What is read off a classifier of texts: logits, mean hidden states, the loss."""

from typing import Any

import torch
from torch import Tensor, nn

from distinf.tasks.task import Batch


def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    """float32 [n, classes]."""
    outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    logits: Tensor = outputs.logits.float()
    return logits


def mean_states(model: Any, batch: Batch) -> Tensor:
    """float32 [n, width]: the mean of the base's last hidden states, without padding."""
    mask = batch["attention_mask"]
    found = model.base_model(input_ids=batch["input_ids"], attention_mask=mask)
    states = torch.where(mask[..., None] > 0, found.last_hidden_state.float(), 0.0)
    return states.sum(1) / mask.sum(1, keepdim=True)


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """[n]: the training loss of each row."""
    return nn.functional.cross_entropy(logits_of(model, batch), batch["labels"], reduction="none")
