"""Runs of the points task, or of any, up to a stage: later stages are not waited for."""

import sys
from pathlib import Path
from typing import Any

from distinf.config import RunConfig, load, resolve
from distinf.engine.run import open_session
from distinf.runtime import open_runtime
from distinf.spectral.session import Session
from tests.support.runs import POINTS, merged


def points_config(out: Path | str, **changes: Any) -> RunConfig:
    """The points run with nested changes."""
    return resolve({**merged(POINTS, changes), "out": str(out)})


def run_until(last: str, config: RunConfig, session: Session | None = None) -> Session:
    """Carry out the stages up to and with `last`, of the run or of a variation's session."""
    session = session or open_session(config)
    runtime = open_runtime(config.runtime)
    try:
        for stage in session.recipe.every:
            if not stage.is_done(session, _units(session, stage)):
                stage.run(session, runtime)
            if last == stage.name:
                return session
    finally:
        runtime.close()
    raise ValueError(f"no stage '{last}'")


def _units(session: Session, stage: Any) -> list[Any]:
    return [unit for unit, _ in stage.units(session.outline)]


if __name__ == "__main__":  # a driver of its own, to be killed: CONFIG STAGE [key=value …]
    run_until(sys.argv[2], load(sys.argv[1], sys.argv[3:]))
