"""A tiny random causal model whose tokenizer has a chat template, and files of rows."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.causal import write_causal

TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<s>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_tuned_on(folder: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A causal model, the rows it is to be tuned on, and three queries."""
    write_causal(folder / "model")
    write_rows(folder / "train.jsonl", rows)
    write_rows(folder / "asked.jsonl", [{"text": "abab"}, {"text": "2 and ab"}, {"text": "cd"}])
    return folder


def write_chatting(folder: Path, template: str = TEMPLATE, **options: Any) -> Path:
    """As `write_causal`; <s> ends a turn as well."""
    write_causal(folder, **options)
    settings = folder / "tokenizer_config.json"
    told = json.loads(settings.read_text()) | {"chat_template": template, "eos_token": "<s>"}
    settings.write_text(json.dumps(told))
    return folder
