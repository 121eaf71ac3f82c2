"""Numbers as a report says them: three digits for measures, whole counts, human bytes and seconds."""

import math
from collections.abc import Sequence

UNKNOWN = "-"


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
    if not math.isfinite(ratio) or ratio >= 3:
        return f"x {number(ratio, 2)}" if math.isfinite(ratio) and ratio < 1e7 else "x over 10 million"
    percent = 100 * (ratio - 1)
    places = 0 if abs(percent) >= 99.5 else 1 if round(abs(percent), 1) >= 1 else 2
    if round(abs(percent), places) == 0:
        return "0 %"
    return f"{percent:+.{places}f} %" if signed else f"{abs(percent):.{places}f} %"


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
