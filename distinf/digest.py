"""What names a value or bytes by their content."""

import hashlib
import json
from typing import Any

_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """sha256 of the value's canonical JSON, 20 hexadecimal digits: enough to name it."""
    return hashlib.sha256(_CANONICAL.encode(value).encode()).hexdigest()[:20]


def sha256(*parts: bytes | memoryview) -> str:
    """Of the bytes, one part after the other: 64 hexadecimal digits."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()
