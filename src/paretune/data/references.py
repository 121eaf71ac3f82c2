"""Further right answers of a record: what is generated is scored against the best of all of them, metric by metric."""

from collections.abc import Mapping, Sequence
from typing import Any

from paretune.data.json_text import written_out
from paretune.data.templates import is_blank, parse_template, render
from paretune.errors import DataError
from paretune.study.base import shown, suggestion


def is_template(entry: str) -> bool:
    """Whether an entry of `references` is a template; the name of a field otherwise."""
    return "{{" in entry or "{%" in entry


def references_in(entries: Sequence[str], values: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The texts that `entries` name of a record, each once and in their order; a field that is null or empty has none.

    A field holds a text, a list of texts (also written out as text, as a table has it), or SQuAD's `{"text": [...]}`; a
    template writes one. DataError beginning with `where` for anything else.
    """
    texts: list[str] = []
    for entry in entries:
        if is_template(entry):
            texts.append(render(parse_template(entry), values, where))
            continue
        if entry not in values:
            raise DataError(
                f"{where}: no field `{entry}`, which `references` names{suggestion(entry, values)}; a record without further "
                "answers has it empty"
            )
        value = values[entry]
        listed = written_out(value)
        if isinstance(listed, Mapping) and "text" in listed:
            listed = listed["text"]
        if isinstance(value, str) and not (isinstance(listed, list) and all(isinstance(item, str) for item in listed)):
            listed = value  # `[1, 2]` is an answer as it stands
        items = listed if isinstance(listed, list) else [] if is_blank(listed) else [listed]
        for item in items:
            if not isinstance(item, str) or (isinstance(listed, list) and not item.strip()):
                raise DataError(f"{where}: an item of `{entry}` is {shown(item)}; expected a text that is not empty")
            texts.append(item)
    return tuple(text for text in dict.fromkeys(texts) if text.strip())
