"""What `distinf verify` finds, what `--repair` makes again, and that looking needs no task."""

import ast
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from distinf.cli import main
from distinf.config import load, resolve
from distinf.engine import source_notes
from distinf.engine.rewriting import rewrite_report
from distinf.engine.run import execute, open_session, reopen
from distinf.engine.standing import stages_of
from distinf.engine.verifying import folder_of, set_aside, verify
from distinf.errors import CorruptionError, InputError
from distinf.runtime import Agenda, Ledger, Part, handed, repairs
from distinf.runtime.records import seal, unseal
from distinf.store import open_root
from tests.support.runs import POINTS, REPOSITORY, all_scores, copied, run_points, same_bits, silent


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return run_points(tmp_path_factory.mktemp("verifying") / "run")


@pytest.fixture
def blobs(pristine, tmp_path):
    return copied(pristine, tmp_path / "run").blobs


def problems(blobs):
    return "\n".join(verify(blobs).problems)


def test_an_intact_run_has_no_problem(blobs):
    assert problems(blobs) == ""


@pytest.mark.parametrize("stage", ["train", "gradients", "actions", "report"])
def test_a_stage_whose_records_are_gone_is_missed(blobs, stage):
    shutil.rmtree(Path(blobs.root, "ledger", stage))
    assert f"ledger/{stage}" in problems(blobs)


def test_records_that_are_gone_are_named_and_counted(blobs):
    names = blobs.names("ledger/actions")
    for name in names[:7]:
        blobs.delete(name)
    found = verify(blobs)
    assert len(found.problems) == 6
    assert sum(any(name in line for line in found.problems) for name in names[:7]) == 5
    assert "2 more records" in found.problems[-1]


def test_records_under_each_others_names_are_told(blobs):
    one, other = blobs.names("ledger/gradients")[:2]
    kept = blobs.get(one), blobs.get(other)
    blobs.put(one, kept[1])
    blobs.put(other, kept[0])
    assert one in problems(blobs)
    assert other in problems(blobs)


def test_a_record_whose_id_is_not_the_hash_of_its_unit_is_told(blobs):
    name = blobs.names("ledger/gradients")[0]
    record = unseal(blobs.get(name), name)
    blobs.put(name, seal({**record, "stop": record["stop"] + 1}))
    assert name in problems(blobs)


def test_an_agenda_that_is_gone_or_says_less_is_told(blobs):
    names = blobs.names("agenda")
    for name in names:
        kept = blobs.get(name)
        blobs.delete(name)
        if name != names[-2]:  # of the last part: the report's file says that it is over
            assert name in problems(blobs)
        blobs.put(name, b"{}")
        assert name in problems(blobs)
        blobs.put(name, kept)
    assert problems(blobs) == ""


@pytest.mark.parametrize("unit", ["y" * 20_000, "../../ledger/train", ""])
def test_an_agenda_whose_units_can_be_no_files_is_told_and_moves_no_unit(blobs, unit):
    name = next(n for n in blobs.names("agenda") if n.endswith("0.json"))
    blobs.put(name, seal({"units": [unit], "over": True}))
    found = verify(blobs)
    assert f"{name} is no list of units" in "\n".join(found.problems)
    kept = [n for n in blobs.names("") if n.startswith("ledger/") or ".zarr/" in n]
    set_aside(blobs, found)
    assert name not in blobs.names("agenda")
    assert set(kept) <= set(blobs.names(""))


@pytest.mark.parametrize(
    "name", ["report/index.html", "report/trials.csv", "report/findings.json", "model.safetensors"]
)
def test_a_file_for_people_that_was_altered_or_deleted_is_told(blobs, name):
    data = blobs.get(name)
    blobs.put(name, data[:-1] + bytes([data[-1] ^ 1]))
    assert f"{name} was altered" in problems(blobs)
    blobs.delete(name)
    assert f"{name} is missing" in problems(blobs)
    blobs.put(name, data)
    assert problems(blobs) == ""


@pytest.mark.parametrize("kind", ["report", "model.safetensors"])
def test_sums_that_are_gone_are_told(blobs, kind):
    blobs.delete(handed.sums_of(kind))
    assert f"{handed.sums_of(kind)} is missing" in problems(blobs)


def test_sums_name_no_file_elsewhere(blobs, tmp_path):
    (tmp_path / "secret").write_text("of somebody else")
    blobs.put(handed.sums_of("report"), seal({"files": {"report/../../secret": "0"}}))
    assert "was never written so" in problems(blobs)


