"""Secrets among a task's settings: masked in whatever is stored, and still told apart.

A mask is a short digest of the secret, so that a resumed run can be compared with what it was. It
says less than it would take to guess the secret from it: two bits of every five that a text of
digits has, by a slow hash, so that most wrong guesses at a PIN or a word pass it too.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

MASK = re.compile(r"\(secret, not stored: [0-9a-f]+\)")
MOST_DIGITS = 20  # hexadecimal
LETTERS_PER_DIGIT = 3  # of the secret, for one digit of its digest
WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")

# By the last word of a setting's name. What is behind the first is secret whatever it is; texts
# behind `token` and `key` are, unless the word before says that they are something else.
ALWAYS = {"password", "passwords", "passwd", "pwd", "passphrase", "passcode", "secret", "secrets",
          "credential", "credentials", "pat", "bearer", "cookie", "apikey"}  # fmt: skip
TOKENS, NO_TOKENS = {"token", "tokens"}, {
    "pad", "eos", "bos", "unk", "sep", "cls", "mask", "special", "start", "end", "stop", "class",
    "image", "added",
}  # fmt: skip
KEYS, SECRET_KEYS = {"key", "keys"}, {
    "", "api", "access", "secret", "private", "auth", "account", "encryption", "signing", "ssh",
    "hub", "hf", "wandb", "aws", "openai", "service", "license", "user", "my",
}  # fmt: skip
LOOKS_RANDOM = re.compile(r"(?=.*[0-9])(?=.*[A-Za-z])[^\s/]{16,}")
WITH_PASSWORD = re.compile(r"[a-z][a-z0-9+.-]*://[^/@\s:]*:[^/@\s]+@")


def masked(settings: Any, prefix: str = "settings") -> Any:
    """The same with a mask in place of every secret; prefix: their dotted name."""
    changes = {key: mask(key, value) for key, value in _secrets(settings, prefix, False)}
    return _replaced(settings, prefix, changes)


def mask(key: str, value: Any) -> str:
    """What stands for the secret at the dotted `key`; a mask stands for itself."""
    text = str(value)
    return text if MASK.fullmatch(text) else f"(secret, not stored: {_digest(key, text)})"


@lru_cache(maxsize=256)
def _digest(key: str, text: str) -> str:
    found = hashlib.scrypt(
        text.encode("utf-8", "surrogatepass"), salt=key.encode(), n=2**14, r=8, p=1
    )
    return found.hex()[: max(1, min(MOST_DIGITS, len(text) // LETTERS_PER_DIGIT))]


def given_again(settings: Any, prefix: str = "settings") -> Any:
    """With masks replaced by what the environment has for them; see `variable`."""
    found = {
        key: os.environ[variable(key)]
        for key in unknown(settings, prefix)
        if os.environ.get(variable(key))
    }
    return _replaced(settings, prefix, found)


def unknown(settings: Any, prefix: str = "settings") -> list[str]:
    """Dotted keys of secrets of which only the mask is there."""
    leaves = _leaves(settings, prefix)
    return [key for key, leaf in leaves if isinstance(leaf, str) and MASK.fullmatch(leaf)]


def variable(key: str) -> str:
    """Of the environment, for a secret: DISTINF_SETTINGS_HUB_TOKEN for settings.hub.token."""
    return "DISTINF_" + re.sub(r"\W", "_", key).upper()


def without(text: str, settings: Any) -> str:
    """The text with every secret in it taken out."""
    secrets = sorted({str(value) for _, value in _secrets(settings, "settings", False)}, key=len)
    for secret in reversed(secrets):
        if len(secret) >= 4 and not MASK.fullmatch(secret):
            text = text.replace(secret, "(secret)")
    return text


def _secrets(value: Any, key: str, inside: bool) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every secret leaf; inside: below a name that is a secret's."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _secrets(inner, _below(key, name), inside or _names_all(str(name)))
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            yield from _secrets(inner, f"{key}.{place}", inside or _names_text(key, inner))
    elif value in (None, "") or isinstance(value, bool):
        return
    elif inside or _names_text(key, value):
        yield key, value


def _names_all(name: str) -> bool:
    return bool(ALWAYS & {_words(name)[-1]})


def _names_text(key: str, value: Any) -> bool:
    *_, before, last = ["", "", *_words(key.rpartition(".")[2])]
    if last in ALWAYS:
        return True
    if not isinstance(value, str):
        return False
    if last in TOKENS:
        return before not in NO_TOKENS
    if last in KEYS:
        return before in SECRET_KEYS or bool(LOOKS_RANDOM.fullmatch(value))
    return bool(WITH_PASSWORD.match(value)) or bool(MASK.fullmatch(value))


def _words(name: str) -> list[str]:
    return [word.lower() for word in WORDS.findall(name.rpartition(".")[2])] or [""]


def _below(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, _below(key, name))
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            yield from _leaves(inner, f"{key}.{place}")
    else:
        yield key, value


def _replaced(value: Any, key: str, changes: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        return {name: _replaced(v, _below(key, name), changes) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_replaced(inner, f"{key}.{place}", changes) for place, inner in enumerate(value)]
    return changes.get(key, value)
