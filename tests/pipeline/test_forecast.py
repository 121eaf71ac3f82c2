"""What a run would take: counted where it can be counted, and near what a run then takes where it is estimated."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from paretune.cli import main
from paretune.errors import SpecError
from paretune.model.adapters import adapted_weights, add_lora
from paretune.pipeline.checks import check_targets, tell_reach
from paretune.pipeline.forecast import Cost, forecast
from paretune.pipeline.lock import LockedBase, resolve_lock
from paretune.pipeline.plan import make_plan
from paretune.pipeline.plan_text import describe_plan
from paretune.pipeline.records import Record
from paretune.pipeline.resources import Resource, count_weights
from paretune.pipeline.stage import RunOptions, Stage
from paretune.pipeline.store import Store
from paretune.study.methods import TrainLora
from paretune.study.study import load_study
from tests.conftest import write_study
from tests.pipeline.planned import GPT2, STUDY, described, write_base, write_planned, write_weights
from tests.tiny import MIXTURES, make_model

RUN = """
study: small
bases: {tiny: {path: model}}
data:
  notes: {source: {path: notes.jsonl}, document: title, text: "{{ title }}\\n\\n{{ content }}"}
train: {epochs: 2, batch_size: 4, max_length: 64}
precision: {compute: float32}
variants:
  full: [{train.full: {learning_rate: 1.0e-3}}]
  reduced: [{prune.blocks: {count: 1}}, {train.lora: {r: 4, targets: all-linear}}]
  chosen: [{prune.blocks: {count: 2, choose: loss}}]
evaluate: {perplexity: {}}
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Cost]]:
    """A small study that has run, and what was estimated before."""
    file = write_study(tmp_path_factory.mktemp("ran"), RUN)
    before = costs_of(file)
    assert main(["run", str(file), "--out", str(file.parent / "out")]) == 0
    return file, before


def costs_of(file: Path, options: RunOptions | None = None) -> dict[str, Cost]:
    study = load_study(file)
    lock = resolve_lock(study, file)
    plan = make_plan(study, lock, file.parent)
    costs = forecast(study, lock, plan, Store(file.parent / ".paretune"), options or RunOptions())
    return {name: costs[stage] for name, stage in described(plan).items()}


def stages_of(file: Path) -> dict[str, Stage]:
    study = load_study(file)
    return described(make_plan(study, resolve_lock(study, file), file.parent))


def record_of(file: Path, name: str) -> Record:
    record = Store(file.parent / ".paretune").find(stages_of(file)[name])
    assert record is not None
    return record


@pytest.mark.parametrize("name", ["tiny/notes/full seed 0: train.full", "tiny/notes/reduced seed 0: train.lora"])
def test_steps_and_tokens_are_near_before_and_exact_once_they_are_counted(ran: tuple[Path, dict[str, Cost]], name: str) -> None:
    file, before = ran
    metrics = record_of(file, name).metrics
    after = costs_of(file)[name]
    assert (after.steps, after.tokens, after.exact) == (metrics["steps"], metrics["train_tokens"], True)
    estimate = before[name]
    assert not estimate.exact
    for guess, truth in ((estimate.steps, metrics["steps"]), (estimate.tokens, metrics["train_tokens"])):
        assert guess is not None
        assert 1 / 1.5 < guess / truth < 1.5


def test_memory_is_estimated_within_a_factor_of_two(ran: tuple[Path, dict[str, Cost]]) -> None:
    file, before = ran
    for name, cost in before.items():
        if cost.memory:
            assert 0.5 < cost.memory / record_of(file, name).peak_memory_bytes < 2, name


def test_memory_follows_the_budget_and_what_is_computed_again(ran: tuple[Path, dict[str, Cost]]) -> None:
    file, _ = ran
    name = "tiny/notes/full seed 0: train.full"
    budgets = [RunOptions(memory=memory) for memory in (1, 10_500_000, 11_500_000, 10**9)]
    plain, again, *limited = (
        costs_of(file, options)[name].memory or 0 for options in (None, RunOptions(recompute=True), *budgets)
    )
    assert again < plain
    assert 0 < limited[0] < limited[1] < limited[2] < limited[3] == plain
    assert main(["plan", str(file), "--memory", "1MiB", "--recompute"]) == 0