CLOSED = """
import os, sys
from distinf.cli import main
root, closed = sys.argv[1:]
assert main(["verify", root]) == 0  # with all that it imports, which another user may not read
os.chmod(closed, 0)
os.getuid() or os.setuid(65534)  # root may read everything
sys.exit(main(["verify", root]))
"""


def test_a_folder_that_may_not_be_read_is_no_empty_one(blobs):
    closed = Path(blobs.root, "ledger", "gradients")
    for folder in (Path(blobs.root), *Path(blobs.root).parents):
        if folder != Path("/") and folder.stat().st_uid == os.getuid():
            folder.chmod(folder.stat().st_mode | 0o055)
    found = subprocess.run(
        [sys.executable, "-c", CLOSED, blobs.root, closed],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": REPOSITORY},
    )  # fmt: skip
    closed.chmod(0o755)
    assert found.returncode == CorruptionError.exit_code, found.stderr
    assert "ledger/gradients cannot be read: Permission denied" in found.stderr


@pytest.mark.slow
def test_a_report_whose_writing_was_killed_has_no_sums_and_is_written_anew(blobs, monkeypatch):
    class Killed(Exception):
        pass

    session = reopen(blobs.root)
    put = type(session.blobs).put

    def puts(self, key, data):
        if key.endswith("index.html"):
            raise Killed
        put(self, key, data + b" ")

    with monkeypatch.context() as patched:
        patched.setattr(type(session.blobs), "put", puts)
        with pytest.raises(Killed):
            rewrite_report(session)
    assert problems(blobs) == "handed/report.json is missing: nothing says what was written"
    run_points(blobs.root)
    assert problems(blobs) == ""


def test_before_its_record_a_report_that_is_being_written_is_no_damage(blobs):
    for name in (blobs.names("agenda")[-2], "handed/report.json"):
        blobs.delete(name)
    assert "handed/report.json is missing" in problems(blobs)
    blobs.delete(blobs.names("ledger/report")[0])
    assert problems(blobs) == ""


def test_files_of_an_earlier_report_go_with_it(blobs):
    handed.hand_out(blobs, "report", {"report/a.csv": b"1", "report/b.csv": b"2"})
    handed.hand_out(blobs, "report", {"report/a.csv": b"3"})
    assert "report/b.csv" not in blobs.names("report")
    assert handed.changed(blobs, "report", "report") == []


def test_weights_that_are_gone_with_their_sums_are_missed(blobs):
    blobs.delete("model.safetensors")
    blobs.delete(handed.sums_of("model.safetensors"))
    assert "handed/model.safetensors.json is missing" in problems(blobs)


class Meanwhile:
    """A store in which something happens when one key is read."""

    def __init__(self, blobs, key, event):
        self._blobs, self._key, self._event = blobs, key, event

    def __getattr__(self, name):
        return getattr(self._blobs, name)

    def get(self, key, most=None):
        if key != self._key:
            return self._blobs.get(key, most=most)
        return self._event()


def test_a_driver_that_goes_on_meanwhile_is_no_damage(tmp_path):
    blobs = open_root(str(tmp_path))
    parts = [Part(name, name, 1) for name in ("data", "train", "report")]
    driver = Agenda(blobs)
    driver.begin("x", parts)
    driver.know(0, ["a"])
    name = "agenda/0000.json"

    def event():
        before = blobs.get(name)
        driver.know(0, ["a"], is_over=True)
        driver.know(1, ["b"])
        return before

    found = {}
    Agenda(Meanwhile(blobs, name, event)).parts(found)
    assert found == {}


def test_records_that_are_sealed_meanwhile_are_found(blobs):
    every = Ledger(blobs, "actions").read()
    name = blobs.names("ledger/actions")[0]

    def event():
        Ledger(blobs, "actions")._seal(sorted(every))
        raise KeyError(name)

    assert Ledger(Meanwhile(blobs, name, event), "actions").examine().records == every


# -- config.yaml -----------------------------------------------------------------------------


def test_an_altered_configuration_is_told(blobs):
    blobs.put("config.yaml", blobs.get("config.yaml") + b"# mine\n")
    assert "config.yaml was altered" in problems(blobs)


