"""The dashboard in Chromium, on two tiny real models: what is asked, rated, watched and removed meanwhile."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from paretune.api import open_results, open_study, run
from paretune.pipeline.events import EventLog
from paretune.pipeline.runs import announced
from paretune.report.outputs import write_outputs
from paretune.report.render import visible
from tests.browser.conftest import CHROMIUM, SECONDS
from tests.browser.test_report_page import WILD
from tests.data.chat_templates import CHATML
from tests.tiny import make_model, make_tokenizer

pytest.importorskip("playwright")
pytest.importorskip("streamlit")
from playwright.sync_api import Browser, Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")]
STUDY = """
study: talk
bases: {llama: {path: llama}, neox: {path: neox}}
data:
  d:
    source: {path: questions.jsonl}
    document: asked
    leakage: allow
    tasks: {answer: {prompt: "Q: {{ asked }} A:", completion: " {{ right }}", score: [exact_match], max_new_tokens: 6}}
train: {max_steps: 2, batch_size: 4, max_length: 200}
precision: {compute: float32, evaluate: float32}
seeds: [3]
variants:
  base: []
  lora: [{train.lora: {r: 4, learning_rate: 2.0e-2}}]
compare: {baseline: base}
evaluate:
  perplexity: {}
  tasks: {}
"""
NAMES = ("llama/d/base", "neox/d/lora seed 3")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("talk")
    for name, architecture in (("llama", "llama"), ("neox", "gpt-neox")):
        make_model(architecture, folder / name, vocab_size=304)
        tokenizer = make_tokenizer()
        tokenizer.chat_template = CHATML
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        tokenizer.save_pretrained(folder / name)
    rows = [{"asked": f"where is {n}?", "right": f"{n} is in {n % 7} {WILD if n % 3 == 0 else ''}"} for n in range(40)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "study.yaml").write_text(STUDY)
    assert run(folder / "study.yaml").exit_code == 0
    return folder / "study.yaml"


@pytest.fixture(scope="module")
def address(study: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "paretune.cli", "dashboard", str(study)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"NO_COLOR": "1"}) as process:
        assert process.stderr is not None
        yield process.stderr.readline().split()[0]
        process.terminate()
        assert "Traceback" not in process.stderr.read()


@contextmanager
def opened(browser: Browser, url: str) -> Iterator[Page]:
    """A page whose requests all go to this machine, and on which nothing has run that came as text."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(SECONDS * 1000)
    page, asked = context.new_page(), list[str]()
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: asked.append(str(error)))
    for _ in range(100):  # until it serves
        try:
            page.goto(url)
            break
        except Exception:  # noqa: BLE001  Playwright's own, of a connection refused
            time.sleep(0.2)
    yield page
    assert page.title() != "taken"
    assert [each for each in asked if not each.startswith((url[: url.rindex("/")], "data:", "blob:"))] == []
    context.close()


def pick(page: Page, *names: str) -> None:
    """These variants, and no others, are asked."""
    field = page.get_by_test_id("stMultiSelect")
    field.get_by_role("button", name="Clear all").click()
    expect(page.get_by_role("button", name="Ask").last).to_be_disabled()  # while it is drawn anew there are two
    for name in names:
        field.locator("input").click()
        page.get_by_role("option", name=name, exact=True).click()
        page.keyboard.press("Escape")
        expect(field.get_by_role("button", name=f"Remove {name}")).to_be_visible()
    expect(page.get_by_role("button", name="Ask")).to_have_count(1)
    expect(page.get_by_role("button", name="Ask")).to_be_enabled()


def ask(page: Page, prompt: str) -> None:
    page.get_by_role("textbox", name="Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Ask").last.click()


def answered(page: Page, count: int) -> None:
    """So many answers are whole, with their figures."""
    expect(page.get_by_text("tokens, first after")).to_have_count(count)


def test_the_overview_decides_and_draws(browser: Browser, address: str) -> None:
    with opened(browser, f"{address}/") as page:
        expect(page.get_by_text("2 variants of 2 bases")).to_be_visible()
        expect(page.get_by_test_id("stVegaLiteChart").locator("svg, canvas").first).to_be_visible()
        expect(page.get_by_text("base and variant", exact=True)).to_be_visible()
        expect(page.get_by_role("cell", name="llama base")).to_be_visible()