def test_disk_is_the_size_of_what_is_kept(ran: tuple[Path, dict[str, Cost]]) -> None:
    file, before = ran
    for name, kind in (("tiny/notes/full seed 0", "train.full"), ("tiny/notes/reduced seed 0", "prune.blocks")):
        written = sum(
            entry["bytes"] for path, entry in record_of(file, f"{name}: {kind}").files.items() if "safetensors" in path
        )
        disk = before[f"{name}: {kind}"].disk
        assert disk is not None
        assert 0.7 < disk / written < 1.4


def test_a_measured_choice_runs_in_a_study_and_is_reported(ran: tuple[Path, dict[str, Cost]]) -> None:
    file, _ = ran
    metrics = record_of(file, "tiny/notes/chosen: prune.blocks").metrics
    losses = {tuple(entry["removed"]): entry["score"] for entry in metrics["block_scores"]}
    pairs = {removed: loss for removed, loss in losses.items() if len(removed) == 2}
    assert (metrics["computed"], len(pairs)) == ("walk", 6)
    assert tuple(metrics["removed_blocks"]) == min(pairs, key=lambda removed: pairs[removed])
    told = (file.parent / "out" / "report.txt").read_text(encoding="utf-8")
    assert f"measured on {metrics['calibration_tokens']:,} tokens" in " ".join(told.split())


def test_the_plan_is_told_in_a_table(ran: tuple[Path, dict[str, Cost]], capsys: pytest.CaptureFixture[str]) -> None:
    file, _ = ran
    file.write_text(RUN.replace("epochs: 2", "epochs: 3"), encoding="utf-8")
    assert main(["plan", str(file)]) == 0
    told = capsys.readouterr().out
    file.write_text(RUN, encoding="utf-8")
    steps = 3 * math.ceil(record_of(file, "tiny/notes: tokenize").metrics["windows_train"] / 4)
    header, *rows = (line for line in told.splitlines() if line)
    assert header.split() == ["stage", "status", "time", "steps", "tokens", "memory", "disk", "for", "/", "because"]
    (trained,) = (row for row in rows if row.startswith("train.full"))
    assert re.fullmatch(rf"train.full-\w+ +new +{steps} +[\d,]+ +\d+ MB +\d+ kB +(.*)", trained)
    assert trained.endswith("tiny/notes/full seed 0; differs in train.epochs (2 -> 3)")
    (summary,) = (row for row in rows if " stages: " in row)
    assert re.match(
        rf"\d+ stages: \d+ reused, \d+ new; to run: {2 * steps} optimizer steps, [\d,]+ tokens to train on, ", summary
    )
    assert re.search(r", peak memory about \d+ MB, disk about \d+ kB$", summary)
    assert "device cpu, training in float32, measuring in float32, store " in told


@pytest.mark.parametrize("architecture", ["llama", *MIXTURES])
@pytest.mark.parametrize(("targets", "experts"), [("all-linear", False), ("all-linear", True), (("v_proj", "q_proj"), False)])
def test_what_targets_reach_is_known_before_the_model_is_loaded(
    architecture: str, targets: Any, experts: bool, tmp_path: Path
) -> None:
    directory = make_model(architecture, tmp_path)
    locked = LockedBase(Resource(path=directory), "", "", json.loads((directory / "config.json").read_text()))
    if architecture == "llama" and experts:
        with pytest.raises(SpecError, match=r"v\[0\].experts: base `m` has no routed experts"):
            check_targets(TrainLora(targets=targets, experts=experts), "v[0]", "m", locked)
        return
    lines = tell_reach(TrainLora(targets=targets, experts=experts), "m", locked)
    if architecture != "llama" and targets != "all-linear":
        assert lines == []  # files may call modules otherwise than the model does
        return
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    whole, method = model.num_parameters(), {"r": 2, "alpha": 2, "dropout": 0.0, "bias": "none", "experts": experts}
    routed = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 3)
    adapted = add_lora(model, TrainLora.model_validate(method | {"targets": targets}, strict=False), seed=0)
    share = sum(weight.numel() for weight in adapted_weights(adapted).values()) / whole
    assert f"reaches {share:.1%} of the weights of `m`" in lines[0]
    assert (f"the routed experts, {routed / whole:.1%}, have no adapter" in lines[0]) == (routed > 0 and not experts)