def whole_config(blobs, pristine):
    """As it is written where the copied run lies now."""
    return blobs.get("config.yaml").replace(pristine.blobs.root.encode(), blobs.root.encode())


@pytest.mark.parametrize("torn", [b"", b"seed: 0\n", b"task: [", b"\xff\xfe"])
def test_a_torn_configuration_is_mended_by_the_same_command(blobs, pristine, torn):
    whole = whole_config(blobs, pristine)
    blobs.put("config.yaml", torn)
    assert "config.yaml was altered" in problems(blobs)
    with pytest.raises(InputError, match="belongs to another run"):
        run_points(blobs.root, seed=1)
    assert blobs.get("config.yaml") == torn
    session = run_points(blobs.root)
    assert blobs.get("config.yaml") == whole
    assert same_bits(all_scores(session), all_scores(pristine))
    assert problems(blobs) == ""


def test_a_report_of_a_run_whose_configuration_is_torn_shows_it_as_it_was(blobs):
    blobs.put("config.yaml", b"task: [")
    page = Path(rewrite_report(reopen(blobs.root)))
    assert "checkpoint_every: 3" in page.read_text()
    for name in blobs.names("agenda"):
        blobs.delete(name)
    with pytest.raises((CorruptionError, InputError)):
        rewrite_report(reopen(blobs.root))


def test_the_folder_alone_mends_it_too(blobs, pristine, capsys):
    whole = whole_config(blobs, pristine)
    blobs.put("config.yaml", whole[:100])
    assert main(["run", blobs.root]) == 0
    assert blobs.get("config.yaml") == whole


@pytest.mark.parametrize("kind", ["gone", "folder", "pipe", "link"])
@pytest.mark.parametrize("command", [["verify", "--repair"], ["run"]])
def test_so_it_does_where_there_is_no_file(blobs, pristine, tmp_path, capsys, kind, command):
    whole, path = whole_config(blobs, pristine), Path(blobs.root, "config.yaml")
    before = path.read_bytes()
    os.rename(path, tmp_path / "elsewhere.yaml")
    make = {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path)}
    make["link"] = lambda: path.symlink_to(tmp_path / "elsewhere.yaml")
    make.get(kind, lambda: None)()
    assert main(["status", blobs.root]) == 0
    assert main(["verify", blobs.root]) == CorruptionError.exit_code
    assert "config.yaml" in problems(blobs)
    mends = kind == "gone" or "--repair" in command
    assert main([*command, blobs.root]) == (0 if mends else CorruptionError.exit_code)
    assert not mends or blobs.get("config.yaml") in (before, whole)  # it names its folder
    assert not mends or problems(blobs) == ""
    assert (tmp_path / "elsewhere.yaml").read_bytes() == before


def test_one_that_says_another_run_is_put_right_by_the_runs_own_command(blobs, pristine, caplog):
    whole = whole_config(blobs, pristine)
    altered = whole.replace(b"\nseed: 0", b"\nseed: 3")
    assert altered != whole
    blobs.put("config.yaml", altered)
    with pytest.raises(InputError, match=r"belongs to another run \(differing: seed"):
        execute(load(blobs.root), silent)
    assert blobs.get("config.yaml") == altered
    run_points(blobs.root)
    assert "config.yaml was edited or damaged" in caplog.text
    assert blobs.get("config.yaml") == whole
    assert problems(blobs) == ""


def test_an_edit_that_changes_no_result_is_taken(blobs):
    text = blobs.get("config.yaml").decode()
    edited = text.replace("attempts: 3", "attempts: 2")
    assert edited != text
    blobs.put("config.yaml", edited.encode())
    assert "config.yaml was altered" in problems(blobs)
    execute(load(blobs.root), silent)
    assert b"attempts: 2" in blobs.get("config.yaml")
    assert problems(blobs) == ""


# -- repair ----------------------------------------------------------------------------------


def committed(blobs):
    """When each unit was committed, by stage and unit."""
    stages = {name.split("/")[1] for name in blobs.names("ledger")}
    return {
        (stage, unit): record["committed"]
        for stage in stages
        for unit, record in Ledger(blobs, stage).read().items()
    }


