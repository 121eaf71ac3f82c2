"""The store: an artifact is whole or not there, whatever was left by whom."""

import errno
import json
import multiprocessing
import os
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from paretune.errors import StoreError
from paretune.pipeline.records import Record, read_record
from paretune.pipeline.stage import Stage, resume_of
from paretune.pipeline.store import Store, describe_files
from tests.pipeline.planned import record_of

STAGE = Stage("fake", {"n": 1}, "module:body")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "store")
    store.prepare()
    return store


def commit(store: Store, stage: Stage = STAGE, text: str = "42") -> Path:
    draft = store.open_draft(stage)
    (draft / "folder").mkdir()
    (draft / "folder" / "answer.txt").write_text(text)
    store.commit(stage, make_record(stage, draft))
    return store.root / stage.name


def make_record(stage: Stage, draft: Path) -> Record:
    told = {"machine": {"cores": 2}, "versions": {"python": "3"}, "argv": ("paretune", "run"), "options": {"workers": 1}}
    return record_of(stage, **told, metrics={"answer": 42}, files=describe_files(draft))


def test_a_committed_stage_is_found_again_as_it_was(store):
    directory = commit(store)
    record = Store(store.root).find(STAGE)
    assert asdict(record) == asdict(make_record(STAGE, directory)) | {"path": directory, "files": dict(record.files)}
    assert record.files == {
        "folder/answer.txt": {"bytes": 2, "sha256": "73475cb40a568e8da8a045ced110137e159f890ac4da883b6b17dc651b3a8049"}
    }
    assert store.artifact(STAGE).path == directory
    assert [found.key for found in store.records()] == [STAGE.key]


def test_nothing_is_found_before(store):
    assert store.find(STAGE) is None
    store.open_draft(STAGE)
    assert store.find(STAGE) is None
    with pytest.raises(StoreError, match="run the study first"):
        store.artifact(STAGE)


def test_a_missing_parent_is_named(store):
    child = Stage("child", {}, "module:body", {"data": STAGE})
    commit(store, child)
    with pytest.raises(StoreError, match=STAGE.name):
        store.artifact(child)


def test_files_of_a_killed_attempt_do_not_enter_the_artifact(store):
    draft = store.open_draft(STAGE)
    (draft / "stale").write_text("half")
    (draft / "record.json").write_text("{}")
    directory = commit(store)
    assert sorted(path.name for path in directory.iterdir()) == ["folder", "record.json"]


def test_what_a_killed_attempt_can_go_on_from_lasts_until_the_artifact_is_there(store):
    (resume_of(store.open_draft(STAGE)) / "checkpoint").write_text("step 5")
    assert (resume_of(store.open_draft(STAGE)) / "checkpoint").read_text() == "step 5"
    commit(store)
    assert not list((store.root / "drafts").iterdir())


def test_leftovers_of_a_kill_after_the_rename_are_removed_later(store):
    commit(store)
    (store.root / "drafts" / f"fake-{STAGE.key}.resume").mkdir()
    store.forget_attempts(STAGE)
    assert not list((store.root / "drafts").iterdir())
    store.forget_attempts(STAGE)


def test_another_key_is_another_draft(store):
    (store.open_draft(STAGE) / "file").write_text("of revision 1")
    assert store.open_draft(Stage("fake", {"n": 1}, "module:body", revision=2)) != store.open_draft(STAGE)


def test_an_artifact_without_its_record_is_replaced(store):
    directory = commit(store)
    (directory / "record.json").unlink()
    (directory / "foreign").write_text("left over")
    assert store.find(STAGE) is None
    commit(store, text="43")
    assert store.find(STAGE) is not None
    assert not (directory / "foreign").exists()
    assert not list((store.root / "drafts").iterdir())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: "", "not a record"),
        (lambda text: text[:100], "not a record"),
        (lambda text: "\x00" * 100, "not a record"),
        (lambda text: "[]", "not a record"),
        (lambda text: "{}", "not a record"),
        (lambda text: json.dumps({"schema": 1, "key": "abc"}), "not a record"),
        (lambda text: json.dumps(json.loads(text) | {"unknown": 1}), "not a record"),
        (lambda text: json.dumps(json.loads(text) | {"schema": "one"}), "not a record"),
        (lambda text: json.dumps(json.loads(text) | {"schema": 2, "unknown": 1}), "newer Paretune"),
        (lambda text: json.dumps(json.loads(text) | {"key": STAGE.key[:8] + "0" * 56}), "begins alike"),
    ],
)
def test_a_damaged_record_is_an_error_that_names_the_file(store, damage, message):
    file = commit(store) / "record.json"
    file.write_text(damage(file.read_text()))
    with pytest.raises(StoreError, match=message) as caught:
        store.find(STAGE)
    assert str(file.parent) in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_text("4")])
def test_an_artifact_that_lost_a_file_is_an_error(store, damage):
    damage(commit(store) / "folder" / "answer.txt")
    with pytest.raises(StoreError, match=r"folder/answer\.txt"):
        store.find(STAGE)


def test_a_record_that_is_no_file_is_an_error(tmp_path):
    (tmp_path / "record.json").mkdir()
    with pytest.raises(StoreError, match="not a record"):
        read_record(tmp_path)


@pytest.mark.parametrize("content", ['{"schema": 2}', "", "[]", '{"schema": null}', "{}"])
def test_a_store_of_a_newer_version_or_damaged_is_refused(store, content):
    (store.root / "store.json").write_text(content)
    with pytest.raises(StoreError, match=r"newer Paretune|cannot be read"):
        store.check()
    with pytest.raises(StoreError):
        store.prepare()


def test_preparing_twice_changes_nothing(store):
    store.prepare()
    assert sorted(path.name for path in store.root.iterdir()) == ["drafts", "events.jsonl", "locks", "store.json"]


def test_a_store_that_cannot_be_made_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "store", Path("/proc/store")):
        with pytest.raises(StoreError, match="--store") as caught:
            Store(root).prepare()
        assert caught.value.exit_code == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not hold for root")
def test_a_store_without_permission_says_so(store):
    for path in (store.root, store.events_file):
        path.chmod(0o400 if path.is_file() else 0o500)
    with pytest.raises(StoreError, match="Permission denied"):
        store.prepare()
    store.root.chmod(0o700)


def _hold(root: Path, held, release) -> None:
    with Store(root).lock(STAGE, on_wait=lambda: None):
        held.set()
        release.wait(30)


def test_a_stage_is_worked_on_by_one_process_at_a_time(store):
    context = multiprocessing.get_context("fork")
    held, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(store.root, held, release))
    other.start()
    held.wait(30)
    waited = []

    def on_wait() -> None:
        waited.append(time.monotonic())
        release.set()

    with store.lock(STAGE, on_wait):
        assert len(waited) == 1
    other.join()
    with store.lock(STAGE, on_wait):
        assert len(waited) == 1


def test_the_lock_of_a_killed_process_is_free(store):
    context = multiprocessing.get_context("fork")
    held, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(store.root, held, release))
    other.start()
    assert held.wait(30)
    other.kill()
    other.join()
    with store.lock(STAGE, on_wait=lambda: pytest.fail("the lock is held by nobody")):
        pass


def test_a_share_that_is_gone_is_told_as_such(store, monkeypatch):
    store.check_there()

    def gone(self: Path, **_: object) -> None:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    monkeypatch.setattr(Path, "stat", gone)
    with pytest.raises(StoreError, match=r"cannot be reached any more \(Transport endpoint is not connected\); run again"):
        store.check_there()
