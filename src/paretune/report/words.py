"""Numbers, names and differences as a report says them, and the sentence of a fact.

Three digits for measures, whole counts, human bytes and seconds. The sentences themselves are macros in `templates/`, one a
class of facts, called like it.
"""

import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from paretune.analysis.compare import Difference
from paretune.analysis.findings import Fact
from paretune.analysis.scores import Entrant, Quantity
from paretune.study.registry import metric_of

UNKNOWN = "-"
_TIMES = "x"
"""Before a number: so many times as much."""
TEMPLATES = ("conclusions.j2", "answers.j2", "caveats.j2", "healing.j2", "setup.j2", "gate.j2", "cards.j2")
"""Files with a macro for each class of facts."""


def number(value: float, digits: int = 3) -> str:
    """`digits` significant digits, never fewer than the whole number: 4.54, 93.7, 1,235."""
    if math.isnan(value):
        return UNKNOWN
    if math.isinf(value) or abs(value) >= 1e7:
        return "over 10 million" if value > 0 else "under -10 million"
    return f"{value:,.{decimals(value, digits)}f}"


def decimals(value: float, digits: int = 3) -> int:
    """Decimals that show `digits` significant digits of `value`."""
    if value == 0 or not math.isfinite(value):
        return 0
    places = digits - 1 - math.floor(math.log10(abs(value)))
    # 9.996 is 10.0 with three digits, not 10.00.
    rounded = round(value, max(0, places))
    return max(0, digits - 1 - math.floor(math.log10(abs(rounded)))) if rounded else max(0, places)


def with_interval(mean: float, low: float, high: float) -> str:
    """`1.53 (1.51 to 1.56)`, all with the mean's decimals."""
    if math.isnan(low) or not math.isfinite(mean) or abs(mean) >= 1e7:
        return number(mean)
    places = decimals(mean or max(abs(low), abs(high)))
    return f"{mean:,.{places}f} ({low:,.{places}f} to {high:,.{places}f})"


def share(value: float) -> str:
    """A share of 1 in percent: `24.1 %`."""
    return UNKNOWN if math.isnan(value) else f"{100 * value:.1f} %"


def part_of(part: int, whole: int) -> str:
    """`294,912 of 124,734,720 (0.2364 %)`."""
    return f"{part:,} of {whole:,} ({100 * part / whole:.4g} %)"


def part_of_mean(share: float, whole: int) -> str:
    """`4 of 10`, or of the mean of several seeds `mean 3.5 of 10`."""
    part = share * whole
    mean = "" if math.isclose(part, round(part), abs_tol=1e-6) else "mean "
    return f"{mean}{part:.4g} of {whole}"


def change(ratio: float, *, signed: bool = True) -> str:
    """A ratio as a change in percent, 1.031 as `+3.1 %`: two decimals below 1 %, none from 100 %; from 3 on `x 3.2`."""
    return _with_unit(*ratio_change(ratio, signed=signed))


def ratio_change(ratio: float, *, signed: bool = True) -> tuple[str, str]:
    """The same as a number and a unit: `+3.1` and `%`, `3.2` and `x`."""
    if not math.isfinite(ratio) or ratio >= 3:
        return number(ratio, 2) if math.isfinite(ratio) and ratio < 1e7 else "over 10 million", _TIMES
    percent = 100 * (ratio - 1)
    places = 0 if abs(percent) >= 99.5 else 1 if round(abs(percent), 1) >= 1 else 2
    if round(abs(percent), places) == 0:
        return "0", "%"
    return f"{percent:+.{places}f}" if signed else f"{abs(percent):.{places}f}", "%"


def times(ratio: float) -> str:
    """`1.14x`."""
    return f"{ratio:.2f}x" if ratio < 10 else f"{number(ratio)}x"


def count(value: float) -> str:
    return UNKNOWN if math.isnan(value) else f"{round(value):,}"


def size(num_bytes: float) -> str:
    """Bytes in decimal units, as disks and file managers count: `28.4 MB`."""
    if num_bytes < 1000:
        return f"{round(num_bytes)} B"
    for unit in ("kB", "MB", "GB"):
        num_bytes /= 1000
        if num_bytes < 999.5:
            return f"{number(num_bytes)} {unit}"
    return f"{number(num_bytes / 1000)} TB"


