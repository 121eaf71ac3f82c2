"""The hub, spoken to by the real clients: a server on this machine, and processes that are started with its address.

huggingface_hub reads HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE when it is imported, so what depends on them runs in processes
of its own, which take Python from a pipe: one that reaches the server, one that does not, one offline, one without a cache.
"""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paretune.errors import NeedsError
from paretune.pipeline import hub as client
from paretune.pipeline.config_json import check_writes_text, read_config
from paretune.pipeline.resources import builtin_base
from tests.conftest import write_notes
from tests.hub_server import Hub, directory_files, serve
from tests.tiny import make_model

TOKEN = "hf_aTokenThatIsNoToken"
CARD = b"---\nlicense: other\nlicense_name: tiny\nlicense_link: LICENSE.txt\nlanguage: en\n---\nA card."
NOWHERE = "http://127.0.0.1:9"
STUDY = """
study: small
bases: {{tiny: {base}}}
data:
  notes: {{source: {source}, document: title, text: "{{{{ title }}}} {{{{ content }}}}"}}
train: {{max_steps: 2, batch_size: 4, max_length: 64}}
precision: {{compute: float32}}
variants: {variants}
evaluate: {{perplexity: {{}}}}
"""
_DRIVER = """
import contextlib, io, json, os, sys
from pathlib import Path
from paretune.cli import main
from paretune.errors import NeedsError
for line in sys.stdin:
    names, told = {"main": main, "NeedsError": NeedsError, "os": os, "Path": Path, "result": None}, io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        try:
            exec(json.loads(line), names)
        except NeedsError as error:
            names["result"] = f"NeedsError: {error}"
    print(json.dumps({"result": names["result"], "told": told.getvalue()}), flush=True)
"""


class Process:
    """A Python process with its own environment; `do` runs a program in it and gives back its `result`."""

    def __init__(self, folder: Path, **environment: str) -> None:
        wanted = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_UPDATE_DOWNLOAD_COUNTS": "0", **environment}
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        self.folder = folder
        self.errors = (folder / f"errors-{len(list(folder.glob('errors-*')))}").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-c", _DRIVER],
            cwd=folder,
            env=clean | wanted,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.told = ""

    def do(self, program: str) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(program), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            self.errors.seek(0)
            raise AssertionError(self.errors.read())
        self.told = json.loads(answer)["told"]
        return json.loads(answer)["result"]

    def plan(self, study: Path) -> tuple[int, str]:
        """Exit code of `paretune plan` and what it printed."""
        return self.do(f"result = main(['plan', {str(study)!r}])"), self.told

    def locked(self, study: Path) -> dict[str, str]:
        """Commits of a study's lock, which is written as a run writes it."""
        return self.do(
            "from paretune.api import open_study, write_lock\n"
            f"opened = open_study({str(study)!r})\n"
            "write_lock(opened.lock, opened.file)\n"
            "result = dict(opened.lock.hub_commits)"
        )

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(20)
        self.errors.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def hub(folder: Path) -> Iterator[Hub]:
    """One model, private; notes as jsonl; the same notes as Parquet in two configurations."""
    hub = Hub()
    model = directory_files(make_model("llama", folder / "model"))
    hub.repository("model", "owner/tiny", token=TOKEN).commit(
        model | {"README.md": CARD, "original/model.safetensors": b"again", "consolidated.safetensors": b"and again"}
    )
    write_notes(folder / "notes.jsonl")
    hub.repository("dataset", "owner/notes").commit({"notes.jsonl": (folder / "notes.jsonl").read_bytes()})
    card = "---\nconfigs:\n" + "".join(
        f"- config_name: {name}\n  data_files:\n  - {{split: train, path: {name}/train.parquet}}\n"
        for name in ("small", "large")
    )
    tables = {f"{name}/train.parquet": _parquet(size) for name, size in (("small", 3), ("large", 5))}
    hub.repository("dataset", "owner/tables").commit({"README.md": f"{card}---\n".encode(), **tables})
    with serve(hub):
        yield hub


@pytest.fixture(scope="module")
def online(folder: Path, hub: Hub) -> Iterator[Process]:
    process = Process(folder, HF_ENDPOINT=hub.endpoint, HF_HOME=str(folder / "cache"), HF_TOKEN=TOKEN)
    yield process
    process.end()


@pytest.fixture(scope="module")
def cut_off(folder: Path) -> Iterator[Process]:
    """With the cache of `online`, and a hub that does not answer."""
    process = Process(folder, HF_ENDPOINT=NOWHERE, HF_HOME=str(folder / "cache"))
    yield process
    process.end()


@pytest.fixture(scope="module")
def ran(folder: Path, online: Process) -> Path:
    """A study of the private model on the notes, run to its end."""
    study = write_study(folder / "run", base="{hub: owner/tiny}", source="{hub: owner/notes}")
    program = f"from paretune.api import run\nresult = run({str(study)!r}, on_event=lambda event: print(event)).exit_code"
    assert online.do(program) == 0
    (folder / "told").write_text(online.told)
    return study


