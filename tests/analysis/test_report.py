import base64
import hashlib
import json
import re
import sys
import types
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from rich.cells import cell_len

from paretune.analysis.facts import find
from paretune.pipeline.records import Cell, Record, Results
from paretune.report.blocks import Section
from paretune.report.outputs import write_outputs
from paretune.report.render import as_markdown, as_text
from paretune.report.sections import build_report
from paretune.study.registry import evaluations
from paretune.study.study import load_study
from tests.analysis.synthetic import VARIANTS, Shape, Truth, make_results, write_scores

SMALL = Shape(documents=12, epochs=2)
LONG = "lora-with-a-name-that-goes-on-and-on-for-much-longer-than-any-column-of-a-table-can-hold"
CASES = {
    "one variant": replace(SMALL, variants={"full": VARIANTS["full"]}, seeds=(0,)),
    "nothing trained": replace(SMALL, variants={"base": VARIANTS["base"], "cut": Truth("[{prune.blocks: {count: 1}}]", 5.5)}),
    "one seed": replace(SMALL, seeds=(0,)),
    "no questions": replace(SMALL, evaluations=("perplexity", "generate")),
    "only questions": replace(SMALL, evaluations=("qa",)),
    "only generations": replace(SMALL, evaluations=("generate",)),
    "no test split": replace(SMALL, splits=("validation",)),
    "one document": replace(SMALL, documents=1, questions=1),
    "bases and datasets": replace(SMALL, bases=("novels", "stories"), datasets=("news", "books"), seeds=(0,)),
    "long names": replace(SMALL, variants={LONG + str(index): VARIANTS["original"] for index in range(3)}),
    "wild text": replace(
        SMALL,
        prompts=("# *a* | `b`\n\n```\n" + "long " * 300, "\x1b[31m<script>$x$"),
        text="\n\n# no heading\n```\n| a | b |\x07" + "word " * 400,
    ),
    "leakage allowed": replace(SMALL, leakage="allow"),
}


def report_of(results: Results) -> str:
    """report.md without the figures, which take most of the time."""
    return as_markdown(build_report(find(results), frozenset()))


def part(text: str, title: str) -> str:
    """A section of report.md."""
    return re.split(r"\n##+ ", text.split(f"# {title}\n", 1)[1], maxsplit=1)[0]


@pytest.mark.parametrize("case", CASES)
def test_every_study_has_a_report_that_fits(case: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    written = write_outputs(make_results(tmp_path, CASES[case]), out)
    assert all(file.is_file() for file in written)
    text, markdown = ((out / name).read_text(encoding="utf-8") for name in ("report.txt", "report.md"))
    assert max(cell_len(line) for line in text.splitlines()) <= 120
    for word in ("nan", "None", "inf ", "Infinity", "<U+000A>"):
        assert word not in re.sub(r"```+text\n.*?\n```+", "", markdown, flags=re.DOTALL).replace("information", "")
    for table in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]*)\)", markdown):
        assert (out / picture).is_file()
    titles = [line for line in markdown.splitlines() if line.startswith("## ")]
    assert titles[0] == "## In short"
    assert "## What was compared" in titles[1:5]
    sentences, *behind = re.split(r"\n\n(?=\||- |To use)", part(markdown, "In short").strip(), maxsplit=1)
    assert len(sentences.split("\n\n")) <= 3, sentences
    assert sum(line.startswith("- ") for line in "".join(behind).splitlines()) <= 5
    answer = (out / "answer.txt").read_text(encoding="utf-8")
    assert max(cell_len(line) for line in answer.splitlines()) <= 80
    assert sentences.split()[:2] == answer.split("--------\n", 1)[-1].split()[:2] or case in ("long names", "wild text")


def test_both_reports_say_the_same(tmp_path: Path) -> None:
    report = build_report(find(make_results(tmp_path, SMALL)), frozenset())
    text, markdown = as_text(report), as_markdown(report)
    plain = " ".join(text.split())
    for line in (line for line in part(markdown, "In short").splitlines() if not line.startswith("|")):
        assert " ".join(line.replace("\\", "").split()) in plain
    numbers = set(re.findall(r"\d[\d,]*\.\d+", markdown)) - {"0.1"}
    assert numbers == set(re.findall(r"\d[\d,]*\.\d+", text)) - {"0.1"}