def seconds(value: float) -> str:
    """`0.42 s`, `12.3 s`, `4 min 05 s`, `2 h 03 min`."""
    if value < 1:
        return f"{value:.2f} s"
    if round(value, 1) < 60:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def plural(value: float, word: str) -> str:
    """`1 document`, `76 documents`."""
    return f"{count(value)} {word}{'' if value == 1 else 's'}"


def listed(words: Sequence[str], last: str = "and") -> str:
    """`a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def capital(text: str) -> str:
    """The beginning of a sentence."""
    return text[:1].upper() + text[1:]


def code(text: str) -> str:
    """Literal text inside a sentence, between backticks; long ones are cut."""
    flat = " ".join(text.replace("`", "'").split())
    return f"`{flat if len(flat) <= 80 else flat[:77] + '...'}`"


def noun(quantity: Quantity, mark: Callable[[str], str] = code) -> str:
    """`test perplexity`, `accuracy on qa`, `test ROUGE-L on summary`; the name of a task is literal text, marked by `mark`."""
    row = metric_of(quantity.metric)
    text = f"{quantity.split} {row.words}" if quantity.split else row.words
    return text if quantity.split and row.of_text else f"{text} on {mark(quantity.task)}"


def cost_noun(name: str, mark: Callable[[str], str] = code) -> str:
    """`model size`, or of one of several evaluations `time per token on fast`, its name marked by `mark`."""
    evaluation = name.rpartition(".")[0]
    return f"{metric_of(name).words} on {mark(evaluation)}" if evaluation else metric_of(name).words


def better_word(quantity: Quantity) -> str:
    """`lowest` or `highest`, whichever is best."""
    return {"lower": "lowest", "higher": "highest", "": "best"}[metric_of(quantity.metric).better]


def value(quantity: Quantity, mean: float) -> str:
    """A figure of a quantity as it is told: a loss as perplexity, a share in percent."""
    if quantity.metric == "loss":
        return number(math.exp(min(mean, 700)))
    return share(mean) if metric_of(quantity.metric).unit == "share" else number(mean)


def unit(quantity: Quantity) -> str:
    """What amounts of a quantity are in, where they carry a unit."""
    if quantity.metric == "loss":
        return "%"
    return {"share": "points", "nats": "nats per token"}.get(metric_of(quantity.metric).unit, "")


def amount(quantity: Quantity, difference: float, *, signed: bool = False, finest: int = 9) -> str:
    """A difference of a quantity: `3.1 %` for perplexity, `10.0 points` for shares, `0.024` otherwise.

    `finest` is the number of decimals at most.
    """
    return _with_unit(*_amount(quantity, difference, signed, finest))


def bare_amount(quantity: Quantity, difference: float, *, signed: bool = False) -> str:
    """The same number for the cell of a table whose row names the unit: `+3.1`."""
    text, unit = _amount(quantity, difference, signed, 9)
    return _with_unit(text, unit if unit == _TIMES else "")


def apart(difference: Difference) -> str:
    """By how much a variant lies above or below its reference: `3.1 % higher`, or from 3 times on `14 times as high`."""
    text, unit = _amount(difference.quantity, difference.mean, signed=False, finest=9)
    if unit == _TIMES:
        return f"{text} times as high"
    return f"{_with_unit(text, unit)} {'higher' if difference.mean > 0 else 'lower'}"


def ends(difference: Difference, *, signed: bool = True, bare: bool = False) -> str | None:
    """`+2.2 to +4.0 %`, or of perplexities that lie far apart `2.9 to 3.7 times`; None where there is no interval.

    Unsigned (both ends on one side of 0) `2.2 to 4.0 %`; `bare`: without the unit that both ends have.
    """
    if not math.isfinite(difference.low) or not math.isfinite(difference.high):
        return None
    width = metric_of(difference.quantity.metric).width
    found = [max(-width, min(width, end)) for end in (difference.low, difference.high)]
    if not signed and difference.mean < 0:
        found.reverse()
    finest = decimals(max(map(abs, found)), 2) + 1  # an end near 0 has no digits of its own
    (first, first_unit), (last, last_unit) = (_amount(difference.quantity, end, signed, finest) for end in found)
    if first_unit == last_unit == _TIMES:
        return f"{first} to {last} times"
    if last_unit == _TIMES:  # both ends in one unit: 190 % more is 2.9 times
        return f"{number(math.exp(found[0]), 2)} to {last} times"
    low, high = (_with_unit(first, first_unit), _with_unit(last, last_unit))
    if first_unit == last_unit:
        low, high = first, last if bare else high
    return f"{low} to {high}"


def interval(difference: Difference, *, signed: bool = True) -> str:
    """`95 % interval +2.2 to +4.0 %`; unsigned (both ends on one side of 0) `95 % interval 2.2 to 4.0 %`."""
    text = ends(difference, signed=signed)
    if text is None:
        return f"{sources(difference)}: too few for an interval"
    return f"{level(difference)} interval {text}"


def level(difference: Difference) -> str:
    """Of its interval, corrected for others or not: `95 %`, `98.3 %`, `99.96 %`."""
    return f"{100 - float(f'{100 * (1 - difference.level):.2g}'):g} %"


def at_worst(difference: Difference) -> str:
    """How much worse a variant may be by the far end of its interval: `up to 12.0 points worse`, `up to 3.2 times as high`."""
    if not math.isfinite(difference.worst):
        return "worse by any amount"
    text, unit = _amount(difference.quantity, min(difference.worst, metric_of(difference.quantity.metric).width), False, 9)
    return f"up to {text} times as high" if unit == _TIMES else f"up to {_with_unit(text, unit)} worse"


def detectable(difference: Difference, *, bare: bool = False) -> str:
    """The smallest difference that would have been detected with probability 0.8; empty where none would."""
    width = metric_of(difference.quantity.metric).width
    if not math.isfinite(difference.mde) or difference.mde == 0 or difference.mde > width:
        return ""
    return (bare_amount if bare else amount)(difference.quantity, difference.mde)


def sources(difference: Difference, num: int | None = None) -> str:
    """What the interval is over: `60 documents`, or `10 questions`; or how many of them there would have to be."""
    of_questions = "prompt" if metric_of(difference.quantity.metric).unit == "rating" else "question"
    return plural(difference.n_documents if num is None else num, "document" if difference.quantity.split else of_questions)


def cost_text(name: str, value: float) -> str:
    """A cost, or a bound of a metric, with its unit: `50 ms`, `28.4 MB`."""
    unit = metric_of(name).unit
    if unit == "ms":
        return f"{number(value)} ms"
    texts = {"bytes": size, "seconds": seconds, "count": count}
    return texts[unit](value) if unit in texts else f"{value:g}"


def named(entrant: Entrant) -> str:
    return code(entrant.variant)


def say(fact: Fact) -> str:
    """The sentence of a fact, with literals (names, values) between backticks; jinja2.UndefinedError for one without."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(fact).__name__).lower()
    for template in TEMPLATES:
        macro = getattr(_environment().get_template(template).module, name, None)
        if macro is not None:
            return " ".join(str(macro(fact)).split())
    raise LookupError(f"no template says `{name}`")