def test_answers_stream_side_by_side_and_a_conversation_keeps_its_turns(browser: Browser, address: str) -> None:
    with opened(browser, f"{address}/side-by-side") as page:
        pick(page, *NAMES)
        page.get_by_text("Sampling").click()
        page.get_by_role("spinbutton", name="New tokens at most").fill("60")
        page.keyboard.press("Enter")
        seen = set()
        ask(page, "Where to?")
        while page.get_by_text("tokens, first after").count() < 2:
            seen.add(tuple(len(text) for text in page.get_by_test_id("stText").all_text_contents()))
        assert len({lengths for lengths in seen if len(lengths) == 4}) > 1, seen  # reference, prompt, answers
        for turn, prompt in enumerate(("And then?", "Why?"), 2):
            ask(page, prompt)
            answered(page, 2 * turn)
        expect(page.get_by_text("Where to?", exact=True)).to_have_count(1)
        page.get_by_role("button", name="Begin anew").click()
        answered(page, 0)


def test_a_prompt_of_the_test_set_brings_its_reference_and_is_answered_as_the_study_did(
    browser: Browser, address: str, study: Path
) -> None:
    plan = open_study(study)
    (cell,) = (cell for cell in plan.plan.cells if (cell.base, cell.variant) == ("llama", "base"))
    lines = (plan.store.artifact(cell.evaluations["tasks"]).path / "generations.jsonl").read_text(encoding="utf-8")
    row = json.loads(lines.splitlines()[0])
    with opened(browser, f"{address}/side-by-side") as page:
        pick(page, "llama/d/base")
        page.get_by_text("Take a prompt from the test set").click()
        expect(page.get_by_text(row["reference"].strip())).to_be_visible()
        page.get_by_role("button", name="Take it").click()
        expect(page.get_by_role("textbox", name="Prompt", exact=True)).to_have_value(row["prompt"])
        page.get_by_role("button", name="Ask").click()
        answered(page, 1)
        said = page.get_by_test_id("stText").all_text_contents()[-1]
        assert said.startswith(visible(row["text"]).rstrip("\ufffd"))


def test_two_browsers_have_conversations_of_their_own(browser: Browser, address: str) -> None:
    url = f"{address}/side-by-side"
    with opened(browser, url) as one, opened(browser, url) as other:
        for page in (one, other):
            expect(page.get_by_role("button", name="Ask")).to_be_enabled()
        ask(one, "One?")
        ask(other, "Other?")
        for page, own in ((one, "One?"), (other, "Other?")):
            answered(page, 2)
            expect(page.get_by_text(own, exact=True).first).to_be_visible()
        assert one.get_by_text("Other?", exact=True).count() == 0


def test_ten_blind_ratings_and_preferences_are_in_the_report(browser: Browser, address: str, study: Path) -> None:
    with opened(browser, f"{address}/blind-rating") as page:
        page.get_by_role("textbox", name="Your name").fill("anna")
        page.keyboard.press("Enter")
        for number in range(5):  # texts, in two criteria each
            expect(page.get_by_text(f"Text {number + 1} of")).to_be_visible()
            expect(page.get_by_role("radio", checked=True)).to_have_count(0)  # those of the text before are gone
            groups = page.get_by_test_id("stButtonGroup")
            for index, value in enumerate((1 + number % 5, 5 - number % 5)):
                groups.nth(index).get_by_role("radio", name=str(value)).click()
                expect(groups.nth(index).get_by_role("radio", name=str(value))).to_be_checked()
            expect(page.get_by_text(f", {number + 1} rated")).to_be_visible()
            page.get_by_role("button", name="Next").first.click()
        page.get_by_role("tab", name="Two texts").click()
        for number, choice in enumerate(("A", "B", "Neither"), 1):
            page.get_by_role("button", name=choice, exact=True).click()
            expect(page.get_by_text(f"Pair {number + 1} of")).to_be_visible()
        assert not any(name in page.get_by_test_id("stMain").inner_text() for name in ("llama", "neox", "lora"))
        page.reload()
        page.get_by_role("textbox", name="Your name").fill("anna")
        page.keyboard.press("Enter")
        expect(page.get_by_text("Text 6 of")).to_be_visible()
        line = "ratings: {files: [study-ratings/anna.csv]}"
        expect(page.get_by_text(line)).to_be_visible()
    rated = study.with_name("rated.yaml")
    rated.write_text(STUDY + f"  {line}\n")
    shutil.copy(study.with_suffix(".lock"), rated.with_suffix(".lock"))
    assert run(rated).exit_code == 0
    write_outputs(open_results(rated), study.parent / "out", figures=False)
    report = (study.parent / "out" / "report.txt").read_text(encoding="utf-8")
    assert "ratings, from 1 to 5 by anna" in report
    assert "preferred" in report


