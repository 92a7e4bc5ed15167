"""Where a picture's texts are, and which of them lie on each other or run out of it."""

import re
from dataclasses import dataclass
from html import unescape

import numpy as np

NARROW = frozenset("fijlrt1 .,:;|!'()[]/-·")
WIDE, SLIM, BOLD = 0.56, 0.3, 1.08  # a letter's width in units of the font's size, as in most fonts
ASCENT, DESCENT = 0.72, 0.05  # of figures and capitals
TEXT = re.compile(r"<text ([^>]*)>([^<]*)</text>")
PLACE = re.compile(r'x="([-\d.]+)" y="([-\d.]+)" transform="rotate\(([-\d.]+)')
MOVED = re.compile(r"translate\(([-\d.]+) ([-\d.]+)\)(?: rotate\(([-\d.]+)\))?")


@dataclass(frozen=True)
class Label:
    """corners [4, 2], in points from the picture's top left."""

    text: str
    corners: np.ndarray


def labels(svg: str) -> list[Label]:
    found = []
    for attributes, text in TEXT.findall(svg):
        place = PLACE.search(attributes) or MOVED.search(attributes)
        assert place, attributes
        x, y, turned = (float(v or 0) for v in place.groups())
        size = float(re.search(r"font-size: ([\d.]+)px", attributes)[1])  # type: ignore[index]
        wide = size * sum(SLIM if letter in NARROW else WIDE for letter in unescape(text))
        wide *= BOLD if "font-weight: bold" in attributes else 1.0
        anchor = re.search(r"text-anchor: (\w+)", attributes)
        left = -wide * {"middle": 0.5, "end": 1.0}.get(anchor[1] if anchor else "", 0.0)
        box = np.array([(left, -ASCENT), (left + wide, -ASCENT), (left + wide, DESCENT),
                        (left, DESCENT)]) * (1, size)  # fmt: skip
        angle = np.radians(turned)
        turn = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))])
        found.append(Label(unescape(text), box @ turn + (x, y)))
    return found


def overlapping(svg: str) -> list[tuple[str, str]]:
    """Pairs of texts that lie on each other."""
    every = labels(svg)
    return [
        (a.text, b.text) for k, a in enumerate(every) for b in every[k + 1 :] if not _apart(a, b)
    ]


def outside(svg: str) -> list[str]:
    """Texts that run out of the picture."""
    _, _, wide, high = map(float, re.search(r'viewBox="([^"]*)"', svg)[1].split())  # type: ignore[index]
    within = [(x.corners >= 0).all() and (x.corners <= (wide, high)).all() for x in labels(svg)]
    return [x.text for x, inside in zip(labels(svg), within, strict=True) if not inside]


def _apart(one: Label, other: Label) -> bool:
    """Whether a line along a side of one of two rectangles runs between them."""
    for box in (one.corners, other.corners):
        for side in (box[1] - box[0], box[3] - box[0]):
            a, b = one.corners @ side, other.corners @ side
            if a.max() <= b.min() or b.max() <= a.min():
                return True
    return False
