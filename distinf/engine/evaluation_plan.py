"""What an evaluation will take: how many trainings, and how long by the time of the run's own."""

from collections.abc import Sequence
from dataclasses import dataclass

from distinf.engine.evaluating import asked
from distinf.engine.patching import PATCH
from distinf.engine.trainings import UNROLLED, Design, is_training, kept_rows
from distinf.planning.plans import workers_of


@dataclass(frozen=True)
class EvaluationPlan:
    """What is still to do, but for unrolled scores' own steps, which are known after them.

    trainings and done: of the design, and those of them in the ledger
    wholes    the trainings to do, in trainings on all rows
    whole_s   what the run's own training took, seconds of one worker; None where no note tells
    workers   that this machine, or one like it, has for the run
    steps     single steps to take, one by one; unrolled: times the run's training is unrolled
    """

    trainings: int
    done: int
    wholes: float
    whole_s: float | None
    workers: int
    steps: int
    unrolled: int

    @property
    def seconds(self) -> float | None:
        """Until the trainings are done, if all workers are at it; steps and unrolling beside it
        are not counted."""
        left = self.trainings - self.done
        if self.whole_s is None or not left:
            return None if left else 0.0
        return self.wholes * self.whole_s / min(self.workers, left)


def plan(folder: str, design: Design, others: Sequence[str] = ()) -> EvaluationPlan:
    """Of evaluating the run in `folder` so; InputError as `evaluate`."""
    it = asked(folder, design, others)
    committed = it.session.ledger(it.evaluates.stage.name).committed_ids()
    left = [unit for unit in it.units if unit.id not in committed]
    trainings = [unit for unit in left if is_training(unit)]
    kept = (kept_rows(it.session.seed, unit.job).mean() for unit in trainings)
    took = [note["busy_s"] for note in it.session.times() if note["stage"] == "train"]
    every = sum(map(is_training, it.units))
    return EvaluationPlan(
        trainings=every,
        done=every - len(trainings),
        wholes=float(sum(kept)),
        whole_s=sum(took) / len(it.cells) if took else None,
        workers=workers_of(it.config.runtime),
        steps=sum(len(unit.job.get(PATCH, ())) for unit in left),
        unrolled=sum(UNROLLED in unit.job for unit in left),
    )
