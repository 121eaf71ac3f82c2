"""The commands around a run: init, why, methods, doctor, clean, plan; and how light the command line is."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paretune.cli import main
from paretune.data.chat import chat_prompt
from paretune.data.sources import iterate_rows
from paretune.data.tokenizer import load_tokenizer
from paretune.pipeline.resources import Resource
from paretune.study.reference import markdown
from paretune.study.study import load_study
from tests.conftest import write_notes, write_study
from tests.tiny import make_model

LIGHT = {"torch", "transformers", "peft", "accelerate"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A study of one variant that has run."""
    folder = tmp_path_factory.mktemp("cli")
    file = write_study(folder)
    text = file.read_text().split("variants:")[0]
    file.write_text(text + "variants: {base: []}\nevaluate: {perplexity: {}}\n")
    assert main(["run", str(file), "--out", str(folder / "out")]) == 0
    return folder


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["methods"]])
def test_light_commands_import_nothing_heavy(arguments):
    code = (
        f"import sys; from paretune.cli import main; assert main({arguments!r}) == 0; "
        f"loaded = {LIGHT | {'pandas', 'datasets', 'matplotlib'}!r} & set(sys.modules); assert not loaded, loaded"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


def loaded_by(*arguments: str, modules: set[str]) -> set[str]:
    """Which of `modules` a command imports, in a process of its own; it ends well."""
    code = (
        f"import sys; from paretune.cli import main; assert main({list(arguments)!r}) == 0; "
        f"print('loaded', *sorted({modules!r} & set(sys.modules)))"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return set(finished.stdout.splitlines()[-1].split()[1:])


def test_help_reads_nothing_that_a_study_takes():
    """What is asked first is answered at once: 0.2 s of processor time, where a study takes 1 s."""
    assert not loaded_by("--help", modules={"pydantic", "huggingface_hub", "pandas", "numpy", "ruamel.yaml", "jinja2", "torch"})


def test_plan_and_report_load_no_torch(folder):
    file = str(folder / "study.yaml")
    assert not loaded_by("plan", file, modules=LIGHT)
    assert not loaded_by("report", file, "--out", str(folder / "again"), modules=LIGHT)
    assert not loaded_by("report", file, "--out", str(folder / "again"), "--no-figures", modules=LIGHT | {"matplotlib"})


def test_plan_before_the_first_run_shows_every_stage_as_new(tmp_path, capsys):
    file = write_study(tmp_path)
    assert main(["plan", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "46 stages: 0 reused, 46 new" in shown
    assert "tiny/notes/reduced seed 1" in shown
    assert not (tmp_path / ".paretune").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "notes.jsonl", "qa.json", "study.yaml"]


def test_why_names_the_field_that_changed(folder, tmp_path, capsys):
    file = folder / "wider.yaml"
    file.write_text((folder / "study.yaml").read_text().replace("perplexity: {}", "perplexity: {stride: 8}"))
    assert main(["why", str(file), "evaluate.perplexity"]) == 0
    assert "stride (nothing -> 8)" in capsys.readouterr().out
    assert main(["why", str(file), "data"]) == 0
    assert "reused" in capsys.readouterr().out
    assert main(["why", str(file), "nothing"]) == 2
    assert "is no stage of this study" in capsys.readouterr().err


def test_why_looks_for_the_reason_in_what_a_stage_needs(folder, capsys):
    write_notes(folder / "other.jsonl", seed=1)
    file = folder / "other.yaml"
    file.write_text((folder / "study.yaml").read_text().replace("notes.jsonl", "other.jsonl"))
    assert main(["why", str(file), "evaluate.perplexity"]) == 0
    shown = capsys.readouterr().out
    assert "is new because data-" in shown
    assert "the data file" in shown


def test_a_report_of_an_unfinished_study_says_what_is_missing(folder, capsys):
    assert main(["report", str(folder / "study.yaml"), "--out", str(folder / "out")]) == 0
    assert "unfinished" not in capsys.readouterr().err
    file = folder / "more.yaml"
    text = (folder / "study.yaml").read_text()
    file.write_text(text.replace("{base: []}", "{base: [], shorter: [{prune.blocks: {count: 1, choose: last}}]}"))
    assert main(["report", str(file), "--out", str(folder / "out")]) == 0
    told = capsys.readouterr().err
    assert told.endswith(f"unfinished: 1 of 2 lack something: tiny/notes/shorter; `paretune run {file}` goes on\n")
    for name in ("shorter", "tiny/notes/shorter"):
        assert main(["why", str(file), name]) == 0
        shown = capsys.readouterr().out
        assert "prune.blocks-" in shown
        assert "new; the first prune.blocks in this store" in shown
    assert main(["why", str(file), "base"]) == 0
    assert capsys.readouterr().out == "base: reused; the store holds its 2 stages\n"


def test_clean_removes_what_no_study_names_and_nothing_else(folder, capsys):
    store, study = folder / ".paretune", folder / "study.yaml"
    file = folder / "longer.yaml"
    file.write_text(study.read_text().replace("max_length: 64", "max_length: 32"))
    assert main(["run", str(file), "--out", str(folder / "longer")]) == 0
    before = {path.parent.name for path in store.glob("*/record.json")}
    assert main(["clean", str(study), str(file), "--yes"]) == 0
    assert "nothing to remove" in capsys.readouterr().out
    assert main(["clean", str(study), "--yes"]) == 0
    assert f"what these studies need goes too, and they would run it again: {file}\n" in capsys.readouterr().out
    after = {path.parent.name for path in store.glob("*/record.json")}
    assert sorted(name.split("-")[0] for name in before - after) == ["evaluate.perplexity", "tokenize"]
    assert main(["run", str(study), "--out", str(folder / "out")]) == 0
    assert " 0 to run" in capsys.readouterr().err


def test_doctor_says_what_runs_here(capsys):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "GFLOP/s in float32" in shown
    assert "MISSING" not in shown


def test_methods_lists_every_row_with_its_fields(capsys):
    assert main(["methods"]) == 0
    shown = capsys.readouterr().out
    for word in ("prune.blocks", "train.full", "train.lora", "perplexity", "qa", "generate", "latency", "learning_rate"):
        assert word in shown


def test_the_reference_in_docs_is_the_generated_one():
    written = (Path(__file__).parent.parent / "docs" / "study-file.md").read_text(encoding="utf-8")
    assert written == markdown(), "run: paretune methods --markdown > docs/study-file.md"


DATA = {
    "notes.jsonl": "".join(
        json.dumps({"name": f"n{i}", "heading": f"The long heading number {i}", "body": "a word " * 40, "kind": "ab"[i % 2]})
        + "\n"
        for i in range(40)
    ),
    "answers.csv": "questionID,link,answer\n" + "".join(f"{i // 2},http://x/{i},a b c d e f {i}\n" for i in range(40)),
    "bare.csv": "".join(f"{i % 3},This is the title of {i},And this is the text of number {i}\n" for i in range(40)),
    "book.txt": "front\n\n" + "".join(f"Chapter {i}\n\nIt was a dark night in the year {i}.\n\n" for i in range(40)),
    "short.txt": "front\n\n" + "".join(f"Chapter {i}\n\n{'It was a dark night. ' * 99}\n\n" for i in range(12)),
    "plain.txt": "One two three four five six.\n\n" * 40,
}


PAIRS = {
    "alpaca.json": ({"instruction": "Add {}.", "input": "", "output": "{}"}, "records: {format: alpaca, score: [rouge_l]}"),
    "joined.jsonl": (
        {"prompt": "What is {}?\n", "completion": "It is {}."},
        "records: {format: prompt_completion, score: [rouge_l]}",
    ),
    "apart.jsonl": (
        {"prompt": "What is {}?", "completion": "It is {}."},
        'completion: {prompt: "{{ prompt }}\\n\\n", completion: "{{ completion }}", score: [rouge_l]}',
    ),
    "dolly.jsonl": (
        {"instruction": "Add {}.", "context": "", "response": "{}"},
        '{% if context %}\\n\\n{{ context }}{% endif %}\\n\\n", completion: "{{ response }}", score: [rouge_l]}',
    ),
    "faq.csv": ({"question": "What is {}?", "answer": "It is {}."}, 'answer: {prompt: "{{ question }}\\n\\n", completion'),
    "chat.jsonl": (
        {"messages": [{"role": "user", "content": "{}?"}, {"role": "assistant", "content": "{}!"}]},
        "records: {format: messages, score: [rouge_l]}",
    ),
    "shared.jsonl": (
        {"conversations": [{"from": "human", "value": "{}?"}, {"from": "gpt", "value": "{}!"}]},
        "records: {format: sharegpt, score: [rouge_l]}",
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_init_recognises_what_asks_and_what_answers(tmp_path, name):
    record, expected = PAIRS[name]
    rows = [json.loads(json.dumps(record).replace("{}", f"number {n}")) for n in range(40)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if name.endswith(".csv"):
        text = "question,answer\n" + "".join(f"{row['question']},{row['answer']}\n" for row in rows)
    (tmp_path / name).write_text(json.dumps(rows) if name.endswith(".json") else text)
    file = tmp_path / "study.yaml"
    assert main(["init", str(tmp_path / name), "--to", str(file)]) == 0
    assert expected in file.read_text()
    (dataset,) = load_study(file).data.values()
    assert (dataset.completes, dataset.length_rule) == (True, "skip")
    assert dataset.scored


ANSWERED = {
    "labels": (["good", "bad", "neither"], "score: [accuracy], labels: from_train"),
    "lists": (["a lamp, an engine", "copper; argon; a long lamp", "one thing, another, a third"], "score: [set_f1]"),
    "lists of texts": ([["a lamp"], ["copper", "argon"]], "score: [set_f1]"),
    "prose": (["It is good, bad, and neither.", "It is bad.", "Good."], "score: [rouge_l]"),
    "few of many labels": ([f"label {n}" for n in range(30)], "score: [rouge_l]"),
}


@pytest.mark.parametrize("name", ANSWERED)
def test_init_scores_answers_by_what_they_look_like(tmp_path, name):
    answers, expected = ANSWERED[name]
    rows = [{"question": f"What is number {n}?", "answer": answers[n % len(answers)]} for n in range(60)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "study.yaml"
    assert main(["init", str(tmp_path / "data.jsonl"), "--to", str(file)]) == 0
    assert expected in file.read_text()


SHAPES: dict[str, tuple[dict[str, Any], str]] = {
    "articles": (
        {"title": "On the number {}", "content": "word {} " * 50, "kind": "ab", "tags": ["x {}", "y"], "url": "http://x/{}"},
        'context: "{{ content }}\\n\\n"',
    ),
    "labels": (
        {"text": "It is the number {} again", "label": 10},
        'label: {prompt: "Label:", completion: " {{ label }}", score: [acc',
    ),
    "several": (
        {"source": ["One is {}.", "Two is not."], "target": ["It is the number {} alone.", "Only {} of them is."]},
        "references: [target]",
    ),
    "numbered": ({"input": "Say {}", "output1": "It is {}", "output2": "So it is {}"}, "references: [output2]"),
    "questions": ({"one": "What is the number {}?", "other": "It is the number {}."}, 'other: {prompt: "{{ one }}\\n\\n"'),
    "preferred": ({"prompt": "Say {}", "chosen": "{}", "rejected": "no"}, 'completion: "{{ chosen }}"'),
}


@pytest.mark.parametrize("name", SHAPES)
def test_init_recognises_the_shape(tmp_path, capsys, name):
    record, expected = SHAPES[name]
    rows = [json.loads(json.dumps(record).replace("{}", f"n{n}")) for n in range(40)]
    for n, row in enumerate(rows):
        row |= {field: value[n % 2] for field, value in row.items() if field == "kind"}
        row |= {field: n % 3 for field in row if field == "label"}
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "study.yaml"
    assert main(["init", str(tmp_path / "data.jsonl"), "--to", str(file)]) == 0
    assert expected in file.read_text()
    (dataset,) = load_study(file).data.values()
    assert dataset.scored
    printed = capsys.readouterr().out
    assert "recognised: " in printed
    if name == "articles":
        assert {task: (use.score, use.labels) for task, use in dataset.tasks.items()} == {
            "title": (("rouge_l",), None),
            "kind": (("accuracy",), "from_train"),
            "tags": (("set_f1",), None),
        }
        assert "left out: `url`" in printed


def test_init_writes_prompts_in_the_chat_template_of_the_base(tmp_path, capsys):
    rows = [{"question": f"What is n{n}?", "answer": f"It is n{n}."} for n in range(40)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_model("llama", tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    file = tmp_path / "study.yaml"
    assert main(["init", str(tmp_path / "data.jsonl"), "--to", str(file), "--base", str(tmp_path / "model")]) == 0
    (dataset,) = load_study(file).data.values()
    asked = chat_prompt(
        load_tokenizer({"trust_remote_code": False}, Resource(path=tmp_path / "model")),
        [{"role": "user", "content": "{{ question }}"}],
    )
    assert dataset.tasks["answer"].prompt == asked == "[user] {{ question }}\n[assistant] "
    assert "in the chat template of the base" in capsys.readouterr().out


def test_init_fits_a_study_to_minutes_and_measures_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("measures the machine"))
    rows = [{"question": f"What is n{n}?", "answer": f"It is n{n}, and not {n + 1}. " * 20} for n in range(400)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["init", str(tmp_path / "data.jsonl"), "--to", str(tmp_path / "study.yaml")]
    assert main([*arguments, "--minutes", "0.1"]) == 2
    assert "the shortest study takes about" in capsys.readouterr().err
    assert not (tmp_path / "study.yaml").exists()
    assert main([*arguments, "--minutes", "3"]) == 0
    study = load_study(tmp_path / "study.yaml")
    assert study.train.max_steps
    assert re.search(r"time: about [12](\.\d)? min|time: about \d+ s", capsys.readouterr().out)
    assert "`paretune plan" in (tmp_path / "study.yaml").read_text().splitlines()[1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("notes.jsonl", {"document": "heading", "stratify": "kind", "context": "{{ body }}\n\n"}),
        ("answers.csv", {"document": "questionID", "stratify": None, "text": "{{ answer }}"}),
        ("bare.csv", {"document": "column2", "context": "{{ column2 }}\n\n{{ column3 }}\n\n"}),
        ("book.txt", {"document": None, "text": "{{ text }}"}),
        ("short.txt", {"text": "{{ text }}"}),
        ("plain.txt", {"text": "{{ text }}"}),
    ],
)
def test_init_writes_a_study_that_is_read_back(tmp_path, capsys, name, expected):
    (tmp_path / name).write_text(DATA[name])
    file = tmp_path / "study.yaml"
    assert main(["init", str(tmp_path / name), "--to", str(file)]) == 0
    (dataset,) = load_study(file).data.values()
    assert {field: getattr(dataset, field) for field in expected} == expected
    if name.endswith(".txt"):
        assert (dataset.source.chapters is not None) == (name == "book.txt")
    assert main(["init", str(tmp_path / name), "--to", str(file)]) == 2
    assert "exists; name another file" in capsys.readouterr().err


QUESTIONS = {
    "questionID,questionTitle,questionText,topics,answerText,upvotes": (
        "{{ questionTitle }}{% if questionText %}\\n\\n{{ questionText }}{% endif %}\\n\\n",
        "answerText",
    ),
    "id,title_of_question,question_text,topics,best_answer,n": (
        "{{ title_of_question }}{% if question_text %}\\n\\n{{ question_text }}{% endif %}\\n\\n",
        "best_answer",
    ),
    "n,other,Prompt,topics,Response,m": ("{{ Prompt }}\\n\\n", "Response"),
}


@pytest.mark.parametrize("header", QUESTIONS)
def test_init_recognises_questions_and_answers_by_the_words_of_their_names(tmp_path, header):
    prompt, answers = QUESTIONS[header]
    rows = [f"q{n},What should I do today {n},{'It is raining on me ' * (n % 3)} {n if n % 3 else ''},rain," for n in range(60)]
    lines = [f"{row}<p>You should take a lamp on walk {n}</p>,{n}" for n, row in enumerate(rows)]
    if "Prompt" in header:
        lines = [line.replace("What should I do today", "x").replace(", ,", ",Rain again?,") for line in lines]
    (tmp_path / "data.csv").write_text("\n".join([header, *lines]) + "\n")
    file = tmp_path / "study.yaml"
    assert main(["init", str(tmp_path / "data.csv"), "--to", str(file)]) == 0
    text = file.read_text()
    assert f'{answers}: {{prompt: "{prompt}", completion: "{{{{ {answers} }}}}", score: [rouge_l]}}' in text
    assert "`topics`" in text.split("# not used: ")[1].splitlines()[0]
    assert f"# 100 % of the values of `{answers}` hold HTML" in text
    (dataset,) = load_study(file).data.values()
    assert dataset.scored


def chats(group: Callable[[int], Any], count: int = 120) -> str:
    said = [{"role": "user", "content": "And {}?"}, {"role": "assistant", "content": "It is {}."}]
    rows = [
        {"talk": group(n), "turn": n % 4, "messages": json.loads(json.dumps(said).replace("{}", f"a{n}"))} for n in range(count)
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_init_proposes_the_column_that_groups_and_plan_names_it_to_who_has_not(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("paretune.pipeline.rates.measure_rates", lambda *_: {})
    (tmp_path / "chats.jsonl").write_text(chats(lambda n: {"conversation_id": n // 4}))
    file = tmp_path / "study.yaml"
    assert main(["init", str(tmp_path / "chats.jsonl"), "--to", str(file)]) == 0
    text = file.read_text()
    (dataset,) = load_study(file).data.values()
    assert dataset.document == "talk.conversation_id"
    assert dataset.split.test == 0.2  # of 30 documents
    assert "(30 in 120 records)" in text
    assert "# not used: `turn`" in text
    capsys.readouterr()
    assert main(["plan", str(file)]) == 0
    assert "belong together" not in capsys.readouterr().out
    file.write_text("\n".join(line for line in text.splitlines() if "document:" not in line) + "\n")
    assert main(["plan", str(file)]) == 0
    told = "records with the same `talk.conversation_id` (30 values in 120 records) seem to belong together"
    assert told in capsys.readouterr().out


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_init_finds_the_delimiter_of_a_table(tmp_path, mark):
    rows = [("id", "message", "state"), *((str(n), f'"It costs {n},50 and ""it"" broke; why?"', "open") for n in range(40))]
    (tmp_path / "data.csv").write_text("\n".join(mark.join(row) for row in rows) + "\n")
    file = tmp_path / "study.yaml"
    assert main(["init", str(tmp_path / "data.csv"), "--to", str(file)]) == 0
    (dataset,) = load_study(file).data.values()
    assert (dataset.source.delimiter, dataset.text) == (None if mark == "," else mark, "{{ message }}")


def test_init_suggests_a_label_of_which_some_are_empty_and_knows_questions_with_options(tmp_path, capsys):
    rows = [
        f"I wrote about the same thing again and again {n},{'' if n == 7 else 'open' if n % 2 else 'closed'}" for n in range(40)
    ]
    (tmp_path / "data.csv").write_text("\n".join(["message,state", *rows]) + "\n")
    assert main(["init", str(tmp_path / "data.csv"), "--to", str(tmp_path / "study.yaml")]) == 0
    assert " state: {prompt" in (written := capsys.readouterr().out)
    assert "multiple choice" not in written
    quiz = [{"question": f"What is {n} and {n}?", "options": ["4", "5"], "answer": "A"} for n in range(20)]
    (tmp_path / "quiz.json").write_text(json.dumps(quiz))
    assert main(["init", str(tmp_path / "quiz.json"), "--to", str(tmp_path / "quiz.yaml")]) == 0
    assert '`qa: {path: "quiz.json"}` in the `evaluate`' in capsys.readouterr().out


def test_init_of_ten_thousand_columns_is_short(tmp_path):
    row = {f"c{n}": f"some words about number {n}" if n < 9000 else n for n in range(10_000)}
    (tmp_path / "wide.jsonl").write_text("".join(json.dumps(row | {"c0": f"this is record {n}"}) + "\n" for n in range(20)))
    file = tmp_path / "study.yaml"
    assert main(["init", str(tmp_path / "wide.jsonl"), "--to", str(file)]) == 0
    text = file.read_text()
    assert len(text) < 6000
    assert "of 10,000 columns" in text
    assert "9,972 more" in text
    assert load_study(file).data


def test_init_of_a_book_reads_between_its_marks_and_begins_prompts_with_a_word(tmp_path):
    text = "Licence.\n\n*** START OF THE PROJECT GUTENBERG EBOOK THE LONG ADVENTURES OF A\nLAMP ***\n\n"
    text += "Unbreakable harbours wait. " * 2000 + "\n\n*** END OF THE PROJECT GUTENBERG EBOOK ***\n\nLicence."
    (tmp_path / "book.txt").write_text(text)
    file = tmp_path / "study.yaml"
    assert main(["init", str(tmp_path / "book.txt"), "--to", str(file)]) == 0
    study = load_study(file)
    (dataset,) = study.data.values()
    first, *_, last = iterate_rows(dataset.source, str(tmp_path / "book.txt"))
    assert first.values["text"].startswith("Unbreakable")
    assert last.values["text"].endswith("wait.")
    assert study.evaluate["generate"].config.prompts == ("Unbreakable harbours wait. Unbreakable harbours",)


def test_init_takes_a_base(tmp_path, capsys):
    (tmp_path / "plain.txt").write_text(DATA["plain.txt"])
    make_model("llama", tmp_path / "model", max_position_embeddings=128)
    arguments = ["init", str(tmp_path / "plain.txt")]
    assert main([*arguments, "--to", str(tmp_path / "a.yaml"), "--base", str(tmp_path / "model")]) == 0
    study = load_study(tmp_path / "a.yaml")
    assert study.bases["model"].path == "model"
    assert study.train.max_length == 128
    assert main([*arguments, "--to", str(tmp_path / "b.yaml"), "--base", "distilbert/distilgpt2"]) == 0
    assert load_study(tmp_path / "b.yaml").bases["distilgpt2"].hub == "distilbert/distilgpt2"
    assert main([*arguments, "--to", str(tmp_path / "c.yaml"), "--base", "./nowhere"]) == 2
    assert "--base: no directory `./nowhere`" in capsys.readouterr().err
    (tmp_path / "a/b/c").mkdir(parents=True)
    assert main([*arguments, "--to", str(tmp_path / "a/b/c/d.yaml")]) == 0
    (dataset,) = load_study(tmp_path / "a/b/c/d.yaml").data.values()
    assert dataset.source.path == str(tmp_path / "plain.txt")


def test_init_refuses_numbers(tmp_path, capsys):
    (tmp_path / "numbers.csv").write_text("a,b\n" + "1,2\n" * 30)
    assert main(["init", str(tmp_path / "numbers.csv"), "--to", str(tmp_path / "study.yaml")]) == 2
    assert "no field of its records is prose" in capsys.readouterr().err
    assert not (tmp_path / "study.yaml").exists()


def test_an_interrupt_is_told_in_a_sentence(tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("paretune.api.open_study", interrupted)
    assert main(["plan", str(tmp_path / "study.yaml")]) == 130
    assert capsys.readouterr().err == "interrupted; what is finished is kept, run again to go on\n"


def test_help_answers_at_once():
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "paretune.cli", "--help"], capture_output=True, check=True)
    # Half a second on a quiet machine; the bound only tells it from seconds of imports.
    assert time.perf_counter() - started < 5