GPT2_SMALL = {
    "wte.weight": (50257, 768),
    "wpe.weight": (1024, 768),
    **{
        f"h.{block}.{name}": shape
        for block in range(12)
        for name, shape in {
            "ln_1.weight": (768,),
            "ln_1.bias": (768,),
            "attn.bias": (1, 1, 1024, 1024),
            "attn.masked_bias": (),
            "attn.c_attn.weight": (768, 2304),
            "attn.c_attn.bias": (2304,),
            "attn.c_proj.weight": (768, 768),
            "attn.c_proj.bias": (768,),
            "ln_2.weight": (768,),
            "ln_2.bias": (768,),
            "mlp.c_fc.weight": (768, 3072),
            "mlp.c_fc.bias": (3072,),
            "mlp.c_proj.weight": (3072, 768),
            "mlp.c_proj.bias": (768,),
        }.items()
    },
    "ln_f.weight": (768,),
    "ln_f.bias": (768,),
}


def test_weights_are_counted_by_the_headers_and_masks_are_none(tmp_path: Path) -> None:
    write_weights(tmp_path / "model.safetensors", GPT2_SMALL)
    assert count_weights(tmp_path) == 124_439_808


def test_the_pieces_of_a_model_are_counted_together_and_once(tmp_path: Path) -> None:
    write_weights(tmp_path / "model-00001-of-00002.safetensors", {"a": (3, 5)})
    write_weights(tmp_path / "model-00002-of-00002.safetensors", {"b": (7,)})
    write_weights(tmp_path / "consolidated.safetensors", {"a": (3, 5), "b": (7,)})
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert count_weights(tmp_path) == 22


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet", "json", "text"])
def test_a_long_file_is_estimated_from_its_first_records(tmp_path: Path, form: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = write_planned(tmp_path)
    rows = [{"title": f"Note {number}", "content": "the train waits . " * (1 + number % 9)} for number in range(12_000)]
    tokens = sum(3 + 4 * (1 + number % 9) for number in range(12_000)) * 0.8 * 2
    data = tmp_path / f"data.{'txt' if form == 'text' else form}"
    if form == "jsonl":
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif form == "json":
        data.write_text(json.dumps(rows))
    elif form == "csv":
        data.write_text("title,content\n" + "".join(f"{row['title']},{row['content']}\n" for row in rows))
    elif form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), data)
    else:
        data.write_text("\n---\n".join(row["title"] + " " + row["content"] for row in rows))
    text = STUDY.replace("{path: notes.jsonl}, document: title,", f"{{path: {data.name}}}, document: title,")
    if form == "text":
        text = text.replace("{path: data.txt}", '{path: data.txt, separator: "\\n---\\n"}').replace(
            'document: title, text: "{{ title }}\\n\\n{{ content }}"', "document: document"
        )
    file.write_text(text, encoding="utf-8")
    cost = costs_of(file)["small/notes/full seed 0: train.full"]
    assert cost.tokens is not None
    assert cost.steps is not None
    assert cost.tokens / tokens == pytest.approx(1, abs=0.05)
    assert cost.steps / (2 * 12_000 * 0.8 / 4) == pytest.approx(1, abs=0.05)


