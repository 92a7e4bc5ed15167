"""Records and metadata as somebody else could have made them, their checksums made to fit."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

from distinf.runtime.records import seal
from distinf.store import Blobs

PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([0, 1, -1, 10**12, 2**31, 2**63])
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(
        ["..", "../x", "/etc/passwd", "c/0", "zarr.json", "object", "float32", "v2", "", "a\x00b",
         "\ud800", "pickle", "gzip", "numcodecs.pickle", "|O", "NaN"]
    )
)  # fmt: skip
ANYTHING = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The way to each value inside nested JSON, and to the whole of it."""
    yield path
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if (isinstance(value, list))
        else ()
    )
    for key, below in inner:
        yield from places(below, (*path, key))


@st.composite
def changed(draw: Any, value: Any) -> Any:
    """The same JSON with one to three of its values replaced, left out or renamed."""
    found = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(found))))
        if not path:
            found = draw(ANYTHING) if draw(st.integers(0, 9)) == 0 else found
            continue
        holder = found
        for key in path[:-1]:
            holder = holder[key]
        kind = draw(st.sampled_from(["replace", "replace", "drop", "rename"]))
        if kind == "replace" or isinstance(holder, list):
            holder[path[-1]] = draw(ANYTHING)
        elif kind == "drop":
            del holder[path[-1]]
        else:
            holder[draw(PLAIN.filter(lambda key: isinstance(key, str)))] = holder.pop(path[-1])
    return found


def put_metadata(blobs: Blobs, manifest: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Store the metadata -> the manifest that agrees with it."""
    data = json.dumps(value).encode()
    before = len(blobs.get(f"{manifest['group']}/{key}"))
    blobs.put(f"{manifest['group']}/{key}", data)
    files = {**manifest["files"], key: hashlib.sha256(data).hexdigest()}
    return {**manifest, "files": files, "bytes": manifest["bytes"] + len(data) - before}


def signed(content: Any) -> bytes:
    """A record of whatever this is."""
    return seal(content) if isinstance(content, dict) else json.dumps(content).encode()
