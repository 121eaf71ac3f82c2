"""report.html in a browser, of records that were made up; skipped where there is none. `make test-browser` runs it alone."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from paretune.report.outputs import write_outputs
from paretune.report.render import TEMPLATES
from tests.analysis.synthetic import VARIANTS, Shape, make_results
from tests.browser.conftest import CHROMIUM, Opener, serious_findings

pytest.importorskip("playwright")
from playwright.sync_api import Browser, Locator, Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")]
WILD = "<img src=x onerror=\"document.title='taken'\"></script><script>document.title='taken'</script>"
SHAPE = Shape(documents=12, epochs=2)


def answer_questions(folder: Path, shape: Shape) -> Path:
    """A study with answers: of `reduced` what a browser must not obey, of the others one word away from the reference."""
    results = make_results(folder, shape)
    for cell in results.cells:
        lines = []
        for index in range(shape.questions):
            text = WILD if cell.variant == "reduced" else "the plant in Brno" if cell.variant == "full" else "the plant in Lyon"
            row = {"prompt": f"Question {index}?", "text": text if index else "the same", "reference": "the plant in Oslo"}
            lines.append(json.dumps({**row, "new_tokens": 4, "seconds": 0.1, "stopped_by": "eos"}) + "\n")
        (cell.evaluations["qa"].path / "generations.jsonl").write_text("".join(lines), encoding="utf-8")
    write_outputs(results, folder / "out", figures=False)
    return folder / "out" / "report.html"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return answer_questions(tmp_path_factory.mktemp("page"), SHAPE)


@pytest.fixture
def page(opened_report: Opener, file: Path) -> Iterator[Page]:
    with opened_report(file) as opened:
        yield opened
        assert opened.title() == "sketch: 4 variants"


def show(page: Page, file: Path) -> None:
    page.goto(file.as_uri())
    expect(page.locator("#scatter svg path").first).to_be_attached()


def names(page: Page) -> list[str]:
    return page.locator("#table tbody td:first-child button").all_text_contents()


def chosen(page: Page) -> list[str]:
    return page.locator("#chips [aria-pressed=true]").all_text_contents()


def axis_titles(chart: Locator) -> list[str]:
    return [text for text in chart.locator("text").all_text_contents() if "better" in text]


def test_the_first_screen_answers_and_draws(page: Page) -> None:
    for part in ("#answer", "#scatter svg"):
        box = page.locator(part).bounding_box()
        assert box is not None
        assert box["y"] < 400
    assert page.locator("#scatter").bounding_box()["y"] + 300 < 800  # type: ignore[index]
    assert set(VARIANTS) <= set(page.locator("#scatter text").all_text_contents())


def test_the_table_sorts_by_any_column_and_marks_by_verdict_alone(page: Page) -> None:
    assert names(page) == list(VARIANTS)
    page.get_by_role("button", name="Perplexity").click()
    assert names(page) == ["full", "original", "reduced", "base"]
    page.get_by_role("button", name="Perplexity").click()
    assert names(page) == ["base", "reduced", "original", "full"]
    assert page.locator("#table th[aria-sort=descending]").count() == 1
    row = page.locator("#table tbody tr", has=page.get_by_role("button", name="base", exact=True))
    assert "worse" in (row.locator("td").nth(1).get_attribute("class") or "")
    assert page.locator("#table tbody tr", has_text="baseline").locator(".better, .worse").count() == 0
    assert page.locator("#table svg.cell-line").count() >= len(VARIANTS)


def test_the_table_is_filtered_and_its_columns_are_chosen(page: Page) -> None:
    page.get_by_label("Find").first.fill("prune")
    assert names(page) == ["reduced"]
    page.get_by_label("Find").first.fill("")
    page.get_by_label("on the Pareto frontier").check()
    assert "base" not in names(page)
    page.get_by_text("Columns").click()
    before = page.locator("#table thead th").count()
    page.locator("#columns").get_by_label("Validation perplexity").check()
    assert page.locator("#table thead th").count() == before + 1


def test_both_axes_can_be_any_figure(page: Page) -> None:
    assert axis_titles(page.locator("#scatter")) == ["Model size, lower is better", "Test perplexity, lower is better"]
    page.locator("#x").select_option("|cost|peak_memory_bytes")
    page.locator("#y").select_option("qa||accuracy")
    expect(page.locator("#scatter text", has_text="Accuracy (likelihood) on qa")).to_be_visible()
    assert axis_titles(page.locator("#scatter"))[1] == "Accuracy (likelihood) on qa, higher is better"
    expect(page.locator("#scatter-note")).to_contain_text("No frontier is drawn")


def test_a_click_makes_a_variant_stand_out_everywhere(page: Page) -> None:
    points = page.locator("#scatter g.mark-symbol path")
    assert points.count() == len(VARIANTS)
    points.nth(3).hover()
    expect(page.locator("#tip")).to_contain_text("example")
    assert "reduced" in (page.locator("#tip").text_content() or "")
    points.nth(3).click()
    assert chosen(page) == ["reduced"]
    assert page.locator("#table tr.chosen button").all_text_contents() == ["reduced"]
    assert page.locator("#example .chosen h4").all_text_contents()[0].strip().startswith("reduced")
    bars = page.locator("#bars g.mark-symbol path")
    faded = bars.evaluate_all("nodes => nodes.filter(node => node.getAttribute('opacity') < 1).length")
    assert faded == bars.count() * 3 / 4
    page.keyboard.press("Escape")
    assert chosen(page) == []
    page.locator("#chips button").first.focus()
    page.keyboard.press("Enter")
    assert chosen(page) == ["base"]


def test_examples_are_filtered_compared_and_paged_by_keys(page: Page) -> None:
    position = page.locator("#position")
    assert page.locator("#filter-task").input_value() == "qa"
    page.locator("#filter-field-difficulty").select_option("hard")
    expect(position).to_have_text("1 of 10")
    page.keyboard.press("j")
    page.keyboard.press("ArrowRight")
    expect(position).to_have_text("3 of 10")
    page.keyboard.press("k")
    expect(position).to_have_text("2 of 10")
    page.locator("#filter-field-difficulty").select_option("")
    page.get_by_label("Find").nth(1).fill("Question 3")
    expect(position).to_have_text("1 of 1")
    assert page.locator("#example pre").all_text_contents()[:2] == ["Question 3?", "the plant in Oslo"]
    page.locator("#filter-a").select_option(label="original")
    page.locator("#filter-b").select_option(label="the reference")
    assert page.locator("#example ins").all_text_contents() == ["Lyon"]
    assert page.locator("#example del").all_text_contents() == ["Oslo"]
    assert page.locator("#example pre", has_text=WILD).count() == 1
    assert page.locator("#example img").count() == 0


def test_examples_on_which_a_is_worst_against_b_come_first(page: Page, file: Path) -> None:
    page.locator("#filter-task").select_option("perplexity")
    page.locator("#filter-split").select_option("test")
    page.locator("#filter-a").select_option(label="base")
    page.locator("#filter-b").select_option(label="full")
    page.get_by_label("worst first").check()
    gaps = []
    for _ in range(12):
        texts = page.locator("#example .scores").all_text_contents()
        bits = [float(text.split("bits per byte ")[1].split(" ")[0]) for text in texts]
        gaps.append(bits[0] - bits[1])
        page.keyboard.press("j")
    assert gaps[0] == pytest.approx(max(gaps), abs=0.02)
    assert gaps[0] > gaps[-1]


def test_disagreement_is_of_right_and_wrong_where_that_is_scored(page: Page) -> None:
    before = int((page.locator("#position").text_content() or "").split(" of ")[1])
    page.get_by_label("variants disagree").check()
    after = int((page.locator("#position").text_content() or "").split(" of ")[1])
    assert 0 < after < before


def test_the_theme_is_the_readers(page: Page) -> None:
    def background() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    assert background() == "rgb(255, 255, 255)"
    page.get_by_role("button", name="Theme").click()
    assert background() == "rgb(21, 24, 28)"
    page.emulate_media(color_scheme="dark")
    page.get_by_role("button", name="Theme").click()
    assert background() == "rgb(255, 255, 255)"


def test_a_term_says_what_it_means_to_a_keyboard_too(page: Page) -> None:
    page.locator("#answer .term").first.focus()
    expect(page.locator("#tip")).to_be_visible()
    assert page.locator("#tip").inner_text() in (TEMPLATES / "terms.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(page: Page, theme: str) -> None:
    page.emulate_media(color_scheme=theme)
    assert serious_findings(page) == {}


def test_a_phone_scrolls_down_only(page: Page, file: Path) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    show(page, file)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_without_scripts_the_report_is_there(browser: Browser, file: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    expect(page.locator("#answer li").first).to_be_visible()
    expect(page.locator("noscript")).to_be_visible()
    assert not page.locator("#app").is_visible()
    page.get_by_text("What was compared", exact=True).click()
    expect(page.get_by_text("Variants", exact=True)).to_be_visible()
    context.close()


def test_bases_are_compared_in_what_no_tokenizer_changes_and_views_are_picked(browser: Browser, tmp_path: Path) -> None:
    bases, datasets = ("novels", "stories", "tales"), ("news", "books", "letters")
    shape = replace(SHAPE, bases=bases, datasets=datasets, seeds=(0,))  # of four variants each
    file = answer_questions(tmp_path, shape)
    assert file.stat().st_size < 3_000_000
    page = browser.new_page()
    show(page, file)
    assert len(names(page)) == len(bases) * len(VARIANTS)
    assert page.locator("#view option").count() == len(datasets) * (len(bases) + 1)
    assert serious_findings(page) == {}
    assert page.locator("#view option").all_text_contents()[:2] == ["all bases on news", "novels on news"]
    assert "Test perplexity" not in page.locator("#y option").all_text_contents()
    assert page.locator("#table .better, #table .worse").count() == 0
    page.locator("#view").select_option("stories on books")
    assert names(page) == list(VARIANTS)
    expect(page.locator("#table caption")).to_have_text("4 of 4 variants, stories on books")
    page.close()
