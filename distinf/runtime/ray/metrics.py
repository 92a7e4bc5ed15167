"""What a run tells Prometheus, by stage, on the metrics port of each of its cluster's nodes.

Ray puts "ray_" before these names and "_total" behind a counter's. `cluster/grafana/distinf.json`
is a dashboard of them; docs/status.md says how to read them.
"""

from functools import cache

from ray.util.metrics import Counter, Histogram

DONE, FAILED, RETRIED = "distinf_units_done", "distinf_units_failed", "distinf_units_retried"
SECONDS = "distinf_unit_seconds"
TAGS = ("stage",)
BOUNDS_S = [0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0]


def done(stage: str, seconds: float) -> None:
    """A unit was committed, so long after it was begun; told by the worker."""
    _counter(DONE, "units committed").inc(tags={"stage": stage})
    _histogram().observe(seconds, tags={"stage": stage})


def failed(stage: str) -> None:
    """An attempt ended without its unit; told by the driver, as the next two words are."""
    _counter(FAILED, "attempts that ended without their unit").inc(tags={"stage": stage})


def retried(stage: str) -> None:
    _counter(RETRIED, "attempts after a unit's first").inc(tags={"stage": stage})


@cache
def _counter(name: str, what: str) -> Counter:
    return Counter(name, description=what, tag_keys=TAGS)


@cache
def _histogram() -> Histogram:
    what = "seconds from a unit's begin to its commit"
    return Histogram(SECONDS, description=what, boundaries=BOUNDS_S, tag_keys=TAGS)
