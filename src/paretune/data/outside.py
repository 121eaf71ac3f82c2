"""Documents of a text set that is no dataset of the study: what forgetting is measured on."""

from pathlib import Path

from paretune.data.sources import iterate_rows
from paretune.data.templates import named_value, parse_template, render
from paretune.study.data import Format, Source


def outside_documents(
    place: str | Path, text: str, document: str | None = None, format: Format | None = None, max_documents: int | None = None
) -> list[tuple[str, str]]:
    """Name and text of each document of a file, in its order; those of nothing but white space are left out.

    `text` is a template over the fields of a record. DataError for what is wrong with the file, SpecError for the template.
    """
    template, found = parse_template(text), dict[str, str]()
    for number, row in enumerate(iterate_rows(Source(path=str(place), format=format), str(place))):
        written = render(template, row.values, row.where)
        if not written.strip():
            continue
        name = (
            str(row.values.get("document", number))
            if document is None
            else named_value(row.values, document, "document", row.where)
        )
        if name not in found and len(found) == max_documents:
            break
        found[name] = f"{found[name]}\n{written}" if name in found else written
    return list(found.items())


def outside_texts(
    place: str | Path, text: str, document: str | None = None, format: Format | None = None, max_documents: int | None = None
) -> list[str]:
    """The texts alone, which must not stand in training data."""
    return [written for _, written in outside_documents(place, text, document, format, max_documents)]
