"""Exports that are sent to a hub on this machine, by the real client."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from paretune.cli import main
from paretune.errors import NeedsError
from paretune.pipeline.hub import push_model
from tests.conftest import STUDY, write_study
from tests.hub_server import Hub, directory_files, serve

TOKEN = "hf_aTokenThatIsNoToken"
NAME = "ana/notes"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve(Hub(writers={TOKEN: "ana"})) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    (tmp_path / "x" / "base").mkdir(parents=True)
    for name in ("README.md", "model.safetensors", "base/config.json"):
        (tmp_path / "x" / name).write_bytes(name.encode())
    return tmp_path / "x"


@pytest.mark.parametrize("xet", [False, True])
def test_a_repository_then_holds_exactly_the_directory(
    hub: Hub, exported: Path, monkeypatch: pytest.MonkeyPatch, *, xet: bool
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not xet)
    assert push_model(exported, NAME, "Variant small", public=False) == f"{hub.endpoint}/{NAME}"
    repository = hub.repositories["model", NAME]
    assert repository.token == TOKEN
    assert repository.message.startswith("Variant small")
    assert repository.commits[repository.refs["main"]] == directory_files(exported)
    # Again, over what another export left.
    repository.commit({"README.md": b"", "model-00001-of-00002.safetensors": b"old"})
    push_model(exported, NAME, "Variant large", public=False)
    assert repository.commits[repository.refs["main"]] == directory_files(exported)


@pytest.mark.parametrize(
    ("first", "told"), [(True, "and public; add `--public`"), (False, "and private; leave `--public` out")]
)
def test_who_sees_a_repository_is_not_changed_by_the_way(hub: Hub, exported: Path, *, first: bool, told: str) -> None:
    push_model(exported, NAME, "Variant small", public=first)
    before = dict(hub.repositories["model", NAME].refs)
    assert (hub.repositories["model", NAME].token is None) == first
    (exported / "model.safetensors").write_bytes(b"other")
    with pytest.raises(NeedsError, match=f"--push: `{NAME}` is there, {told}, or name another; `{exported}` stays"):
        push_model(exported, NAME, "Variant small", public=not first)
    assert hub.repositories["model", NAME].refs == before


@pytest.mark.parametrize(
    ("name", "token", "endpoint", "message"),
    [
        (NAME, "", "", "there is no token of the hub; log in with `hf auth login`, or set HF_TOKEN"),
        (NAME, "hf_other", "", "the hub does not take your token"),
        ("ben/notes", TOKEN, "", "`ben/notes` is of others, or your token may not write there"),
        (NAME, TOKEN, "http://127.0.0.1:9", "`ana/notes` cannot be sent to http://127.0.0.1:9"),
    ],
)
def test_what_the_hub_refuses_stays_here(
    hub: Hub, exported: Path, monkeypatch: pytest.MonkeyPatch, name: str, token: str, endpoint: str, message: str
) -> None:
    hub.repository("model", "ben/notes").commit({"README.md": b"of ben"})
    before = directory_files(exported)
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("paretune.pipeline.hub.get_token", lambda: token or None)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint or hub.endpoint)
    with pytest.raises(NeedsError) as told:
        push_model(exported, name, "Variant small", public=False)
    assert f"--push: {message}" in str(told.value)
    assert f"`{exported}` stays" in str(told.value)
    assert TOKEN not in str(told.value)
    assert directory_files(exported) == before


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = STUDY[: STUDY.index("variants:")] + "variants: {base: []}\nevaluate: {perplexity: {}}\n"
    file = write_study(tmp_path_factory.mktemp("push"), text)
    assert main(["run", str(file), "--out", str(file.parent / "out")]) == 0
    return file


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--push", "notes"], "--push: `notes` cannot be a repository of the hub; write `owner/name`"),
        (["--push", "a/b/c"], "--push: `a/b/c` cannot be"),
        (["--public"], "--public: goes with `--push OWNER/NAME`"),
        (["--push", NAME, "--public"], f"everybody will see `{NAME}`, which is asked about in a terminal only; add `--yes`"),
    ],
)
def test_what_cannot_be_sent_is_told_before_anything_is_written(
    study_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["export", str(study_file), "base", "--to", str(tmp_path / "x"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("answer", [True, False])
def test_on_a_terminal_public_is_asked(
    study: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, answer: bool
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda text: answer)
    to = tmp_path / "x"
    code = main(["export", str(study), "base", "--to", str(to), "--push", NAME, "--public"])
    told = capsys.readouterr()
    assert code == (0 if answer else 2)
    assert to.exists() == answer
    if answer:
        repository = hub.repositories["model", NAME]
        assert f"public: {hub.endpoint}/{NAME}" in told.out
        assert repository.token is None
        assert repository.commits[repository.refs["main"]] == directory_files(to)
    else:
        assert "not confirmed, and nothing is written or sent" in told.err
        assert not hub.requests
