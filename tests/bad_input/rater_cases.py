"""Mistakes of those who rate: what a study says of them, and the sheets that they fill in."""

from pathlib import Path

from tests.bad_input.harness import Case, edit

_LAST = "  latency: {prompt_tokens: 8"
_SHEET = "item,coherence,relevance\nabcdefghijkl,4,5\n"


def raters(name: str, entry: str, *words: str, sheet: str = "") -> Case:
    """An entry of `evaluate`, and `anna.csv` where there is a sheet."""

    def spoil(folder: Path) -> None:
        edit(_LAST, f"  {entry}\n{_LAST}")(folder)
        if sheet:
            (folder / "anna.csv").write_text(sheet, encoding="utf-8")

    return Case(name, spoil, ("study.yaml" if not sheet else "anna.csv", *words))


def sheet(name: str, text: str, *words: str) -> Case:
    return raters(name, "ratings: {files: [anna.csv]}", *words, sheet=text)


CASES = (
    raters("ratings without a sheet", "ratings: {}", ":21: evaluate.ratings.files: missing"),
    raters("ratings of no sheet", "ratings: {files: []}", "files: expected a list with 1 or more entries"),
    raters("a sheet that is not there", "ratings: {files: [anna.csv]}", ":21: evaluate.ratings.files[0]: no file `anna.csv`"),
    raters("two sheets of one name", "ratings: {files: [a/x.csv, b/x.csv]}", "two files have the same name", "rename one"),
    raters(
        "unknown criterion", "ratings: {files: [a.csv], criteria: [fun]}", "criteria[0]: expected `coherence` or `relevance`"
    ),
    sheet("a rating of 6", _SHEET.replace("5", "6"), "line 2: relevance: `6` is no rating; write a whole number from 1 to 5"),
    sheet("a sheet with another column", _SHEET.replace("coherence", "coherent"), "no column `coherence`; did you mean"),
    sheet("a sheet with a changed item", _SHEET.replace("abcdefghijkl", "12"), "line 2: `12` is no item", "as it was written"),
    sheet("a sheet that nobody filled in", _SHEET.replace("4,5", ","), "holds no rating; fill in `coherence` and `relevance`"),
    sheet("a sheet with a torn row", _SHEET.replace(",5", ""), "line 2: 2 fields, the header names 3"),
    sheet(
        "a text that is better than none",
        "item,coherence,relevance,better_than\nabcdefghijkl,4,5,12\n",
        "line 2: better_than: `12` is no other item of the sheet",
    ),
    sheet(
        "two texts each better than the other",
        "item,coherence,relevance,better_than\nabcdefghijkl,,,bbcdefghijkl\nbbcdefghijkl,,,abcdefghijkl\n",
        "line 3: better_than: the opposite stands in the row of `abcdefghijkl`; remove one",
    ),
    raters("a judge without an address", "judge: {model: m}", ":21: evaluate.judge.url: missing"),
    raters(
        "a judge at no address", "judge: {url: localhost, model: m}", "`url` begins with http:// or https://, got `localhost`"
    ),
    raters(
        "a judge of an unknown task",
        'judge: {url: "http://x/v1", model: m, of: [stories]}',
        "of[0]: no generation or task `stories`",
    ),
    Case(
        "a judge whose key is not set",
        edit(_LAST, f'  judge: {{url: "http://x/v1", model: m, key: NO_SUCH_KEY}}\n{_LAST}'),
        ("evaluate.judge: the environment variable `NO_SUCH_KEY` of `key` is not set; set it and run again",),
    ),
    Case(
        "a judge with nothing to judge",
        edit('generate: {prompts: ["The train", "A lamp"], max_new_tokens: 8}', 'judge: {url: "http://x/v1", model: m}'),
        (":20: evaluate.judge: there is no text to rate", "add `generate: {prompts: [...]}`"),
    ),
)