def flip(blobs, name):
    data = blobs.get(name)
    blobs.put(name, data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize(("kind", "verb"), [("query-a", "query"), ("evaluation-b", "evaluate")])
def test_tables_of_a_command_of_their_own_are_not_promised_by_a_run(blobs, capsys, kind, verb):
    name = f"{folder_of(kind)}/top.csv"
    handed.hand_out(blobs, kind, {name: b"1"})
    blobs.delete(name)
    assert main(["verify", blobs.root]) == CorruptionError.exit_code
    told = capsys.readouterr().err
    assert f"give distinf {verb} {blobs.root} … again" in told
    assert "--repair" not in told.splitlines()[-1]
    assert main(["verify", "--repair", blobs.root]) == 0
    assert f"give distinf {verb} {blobs.root} … again" in capsys.readouterr().out


def test_repair_makes_what_is_damaged_again_and_nothing_else(blobs, pristine, capsys):
    before = committed(blobs)
    chunk = next(n for n in blobs.names("gradients.zarr") if "/c/" in n)
    flip(blobs, chunk)
    flip(blobs, "report/trials.csv")
    lost = blobs.names("ledger/actions")[0]
    blobs.delete(lost)
    assert main(["verify", blobs.root]) == CorruptionError.exit_code
    assert main(["verify", "--repair", blobs.root]) == 0
    assert problems(blobs) == ""
    again = {unit for stage, unit in before if committed(blobs)[stage, unit] != before[stage, unit]}
    assert again == {chunk.split("/")[1], lost.rsplit("/", 1)[1].removesuffix(".json")}
    aside = blobs.names("damaged")
    assert any(name.endswith(chunk) for name in aside)
    assert not any(name.endswith("model.safetensors") for name in aside)  # no unit of theirs
    assert same_bits(all_scores(pristine), all_scores(run_points(blobs.root)))
    names = pristine.blobs.names("report")
    tables = [n for n in names if n.endswith("trials.csv")]
    assert [blobs.get(n) for n in tables] == [pristine.blobs.get(n) for n in tables]
    assert blobs.names("repairs") == []


FILES = ["agenda", "gradients.zarr"]  # where folders have to be


@pytest.mark.parametrize("links", [False, True])
def test_repair_sets_aside_what_is_no_file_or_no_folder_of_the_run(
    blobs, pristine, tmp_path, links
):
    """A file in a folder's place; a folder in a record's, and links that lead out of the run."""
    root, record = Path(blobs.root), blobs.names("ledger/gradients")[0]
    away, linked = tmp_path / "away", ["handed", "ledger/scores", "report", "gradients.zarr"]
    away.mkdir()
    for number, name in enumerate([record, *linked] if links else FILES):
        os.rename(root / name, tmp_path / str(number))
    if links:
        (root / record).mkdir()
        for name in linked:
            (root / name).symlink_to(away)
    else:
        for name in FILES:
            (root / name).write_text("")
    assert main(["verify", "--repair", blobs.root]) == 0
    assert problems(blobs) == ""
    assert same_bits(all_scores(pristine), all_scores(run_points(blobs.root)))
    assert list(away.iterdir()) == []


@pytest.mark.parametrize("command", [["verify", "--repair"], ["run"]])
def test_altered_weights_are_exported_again(blobs, pristine, command, capsys):
    flip(blobs, "model.safetensors")
    assert main([*command, blobs.root]) == 0
    assert blobs.get("model.safetensors") == pristine.blobs.get("model.safetensors")


@pytest.mark.slow
def test_what_was_made_of_a_unit_that_comes_out_otherwise_is_made_again(blobs, caplog):
    before = committed(blobs)
    chunk = next(n for n in blobs.names("gradients.zarr") if "/c/" in n)
    flip(blobs, chunk)
    unit = chunk.split("/")[1]
    set_aside(blobs, verify(blobs))
    (name,) = blobs.names("repairs")
    files = unseal(blobs.get(name), name)["files"]
    repairs.remember(blobs, "gradients", unit, {"manifest": {"files": {**files, "x": "0"}}})
    run_points(blobs.root)
    assert "came out otherwise than before" in caplog.text
    after = committed(blobs)
    again = {stage for stage, unit in before if after[stage, unit] != before[stage, unit]}
    assert again == {"gradients", "scores", "actions", "report"}
    assert problems(blobs) == ""


@pytest.mark.parametrize(
    "moment", ["_take_out_after", pytest.param("repairs.settle", marks=pytest.mark.slow)]
)
def test_a_kill_after_a_unit_came_out_otherwise_forgets_nothing(blobs, monkeypatch, moment):
    class Killed(Exception):
        pass

    def killed(*_):
        raise Killed

    before = committed(blobs)
    chunk = next(n for n in blobs.names("gradients.zarr") if "/c/" in n)
    flip(blobs, chunk)
    set_aside(blobs, verify(blobs))
    unit = {"manifest": {"files": {"x": "0"}}}
    repairs.remember(blobs, "gradients", chunk.split("/")[1], unit)
    with monkeypatch.context() as patched:
        patched.setattr(f"distinf.engine.running.{moment}", killed)
        with pytest.raises(Killed):
            run_points(blobs.root)
    run_points(blobs.root)
    after = committed(blobs)
    again = {stage for stage, unit in before if after[stage, unit] != before[stage, unit]}
    assert again == {"gradients", "scores", "actions", "report"}
    assert blobs.names("repairs") == []
    assert problems(blobs) == ""


def test_weights_are_exported_again_with_their_last_unit(blobs, pristine, capsys):
    flip(blobs, next(n for n in blobs.names("train.zarr") if "/c/" in n))
    assert main(["verify", "--repair", blobs.root]) == 0
    assert any(name.endswith("model.safetensors") for name in blobs.names("damaged"))
    assert blobs.get("model.safetensors") == pristine.blobs.get("model.safetensors")


def test_repair_moves_nothing_from_outside_the_run(blobs, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("of somebody else")
    blobs.put(handed.sums_of("report"), seal({"files": {"report/../../secret": "0"}}))
    set_aside(blobs, verify(blobs))
    assert secret.read_text() == "of somebody else"
    for key in ("../secret", "report/../../secret", "report/.."):
        with pytest.raises(CorruptionError):
            blobs.move(key, "damaged")
    assert secret.exists()


@pytest.mark.parametrize("sealed", [False, True])
def test_files_of_damaged_records_are_set_aside_not_swept(blobs, pristine, capsys, sealed):
    ledger = Ledger(blobs, "gradients")
    if sealed:
        ledger._seal(sorted(ledger.read()))
    flip(blobs, blobs.names("ledger/gradients")[0])
    files = blobs.names("gradients.zarr")
    if not sealed:
        unit = blobs.names("ledger/gradients")[0].rsplit("/", 1)[1].removesuffix(".json")
        files = [name for name in files if f"/{unit}/" in name]
    assert main(["verify", "--repair", blobs.root]) == 0
    aside = {name.split("/", 2)[-1] for name in blobs.names("damaged")}
    assert files
    assert {*files} <= aside
    assert same_bits(all_scores(pristine), all_scores(reopen(blobs.root)))


def test_so_are_those_of_a_stage_that_is_not_over(blobs):
    place = [part.stage for part in Agenda(blobs).parts()].index("gradients")
    for name in blobs.names("agenda")[place:-1]:
        blobs.delete(name)
    record = blobs.names("ledger/gradients")[0]
    flip(blobs, record)
    unit = record.rsplit("/", 1)[1].removesuffix(".json")
    set_aside(blobs, verify(blobs))
    assert not any(f"/{unit}/" in name for name in blobs.names("gradients.zarr"))
    assert any(f"gradients.zarr/{unit}/" in name for name in blobs.names("damaged"))


def test_a_record_of_no_units_name_moves_no_other_units_files(blobs):
    before = blobs.names("gradients.zarr")
    for name in (".json", "...json"):
        blobs.put(f"ledger/gradients/{name}", b"{}")
    set_aside(blobs, verify(blobs))
    assert blobs.names("gradients.zarr") == before


@pytest.mark.slow
def test_a_unit_of_a_segment_is_taken_out_and_the_others_stay(tmp_path):
    run = run_points(tmp_path / "run")
    ledger = Ledger(run.blobs, "actions")
    every = ledger.read()
    ledger._seal(sorted(every))
    moved = []

    def move(names):
        moved.extend(names)
        for name in names:
            run.blobs.delete(name)

    unit = sorted(every)[3]
    assert Ledger(run.blobs, "actions").take_out(unit, move) == every[unit]
    assert len(moved) == 1
    left = {k: r for k, r in every.items() if k != unit}
    assert Ledger(run.blobs, "actions").read() == left


def test_repair_of_another_tasks_run_moves_nothing(blobs, capsys):
    chunk = next(n for n in blobs.names("gradients.zarr") if "/c/" in n)
    flip(blobs, chunk)
    start = unseal(blobs.get("agenda/start.json"), "start")
    config = start["config"].replace("seed: 0", "seed: 3", 1)
    assert config != start["config"]
    blobs.put("config.yaml", config.encode())
    assert main(["verify", "--repair", blobs.root]) == InputError.exit_code
    assert blobs.names("damaged") == []
    assert f"or first distinf run {blobs.root} --accept seed --acc" in capsys.readouterr().err


# -- status ----------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["status", "verify"])
def test_looking_imports_neither_the_task_nor_torch(blobs, verb):
    code = (
        "import sys; from distinf.cli import main; code = main(sys.argv[1:]); "
        "print(sorted({m.split('.')[0] for m in sys.modules}), file=sys.stderr); sys.exit(code)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, verb, blobs.root],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": REPOSITORY},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    loaded = set(ast.literal_eval(found.stderr.splitlines()[-1]))
    assert not loaded & {"torch", "numpy", "ray", "zarr", "tests"}


def test_what_is_planned_becomes_known(tmp_path):
    class Stop(Exception):
        pass

    seen = {}

    def watch(part, units, done):
        stage = part.title
        seen[stage] = {s.stage: s for s in stages_of(open_root(str(tmp_path / "run")))}
        if stage == "actions":
            raise Stop
        return nullcontext()

    config = resolve({**POINTS, "out": str(tmp_path / "run")})
    with pytest.raises(Stop):
        execute(config, watch)
    assert seen["train"]["actions"].is_planned
    assert seen["train"]["actions"].total > 0
    assert not seen["actions"]["scores"].is_planned
    assert seen["actions"]["scores"].is_complete
    assert not seen["actions"]["actions"].is_complete


def test_a_run_without_an_agenda_says_what_to_do(blobs, capsys):
    shutil.rmtree(Path(blobs.root, "agenda"))
    assert main(["status", blobs.root]) == InputError.exit_code
    assert f"distinf run {blobs.root} says it anew" in capsys.readouterr().err
    assert main(["run", blobs.root]) == 0
    assert problems(blobs) == ""


@pytest.mark.slow
def test_another_config_forgets_what_was_known(blobs):
    config = resolve({**POINTS, "out": blobs.root, "targets": {"count": 1}})
    open_session(config, accept=["targets"])
    assert all(part.units is None for part in Agenda(blobs).parts())
    run_points(blobs.root, targets={"count": 1})
    assert all(part.is_over for part in Agenda(blobs).parts())
    assert problems(blobs) == ""


def test_a_finished_run_says_what_it_has_not_looked_at(blobs, capsys):
    assert main(["run", blobs.root]) == 0
    assert f"was not read again: distinf verify {blobs.root} does" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["told", "timing", "sources", "repairs"])
@pytest.mark.parametrize("to", ["itself", "elsewhere"])
def test_notes_behind_a_link_are_told_and_put_aside(blobs, tmp_path, capsys, name, to):
    """They were no damage to `verify`, and no run went on beside them."""
    place = Path(blobs.root, name)
    shutil.rmtree(place, ignore_errors=True)
    place.symlink_to(place if to == "itself" else tmp_path)
    assert name in problems(blobs)
    assert main(["verify", "--repair", blobs.root]) == 0, capsys.readouterr()
    assert not place.is_symlink()
    assert main(["run", blobs.root]) == 0
    assert problems(blobs) == ""


@pytest.mark.parametrize("content", [b"{torn", b'{"mine": "0"}', b"[1]", b""])
def test_a_damaged_note_of_code_is_told_and_put_aside(blobs, capsys, content):
    """Also one that was altered: it would refuse the run, or let changed code pass."""
    source_notes.keep(blobs, {})
    name = blobs.names("sources")[0]
    Path(blobs.root, name).write_bytes(content)
    assert f"{name} is not what was noted" in problems(blobs)
    assert main(["run", blobs.root]) == 3
    assert "see `distinf verify`" in capsys.readouterr().err
    assert main(["verify", "--repair", blobs.root]) == 0
    assert problems(blobs) == ""


def test_a_file_in_the_place_of_the_drivers_folder_is_put_aside(blobs):
    for _ in range(2):
        Path(blobs.root, "driver").write_text("")
        assert main(["run", blobs.root]) == 0
    Path(blobs.root, "driver").symlink_to("driver")
    assert main(["run", blobs.root]) == 0
