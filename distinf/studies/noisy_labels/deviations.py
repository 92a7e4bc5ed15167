"""Where a run is not what Vitel and Chhabra (arXiv 2511.04715) or their code did, in sentences.

What every run of the study does otherwise, and what only this run's settings make so.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from distinf.gram.settings import StageSettings
from distinf.studies.noisy_labels.settings import NoisyLabelSettings
from distinf.tasks.task import Wording

CODE_ENTRIES = 100_000  # their code takes DataInf of smaller tensors only
CODE_DECAY = 0.01  # AdamW's default in PyTorch
# by dotted key: appendix A, section 5, or, where the text is silent, their code
PUBLISHED: Mapping[str, Any] = {
    "data.train_rows": 4500, "data.query_rows": 500, "data.test_rows": 500, "data.flips": 0.2,
    "model.dtype": "bfloat16", "model.quantise": "none", "model.max_length": 128,
    "lora.rank": 4, "lora.alpha": 4.0, "lora.dropout": 0.05, "seeds": 10,
    "train.epochs": 10, "train.batch_size": 32, "train.warmup": 0.1, "train.schedule": "cosine",
    "actions.fraction": 0.3,
}  # fmt: skip
RATES: Mapping[str, float] = {  # appendix A; but for RTE of Qwen-2.5: RTE_RATE
    "roberta-large": 3e-4, "llama-3.2-1b": 1e-4, "qwen-2.5-1.5b": 3e-4, "mistral-7b": 5e-5,
}  # fmt: skip
RTE_RATE = ("qwen-2.5-1.5b", 1e-3)
ALWAYS = (
    "Training, query and test rows are drawn by the cell's seed, as are the flips, the adapters' "
    "and the head's first weights and the order of training.",
    "NDR counts the rows that are filtered (the authors' code one more), and the area is by the "
    "trapezoid rule.",
    "Ranks and votes are of scores rounded to 16 significant bits, so that what only rounding "
    "tells apart is a tie.",
)
WORDING = Wording(
    question="Which training samples have wrong labels, and what if they are left out?",
    noun="samples",
    metric="loss",
)


def deviations(
    ours: NoisyLabelSettings, stages: StageSettings, model: str, entries: Mapping[str, int]
) -> list[str]:
    """A sentence each. model: their name for it, "" for another; entries: of each block
    whose gradients are taken, by name."""
    return [
        *_of_data(ours),
        *ALWAYS,
        *_of_training(stages),
        *_of_scores(stages, entries),
        *_other_settings(ours, stages, model),
    ]


def _of_data(ours: NoisyLabelSettings) -> Iterator[str]:
    if ours.data.path:
        yield "The data are a file, not GLUE."
    if "mnli" in ours.data.datasets and ours.data.classes:
        yield "MNLI has its three classes; Vitel and Chhabra leave out the rows of one."
    if "rte" in ours.data.datasets:
        yield (
            "Queries and tests never share a row; for RTE the authors use the same 277 rows for "
            "both."
        )


def _of_training(stages: StageSettings) -> Iterator[str]:
    train = stages.train
    if train.weight_decay != CODE_DECAY:
        yield (
            f"Weight decay is {train.weight_decay:g}; the text names none, and the authors' code "
            f"leaves AdamW at its default of {CODE_DECAY:g}."
        )
    if train.clip:
        yield (
            f"A step's gradient is clipped at norm {train.clip:g}; the authors' code does not clip."
        )
    if train.selected_epoch != "least_query_loss":
        told = {"best_query_accuracy": "of highest query accuracy", "last": "that comes last"}
        yield (
            f"The epoch {told[train.selected_epoch]} is scored; Vitel and Chhabra take that of "
            "least validation loss, which they found better."
        )


def _of_scores(stages: StageSettings, entries: Mapping[str, int]) -> Iterator[str]:
    wanted = stages.scores.estimators
    large = [name for name, count in entries.items() if count >= CODE_ENTRIES]
    if "datainf" in wanted and large:
        more = f" and {len(large) - 3} more" if len(large) > 3 else ""
        yield (
            f"DataInf is also taken of {', '.join(large[:3])}{more}; the authors' code leaves out "
            f"tensors of {CODE_ENTRIES:,} entries or more."
        )
    if "datainf" in wanted and stages.gradients.embeddings:
        yield (
            "DataInf is computed on the embedding too, through sparse rows; Vitel and Chhabra "
            "call it infeasible there."
        )
    if any(name.startswith("tracin-we") for name in wanted):
        yield (
            "TracIn on the embedding's top words pairs them by token id, as the text has it; the "
            "authors' code pairs them by position."
        )
    if stages.scores.top != stages.actions.fraction:
        yield (
            f"A query votes on {stages.scores.top:g} of the rows; the text takes the share "
            f"that is filtered, {stages.actions.fraction:g}, and the authors' code 0.2."
        )
    if stages.gradients.projection:
        yield (
            "Gradients of large layers are random projections; Vitel and Chhabra take them whole."
        )


def _other_settings(ours: NoisyLabelSettings, stages: StageSettings, model: str) -> Iterator[str]:
    """One sentence with every number that differs, the published one in brackets."""
    sections: dict[str, Any] = {
        "": ours, "data": ours.data, "model": ours.model, "lora": ours.lora,
        "train": stages.train, "actions": stages.actions,
    }  # fmt: skip
    told = []
    for key, published in PUBLISHED.items():
        section, _, name = key.rpartition(".")
        value = getattr(sections[section], name)
        if value != published:
            told.append(f"{key} {value} ({published})")
    if model:
        told += _rates(ours.data.datasets, stages, model)
    else:
        yield f"The model is {ours.model.name}, which is none of the four of Vitel and Chhabra."
    if told:
        yield f"Settings beside the published ones (in brackets): {', '.join(told)}."


def _rates(datasets: Sequence[str], stages: StageSettings, model: str) -> Iterator[str]:
    for name in datasets:
        published = RTE_RATE[1] if (model, name) == (RTE_RATE[0], "rte") else RATES[model]
        rate = stages.train.lr_of.get(name, stages.train.lr)
        if rate != published:
            yield f"train.lr of {name} {rate:g} ({published:g})"
