"""Seeded changes to nested values and to text, as somebody else or a broken disk makes them."""

import json
import random
from collections.abc import Sequence
from typing import Any

from tests.support.hostile import places

WORDS = (
    "", " ", "..", "../x", "../../../etc/passwd", "/etc/passwd", "/dev/zero", "~", "c/0", "a/b",
    "a\x00b", "\ud800", "\u202eevil\u2066", "\x1b[31mred\x1b[0m", "\r\n", "a\nb", "=1+1", "@x",
    "[bold]x[/bold]", "{{7*7}}", "<script>", "%s%n", "null", "NaN", "1e999", "0x10", "1_000", "yes",
    "zarr.json", "object", "float32", "|O", "pickle", "numcodecs.pickle", "gzip", "v2", "key",
    "gram", "receiver", "os:system", "nowhere:task", "tests.support.blobs_task:points",
    "tests.support.blobs_task:task", "train", "x" * 300, "y" * 20_000, "é", "e\u0301", "\ufeff",
    "memory://other", "s3://bucket/x", "file:///", "auto", "local", "ray", "vmap", "all", "lora",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 7, 10**6, 10**12, 2**31, 2**53 + 1, 2**63, 2**64, 10**40, 10**400, -(2**63),
    0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf"), True, False,
)  # fmt: skip
SNIPPETS = (
    b"[" * 5_000, b"{" * 5_000, b'{"a":' * 3_000, b"- " * 3_000, b"1" * 5_000, b"\x00", b"\xff\xfe",
    b"!!python/object/apply:os.system [id]", b"&a [*a]", b"<<: *a", b"\n---\n", b"\n...\n", b"? ",
    b": ", b"\t", b"*a", b"!!binary x", b"2024-13-45", b"1e999", b"-", b'"', b"'", b"]", b"}", b",",
    b"NaN", b"\\ud800", b"\xe2\x80\xae", b"|\n", b"%YAML 9.9\n", b"extends: .\n", b"#",
)  # fmt: skip


def awkward(dice: random.Random, depth: int = 0) -> Any:
    """A value that nobody expects."""
    kind = dice.randrange(10)
    if kind < 3:
        return dice.choice(WORDS)
    if kind < 6:
        return dice.choice(NUMBERS)
    if kind == 6:
        return None
    if depth > 2:
        return []
    if kind == 7:
        return [awkward(dice, depth + 1) for _ in range(dice.randrange(4))]
    if kind == 8:
        return {dice.choice(WORDS): awkward(dice, depth + 1) for _ in range(dice.randrange(4))}
    nested: Any = awkward(dice, depth + 1)
    for _ in range(dice.choice((3, 60, 400))):
        nested = [nested] if dice.random() < 0.5 else {"a": nested}
    return nested


def changed(value: Any, dice: random.Random) -> Any:
    """A copy of nested JSON, one to three values replaced, left out, renamed, added or swapped."""
    found = json.loads(json.dumps(value))
    for _ in range(dice.randint(1, 3)):
        found = _edited(found, dice)
    return found


def _edited(found: Any, dice: random.Random) -> Any:
    every = list(places(found)) if _depth(found) < 100 else [()]
    path = dice.choice(every)
    if not path:
        return _added(found, dice) if isinstance(found, dict) and found else awkward(dice)
    holder = _at(found, path[:-1])
    kind = dice.randrange(8)
    if kind == 0 and isinstance(holder, dict):
        del holder[path[-1]]
    elif kind == 1 and isinstance(holder, dict):
        holder[dice.choice(WORDS)] = holder.pop(path[-1])
    elif kind == 2 and isinstance(holder[path[-1]], dict | list):
        _added(holder[path[-1]], dice)
    elif kind == 3:
        holder[path[-1]] = json.loads(json.dumps(_at(found, dice.choice(every))))
    elif kind == 4 and type(holder[path[-1]]) in (int, float):
        holder[path[-1]] *= dice.choice((-1, 0, 2, 10**6))
    else:
        holder[path[-1]] = awkward(dice)
    return found


def _added(holder: Any, dice: random.Random) -> Any:
    if isinstance(holder, dict):
        holder[dice.choice(WORDS)] = awkward(dice)
    else:
        holder.append(awkward(dice))
    return holder


def _at(value: Any, path: Sequence[Any]) -> Any:
    for key in path:
        value = value[key]
    return value


def _depth(value: Any) -> int:
    deepest, waiting = 0, [(value, 0)]
    while waiting:
        inner, depth = waiting.pop()
        deepest = max(deepest, depth)
        if isinstance(inner, dict | list):
            below = inner.values() if isinstance(inner, dict) else inner
            waiting += [(each, depth + 1) for each in below]
    return deepest


def torn(data: bytes, dice: random.Random) -> bytes:
    """Bytes with one to three places flipped, cut, doubled, or something put in."""
    found = bytearray(data)
    for _ in range(dice.randint(1, 3)):
        at = dice.randrange(len(found) + 1)
        upto = min(len(found), at + dice.choice((1, 1, 3, 40, 10**6)))
        kind = dice.randrange(5)
        if kind == 0 and at < len(found):
            found[at] ^= 1 << dice.randrange(8)
        elif kind == 1:
            del found[at:upto]
        elif kind == 2:
            found[at:at] = found[at:upto]
        else:
            found[at:at] = dice.choice(SNIPPETS)
    return bytes(found)
