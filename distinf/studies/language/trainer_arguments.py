"""Our settings as the Hugging Face Trainer's arguments."""

import math
from typing import Any

import torch

from distinf.gram.settings import TrainSettings

OPTIMIZERS = {  # of the Trainer
    "adamw": "adamw_torch",
    "adamw-8bit": "adamw_bnb_8bit",
    "paged-adamw-8bit": "paged_adamw_8bit",
}


def trainer_arguments(
    recipe: TrainSettings, lr: float, seed: int, steps: int, folder: str, device: torch.device
) -> Any:
    from transformers import TrainingArguments

    arguments = TrainingArguments(
        output_dir=folder,
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.evaluation_batch,
        learning_rate=lr,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.clip,
        lr_scheduler_type=schedule_name(recipe),
        warmup_steps=math.ceil(recipe.warmup * steps),
        optim=OPTIMIZERS[recipe.optimizer],
        bf16=recipe.precision == "bfloat16",
        seed=seed,
        data_seed=seed,
        eval_strategy="epoch",
        logging_strategy="epoch",
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_num_workers=0,
        dataloader_pin_memory=device.type == "cuda",
        use_cpu=device.type == "cpu",
        log_level="error",
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # never DataParallel over what else is visible
    return arguments


def schedule_name(recipe: TrainSettings) -> str:
    return "constant_with_warmup" if recipe.schedule == "constant" else recipe.schedule
