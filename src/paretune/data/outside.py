"""Documents of a text set that is no dataset of the study: what forgetting is measured on."""

from pathlib import Path

from paretune.data.sources import iterate_rows
from paretune.data.templates import named_value, parse_template, render
from paretune.study.data import Source
from paretune.study.formats import Format


def outside_documents(
    file: str | Path, text: str, document: str | None = None, format: Format | None = None, max_documents: int | None = None
) -> list[tuple[str, str]]:
    """Name and text of each document of a file, in its order; those of nothing but white space are left out.

    `text` is a template over the fields of a record. DataError for what is wrong with the file, SpecError for the template.
    """
    template, texts = parse_template(text), dict[str, str]()
    for number, row in enumerate(iterate_rows(Source(path=str(file), format=format), str(file))):
        written = render(template, row.values, row.where)
        if not written.strip():
            continue
        name = (
            str(row.values.get("document", number))
            if document is None
            else named_value(row.values, document, "document", row.where)
        )
        if name not in texts and len(texts) == max_documents:
            break
        texts[name] = f"{texts[name]}\n{written}" if name in texts else written
    return list(texts.items())


def outside_texts(
    file: str | Path, text: str, document: str | None = None, format: Format | None = None, max_documents: int | None = None
) -> list[str]:
    """The texts alone, which must not stand in training data."""
    return [written for _, written in outside_documents(file, text, document, format, max_documents)]
