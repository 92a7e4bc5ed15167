"""The report of a finished run, made anew."""

from distinf.engine import running
from distinf.engine.session import Session
from distinf.errors import CorruptionError, DistinfError, InputError
from distinf.runtime import faults


def rewrite_report(session: Session) -> str:
    """Make the report anew from what is committed -> where its page is.

    CorruptionError if that is not what a run commits: a checksum says nothing of who made it.
    """
    try:
        return _rewritten(session)
    except (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError) as e:
        if isinstance(e, DistinfError) or faults.whose(e) == "user":
            raise
        raise CorruptionError(
            f"report: {session.blobs.root} does not hold what a run commits ({faults.told(e)}); if "
            "nobody changed it, this is a bug of distinf: DISTINF_TRACE=1 shows where"
        ) from e


def _rewritten(session: Session) -> str:
    for each in running.together(session):
        for stage in session.recipe.working:
            if not stage.is_done(each, stage.wanted_units(each)):
                name = running.part_of(each, stage).title
                raise InputError(f"report: stage '{name}' is not done; finish the run first")
    assert session.recipe.report is not None  # see recipe_named
    session.recipe.report(session)
    return page_path(session)


def page_path(session: Session) -> str:
    return f"{session.blobs.root}/report/index.html"