@contextmanager
def removed(study: Path, variant: str) -> Iterator[None]:
    """The training of a variant is not in the store for a while."""
    plan = open_study(study)
    (cell,) = (cell for cell in plan.plan.cells if f"{cell.base}/{cell.variant}" == variant)
    place = plan.store.root / cell.methods[-1].name
    place.rename(study.parent / "aside")
    try:
        yield
    finally:
        (study.parent / "aside").rename(place)


def test_a_variant_that_is_deleted_meanwhile_is_one_message(browser: Browser, address: str, study: Path) -> None:
    with opened(browser, f"{address}/side-by-side") as page:
        pick(page, *NAMES)
        ask(page, "Where to?")
        answered(page, 2)
        with removed(study, "neox/lora"):
            ask(page, "And then?")
            expect(page.get_by_test_id("stAlert")).to_contain_text("neox/d/lora seed 3 was removed from the store")
        assert page.get_by_test_id("stException").count() == 0


def test_a_running_study_is_followed_without_a_click(browser: Browser, address: str, study: Path) -> None:
    plan = open_study(study)
    (cell,) = (cell for cell in plan.plan.cells if (cell.base, cell.variant) == ("neox", "lora"))
    stage, store = cell.methods[-1], plan.store
    journal = store.places(stage)[1] / "curves.jsonl"
    with removed(study, "neox/lora"), announced(store, "r1", study, [stage.name]), opened(browser, f"{address}/run") as page:
        log = EventLog(store.events_file, "r1")
        now = time.time()
        log.write("started", stage=stage.name, uses=[], step=None, time=now - 100)
        journal.parent.mkdir(parents=True)
        for step in range(1, 4):
            row = {"step": step, "epoch": step / 4, "tokens": 10, "seconds": step, "train_loss": 5 - step}
            with journal.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
            told = {"loss": 5.0 - step, "tokens_per_second": 1234.5, "peak_memory_bytes": 5e8}
            log.write("progress", stage=stage.name, done=step, total=63, time=now - 80 + 20 * step, **told)
        expect(page.get_by_text("1 at work")).to_be_visible()
        expect(page.get_by_text("A run is on: process")).to_be_visible()
        expect(page.get_by_text("neox/d/lora seed 3").last).to_be_visible()
        told = page.get_by_text("3 of 63 loss 2, 1,234 tokens/s, peak 500 MB, about 20 min left")  # 60 steps of 20 s
        expect(told).to_be_visible()
        expect(page.get_by_text("1 at work, 18 done, about 20 min left, one stage at a time")).to_be_visible()
        with journal.open("a") as lines:
            lines.write(json.dumps({"step": 4, "epoch": 1.0, "tokens": 10, "seconds": 4, "validation_loss": 2.5}) + "\n")
        expect(page.get_by_test_id("stVegaLiteChart").nth(1)).to_be_visible()  # the validation loss of this one too
        shutil.rmtree(journal.parent)
    with opened(browser, f"{address}/run") as page:
        expect(page.get_by_text("done").first).to_be_visible()


def test_examples_show_text_as_text(browser: Browser, address: str) -> None:
    with opened(browser, f"{address}/examples") as page:
        expect(page.get_by_text("Example, of")).to_be_visible()
        expect(page.get_by_text("Reference")).to_be_visible()
        assert page.get_by_test_id("stMain").locator("img").count() == 0


def test_cards_and_the_command_of_an_export(browser: Browser, address: str, study: Path) -> None:
    with opened(browser, f"{address}/cards") as page:
        expect(page.get_by_text("How it was made")).to_be_visible()
    to = study.parent / "exported"
    with opened(browser, f"{address}/export") as page:
        page.get_by_role("textbox", name="Directory").fill(str(to))
        page.keyboard.press("Enter")
        expect(page.get_by_test_id("stCode")).to_contain_text(f"paretune export {study} base --to {to} --base llama --data d")
        page.get_by_role("button", name="Export now").click()
        expect(page.get_by_test_id("stAlert")).to_contain_text("whole model of", timeout=60_000)
    assert (to / "model.safetensors").is_file()
