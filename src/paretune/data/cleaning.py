"""What `clean:` does to every text of a record before anything else looks at it: encoding repaired, personal data masked."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from paretune.data.encoding import repaired
from paretune.data.personal import mask_personal
from paretune.data.sources import Row
from paretune.study.data import Clean


def clean_row(row: Row, clean: Clean, counts: Counter[str]) -> Row:
    """`row` with its texts cleaned; `counts` gains `fixed` (records) and `masked_email` ... (places)."""
    if clean.encoding == "fix":
        values = _each_text(row.values, repaired)
        counts["fixed"] += values != row.values
        row = row._replace(values=values)
    if clean.mask:
        row = row._replace(values=_each_text(row.values, lambda text: masked(text, clean, counts)))
    return row


def masked(text: str, clean: Clean, counts: Counter[str]) -> str:
    """`text` without the personal data that `clean` masks; `counts` gains what was."""
    text, found = mask_personal(text, clean.mask, clean.region)
    counts.update({f"masked_{kind}": number for kind, number in found.items()})
    return text


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _each_text(item, change) for key, item in value.items()}
    return [_each_text(item, change) for item in value] if isinstance(value, list) else value
