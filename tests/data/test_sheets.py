"""Sheets: blind, in random order, read back as spreadsheets write them, and refused where they are none."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from paretune.data.sheets import Text, choose, read_sheet, write_sheet
from paretune.errors import DataError, StoreError
from tests.conftest import csv_rows

CRITERIA = ("coherence", "relevance")
TEXTS = [
    Text("story", f"story {number}", f"story {number}", "", f"Prompt {number}", f' a text by {name}, line 1\n=2; "3"')
    for number in range(10)
    for name in ("small", "large")
]


def filled(folder: Path, coherence: str = "4", relevance: str = "2", texts: list[Text] = TEXTS[:2]) -> Path:
    """A sheet with the same ratings in every row."""
    file = folder / "anna.csv"
    write_sheet(texts, CRITERIA, 0, 0, file)
    write_rows(file, [row | {"coherence": coherence, "relevance": relevance} for row in csv_rows(file)])
    return file


def write_rows(file: Path, rows: list[dict[str, str]], delimiter: str = ",", encoding: str = "utf-8") -> None:
    with file.open("w", encoding=encoding, newline="") as lines:
        writer = csv.DictWriter(lines, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def test_a_sheet_holds_texts_and_nothing_that_tells_who_wrote_them(tmp_path: Path) -> None:
    assert write_sheet(TEXTS, CRITERIA, 0.1, 0, tmp_path / "sheet.csv") == 22
    rows = csv_rows(tmp_path / "sheet.csv")
    assert list(rows[0]) == ["item", "context", "prompt", "text", *CRITERIA]
    assert sorted({row["text"] for row in rows}) == sorted({text.text for text in TEXTS})
    names = [row["item"] for row in rows]
    assert len(set(names)) == 22  # what stands there twice has two names
    assert all(name.isalpha() and name.islower() for name in names)
    assert {text.item() for text in TEXTS} <= set(names) <= {text.item(n) for text in TEXTS for n in range(2)}
    assert not any(row["coherence"] or row["relevance"] for row in rows)


def test_the_order_is_random_and_seeded(tmp_path: Path) -> None:
    orders = []
    for seed, name in ((0, "a.csv"), (0, "b.csv"), (1, "c.csv")):
        write_sheet(TEXTS, CRITERIA, 0, seed, tmp_path / name)
        orders.append([row["item"] for row in csv_rows(tmp_path / name)])
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != [text.item() for text in TEXTS]
    assert sorted(orders[0]) == sorted(orders[2])


def test_the_same_text_of_two_variants_is_rated_once(tmp_path: Path) -> None:
    assert write_sheet([TEXTS[0], replace(TEXTS[0])], CRITERIA, 0, 0, tmp_path / "sheet.csv") == 1
    assert replace(TEXTS[0], prompt="another").item() != TEXTS[0].item() != replace(TEXTS[0], context="one").item()


def test_a_spreadsheet_takes_no_text_for_a_formula(tmp_path: Path) -> None:
    write_sheet([replace(TEXTS[0], text="=1+1")], CRITERIA, 0, 0, tmp_path / "sheet.csv")
    assert csv_rows(tmp_path / "sheet.csv")[0]["text"] == " =1+1"


def test_prompts_are_chosen_alike_for_every_model() -> None:
    chosen = [choose([text for text in TEXTS if name in text.text], (), 3) for name in ("small", "large")]
    assert [text.prompt for text in chosen[0]] == [text.prompt for text in chosen[1]]
    assert len(choose(TEXTS, (), 3)) == 6
    assert choose(TEXTS, ("title",), 3) == []
    assert len(choose(TEXTS, ("story",), None)) == 20


@pytest.mark.parametrize(
    ("delimiter", "encoding"), [(",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-16"), (";", "cp1252"), (",", "utf-8-sig")]
)
def test_a_filled_sheet_is_read_as_spreadsheets_write_it(tmp_path: Path, delimiter: str, encoding: str) -> None:
    file = filled(tmp_path, texts=[replace(TEXTS[0], text='größer; kleiner, "gleich"'), TEXTS[1]])
    write_rows(file, [row | {"remark": "é"} for row in csv_rows(file)], delimiter, encoding)
    sheet = read_sheet(file, CRITERIA)
    assert sheet[TEXTS[1].item()] == {"coherence": 4, "relevance": 2}
    assert len(sheet) == 2


@pytest.mark.parametrize(("field", "value"), [("4", 4), (" 5 ", 5), ("3.0", 3), ("2,0", 2), ("", None), (" ", None)])
def test_ratings_as_people_write_them(tmp_path: Path, field: str, value: int | None) -> None:
    sheet = read_sheet(filled(tmp_path, coherence=field), CRITERIA)
    assert {ratings["coherence"] for ratings in sheet.values()} == {value}


@pytest.mark.parametrize("field", ["6", "0", "4.5", "good", "4 / 5", "nan", "-1"])
def test_what_is_no_rating_is_refused_with_its_line(tmp_path: Path, field: str) -> None:
    with pytest.raises(DataError, match=r"anna.csv: line \d+: relevance: `.*` is no rating; write a whole number from 1 to 5"):
        read_sheet(filled(tmp_path, relevance=field), CRITERIA)


def damaged(rows: list[dict[str, str]], what: str) -> list[dict[str, str]]:
    if what == "changed item":
        rows[1]["item"] = "1"
    elif what == "copied row":
        rows.append(rows[0])
    elif what == "no item":
        rows = [{name: value for name, value in row.items() if name != "item"} for row in rows]
    elif what == "misspelt":
        rows = [{name.replace("coherence", "coherance"): value for name, value in row.items()} for row in rows]
    else:
        rows = [row | dict.fromkeys(CRITERIA, "") for row in rows]
    return rows


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("changed item", "line 5: `1` is no item; the column `item` must stay as it was written"),
        ("copied row", "stands there twice; remove the copied row"),
        ("no item", "there is no column `item`"),
        ("misspelt", "there is no column `coherence`; did you mean `coherance`"),
        ("nothing filled in", "holds no rating; fill in `coherence` and `relevance`"),
    ],
)
def test_what_is_no_sheet_is_refused(tmp_path: Path, what: str, message: str) -> None:
    file = filled(tmp_path)
    write_rows(file, damaged(csv_rows(file), what))
    with pytest.raises(DataError) as caught:
        read_sheet(file, CRITERIA)
    assert message in str(caught.value)
    assert "anna.csv" in str(caught.value)


def test_a_torn_row_and_an_unfinished_quote_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "anna.csv"
    file.write_text("item,coherence,relevance\nabcdefghijkl,4\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2: 2 fields, the header names 3"):
        read_sheet(file, CRITERIA)
    file.write_text('item,coherence,relevance\n"abcdefghijkl,4,4\n', encoding="utf-8")
    with pytest.raises(DataError, match="not a sheet in CSV"):
        read_sheet(file, CRITERIA)


def test_a_sheet_that_cannot_be_written_or_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be written"):
        write_sheet(TEXTS, CRITERIA, 0, 0, tmp_path / "none" / "sheet.csv")
    with pytest.raises(DataError, match="cannot be read"):
        read_sheet(tmp_path, CRITERIA)