class Page(HTMLParser):
    """What a browser would fetch, and the text that it would show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.shown: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]

    def handle_data(self, data: str) -> None:
        self.shown.append(data)


@pytest.mark.parametrize("case", ["one seed", "wild text"])
def test_the_page_asks_for_nothing_and_says_what_the_markdown_says(case: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_outputs(make_results(tmp_path, CASES[case]), out)
    html, markdown = ((out / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    page = Page(html)
    assert all(target.startswith(("#", "data:image/png;base64,")) for target in page.fetched)
    assert "<script src" not in html
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; img-src data:; ")
    scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert re.findall(r"'sha256-([^']*)'", unescape(policy[1])) == digests
    assert "unsafe-eval" not in policy[1]
    numbers = set(re.findall(r"\d[\d,]*\.\d+", markdown))
    assert numbers <= set(re.findall(r"\d[\d,]*\.\d+", " ".join(page.shown)))


def test_equal_records_give_equal_outputs(tmp_path: Path) -> None:
    results = make_results(tmp_path, SMALL)
    files = [write_outputs(results, tmp_path / name) for name in ("one", "two")]
    for one, two in zip(*files, strict=True):
        assert one.read_bytes() == two.read_bytes(), one.name


def test_what_was_compared_names_base_data_training_machine_versions_and_date(tmp_path: Path) -> None:
    markdown = report_of(make_results(tmp_path, SMALL))
    found = part(markdown, "What was compared")
    for words in (
        "Base `novels`: `models/novels`, 7,000,000 parameters.",
        "2 epochs, 8 examples a step, at most 512 tokens an example, cosine schedule",
        "seeds 0 and 1",
        "Precision: trained in float32, measured in float32.",
        "Machine: Linux, Example CPU, 2 cores, 8 GiB memory.",
        "Run: 2026-08-20, with paretune 0.1.0, python 3.12.0, torch 2.13.0",
        "| news | train | 96 | 96 | 192,000 | 43,200 |",
        "Left out of `news`: 2 records without text.",
        "prune.blocks (count 1), then train.lora (r 8, alpha 16, learning\\_rate 0.0003)",
    ):
        assert words in found


def test_the_share_of_trained_parameters_is_printed_in_full(tmp_path: Path) -> None:
    truth = replace(VARIANTS["original"], parameters=124_734_720, trainable=294_912)
    markdown = report_of(make_results(tmp_path, replace(SMALL, variants={"lora": truth})))
    assert "`lora` trains 294,912 of 124,734,720 (0.2364 %) parameters." in part(markdown, "Cost")


def test_a_failed_variant_is_named_and_the_others_are_reported(tmp_path: Path) -> None:
    results = make_results(tmp_path, SMALL)

    def failed(cell: Cell) -> Cell:
        return replace(cell, methods=(), evaluations={}, missing=("train.lora-0123abcd", "evaluate.qa-4567cdef"))

    cells = tuple(failed(cell) if cell.variant == "reduced" else cell for cell in results.cells)
    markdown = report_of(replace(results, cells=cells))
    assert "Incomplete: of `reduced` 2 stages failed or did not run; see the notes." in part(markdown, "In short")
    notes = part(markdown, "Notes")
    assert (
        "`reduced` of `novels` on `news`: `train.lora-0123abcd` failed or did not run, and with it what depends on it." in notes
    )
    assert "qa-4567cdef" not in notes
    assert "| reduced | - | - | - | - | - |" in part(markdown, "Held-out text")
    assert "`full`" in part(markdown, "In short")


def test_leaked_numbers_are_marked_and_others_are_not(tmp_path: Path) -> None:
    markdown = report_of(make_results(tmp_path, CASES["leakage allowed"]))
    held_out = part(markdown, "Held-out text")
    test, validation = held_out.split("Validation,")
    assert "†" in test
    assert "†" not in validation.split("Change of")[0]
    assert "†" in part(markdown, "Questions and answers")
    assert "Part of `qa` and `test` also stands in the training data of `news`" in part(markdown, "In short")
    clean = report_of(make_results(tmp_path, SMALL))
    assert "†" not in clean


def changed(results: Results, **metrics: object) -> Results:
    """The first trained cell with other metrics."""
    target = next(cell for cell in results.cells if cell.methods)

    def edit(record: Record) -> Record:
        return replace(record, metrics={**record.metrics, **metrics})

    cells = tuple(replace(cell, methods=tuple(map(edit, cell.methods))) if cell is target else cell for cell in results.cells)
    return replace(results, cells=cells)


TASKS = """tasks: {summary: {completion: "{{ s }}", score: [rouge_l]}, kind: {completion: "{{ k }}", labels: from_train}}"""


def with_tasks(tmp_path: Path) -> Results:
    """A study of a dataset with two tasks; `full` answers both better than `original`."""
    results = make_results(tmp_path, replace(SMALL, seeds=(0,), documents=40, evaluations=("perplexity",), epochs=1))
    text = results.study_file.read_text(encoding="utf-8").replace('text: "{{ content }}"', TASKS)
    results.study_file.write_text(text, encoding="utf-8")
    cells = []
    for index, cell in enumerate(results.cells):
        record = replace(cell.evaluations["size"], path=tmp_path / f"tasks-{index}")
        record.path.mkdir()
        gain = 0.3 if cell.variant == "full" else 0.0
        place = {"split": "test", "weight": 1.0}
        rows = [
            {**place, "document": str(number), "example": f"{number}-{task}", "task": task, "metric": metric, "value": value}
            for number in range(40)
            for task, metric, value in (
                ("summary", "rouge_l", 0.2 + gain + 0.01 * ((number + 3 * index) % 7)),
                ("summary", "length_ratio", 1.5),
                ("kind", "accuracy", float(number % 10 < 3 + 20 * gain)),
                ("kind", "accuracy_generated", float(number % 10 < 30 * gain)),
                ("kind", "stopped_by_eos", float(number % 4 == 0)),
            )
        ]
        write_scores(record.path, rows)
        answers = [
            {"task": task, "document": f"Note {number}", "example": str(number), "prompt": f"{task}:"}
            | {"reference": " right" if task == "summary" else f" kind {number}"}
            | {"text": f" by {cell.variant}", "new_tokens": 4, "seconds": 0.1, "stopped_by": "context"}
            | ({"references": [" right", " so too"]} if task == "kind" else {})
            for number in range(3)
            for task in ("summary", "kind")
        ]
        (record.path / "generations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers), encoding="utf-8")
        scores = pd.read_parquet(cell.evaluations["perplexity"].path / "scores.parquet")
        scores["slice.task"] = ["summary" if int(example) % 2 else "kind" for example in scores.example]
        write_scores(cell.evaluations["perplexity"].path, scores.to_dict("records"))
        cells.append(replace(cell, evaluations={**cell.evaluations, "tasks": record}))
    return replace(results, study=load_study(results.study_file), cells=tuple(cells))


def test_the_tasks_of_a_dataset_are_told_and_compared(tmp_path: Path) -> None:
    markdown = report_of(with_tasks(tmp_path)).replace("\\", "")
    tasks = part(markdown, "Tasks")
    assert "`summary`, test: 40 answers on 40 documents, 95 % intervals" in tasks
    assert "| variant | ROUGE-L | ended by itself | length ratio |" in tasks
    assert re.search(r"\| full \| 0\.5\d+ \([^)]*\) \| - \| 1\.5 \|", tasks)
    assert "| variant | accuracy (likelihood) | accuracy (as written) | ended by itself | length ratio |" in tasks
    assert re.search(r"\| original \| 30\.0 % \([^)]*\) \| 0\.0 % \([^)]*\) \| 25\.0 % \| - \|", tasks)
    short = part(markdown, "In short")
    assert re.search(r"Recommended: `full`\. It has the highest test ROUGE-L on `summary` \(0\.5\d+\) on 40 documents", short)
    assert "Decided by test ROUGE-L on `summary`: the study asks for answers" in short
    found = part(markdown, "Results")
    assert "Test accuracy on `kind`: " in short + found
    assert (
        "a failure of form: `base` 30.0 % and 0.0 %; `original` 30.0 % and 0.0 %; `reduced` 30.0 % and 0.0 %." in short + found
    )
    always = "On `kind` always saying `kind 0` would be right in 33.3 %, from which `base` (30.0 %), "
    assert f"{always}`original` (30.0 %) and `reduced` (30.0 %) cannot be told apart." in short + found  # but not `full`
    assert "| test ROUGE-L on summary | original | -0.30 |" in part(markdown, "Comparisons")


def test_the_perplexity_of_tasks_is_of_their_completions(tmp_path: Path) -> None:
    held_out = part(report_of(with_tasks(tmp_path)), "Held-out text")
    assert "of completions alone, after what stands before them" in held_out
    assert re.search(r"by task, test, 95 % intervals\n\n\| variant \| summary \| kind \|", held_out)


def test_intervals_of_scores_stay_where_scores_can_be(tmp_path: Path) -> None:
    results = with_tasks(tmp_path)
    for cell in results.cells:
        file = cell.evaluations["tasks"].path / "scores.parquet"
        scores = pd.read_parquet(file)
        rare = (scores.metric == "rouge_l") & (cell.variant == "base")
        scores.loc[rare, "value"] = [0.1 * (number == 0) for number in range(rare.sum())]
        write_scores(file.parent, scores.to_dict("records"))
    tasks = part(report_of(results), "Tasks")
    assert re.search(r"\| base \| 0\.00\d \(0\.000 to 0\.00\d\)", tasks)


def test_answers_stand_side_by_side_with_what_was_held_out(tmp_path: Path) -> None:
    shown = part(report_of(with_tasks(tmp_path)).replace("\\", ""), "Generations side by side")
    assert shown.index("summary of “Note 0”: summary:") < shown.index("kind of “Note 0”") < shown.index("“Note 1”")
    assert "Note 2" not in shown
    assert "**reference** (what was held out)" in shown
    assert "**reference** (first of 2)" in shown
    assert shown.count("cut at the end of the context after 4 tokens") == 4 * len(VARIANTS)


def test_the_figure_of_the_tasks_stands_with_them(tmp_path: Path) -> None:
    written = write_outputs(with_tasks(tmp_path), tmp_path / "out")
    assert tmp_path / "out" / "figures" / "tasks-news.png" in written
    assert "](figures/tasks-news.png)" in part((tmp_path / "out" / "report.md").read_text(encoding="utf-8"), "Tasks")


def test_deviations_are_printed(tmp_path: Path) -> None:
    results = make_results(tmp_path, SMALL)
    odd = changed(
        results,
        stopped_early=True,
        steps=7,
        epochs_done=1.5,
        best_step=4,
        repeated_steps=3,
        resumed_from=1200,
        train_tokens=999,
        options={"forward_tokens": 1024},
        out_of_memory=2,
        flex_failure="X: no kernel",
    )
    found = part(report_of(odd), "What was compared")
    for words in (
        "`full` (seed 0) stopped early, after 7 optimizer steps (1.5 epochs).",
        "`full` (seed 0) was interrupted and went on from step 1,200; 3 steps ran twice.",
        "those with the lowest validation loss were kept: `full` (seed 0) step 4 of 7.",
        "`full` (seed 0) ran out of memory 2 times and went on in passes of 1,024 tokens, which take longer.",
        "`full` (seed 0) trained without FlexAttention, slower and in more memory, as it failed here (X: no kernel).",
        "trained with unequal tokens learned: ",
        "trained with unequal optimizer steps: ",
    ):
        assert words in found
    again = part(report_of(changed(results, repeated_steps=3, resumed_from=0)), "What was compared")
    assert "`full` (seed 0) was interrupted and began again; 3 steps ran twice." in again
    plain = part(report_of(results), "What was compared")
    for word in ("stopped early", "out of memory", "FlexAttention", "interrupted", "lowest validation loss", "unequal"):
        assert word not in plain


def test_only_runs_of_one_seed_have_to_see_the_same_tokens(tmp_path: Path) -> None:
    results = make_results(tmp_path, SMALL)

    def edit(cell: Cell) -> Cell:
        return replace(
            cell,
            methods=tuple(
                replace(record, metrics={**record.metrics, "train_tokens": 1000 + (cell.seed or 0)}) for record in cell.methods
            ),
        )

    shuffled = replace(results, cells=tuple(map(edit, results.cells)))
    assert "unequal" not in report_of(shuffled)


def test_times_of_another_machine_are_shown_and_not_compared(tmp_path: Path) -> None:
    results = make_results(tmp_path, SMALL)
    cells = tuple(
        replace(cell, methods=tuple(replace(record, machine={"processor": "Other"}) for record in cell.methods))
        if cell.variant == "reduced"
        else cell
        for cell in results.cells
    )
    markdown = report_of(replace(results, cells=cells))
    rows = [
        line for line in part(markdown, "Training").splitlines() if line.startswith("| reduced") and "other conditions" in line
    ]
    assert len(rows) == 1
    assert "times and memory are compared only within one" in part(markdown, "What was compared")
    assert "`reduced` trains" not in part(markdown, "In short")


def test_bases_of_different_tokenizers_are_compared_in_bits_per_byte_only(tmp_path: Path) -> None:
    results = make_results(tmp_path, replace(SMALL, bases=("novels", "stories"), seeds=(0,)))
    across = part(report_of(results), "Bases on news")
    assert "bits per byte is" in across
    assert "perplexity is" not in across
    assert "The bases have different tokenizers" in across
    tokens = {
        key: replace(record, config={**record.config, "base": {"digest": "same"}}) for key, record in results.tokens.items()
    }
    same = part(report_of(replace(results, tokens=tokens)), "Bases on news")
    assert "bits per byte is" in same
    assert "The bases have different tokenizers" not in same


def test_overfitting_is_told_from_a_loss_that_still_falls(tmp_path: Path) -> None:
    results = make_results(tmp_path, replace(SMALL, epochs=3))
    assert "Validation loss was still falling in the last epoch for `full`" in part(report_of(results), "Training")
    for cell in results.cells:
        for record in cell.methods:
            file = record.path / "curves.jsonl"
            if file.exists():
                lines = [line for line in file.read_text().splitlines() if "validation_loss" not in line]
                steps = (len(lines) // 3, 2 * len(lines) // 3, len(lines))
                for step, loss in zip(steps, (4.0, 3.9, 4.2), strict=True):
                    epoch = 3 * step / len(lines)
                    row = {"step": step, "epoch": epoch, "seconds": 1, "tokens": step * 3600, "validation_loss": loss}
                    lines.append(json.dumps(row))
                file.write_text("\n".join(lines) + "\n")
    found = part(report_of(results), "Training")
    assert "still falling" not in found
    assert "`original`: validation loss was lowest after epoch 2 of 3 and rose after it (overfitting)." in found


def test_means_over_seeds_and_the_level_of_chance_are_called_so(tmp_path: Path) -> None:
    questions = part(report_of(make_results(tmp_path, SMALL)), "Questions and answers")
    assert "of their share, means over seeds; choices by chance 2.5 of 10 (25.0 %)" in questions
    assert re.search(r"\| base \| \d+ of 10 ", questions)
    assert re.search(r"\| mean \d+\.5 of 10 ", questions)
    assert not re.search(r"\| \d+\.5 of 10 ", questions)


def skipping(results: Results, skipped: int) -> Results:
    """The same study where so many training examples were too long."""
    kept = {f"kept_{what}_{split}": 12 for what in ("documents", "examples", "bytes") for split in ("validation", "test")}
    kept |= {"kept_documents_train": 90, "kept_examples_train": 96 - skipped, "kept_bytes_train": 1234}
    tokens = {
        key: replace(record, metrics={**record.metrics, **kept, "skipped_examples": skipped})
        for key, record in results.tokens.items()
    }
    return replace(results, tokens=tokens)


def test_what_was_too_long_is_told_and_not_counted(tmp_path: Path) -> None:
    results = make_results(tmp_path, SMALL)
    markdown = report_of(skipping(results, 7))
    told = "7 of 120 examples longer than 512 tokens left out (train 7, validation 0, test 0), neither trained nor scored on"
    assert told in part(markdown, "What was compared")
    assert told in part(markdown, "In short")
    assert "| news | train | 90 | 89 | 1,234 | 43,200 |" in markdown
    few = report_of(skipping(results, 6))
    assert "6 of 120 examples" in part(few, "What was compared")
    assert "6 of 120 examples" not in part(few, "In short")


def test_disturbed_times_are_marked_in_the_table_of_costs(tmp_path: Path) -> None:
    results = make_results(tmp_path, SMALL)
    assert "~" not in part(report_of(results), "Cost")

    def slow(cell: Cell) -> Cell:
        record = cell.evaluations["latency"]
        timed = {name: (3 if "ms" in name else 1) * value for name, value in record.metrics.items()}
        return replace(cell, evaluations={**cell.evaluations, "latency": replace(record, metrics=timed)})

    cells = tuple(slow(cell) if cell.variant == "base" else cell for cell in results.cells)
    found = part(report_of(replace(results, cells=cells)), "Cost").replace("\\", "")
    assert re.search(
        r"~: disturbed times, as equal runs, parts of one, or wall and processor time differ in time per token by \d", found
    )
    assert "| training | peak memory | first token, ms ~ | ms per token ~ |" in found


def test_notes_and_columns_are_of_what_the_study_has(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    shape = replace(SMALL, seeds=(0,), evaluations=("perplexity",))
    plain = report_of(make_results(tmp_path / "plain", shape))
    for words in ("multiple-choice", "Exact match", "With several seeds", "seeds, perplexity"):
        assert words not in plain
    whole = report_of(make_results(tmp_path, SMALL))
    for words in ("A multiple-choice answer is", "Exact match and contains", "With several seeds", "seeds, perplexity"):
        assert words in whole


def test_what_the_data_was_checked_for_stands_with_it(tmp_path: Path) -> None:
    results = make_results(tmp_path, CASES["leakage allowed"])
    assert "no duplicates" not in report_of(results)
    clean = {
        name: replace(record, metrics={"pairs": 0, "items_touched_qa": 0, "documents_touched_test": 0})
        for name, record in results.leakage.items()
    }
    data = {
        name: replace(record, metrics={**record.metrics, "documents_unused": 9, "records_empty": 0})
        for name, record in results.data.items()
    }
    compared = part(report_of(replace(results, leakage=clean, data=data)), "What was compared")
    assert "Leakage in `news`: checked, no duplicates between splits or with items of the evaluations." in compared
    assert "- In no split: 9 documents of `news`" in compared
    assert "Deviations:" not in compared


def test_the_last_line_in_short_writes_the_recommended_variant(tmp_path: Path) -> None:
    results = make_results(tmp_path, replace(SMALL, bases=("novels", "stories"), documents=20))
    short = part(report_of(results), "In short").strip().splitlines()
    command = r"`paretune export study.yaml \w+ --to novels-\w+-exported --base novels --seed 0`"
    assert re.fullmatch(f"To use what is recommended, in the folder of the study: {command}", short[-1])


def test_slices_that_are_the_kinds_of_question_are_left_out(tmp_path: Path) -> None:
    results = make_results(tmp_path, SMALL)
    assert "| difficulty: easy |" in part(report_of(results), "Questions and answers")
    for cell in results.cells:
        file = cell.evaluations["qa"].path
        scores = pd.read_parquet(file / "scores.parquet")
        scores["slice.category"] = ["choice" if int(name[1:]) < SMALL.questions else "fact" for name in scores.document]
        write_scores(file, scores.to_dict("records"))
    found = part(report_of(results), "Questions and answers")
    assert "category" not in found
    assert "| difficulty: easy |" in found


def test_one_missing_variant_is_no_lead_over_every_other(tmp_path: Path) -> None:
    results = make_results(tmp_path, replace(SMALL, documents=40))
    assert "lead over every other variant" in report_of(results)
    cells = tuple(
        replace(cell, methods=(), evaluations={}, missing=("train.lora-0123abcd",)) if cell.variant == "reduced" else cell
        for cell in results.cells
    )
    short = part(report_of(replace(results, cells=cells)), "In short")
    assert "lead over every other variant" not in short
    assert "its lead over the others that were measured is detected" in short
    assert "Incomplete: of `reduced` 1 stage failed" in short


def test_both_of_two_latencies_have_their_columns(tmp_path: Path) -> None:
    results = make_results(tmp_path, SMALL)
    text = results.study_file.read_text(encoding="utf-8")
    latencies = "  fast: {kind: latency, repeats: 5}\n  slow: {kind: latency, repeats: 9}\n"
    results.study_file.write_text(text.replace("  latency: {repeats: 5}\n", latencies), encoding="utf-8")
    cells = []
    for cell in results.cells:
        fast = cell.evaluations["latency"]
        slow = replace(fast, metrics={name: 10 * value for name, value in fast.metrics.items()})
        kept = {name: record for name, record in cell.evaluations.items() if name != "latency"}
        cells.append(replace(cell, evaluations={**kept, "fast": fast, "slow": slow}))
    found = part(report_of(replace(results, study=load_study(results.study_file), cells=tuple(cells))), "Cost")
    heads = "first token, ms, fast | ms per token, fast | first token, ms, slow | ms per token, slow"
    assert heads in found
    base, *of_speeds = (line for line in found.splitlines() if line.startswith("| base |"))
    assert len(of_speeds) == 2
    fast_ms, slow_ms = (float(base.split(" | ")[index].rstrip(" |")) for index in (-3, -1))
    assert slow_ms == pytest.approx(10 * fast_ms, rel=0.02)


def test_an_evaluation_without_a_section_has_a_table_of_its_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = replace(evaluations()["qa"], name="quiz", section=None)
    monkeypatch.setitem(evaluations(), "quiz", row)
    results = make_results(tmp_path, SMALL)
    text = results.study_file.read_text(encoding="utf-8").replace("  qa: {path", "  qa: {kind: quiz, path")
    results.study_file.write_text(text, encoding="utf-8")
    markdown = report_of(replace(results, study=load_study(results.study_file)))
    found = part(markdown, "Other measurements")
    assert "qa, 95 % intervals" in found
    assert re.search(r"^\| variant \| accuracy \(likelihood\) .*\| exact match \|", found, re.MULTILINE)
    assert "Questions and answers" not in markdown


def test_a_section_of_others_stands_behind_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = replace(evaluations()["generate"], section=f"{__name__}:quiz_section")
    monkeypatch.setitem(sys.modules, __name__, types.SimpleNamespace(quiz_section=lambda *_: Section("Quiz", [], level=3)))
    monkeypatch.setitem(evaluations(), "generate", row)
    titles = re.findall(r"^#+ (.*)$", report_of(make_results(tmp_path, SMALL)), re.MULTILINE)
    assert titles.index("Training") < titles.index("Quiz") < titles.index("Notes")


def test_a_report_without_figures_draws_none(tmp_path: Path) -> None:
    written = write_outputs(make_results(tmp_path, SMALL), tmp_path / "out", figures=False)
    assert {file.name for file in written} == {
        *(f"{name}.csv" for name in ("results", "estimates", "comparisons", "curves", "audit", "leakage")),
        *("generations.jsonl", "findings.json", "report.txt", "report.md", "report.html", "answer.txt", "README.md"),
    }
    assert "![" not in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_two_evaluations_of_each_kind_are_both_told(tmp_path: Path) -> None:
    results = make_results(tmp_path, SMALL)
    text = results.study_file.read_text(encoding="utf-8")
    lines = re.findall(r"^  (perplexity|qa|generate|latency): \{(.*)\}$", text, re.MULTILINE)
    assert len(lines) == 4
    again = "".join(f"  {name}-again: {{kind: {name}, {fields}}}\n" for name, fields in lines)
    results.study_file.write_text(text + again, encoding="utf-8")
    cells = tuple(
        replace(cell, evaluations={**cell.evaluations, **{f"{name}-again": cell.evaluations[name] for name, _ in lines}})
        for cell in results.cells
    )
    findings = find(replace(results, study=load_study(results.study_file), cells=cells))
    markdown = as_markdown(build_report(findings, frozenset()))
    assert "perplexity-again, test, 12 documents" in part(markdown, "Held-out text")
    assert "qa-again: right answers" in part(markdown, "Questions and answers")
    assert "ms per token, latency-again" in part(markdown, "Cost")
    assert any("latency-again" in name for name in findings.groups[0].choice.costs)
    texts = part(markdown, "Generations side by side")
    assert texts.count("**full**") == 2 * len(SMALL.prompts)
    tasks = {quantity.task for quantity in findings.groups[0].quantities}
    assert {"perplexity", "perplexity-again", "qa", "qa-again", "generate", "generate-again"} <= tasks
