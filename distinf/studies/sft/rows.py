"""Rows of a file as tokens, and which of them are scored.

A text is scored whole, but for a first token that nothing foretells. Of a prompt and its completion
the tokens that the completion adds are scored, of a chat those that each assistant's turn adds to
the chat before it: both are found as the tokens behind the beginning that the two encodings share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from distinf.errors import InputError
from distinf.studies.language.causal import CausalModel
from distinf.studies.language.parsing import Columns, read_columns
from distinf.studies.sft.settings import CausalSettings

FORMS = (("text",), ("prompt", "completion"), ("messages",))
NEEDED = "rows need text, or prompt and completion, or messages"
Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Encoded:
    """Of each row tokens and labels int64 [L]: a label is the token, or -100 where none is scored.

    texts: what people read. notes: further columns of the file, by name. truncated: rows cut.
    """

    tokens: Sequence[np.ndarray]
    labels: Sequence[np.ndarray]
    texts: Sequence[str]
    notes: Mapping[str, Sequence[Any]]
    truncated: int


@lru_cache(maxsize=8)
def rows_of_file(path: str, setting: str, digest: str) -> tuple[tuple[str, ...], Columns]:
    """(its form, its columns) of a file whose content has this digest; InputError for what is
    wrong, with the row, from 0."""
    columns = read_columns(path, setting).columns
    found = [form for form in FORMS if set(form) & columns.keys()]
    if len(found) != 1 or not {*found[0]} <= columns.keys():
        has = ", ".join(columns)
        raise InputError(f"{setting}: {path}: {NEEDED}, one form in a file; it has {has:.100}")
    (form,) = found
    check = _check_messages if form == ("messages",) else _check_text
    for name in form:
        for row, value in enumerate(columns[name]):
            problem = check(name, value)
            if problem:
                raise InputError(f"{setting}: {path}: row {row}: {problem}")
    return form, columns


def _check_text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        return f"{name} is {type(value).__name__}, not text"
    if name != "prompt" and not value.strip():
        return f"{name} is empty; leave the row out"
    return ""


def _check_messages(name: str, value: Any) -> str:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        return "messages is no list of {role, content}"
    for each in value:
        for key in ("role", "content"):
            if not isinstance(each.get(key), str):
                return f"a message's {key} is {type(each.get(key)).__name__}, not text"
    answers = [each["content"] for each in value if each["role"] == "assistant"]
    if not any(answer.strip() for answer in answers):
        return "no assistant says anything, so there is nothing to learn; leave the row out"
    return ""


def encoded(
    language: CausalModel, settings: CausalSettings, path: str, setting: str, digest: str
) -> Encoded:
    """All rows of a file. InputError, with the row, for one that is too long or has no token to be
    scored, and for a chat that the tokenizer has no template for."""
    form, columns = rows_of_file(path, setting, digest)
    coder = _Coder(language, settings, f"{setting}: {path}")
    rows = list(zip(*(columns[name] for name in form)))
    pairs = [coder.row(number, form, row) for number, row in enumerate(rows)]
    return Encoded(
        tokens=[tokens for tokens, _ in pairs],
        labels=[labels for _, labels in pairs],
        texts=[_told(form, row) for row in rows],
        notes={name: values for name, values in columns.items() if name not in form},
        truncated=coder.truncated,
    )


def _told(form: tuple[str, ...], row: Sequence[Any]) -> str:
    if form == ("messages",):
        return "\n".join(f"{each['role']}: {each['content']}" for each in row[0])
    return "".join(row)


class _Coder:
    """Tokens of one row after another."""

    def __init__(self, language: CausalModel, settings: CausalSettings, where: str) -> None:
        self.language, self.settings, self.where = language, settings, where
        self.longest = min(settings.max_length, language.positions)
        self.truncated = 0

    def row(
        self, number: int, form: tuple[str, ...], row: Sequence[Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, labels) int64 [L]."""
        where = f"{self.where}: row {number}"
        if form == ("messages",):
            ids, scored = self._chat(where, row[0])
        else:
            ids, scored = self._written(*(("", *row) if len(row) == 1 else row))
        self.language.refuse_unknown(ids, f"row {number} of {self.where.partition(': ')[2]}")
        whole = len(ids)
        if whole > self.longest:
            self._refuse_long(where, whole)
            ids, scored = ids[: self.longest], scored[: self.longest]
            self.truncated += 1
        tokens, kept = np.array(ids, dtype=np.int64), np.array(scored, dtype=bool)
        kept[:1] = False
        if not kept.any():
            cut = f" in the first {self.longest} of its {whole}" if whole > self.longest else ""
            raise InputError(
                f"{where}: has no token to score{cut}; leave it out, or raise "
                "model.max_length if it was cut"
            )
        return tokens, np.where(kept, tokens, -100)

    def _refuse_long(self, where: str, length: int) -> None:
        if self.settings.too_long == "refuse":
            most = (
                "model.max_length"
                if self.longest == self.settings.max_length
                else f"the positions of {self.settings.name}"
            )
            raise InputError(
                f"{where}: has {length} tokens, more than {most}, {self.longest}; shorten it, or "
                "set model.too_long: truncate"
            )

    def _written(self, prompt: str, completion: str) -> tuple[list[int], list[bool]]:
        ids = self.language.encoded(prompt + completion, special=True)
        shared = self._shared(self.language.encoded(prompt, special=True), ids) if prompt else 0
        end = self.language.tokenizer.eos_token_id
        if self.settings.end_token and end is not None and ids[-1:] != [end]:
            ids = [*ids, end]
        return ids, [False] * shared + [True] * (len(ids) - shared)

    def _chat(self, where: str, messages: Messages) -> tuple[list[int], list[bool]]:
        whole = self._templated(where, messages, False)
        ids = self.language.encoded(whole)
        scored = [False] * len(ids)
        for turn, each in enumerate(messages):
            if each["role"] == "assistant":
                before = self._templated(where, messages[:turn], True) if turn else ""
                after = self._templated(where, messages[: turn + 1], False)
                if not (whole.startswith(before) and whole.startswith(after)):
                    raise InputError(
                        f"{where}: the chat template of {self.settings.name} writes message "
                        f"{turn} otherwise when others follow; give prompt and completion"
                    )
                first, last = (
                    self._shared(self.language.encoded(part), ids) for part in (before, after)
                )
                scored[first:last] = [True] * (last - first)
        return ids, scored

    def _templated(self, where: str, messages: Messages, ask: bool) -> str:
        tokenizer = self.language.tokenizer
        if not tokenizer.chat_template:
            raise InputError(
                f"{where}: has messages, and the tokenizer of {self.settings.name} has no chat "
                "template; give prompt and completion, or a tokenizer with a template"
            )
        try:
            found: str = tokenizer.apply_chat_template(
                list(messages), tokenize=False, add_generation_prompt=ask
            )
        except Exception as error:  # the template's own refusals, of roles and their order
            raise InputError(
                f"{where}: the chat template of {self.settings.name} refuses it: {error}"
            ) from None
        return found

    @staticmethod
    def _shared(part: list[int], whole: list[int]) -> int:
        """How many tokens both begin with."""
        pairs = enumerate(zip(part, whole))
        return next((k for k, (a, b) in pairs if a != b), min(len(part), len(whole)))
