"""Each guard of a run taken out in turn, in a copy of the package: its test must go red.

    python -m tests.faults.mutations [WORD ...]

prints a table in Markdown (of those whose guard has one of the words); exit code 1 if a test stays
green. `test_mutations.py` holds the table to the code: every text below is there, once.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
NO_ANSWER = (2, 3, 4, 5)  # of pytest: nothing was tested; a test that hangs ends otherwise


@dataclass(frozen=True)
class Mutation:
    """`old` becomes `new` in a file of distinf/; `test`, of tests/, is to go red."""

    guard: str
    file: str
    old: str
    new: str
    test: str


def _without(guard: str, file: str, line: str, test: str) -> Mutation:
    return Mutation(guard, file, line, "", test)


DURABLE = "store/test_durability.py::"
LEDGER = "runtime/test_ledger.py::"
RECORDS = "runtime/test_hostile_records.py::"
GROUPS = "store/test_hostile_groups.py::"
VERIFY = "engine/test_verifying.py::"
LITTER = "runtime/test_litter.py::"
LEASE = "engine/test_lease.py::"
LIVE = "runtime/test_liveness.py::"

MUTATIONS = [
    # -- what lies on the disk
    Mutation(
        "folder synced after put-if-absent", "store/blobs.py",
        "            os.unlink(staged)\n        _sync_folder(path.parent)\n",
        "            os.unlink(staged)\n",
        DURABLE + "test_a_name_lies_on_the_disk_before_it_counts",
    ),
    Mutation(
        "folder synced after put", "store/blobs.py",
        "    os.replace(self._staged(path, data), path)\n        _sync_folder(path.parent)\n",
        "    os.replace(self._staged(path, data), path)\n",
        DURABLE + "test_a_name_lies_on_the_disk_before_it_counts",
    ),
    _without(
        "bytes synced before their name", "store/blobs.py",
        "                os.fsync(file.fileno())\n",
        DURABLE + "test_a_name_lies_on_the_disk_before_it_counts",
    ),
    _without(
        "a new folder's parent synced", "store/blobs.py", "    _sync_folder(folder.parent)\n",
        DURABLE + "test_every_new_folder_lies_on_the_disk_in_its_parent",
    ),
    Mutation(
        "put if absent, atomically", "store/blobs.py", "            os.link(staged, path)",
        "            if path.exists():\n                return False\n"
        "            shutil.copy(staged, path)",
        DURABLE + "test_of_writers_at_once_one_wins_and_its_bytes_stand",
    ),
    Mutation(
        "read back after it was written", "store/groups.py",
        "        if not blobs.holds(name, data):\n", "        if False:\n",
        DURABLE + "test_what_the_disk_did_not_keep_is_not_committed",
    ),
    Mutation(
        "unique attempts of a pool", "runtime/worker.py",
        'name = f"{attempt}-{uuid.uuid4().hex[:8]}"', 'name = f"{attempt}"',
        DURABLE + "test_no_two_attempts_have_one_name",
    ),
    Mutation(
        "unique attempts of a gang", "runtime/worker.py",
        'f"g-{uuid.uuid4().hex[:8]}"', '"g"',
        DURABLE + "test_no_two_attempts_have_one_name",
    ),
    Mutation(
        "a gang's ordered sum in float64", "collective.py",
        "dtype=torch.float64, device", "dtype=torch.float32, device",
        "runtime/test_process_group.py::test_the_ordered_sum_of_a_gang_is_taken_in_float64",
    ),
    # -- the ledger
    Mutation(
        "segments looked for after a loose record was read", "runtime/ledger.py",
        "        if found:\n            self._read_segments(self._names())\n", "",
        LEDGER + "test_a_sealed_record_stands_against_a_late_one_however_it_is_read",
    ),
    Mutation(
        "the first segment of a unit stands", "runtime/ledger.py",
        "self._sealed.setdefault(record[\"unit\"], record)",
        "self._sealed[record[\"unit\"]] = record",
        LEDGER + "test_late_records_that_are_sealed_again_change_nothing",
    ),
    _without(
        "late records go when others are sealed", "runtime/ledger.py",
        "            for late in self._sealed.keys() & listed:\n"
        "                self._blobs.delete(self._name(late))\n",
        LEDGER + "test_late_records_that_are_sealed_again_change_nothing",
    ),
    _without(
        "a segment read back before its records go", "runtime/ledger.py",
        "        self._read_segments([name])  # read back, before what is in it goes\n",
        LEDGER + "test_a_segment_is_read_back_before_the_records_in_it_go",
    ),
    Mutation(
        "a record's sha256", "runtime/records.py",
        "if not is_intact and sha256(body.encode()) != check:", "if False:",
        LEDGER + "test_an_altered_record_is_refused_by_name",
    ),
    Mutation(
        "a segment's bytes are those it is named for", "runtime/ledger.py",
        "is_intact=name == self._segment_of(data)", "is_intact=True",
        LEDGER + "test_an_altered_segment_is_refused",
    ),
    # -- records are believed no further than their checksum
    Mutation(
        "a record lies under its unit's id", "runtime/ledger.py",
        "if record.get(\"unit\") != self._unit_of(name):", "if False:",
        RECORDS + "test_swapped_records_are_refused",
    ),
    Mutation(
        "an id is the hash of its unit", "runtime/records.py",
        "return unit_id(*of) == record.get(\"unit\")", "return True",
        RECORDS + "test_a_record_that_no_unit_can_have_is_refused",
    ),
    Mutation(
        "object names inside their group", "store/layout.py", "        if not is_inside(key):",
        "        if False:", GROUPS + "test_a_name_outside_of_the_group_is_refused",
    ),
    Mutation(
        "regular files alone", "store/regular.py",
        "    if not stat.S_ISREG(os.fstat(descriptor).st_mode):", "    if False:",
        GROUPS + "test_only_regular_files_inside_the_folder_are_read",
    ),
    Mutation(
        "links out of the run not followed", "store/blobs.py",
        "        if os.path.commonpath([folder, os.path.realpath(path)]) != folder:",
        "        if False:", GROUPS + "test_a_linked_folder_is_not_followed_out_of_the_run",
    ),
    Mutation(
        "codecs are ours", "store/layout.py",
        "    return codecs == [little] or (item_bytes == 1 and codecs == [{\"name\": \"bytes\"}])",
        "    return True", GROUPS + "test_metadata_that_is_not_written_here_is_refused",
    ),
    Mutation(
        "sizes before anything is allocated", "store/layout.py",
        '    if size != manifest["bytes"]:', "    if False:",
        GROUPS + "test_a_shape_that_cannot_be_is_refused_before_it_is_allocated",
    ),
    # -- what a run depends on
    Mutation(
        "source of the task in the fingerprint", "engine/fingerprint.py",
        '    return keys | {f"code.{name}": digest for name, digest in config.sources.items()}',
        "    return keys",
        "tasks/test_sources.py::test_a_change_is_refused_by_name_before_anything_is_written",
    ),
    Mutation(
        "source of modules of computed names", "engine/run.py",
        '[*differing, *(f"code.{name}" for name in session.changed_sources())]', "differing",
        "tasks/test_sources.py::"
        "test_a_module_of_a_computed_name_is_refused_too_once_it_was_changed",
    ),
    # -- one driver
    Mutation(
        "a living driver refused", "engine/lease.py",
        "        if start_of(last.process) == last.started:\n", "        if False:\n",
        LEASE + "test_a_second_driver_of_this_machine_is_refused_at_once",
    ),
    Mutation(
        "a number of another start is not that driver", "engine/lease.py",
        "if start_of(last.process) == last.started:", "if start_of(last.process):",
        LEASE + "test_another_process_of_the_same_number_is_not_that_driver",
    ),
    Mutation(
        "a driver elsewhere watched", "engine/lease.py", "        if now.counter != last.counter:",
        "        if False:",
        LEASE + "test_a_driver_elsewhere_lives_while_its_counter_moves_and_no_longer",
    ),
    Mutation(
        "of many at once one", "engine/lease.py", "    if not lease.claim():",
        "    lease.claim()\n    if False:", LEASE + "test_of_many_at_once_one_has_it",
    ),
    # -- nothing waits for ever
    Mutation(
        "a silent worker replaced", "runtime/ray/actors.py",
        "if unanswered_s > self._silent_s:", "if False:",
        LIVE + "test_a_stopped_or_stuck_worker_of_a_pool_is_replaced",
    ),
    Mutation(
        "a worker stuck in its work replaced", "runtime/ray/actors.py",
        "elif seen.kind and seen.silent_s > allowed_s(label, seen):", "elif False:",
        LIVE + "test_a_first_unit_that_is_stuck_is_replaced",
    ),
    Mutation(
        "a sum that all are in ends", "runtime/liveness.py",
        "return self.silent_s * 2.0**again if all_in else math.inf", "return math.inf",
        LIVE + "test_a_sum_hangs_once_all_ranks_are_in_it_and_not_while_one_is_on_its_way",
    ),
    # -- verify
    Mutation(
        "units that ought to be there", "engine/verifying.py",
        "                _look_for_missing(part, examined, found)\n", "                pass\n",
        VERIFY + "test_a_stage_whose_records_are_gone_is_missed",
    ),
    _without(
        "report and weights", "engine/verifying.py", "    _verify_handed(blobs, parts, found)\n",
        VERIFY + "test_a_file_for_people_that_was_altered_or_deleted_is_told",
    ),
    Mutation(
        "config.yaml", "engine/verifying.py",
        '        is_kept = blobs.get(CONFIG).decode("utf-8", "replace") == kept',
        "        is_kept = True", VERIFY + "test_an_altered_configuration_is_told",
    ),
    Mutation(
        "folders that may not be read", "store/blobs.py",
        "    if not isinstance(error, FileNotFoundError | NotADirectoryError):\n"
        "        raise error\n", "    pass\n",
        VERIFY + "test_a_folder_that_may_not_be_read_is_no_empty_one",
    ),
    Mutation(
        "what was made of a unit that came out otherwise", "engine/running.py",
        "        _after_repair(session, place, wanted)\n", "",
        VERIFY + "test_what_was_made_of_a_unit_that_comes_out_otherwise_is_made_again",
    ),
    Mutation(
        "a torn config.yaml mended", "engine/run.py", "        if found != whole:\n",
        "        if text is not None:\n",
        VERIFY + "test_a_torn_configuration_is_mended_by_the_same_command",
    ),
    # -- litter
    Mutation(
        "drafts", "runtime/litter.py", "    count = blobs.sweep()\n", "    count = 0\n",
        LITTER + "test_drafts_and_attempts_without_a_record_go_and_nothing_else",
    ),
    Mutation(
        "groups that a record names stay", "runtime/litter.py",
        " if _group(name) not in named]", "]",
        LITTER + "test_drafts_and_attempts_without_a_record_go_and_nothing_else",
    ),
    Mutation(
        "a record that came while its group was swept", "runtime/litter.py",
        "if gone & _groups({unit_id: record}):", "if False:",
        LITTER + "test_a_record_that_came_while_its_group_was_swept_is_taken_out",
    ),
    _without(
        "a group that was swept while it was committed", "engine/session.py",
        "        self._refuse_swept(unit, record)\n",
        LITTER + "test_whoever_commits_after_the_sweep_sees_that_its_group_is_gone",
    ),
    Mutation(
        "agents of a dead driver's Ray", "engine/lease.py",
        "            end_orphans(dead.process)\n",
        "            pass\n",
        LITTER + "test_a_killed_driver_leaves_nothing_once_its_command_ran_again",
    ),
    # -- names, texts, secrets, the network
    Mutation(
        "names that become paths", "naming.py",
        '    if "/" in name or "\\\\" in name:', "    if False:",
        "test_naming.py::test_a_variation_named_like_a_path_ends_before_anything_is_written",
    ),
    Mutation(
        "letters that are obeyed", "printable.py",
        "    return OBEYED.sub(lambda match: match[0].encode(\"unicode_escape\").decode(), text)",
        "    return text", "test_printable.py::test_what_would_be_obeyed_is_escaped",
    ),
    Mutation(
        "Ray's authentication", "runtime/address.py", '    os.environ["RAY_AUTH_MODE"] = "token"\n',
        "", "runtime/test_own_cluster.py::"
        "test_a_cluster_of_our_own_asks_for_a_token_and_listens_on_loopback_alone",
    ),
    Mutation(
        "SIGHUP is SIGTERM", "cli/__init__.py",
        "        signal.signal(signal.SIGHUP, _terminate)\n", "        pass\n",
        "test_error_classes.py::test_a_closed_terminal_stops_a_run_as_a_kill_does",
    ),
    # -- what is computed
    Mutation(
        "running statistics averaged over shards", "spectral/step.py",
        "value.reshape(-1).double() / shards", "value.reshape(-1).double()",
        "spectral/test_training.py::test_running_statistics_are_averaged_over_the_shards",
    ),
    Mutation(
        "a stage's key covers what it reads", "spectral/queries.py",
        '("gradients.method", "gradients.precision")', '("gradients.method",)',
        "engine/test_stage_keys.py::test_a_stage_reads_no_setting_that_its_key_does_not_cover",
    ),
    Mutation(
        "no stage imports a page", "spectral/scores.py",
        "from distinf.engine.stage import Stage, pooled\n",
        "from distinf.engine.stage import Stage, pooled\nfrom distinf.report import svg\n",
        "test_imports.py::test_imports_point_down",
    ),
    _without(
        "only solves that converged", "spectral/solves.py",
        " if is_usable(record)",
        "spectral/test_failed_solves.py::test_a_solve_that_did_not_converge_is_not_used_for_scores",
    ),
    Mutation(
        "a weighted order looks at the scores", "spectral/pools.py",
        "random.exponential(size=len(weights)) / weights", "random.exponential(size=len(weights))",
        "spectral/test_pools.py::"
        "test_a_weighted_order_draws_rows_in_proportion_to_their_scores",
    ),
]  # fmt: skip


def is_red(mutation: Mutation, copy: Path) -> bool:
    """Whether the test fails without the guard; AssertionError if it cannot be told."""
    file = copy / "distinf" / mutation.file
    text = file.read_text()
    assert text.count(mutation.old) == 1, f"{mutation.guard}: not once in {mutation.file}"
    file.write_text(text.replace(mutation.old, mutation.new))
    command = [sys.executable, "-m", "pytest", "-x", "-q", f"tests/{mutation.test}"]
    ended = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    file.write_text(text)
    assert ended.returncode not in NO_ANSWER, ended.stdout[-2_000:] + ended.stderr[-2_000:]
    return ended.returncode != 0


def main(words: list[str]) -> int:
    """Print the table -> how many tests stayed green, at most 1."""
    chosen = [m for m in MUTATIONS if not words or any(word in m.guard for word in words)]
    green = 0
    with tempfile.TemporaryDirectory(prefix="distinf-mutations-") as folder:
        copy = Path(folder, "copy")
        ignored = shutil.ignore_patterns(".git", "__pycache__", ".*_cache", "runs")
        shutil.copytree(REPOSITORY, copy, ignore=ignored)
        print("| guard | in | test | without the guard | s |\n|---|---|---|---|---|")
        for mutation in chosen:
            began = time.monotonic()
            red = is_red(mutation, copy)
            green += not red
            shown = "red" if red else "**green**"
            took = time.monotonic() - began
            test = mutation.test.rpartition("::")[2]
            print(f"| {mutation.guard} | {mutation.file} | `{test}` | {shown} | {took:.0f} |",
                  flush=True)  # fmt: skip
    return min(green, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
