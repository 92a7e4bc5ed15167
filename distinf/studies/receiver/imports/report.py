"""An import's page: how many slots there are, their error rates, and which files they are from."""

from typing import Any

from distinf.engine.session import Session
from distinf.report.formats import count, number, size
from distinf.report.provenance import costs, origin, provenance_of, stage_costs
from distinf.report.publishing import publish
from distinf.report.schema import Column, Page, Section, Table, stub
from distinf.studies.receiver.dataset import Dataset
from distinf.tasks.task import SPLITS


def report(session: Session) -> None:
    facts = Dataset(session.blobs.root).facts
    tables: dict[str, list[dict[str, Any]]] = {
        "splits": [{"split": s, "rows": facts["rows"][s], **facts["rates"][s]} for s in SPLITS],
        "files": list(facts["sources"]),
        "costs": stage_costs(session),
    }
    publish(session, facts, tables, _page(session, tables))


def _page(session: Session, tables: dict[str, list[dict[str, Any]]]) -> Page:
    splits = [
        stub("split", "split"),
        Column("slots", "rows", count),
        Column("genie-aided BER", "genie_ber", number),
        Column("baseline BER", "baseline_ber", number),
    ]
    files = [
        stub("file", "path"),
        stub("split", "split"),
        Column("records", "records", count),
        Column("size", "bytes", size),
    ]
    said = ", ".join(f"{row['rows']} {row['split']} slots" for row in tables["splits"])
    root = session.blobs.root
    return Page(
        "Imported slots",
        session.context["task"],
        answer=(f"{said}.", f"A run takes them by --set settings.dataset={root}."),
        sections=[
            Section(
                "slots",
                "Slots",
                [Table("Mean bit error rates", tables["splits"], splits, "splits")],
                "A mean baseline BER near one half: the pilots are not those that were sent.",
            ),
            Section("files", "Files", [Table("Records by file", tables["files"], files, "files")]),
            Section("costs", "Costs", [costs(tables["costs"])]),
            origin(provenance_of(session)),
        ],
    )
