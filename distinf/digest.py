"""What names a value or bytes by their content."""

import hashlib
import json
from typing import Any


def digest(value: Any) -> str:
    """sha256 of the value's canonical JSON, 20 hexadecimal digits: enough to name it."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return sha256(text.encode())[:20]


def sha256(*parts: bytes | memoryview) -> str:
    """Of the bytes, one part after the other: 64 hexadecimal digits."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part)
    return total.hexdigest()
