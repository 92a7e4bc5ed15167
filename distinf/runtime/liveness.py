"""When a worker counts as hung: from what it answers, and from how long like work has taken.

A worker answers from a thread of its own, so that one that does not is stopped or stuck as a
process. One that answers may still be stuck in its work: that shows by the time since it last
reported, against the longest like unit or shard. No clock of one machine is held against
another's.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from distinf.runtime.activity import COLLECTIVE, SHARD, Seen

LIKE = 3.0  # times the longest like unit or shard


@dataclass
class Answers:
    """What one worker answered. Times are the driver's own."""

    asked: float | None = None  # when a question was put that is still open
    last: Seen = field(default_factory=Seen)

    def unanswered_s(self, now: float) -> float:
        return 0.0 if self.asked is None else now - self.asked


@dataclass(frozen=True)
class Limits:
    """See RuntimeSettings."""

    silent_s: float
    unit_s: float
    first_unit_s: float

    def unit(self, longest_s: float | None, again: int) -> float:
        """Without a report, in a pool; twice as long each time that it was tried again."""
        least = self.first_unit_s if longest_s is None else max(self.unit_s, LIKE * longest_s)
        return least * 2.0**again

    def rank(self, seen: Seen, others: Iterable[Seen], again: int) -> float:
        """Without a report, as one rank of a gang."""
        if seen.kind == COLLECTIVE:
            all_in = all(other.kind == COLLECTIVE for other in others)
            return self.silent_s * 2.0**again if all_in else math.inf
        if seen.kind == SHARD and seen.longest_shard_s:
            return max(self.unit_s, LIKE * seen.longest_shard_s) * 2.0**again
        return self.first_unit_s * 2.0**again