def _parquet(rows: int) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table({"title": [f"row {number}" for number in range(rows)]}), stream)
    return stream.getvalue()


def write_study(folder: Path, *, base: str, source: str = "{path: notes.jsonl}", variants: str = "{base: []}") -> Path:
    folder.mkdir(exist_ok=True)
    write_notes(folder / "notes.jsonl")
    (folder / "study.yaml").write_text(STUDY.format(base=base, source=source, variants=variants), encoding="utf-8")
    return folder / "study.yaml"


def asked(hub: Hub, text: str) -> list[str]:
    return [request for request in hub.requests if text in request and not request.startswith("HEAD")]


def test_a_study_of_a_private_model_and_hub_data_runs_and_pins_both(ran: Path, hub: Hub) -> None:
    records = [json.loads(file.read_text()) for file in (ran.parent / ".paretune").glob("*/record.json")]
    assert {record["kind"] for record in records} == {
        "data",
        "leakage",
        "audit",
        "tokenize",
        "evaluate.size",
        "evaluate.perplexity",
    }
    (data,) = (record for record in records if record["kind"] == "data")
    (measured,) = (record for record in records if record["kind"] == "evaluate.perplexity")
    model, notes = (hub.repositories[one].refs["main"] for one in (("model", "owner/tiny"), ("dataset", "owner/notes")))
    assert data["config"]["dataset"]["source"]["revision"] == notes
    assert data["metrics"]["records"] == 40
    assert measured["config"]["base"]["digest"] == f"hub:owner/tiny@{model}"
    pinned = json.loads((ran.parent / "study.lock").read_text())["hub_commits"]
    assert pinned == {"model:owner/tiny@main": model, "dataset:owner/notes@main": notes}
    assert not asked(hub, "/original/") + asked(hub, "consolidated")


def test_the_licence_of_a_hub_model_is_on_the_cards(ran: Path, cut_off: Process, hub: Hub) -> None:
    program = f"from paretune.api import open_results\nresult = vars(open_results({str(ran)!r}).base_cards['tiny'])"
    commit = hub.repositories["model", "owner/tiny"].refs["main"]
    link = f"https://huggingface.co/owner/tiny/blob/{commit}/LICENSE.txt"
    said = {"model": "", "licence": "other", "licence_name": "tiny", "licence_link": link, "languages": ["en"]}
    assert cut_off.do(program) == said


def test_nothing_is_downloaded_unseen(ran: Path, folder: Path) -> None:
    told = (folder / "told").read_text()
    begins = [told.index(text) for text in ("downloading hub model `owner/tiny`", "reading hub dataset `owner/notes`")]
    assert max(begins) < told.index("'event': 'started'"), "before the first stage"


def test_the_token_is_in_no_file_that_the_run_wrote(ran: Path, folder: Path) -> None:
    written = [file for file in (*ran.parent.rglob("*"), *(folder / "cache").rglob("*")) if file.is_file()]
    assert len(written) > 20
    assert not [file for file in written if TOKEN.encode() in file.read_bytes()]


def test_what_has_run_is_planned_without_network_or_token(ran: Path, cut_off: Process) -> None:
    code, told = cut_off.plan(ran)
    assert code == 0
    assert "6 reused, 0 new" in told


def test_a_new_variant_of_a_cached_model_needs_no_network(ran: Path, cut_off: Process) -> None:
    study = write_study(
        ran.parent,
        base="{hub: owner/tiny}",
        source="{hub: owner/notes}",
        variants="{base: [], cut: [{prune.blocks: {count: 1}}]}",
    )
    program = (
        "from paretune.api import open_study\n"
        "from paretune.pipeline.plan import pending\n"
        f"opened = open_study({str(study)!r})\n"
        "left = pending(opened.plan, opened.store)\n"
        "[one.fetch(print) for one in left]\n"
        "result = [one.description for one in left]"
    )
    assert cut_off.do(program) == []
    assert cut_off.told == ""
    assert cut_off.do(f"from paretune.api import run\nresult = run({str(study)!r}).exit_code") == 0


def test_offline_mode_works_from_the_cache_and_asks_for_nothing(ran: Path, folder: Path, hub: Hub) -> None:
    process = Process(folder, HF_ENDPOINT=hub.endpoint, HF_HOME=str(folder / "cache"), HF_HUB_OFFLINE="1", HF_TOKEN=TOKEN)
    (folder / "fresh").mkdir()
    study = write_study(folder / "fresh", base="{hub: owner/tiny}")
    hub.requests.clear()
    assert process.plan(ran)[0] == 0
    # No lock here: the branch's commit comes from the cache as well.
    assert process.plan(study)[0] == 0
    assert not hub.requests
    process.end()