def template_environment(*, autoescape: bool = False) -> Environment:
    return Environment(
        loader=PackageLoader("paretune.report", "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=autoescape,
    )


def _amount(quantity: Quantity, difference: float, signed: bool, finest: int) -> tuple[str, str]:
    """The number and its unit, which is empty for what has none."""
    if quantity.metric == "loss":
        return ratio_change(math.exp(min(difference, 700)), signed=signed)
    shown, sign = (difference, "+") if signed else (abs(difference), "")
    if metric_of(quantity.metric).unit == "share":
        return f"{100 * shown:{sign}.1f}", "points"
    places = min(decimals(difference, 2), finest)
    if round(shown, places) == 0:
        return "0", ""
    return f"{shown:{sign}.{places}f}", unit(quantity)


def _with_unit(number: str, unit: str) -> str:
    return f"{unit} {number}" if unit == _TIMES else f"{number} {unit}".rstrip()


@functools.cache
def _environment() -> Environment:
    environment = template_environment()  # sentences are plain text, which each renderer escapes as it must
    words: dict[str, Any] = {
        function.__name__: function
        for function in (
            *(number, share, part_of, part_of_mean, change, times, count, size, seconds, plural, listed, capital, code),
            *(noun, cost_noun, better_word, value, unit, amount, apart, ends, interval, at_worst, level, detectable, sources),
            *(cost_text, named, decimals),
        )
    }
    environment.globals |= words
    environment.filters |= words
    return environment