def test_what_is_not_known_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base and a dataset of the hub, neither in the cache."""
    commit = "c" * 40
    config = {"architectures": ["GPT2LMHeadModel"], "n_positions": 1024}
    monkeypatch.setattr("paretune.pipeline.hub.resolve_commit", lambda kind, name, revision, where: commit)
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    monkeypatch.setattr("paretune.pipeline.hub.config_file", lambda name, commit, where: tmp_path / "config.json")
    monkeypatch.setattr("paretune.pipeline.hub.cached_model", lambda name, commit: None)
    text = STUDY.replace("{path: notes.jsonl}", "{hub: owner/notes}").replace("{path: small}", "{hub: owner/small}")
    file = write_planned(tmp_path, text)
    assert costs_of(file)["small/notes/full seed 0: train.full"] == Cost(exact=True)
    study = load_study(file)
    lock = resolve_lock(study, file)
    told = describe_plan(study, lock, make_plan(study, lock, tmp_path), Store(tmp_path / ".paretune"))
    assert "a run downloads: hub model `owner/small` at cccccccc" in told
    assert "a run downloads: hub dataset `owner/notes` at cccccccc" in told
    assert "optimizer steps" not in told
    file.write_text(text.replace("epochs: 2", "max_steps: 7"), encoding="utf-8")
    assert costs_of(file)["small/notes/full seed 0: train.full"].steps == 7


def test_a_number_of_steps_is_exact_and_early_stopping_an_upper_bound(tmp_path: Path) -> None:
    file = write_planned(tmp_path, STUDY.replace("epochs: 2", "max_steps: 30, early_stopping: {patience: 2}"))
    study = load_study(file)
    lock = resolve_lock(study, file)
    told = describe_plan(study, lock, make_plan(study, lock, tmp_path), Store(tmp_path / ".paretune"))
    assert re.search(r"^train.full-\w+ +new +30 +~[\d,]+ ", told, re.MULTILINE)
    assert f"to run: at most {12 * 30} optimizer steps" in told


def test_what_is_skipped_costs_nothing(tmp_path: Path) -> None:
    file = write_planned(tmp_path, STUDY.replace("document: title,", "document: title, too_long: skip,"))
    whole = write_planned(tmp_path / "windows")
    name = "small/notes/full seed 0: train.full"
    skipped, windows = costs_of(file)[name], costs_of(whole)[name]
    assert skipped.tokens is not None
    assert windows.tokens is not None
    assert 0 < skipped.tokens < windows.tokens


def test_a_measured_choice_holds_the_states_of_its_text_up_to_a_limit(tmp_path: Path) -> None:
    file = write_planned(tmp_path, STUDY.replace("blocks: {count: 1, choose: last}}]", "blocks: {count: 1, choose: loss}}]"))
    write_base(tmp_path / "small", shapes={"wte.weight": (16, 64)})
    few = costs_of(file)["small/notes/shorter: prune.blocks"].memory
    scored = costs_of(file)["small/notes/base: perplexity"].memory
    assert few is not None
    assert scored is not None
    assert few - scored == pytest.approx(4 * 16384 * 64 * 7)
    write_base(tmp_path / "small", config=GPT2 | {"n_embd": 6400})
    assert costs_of(file)["small/notes/shorter: prune.blocks"].memory == pytest.approx(
        costs_of(file)["small/notes/base: perplexity"].memory + 512 * 2**20
    )


def test_memory_grows_with_what_is_trained(tmp_path: Path) -> None:
    file = write_planned(tmp_path)
    write_base(tmp_path / "small", shapes={"wte.weight": (100_000, 1000)})
    costs = costs_of(file)
    full, adapter, scored, written = (
        costs[f"small/notes/{name}"].memory
        for name in ("full seed 0: train.full", "original seed 0: train.lora", "base: perplexity", "base: generate")
    )
    assert full is not None
    assert adapter is not None
    assert scored is not None
    assert full - 430e6 > 16 * 1e8, "weights, gradients and moments"
    assert adapter == pytest.approx(430e6 + 8 * 1e8, rel=0.1), "less than it takes to load"
    assert written == pytest.approx(430e6 + 8 * 1e8, rel=0.01)
    write_base(tmp_path / "small", config=GPT2 | {"vocab_size": 50_000}, shapes={"wte.weight": (1000, 1000)})
    small = costs_of(file)
    assert small["small/notes/base: perplexity"].memory > small["small/notes/base: generate"].memory + 5e8, "the logits"


TASKS = 'context: "{{ content }}", tasks: {title: {prompt: ". ", completion: "the train"}, kind: {completion: "{{ title }}"}}'


def test_tasks_are_examples_and_their_completions_are_what_is_learned(tmp_path: Path) -> None:
    file = write_planned(tmp_path, STUDY.replace('text: "{{ title }}\\n\\n{{ content }}"', TASKS))
    found = costs_of(file)["small/notes/full seed 0: train.full"]
    # 16 of 20 records, two tasks each, 4 examples a step, 2 epochs; two words and the end of text are learned.
    assert (found.steps, found.tokens, found.exact) == (16, 2 * 32 * 3, False)
    shorter = write_planned(tmp_path / "skip", file.read_text().replace("document: title,", "document: title, too_long: skip,"))
    skipped = costs_of(shorter)["small/notes/full seed 0: train.full"]
    assert skipped.steps is not None
    assert 0 < skipped.steps < 16