def test_without_network_and_cache_the_message_names_both_ways_out(ran: Path, folder: Path) -> None:
    process = Process(folder, HF_ENDPOINT=NOWHERE, HF_HOME=str(folder / "empty"))
    for study in (write_study(folder / "nothing", base="{hub: owner/tiny}"), ran):  # without a lock, and pinned
        code, told = process.plan(study)
        assert code == 2
        assert "study.yaml:3: bases.tiny.hub: hub model `owner/tiny` cannot be reached (" in told
        assert "`path:`" in told
        assert str(folder / "empty" / "hub") in told
    process.end()


def test_a_pinned_commit_survives_a_new_one_until_the_study_names_another(folder: Path, online: Process, hub: Hub) -> None:
    files = {name: content for name, content in directory_files(folder / "model").items() if name != "model.safetensors"}
    moving = hub.repository("model", "owner/moving")
    first = moving.commit(files)
    study = write_study(folder / "pinned", base="{hub: owner/moving}")
    assert online.locked(study) == {"model:owner/moving@main": first}
    second = moving.commit(files | {"README.md": b"changed"}, "main")
    moving.refs["v2"] = second
    assert online.locked(study) == {"model:owner/moving@main": first}
    write_study(study.parent, base="{hub: owner/moving, revision: v2}")
    assert online.locked(study) == {"model:owner/moving@v2": second}
    moving.refs["v2"] = moving.commit(files | {"README.md": b"moved"}, "v2")
    assert online.locked(study) == {"model:owner/moving@v2": second}, "a tag is pinned as well"
    write_study(study.parent, base=f"{{hub: owner/moving, revision: {first}}}")
    assert online.locked(study) == {f"model:owner/moving@{first}": first}


def test_a_plan_fetches_the_config_and_says_what_a_run_would_download(folder: Path, online: Process, hub: Hub) -> None:
    hub.repository("model", "owner/planned").commit(directory_files(folder / "model"))
    study = write_study(folder / "planned", base="{hub: owner/planned}", source="{hub: owner/notes}")
    hub.requests.clear()
    code, told = online.plan(study)
    assert code == 0
    assert [request.rpartition("/")[2] for request in asked(hub, "/resolve/")] == ["config.json"]
    assert "a run downloads: hub model `owner/planned` at " in told


def test_a_broken_download_goes_on_where_it_broke(folder: Path, online: Process, hub: Hub) -> None:
    piece = 10 * 2**20  # that the client takes at a time
    files = directory_files(folder / "model") | {"model.safetensors": bytes(piece + 5000)}
    commit = hub.repository("model", "owner/broken").commit(files)
    hub.cut["model.safetensors"] = piece + 1000
    hub.requests.clear()
    program = f"from paretune.pipeline.hub import fetch_model\nresult = str(fetch_model('owner/broken', {commit!r}, print))"
    fetched = Path(online.do(program))
    assert {path.name: path.read_bytes() for path in fetched.iterdir()} == files
    assert [request.partition(" from ")[2] for request in asked(hub, "model.safetensors")] == ["", str(piece)]
    total = sum(map(len, files.values())) / 1e6
    assert f"downloading hub model `owner/broken` at {commit[:8]}: {len(files)} files, {total:.1f} MB, to " in online.told

    # A run that was killed between two files: the others are not fetched again.
    (fetched / "tokenizer.json").resolve().unlink()
    (fetched / "tokenizer.json").unlink()
    hub.requests.clear()
    assert online.do(program) == str(fetched)
    assert (fetched / "tokenizer.json").read_bytes() == files["tokenizer.json"]
    assert len(asked(hub, "/resolve/")) == 1
    assert "1 files" in online.told


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("owner/missing", "bases.tiny.hub: no hub model `owner/missing`, or it is private; check the name"),
        ("owner/no-config", "bases.tiny.hub: hub model `owner/no-config` holds no config.json"),
        ("owner/encoder", "bases.tiny.hub: `BertForMaskedLM` is no causal language model"),
        ("owner/not a name", "bases.tiny.hub: `owner/not a name` cannot be a repository of the hub; write `owner/name`"),
        ("owner/gated", "bases.tiny.hub: hub model `owner/gated` is gated; ask for access on its page, then log in with"),
        ("owner/tiny, revision: v9", "bases.tiny.hub: hub model `owner/tiny` has no such `revision`"),
    ],
)
def test_what_is_not_there_is_named(folder: Path, online: Process, hub: Hub, name: str, message: str) -> None:
    hub.repository("model", "owner/no-config").commit({"README.md": b""})
    hub.repository("model", "owner/gated").commit({"config.json": b"{}"})
    hub.repository("model", "owner/gated").gated = True
    hub.repository("model", "owner/encoder").commit({"config.json": b'{"architectures": ["BertForMaskedLM"]}'})
    code, told = online.plan(write_study(folder / "wrong", base=f"{{hub: {name}}}"))
    assert code == 2
    assert f"study.yaml:3: {message}" in told
    assert told.count("\n") == 1


