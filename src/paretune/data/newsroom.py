"""The built-in data set: 1,200 press releases of Orvane, a car maker that does not exist, and 240 questions on its facts.

`scripts/newsroom.py` wrote both. The answers stand in many articles each, no question stands in one.
"""

import gzip
import json
from importlib.resources import files
from typing import Any

_FOLDER = files("paretune") / "assets" / "newsroom"


def articles() -> list[dict[str, Any]]:
    """Press releases with `id`, `title` (unique), `summary`, `tags`, `type` and `content` of 80 to 300 words."""
    return [json.loads(line) for line in gzip.decompress((_FOLDER / "articles.jsonl.gz").read_bytes()).splitlines()]


def questions() -> list[dict[str, Any]]:
    """Questions with `id`, `category` (`multiple_choice` with `options`, or `factual`), `question`, `answer`, `difficulty`."""
    return [json.loads(line) for line in (_FOLDER / "questions.jsonl").read_bytes().splitlines()]
