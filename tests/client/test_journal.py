"""The state directory: locked, whole or refused, never silently fresh."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whimbrel import journal as journals
from whimbrel.journal import Journal
from whimbrel.records import Assigned, Contribution, DeviceState, TaskMemory, UpdateRecord, UpdateState, dumps, loads
from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_protocol.messages import Assignment, BlobRef

hashes = st.binary(min_size=32, max_size=32)
counts = st.integers(0, 2**63)
refs = st.builds(BlobRef, hashes, counts)
assignments = st.builds(
    Assignment, hashes, st.text(), counts, refs, hashes, hashes, hashes, refs, st.none() | refs, counts, counts
)
records = st.builds(
    UpdateRecord, hashes, st.text(), counts, hashes, hashes, hashes, st.sampled_from(UpdateState),
    spent=st.none() | st.dictionaries(st.text(), st.text() | st.integers()), spent_at=counts,
)  # fmt: skip
memories = st.builds(
    TaskMemory, counts, hashes, counts, hashes, st.lists(st.builds(Contribution, counts, counts, hashes)).map(tuple)
)
states = st.builds(
    DeviceState, hashes, certificate=st.binary(), policy=st.binary(), join_seq=counts,
    assigned=st.none() | st.builds(Assigned, assignments, st.floats(0, 1e12)),
    tasks=st.dictionaries(st.text(), memories, max_size=3), updates=st.lists(records, max_size=3).map(tuple),
)  # fmt: skip


def entropy(size: int) -> bytes:
    return bytes(range(size))


def code_of(error: pytest.ExceptionInfo[ProtocolError]) -> Code:
    return error.value.code


@given(states)
def test_a_state_survives_its_json(state: DeviceState) -> None:
    assert loads(dumps(state)) == state


@pytest.mark.parametrize(
    "change",
    [
        lambda plain: plain.pop("join_seq"),
        lambda plain: plain.update(surprise=1),
        lambda plain: plain.update(join_seq="7"),
        lambda plain: plain.update(join_seq=True),
        lambda plain: plain.update(join_seq=7.5),
        lambda plain: plain.update(device="zz"),
        lambda plain: plain.update(updates=[{}]),
    ],
)
def test_json_that_is_no_state_is_refused(change: object) -> None:
    plain = json.loads(dumps(DeviceState(bytes(16))))
    change(plain)  # type: ignore[operator]
    with pytest.raises((ValueError, TypeError)):
        loads(json.dumps(plain))


def test_what_was_committed_is_there_after_reopening(tmp_path: Path) -> None:
    first = Journal.open(tmp_path / "state", entropy)
    record = UpdateRecord(b"u" * 16, "task", 1, bytes(32), bytes(32), bytes(32), UpdateState.CONTRIBUTED)
    state = first.load().with_update(record)
    first.commit(state, {record.words_file: b"words"})
    first.close()
    again = Journal.open(tmp_path / "state", lambda size: bytes(size))
    assert again.load() == state
    assert (again.read(record.words_file), again.seed()) == (b"words", entropy(32))
    assert journals.contributed(tmp_path / "state") == [(record, b"words")]
    again.commit(state.without_update(record), {record.words_file: None})
    assert again.read(record.words_file) is None
    again.close()


def test_a_copied_state_directory_is_refused_and_left_alone(tmp_path: Path) -> None:
    Journal.open(tmp_path / "state", entropy).close()
    shutil.copytree(tmp_path / "state", tmp_path / "copy")
    before = (tmp_path / "copy/journal.json").read_bytes()
    with pytest.raises(ProtocolError) as caught:
        Journal.open(tmp_path / "copy", entropy)
    assert code_of(caught) is Code.STATE_COPIED
    assert (tmp_path / "copy/journal.json").read_bytes() == before
    (tmp_path / "state").rename(tmp_path / "moved")  # the same files elsewhere are no copy
    Journal.open(tmp_path / "moved", entropy).close()


def test_the_remembered_number_cannot_be_changed_alone(tmp_path: Path) -> None:
    Journal.open(tmp_path, entropy).close()
    whole = json.loads((tmp_path / "journal.json").read_text())
    (tmp_path / "journal.json").write_text(json.dumps({**whole, "identity_file": whole["identity_file"] + 1}))
    with pytest.raises(ProtocolError) as caught:
        Journal.open(tmp_path, entropy)
    assert code_of(caught) is Code.STATE_DAMAGED


def test_where_file_numbers_do_not_last_a_copy_is_not_told_from_the_original(tmp_path: Path) -> None:
    first = Journal.open(tmp_path / "state", entropy)
    (tmp_path / "state/identity.key").chmod(0o755)  # as on a file system without permissions of its own
    first.close()
    shutil.copytree(tmp_path / "state", tmp_path / "copy")
    Journal.open(tmp_path / "copy", entropy).close()


def test_only_the_owner_can_read_the_key(tmp_path: Path) -> None:
    Journal.open(tmp_path / "state", entropy).close()
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700
    assert {stat.S_IMODE((tmp_path / "state" / name).stat().st_mode) for name in ("identity.key", "journal.json")} == {0o600}


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    code = (
        "import sys, whimbrel.journal as j; from pathlib import Path; held = j.Journal.open(Path(sys.argv[1]), bytes); "
        "print('open', flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "open\n"
    with pytest.raises(ProtocolError) as caught:
        Journal.open(tmp_path, entropy)
    assert code_of(caught) is Code.STATE_LOCKED
    process.kill()
    process.communicate()
    Journal.open(tmp_path, entropy).close()


@pytest.mark.parametrize("at", [0.02, 0.5, 0.98])
def test_a_flipped_character_or_a_torn_file_is_noticed_and_left_alone(tmp_path: Path, at: float) -> None:
    first = Journal.open(tmp_path, entropy)
    first.commit(DeviceState(bytes(16), certificate=bytes(172), policy=bytes(100), join_seq=7))
    first.close()
    file = tmp_path / "journal.json"
    whole = file.read_bytes()
    place = int(at * len(whole))
    for damaged in (whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :], whole[:place], b""):
        file.write_bytes(damaged)
        with pytest.raises(ProtocolError) as caught:
            Journal.open(tmp_path, entropy)
        assert code_of(caught) is Code.STATE_DAMAGED
        assert file.read_bytes() == damaged
    file.write_bytes(whole)
    Journal.open(tmp_path, entropy).close()


def test_a_journal_is_never_made_anew_beside_an_old_identity(tmp_path: Path) -> None:
    Journal.open(tmp_path, entropy).close()
    (tmp_path / "journal.json").unlink()
    with pytest.raises(ProtocolError, match="identity without a journal"):
        Journal.open(tmp_path, entropy)


def test_a_certified_device_without_its_key_is_damaged(tmp_path: Path) -> None:
    first = Journal.open(tmp_path, entropy)
    first.commit(DeviceState(bytes(16), certificate=bytes(172)))
    first.close()
    (tmp_path / "identity.key").unlink()
    with pytest.raises(ProtocolError, match="without its key"):
        Journal.open(tmp_path, entropy)


def test_what_a_crash_left_behind_is_swept_and_what_is_named_stays(tmp_path: Path) -> None:
    first = Journal.open(tmp_path, entropy)
    state = first.load().with_task("task", TaskMemory(plan_sha256=b"p" * 32))
    first.commit(state, {state.task("task").plan_file: b"plan"})
    (tmp_path / "updates" / "orphan.words").write_bytes(b"x")
    (tmp_path / "journal.json.new").write_bytes(b"half")
    first.close()
    again = Journal.open(tmp_path, entropy)
    assert again.read(state.task("task").plan_file) == b"plan"
    assert again.read("updates/orphan.words") is None
    again.commit(state)
    again.close()