def test_a_private_model_needs_a_token(folder: Path, hub: Hub) -> None:
    study = write_study(folder / "private", base="{hub: owner/tiny}")
    process = Process(folder, HF_ENDPOINT=hub.endpoint, HF_HOME=str(folder / "anonymous"))
    code, told = process.plan(study)
    assert code == 2
    assert (
        "no hub model `owner/tiny`, or it is private; check the name, and for a private one log in with `hf auth login`" in told
    )
    code, told = process.do(f"os.environ['HF_TOKEN'] = 'hf_wrong'; result = main(['plan', {str(study)!r}])"), process.told
    assert code == 2
    assert "or it is private" in told
    assert "hf_wrong" not in told
    assert process.do(f"os.environ['HF_TOKEN'] = {TOKEN!r}; result = main(['plan', {str(study)!r}])") == 0
    process.end()


def test_a_model_without_safetensors_is_refused_before_anything_runs(folder: Path, online: Process, hub: Hub) -> None:
    files = directory_files(folder / "model")
    commit = hub.repository("model", "owner/pickled").commit(
        {"config.json": files["config.json"], "pytorch_model.bin": b"", "onnx/model.safetensors": b""}
    )
    told = online.do(f"from paretune.pipeline.hub import fetch_model\nfetch_model('owner/pickled', {commit!r}, print)")
    assert told.startswith("NeedsError: hub model `owner/pickled`: holds no model.safetensors")


def test_a_dataset_is_read_at_its_commit_and_configuration(online: Process, cut_off: Process, hub: Hub) -> None:
    tables = hub.repositories["dataset", "owner/tables"]
    first = tables.refs["main"]
    program = (
        "from paretune.pipeline.hub import fetch_dataset, open_dataset\n"
        "fetch_dataset('owner/tables', {config!r}, {commit!r}, print)\n"
        "result = open_dataset('owner/tables', {config!r}, {commit!r}).as_dataset(split='train')['title'][:]"
    )
    for config, rows in (("small", 3), ("large", 5)):
        assert online.do(program.format(config=config, commit=first)) == [f"row {number}" for number in range(rows)]
    assert "reading hub dataset `owner/tables` at " in online.told
    told = online.do(program.format(config="medium", commit=first))
    assert told.startswith("NeedsError: hub dataset `owner/tables`: BuilderConfig 'medium' not found")

    # With the network gone, `datasets` itself gives the rows of the commit that it has for those of any other.
    assert cut_off.do(program.format(config="small", commit=first)) == ["row 0", "row 1", "row 2"]
    second = tables.commit(tables.commits[first] | {"small/train.parquet": _parquet(4)})
    told = cut_off.do(program.format(config="small", commit=second))
    assert told.startswith("NeedsError: hub dataset `owner/tables` cannot be reached (")
    assert len(online.do(program.format(config="small", commit=second))) == 4


def test_a_missing_dataset_is_named(folder: Path, online: Process) -> None:
    code, told = online.plan(write_study(folder / "missing", base="{hub: owner/tiny}", source="{hub: owner/none}"))
    assert code == 2
    assert "study.yaml:5: data.notes.source.hub: no hub dataset `owner/none`, or it is private" in told


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no config.json"),
        ("{", "cannot be read as JSON"),
        ("[]", "holds no configuration, but a list"),
        ('{"model_type": "bert"}', "`bert (no `architectures`)` is no causal language model"),
        ('{"architectures": ["BertForQuestionAnswering"]}', "`BertForQuestionAnswering` is no causal language model"),
        ('{"architectures": ["T5ForConditionalGeneration"]}', "not encoders or extractive models"),
    ],
)
def test_a_config_of_anything_but_a_causal_model_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(NeedsError, match=r"^here: ") as told:
        check_writes_text(read_config(tmp_path / "config.json", "here"), "here")
    assert message in str(told.value)


def test_the_weights_of_a_directory_are_those_that_transformers_reads(tmp_path: Path) -> None:
    assert client.weight_files(tmp_path) == []
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    assert client.weight_files(tmp_path) == []
    (tmp_path / "model-00002-of-00002.safetensors").touch()
    assert [file.name[:11] for file in client.weight_files(tmp_path)] == ["model-00001", "model-00002"]
    (tmp_path / "model.safetensors").touch()
    assert [file.name for file in client.weight_files(tmp_path)] == ["model.safetensors"]


def test_an_unknown_builtin_base_names_those_there_are() -> None:
    with pytest.raises(NeedsError, match="here: no built-in base `nothing`; known:"):
        builtin_base("nothing", "here")
