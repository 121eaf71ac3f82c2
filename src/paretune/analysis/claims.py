"""Sentences of a hand-written report that its figures contradict, or that so few questions cannot support.

Five shapes are read: the best or the most of something (`lowest perplexity`), a change with its size (`12 % smaller than`), a
plain comparison (`more accurate than`), a figure (`a perplexity of 12.3`), and two shares side by side (`25 % against 35 %`).
What is read wrongly is worse than what is not read: a clause that names no variant or no metric is left alone, and so is one
that says that nothing was found.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from paretune.analysis.claim_figures import FIGURE, HIGHER, SHARES, Column, Evidence, metric_of, number_in
from paretune.analysis.exact import fisher_p
from paretune.spec.compare import QUALITY

ALPHA = 0.05
_MOST = {
    **dict.fromkeys(("lowest", "smallest", "least", "fewest", "shortest", "cheapest"), "min"),
    **dict.fromkeys(("highest", "largest", "greatest", "most", "longest", "biggest"), "max"),
    "best": "good",
    "worst": "bad",
    "fastest": "good",
    "slowest": "bad",
}
_MORE = {
    **dict.fromkeys(("smaller", "lower", "fewer", "less", "shorter", "cheaper", "reduction", "decrease", "drop"), "min"),
    **dict.fromkeys(("larger", "higher", "more", "bigger", "longer", "greater", "increase", "gain"), "max"),
    **dict.fromkeys(("better", "faster", "quicker", "improvement", "outperforms", "beats", "surpasses", "speedup"), "good"),
    **dict.fromkeys(("worse", "slower"), "bad"),
}
_SPEED = ("ms_per_token", "train_tokens_per_second", "train_seconds")
_SIZE = ("parameters", "model_bytes")
_IMPLIED: dict[str, tuple[str, ...]] = {
    "smaller": _SIZE,
    "larger": _SIZE,
    "bigger": _SIZE,
    "smallest": _SIZE,
    "largest": _SIZE,
    "biggest": _SIZE,
}
_IMPLIED |= dict.fromkeys(("faster", "slower", "quicker", "fastest", "slowest", "speedup"), _SPEED)
_SETTING = re.compile(r"\b(?:learning[ _-]rates?|rank|alpha|dropout|batch[ _-]size)\b", re.IGNORECASE)
"""What can be the largest of its list without a word on the size of a model."""
_NOT = re.compile(r"\b(no|not|never|neither|nor|cannot|can't|isn't|aren't|insignificant|within noise|tied?|equal|same)\b", re.I)
_AGAINST = re.compile(
    r"\b(?:than|compared (?:to|with)|relative to|versus|vs\.?|over|against|from|outperforms|beats|surpasses)\b", re.I
)
_ABOUT = re.compile(r"\b(about|around|roughly|nearly|almost|approximately|over|more than)\b|~", re.I)
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*(%|percent(?:age points)?|points|pp|x\b|times\b|\u00d7)", re.I)
_PERCENTS = re.compile(r"(\d+(?:\.\d+)?)\s*(?:%|percent)", re.I)
_QUESTIONS = re.compile(r"\b(\d+)(?:\s+[\w-]+)?\s+(?:questions|items|examples)\b|\bn\s*=\s*(\d+)", re.I)
_CLAUSES = re.compile(r";|,?\s+(?:while|whereas|but)\s+|,\s+(?=(?:and\s+)?[a-z]+s\s+~?\d)")
"""What ends a clause; also a comma before the next figure of a list: `trains 1.2x faster than X, needs 12 % less memory`."""
_THOSE_THAT = re.compile(r"\b(?:among|of) those (?:that|which)\b", re.IGNORECASE)
_PART_OF = re.compile(r"\b(?:among|of)\s+(?:the|these|those|all)\s+(\w+)", re.I)
_EVERYTHING = frozenset({"models", "variants", "two", "three", "four", "five", "six", "the", "all", "these", "those"})
_APART = re.compile(r"\bvs\.?|versus|against|compared|from\b.*\bto\b|better|higher|more|improve|outperform|rose|increase", re.I)


@dataclass(frozen=True)
class Finding:
    line: int
    sentence: str
    kind: str
    """`contradicted` or `unsupported`."""
    why: str


@dataclass(frozen=True)
class Clause:
    text: str
    variants: Sequence[str]
    """In the order in which they are named."""
    where: str
    """Words that choose a column: `test`, `validation`."""


def check_claims(report: str, evidence: Evidence) -> list[Finding]:
    """What is wrong with the sentences of `report`, in order; a sentence is told once."""
    found = []
    asked = {int(match[1] or match[2]) for match in _QUESTIONS.finditer(report)}
    evidence = replace(evidence, asked=asked.pop() if len(asked) == 1 else None)
    for line, sentence in sentences(report):
        if not _NOT.search(sentence):
            told = next(_wrong(sentence, evidence), None)
            if told is not None:
                found.append(Finding(line, sentence, *told))
    return found


def sentences(report: str) -> Iterator[tuple[int, str]]:
    """Sentences of the running text with their line numbers; tables, code, headings and pictures are not running text."""
    fenced = False
    for number, line in enumerate(report.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        if fenced or re.match(r"\s*(\||#|```|!\[|$)", line):
            continue
        text = re.sub(r"^\s*(?:[-*+]|\d+\.)\s+", "", line)
        text = re.sub(r"\\([\\_*\[\]<>|])|[*_]{2}|(?<!\w)[*_]|[*_](?!\w)", r"\1", text)
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z`\"])", text):
            if sentence.strip():
                yield number, sentence.strip()


def _wrong(sentence: str, evidence: Evidence) -> Iterator[tuple[str, str]]:
    where = next((word for word in ("validation", "test") if word in sentence.lower()), "")
    for text in _CLAUSES.split(sentence):
        clause = Clause(text, _named(text, evidence.variants), where)
        for check in (_check_amount, _check_most, _check_more, _check_figure):
            told = check(clause, evidence)
            if told is not None:
                yield told
                return
    told = _check_shares(sentence, evidence)
    if told is not None:
        yield told


def _check_most(clause: Clause, evidence: Evidence) -> tuple[str, str] | None:
    word = _first(clause.text, _MOST)
    if word is None or not clause.variants or _THOSE_THAT.search(clause.text):
        return None
    after = clause.text.lower().index(word)
    if (part := _PART_OF.search(clause.text, after)) and part[1].lower() not in _EVERYTHING:
        return None
    pair = _pair(clause)
    variant = pair[0] if pair else min(clause.variants, key=lambda name: abs(_position(clause.text, name) - after))
    failed: list[str] = []
    for column, down in _columns(clause, evidence, _MOST[word], word, clause.text[after:]):
        if variant in column.figures and len(column.figures) > 1:
            ranked = sorted(column.figures, key=lambda name: column.figures[name].value, reverse=not down)
            if column.figures[variant].value == column.figures[ranked[0]].value:
                second = next(name for name in ranked if name != variant)
                return _unsupported(column, variant, second, evidence)
            failed.append(f"{_shown(column)}: the {'lowest' if down else 'highest'} is `{ranked[0]}`")
    return ("contradicted", failed[0]) if failed else None


def _check_more(clause: Clause, evidence: Evidence) -> tuple[str, str] | None:
    word, pair = _first(clause.text, _MORE), _pair(clause)
    if word is None or pair is None or _AMOUNT.search(clause.text):
        return None
    subject, reference = pair
    failed: list[str] = []
    for column, down in _columns(clause, evidence, _MORE[word], word, ""):
        if subject in column.figures and reference in column.figures:
            gap = column.figures[subject].value - column.figures[reference].value
            if gap * (-1 if down else 1) > 0:
                return _unsupported(column, subject, reference, evidence)
            failed.append(f"{_shown(column)}: `{subject}` is not {'lower' if down else 'higher'} than `{reference}`")
    return ("contradicted", failed[0]) if failed else None


def _check_amount(clause: Clause, evidence: Evidence) -> tuple[str, str] | None:
    found = _amount(clause.text)
    if found is None or not clause.variants:
        return None
    amount, word = found
    pair = _pair(clause)
    claimed, is_factor = float(amount[1]), amount[2].lower() in ("x", "times", "\u00d7")
    rounding = 0.5 * 10.0 ** -len(amount[1].partition(".")[2])
    loose = 0.2 if _ABOUT.search(clause.text) else 0.06
    failed: list[str] = []
    behind = " ".join(clause.text[amount.end() :].split()[:4])
    for column, down in _columns(clause, evidence, _MORE[word], word, behind):
        others = [pair] if pair else [(clause.variants[0], name) for name in column.figures if name != clause.variants[0]]
        for subject, reference in others:
            if subject not in column.figures or reference not in column.figures:
                continue
            one, other = column.figures[subject].value, column.figures[reference].value
            actual = _factors(one, other, down) if is_factor else _percents(one, other, down, column.metric in SHARES)
            if any(abs(claimed - value) <= max(rounding, loose * abs(value)) * (1 + 1e-9) for value in actual):
                return _unsupported(column, subject, reference, evidence)
            if pair:
                way = f"{max(actual, key=abs):.3g} {'times' if is_factor else '%'}" if actual else "nothing of the kind"
                failed.append(f"{_shown(column)}: `{subject}` against `{reference}` is {way}")
    return ("contradicted", failed[0]) if failed else None


def _check_figure(clause: Clause, evidence: Evidence) -> tuple[str, str] | None:
    found = FIGURE.search(clause.text) if len(clause.variants) == 1 else None
    metric = metric_of(found[1]) if found else None
    claimed = number_in(found[2]) if found else None
    if found is None or metric is None or claimed is None or (found[2].endswith("%") and metric not in SHARES):
        return None
    (name,) = clause.variants
    known = [column for column in evidence.columns if column.metric == metric and name in column.figures]
    digits = re.match(r"[\d,]*\.?(\d*)", found[2])
    rounding = 0.5 * 10.0 ** -len(digits[1] if digits else "") * (0.01 if found[2].endswith("%") else 1)
    for column in known:
        actual = column.figures[name].value
        if abs(claimed.value - actual) <= max(rounding, 0.01 * abs(actual)) * (1 + 1e-9):
            return None
    return ("contradicted", f"{_shown(known[0])}, and `{name}` is said to have {found[2]}") if known else None


def _check_shares(sentence: str, evidence: Evidence) -> tuple[str, str] | None:
    """Two shares of right answers side by side, of a number of questions that is known."""
    shares = [float(found) / 100 for found in _PERCENTS.findall(sentence)]
    here = _QUESTIONS.search(sentence)
    metric = metric_of(sentence)
    counts = {one.num for column in evidence.columns if column.metric == metric for one in column.figures.values()} - {None}
    asked = int(here[1] or here[2]) if here else counts.pop() if len(counts) == 1 else evidence.asked
    if len(shares) != 2 or asked is None or metric not in SHARES - {"token_accuracy"} or not _APART.search(sentence):
        return None
    if max(shares) > 1 or any(abs(share * asked - round(share * asked)) > 0.06 * max(1, asked / 100) for share in shares):
        return None
    p = fisher_p(round(shares[0] * asked), asked, round(shares[1] * asked), asked)
    paired = [
        evidence.p_values.get((one, other, metric), 1.0)
        for one, other in product(_named(sentence, evidence.variants), repeat=2)
    ]
    if p <= ALPHA or min(paired, default=1.0) <= ALPHA:
        return None
    told = " and ".join(f"{round(share * asked)} of {asked}" for share in shares)
    return "unsupported", f"{metric}: {told} right answers differ by chance alone with p = {p:.2f} (Fisher's exact test)"


def _unsupported(column: Column, one: str, other: str, evidence: Evidence) -> tuple[str, str] | None:
    """Whether what the figures say could be chance; None where that is not known."""
    p = evidence.p_values.get((one, other, column.metric))
    sides = [column.figures[name] for name in (one, other)]
    test = "corrected p of comparisons.csv"
    nums = [side.num or evidence.asked for side in sides]
    if p is None and column.metric in SHARES - {"token_accuracy"} and nums[0] and nums[1]:
        p = fisher_p(round(sides[0].value * nums[0]), nums[0], round(sides[1].value * nums[1]), nums[1])
        test = f"Fisher's exact test on {nums[0]} and {nums[1]} questions"
    if p is None or p <= ALPHA:
        return None
    return "unsupported", f"{_shown(column)}: `{one}` and `{other}` differ by chance alone with p = {p:.2g} ({test})"


def _columns(clause: Clause, evidence: Evidence, way: str, word: str, near: str) -> list[tuple[Column, bool]]:
    """The columns that a clause is about, `near` looked at first, and whether it asks for less of them."""
    near, text = (_without(part, clause.variants) for part in (near, clause.text))
    metric = metric_of(near) or metric_of(text)
    metrics: Sequence[str] = (metric,) if metric else _IMPLIED.get(word, ())
    if metrics == _SIZE and _SETTING.search(text):
        return []
    if not metrics and word in ("outperforms", "beats", "surpasses"):
        metrics = sorted(QUALITY)
    if metric is None and set(metrics) == set(_SPEED) and re.search(r"\btrain", text, re.IGNORECASE):
        metrics = _SPEED[1:]
    known = [column for column in evidence.columns if column.metric in metrics]
    if metric == "accuracy" and not known:
        known = [column for column in evidence.columns if column.metric in ("exact_match", "contains")]
    chosen = [column for column in known if clause.where and clause.where in column.where.lower()] or known
    return [(column, way == "min" or (way != "max" and (column.metric in HIGHER) == (way == "bad"))) for column in chosen]


def _without(text: str, variants: Sequence[str]) -> str:
    """`text` without the names of variants, which are no metrics."""
    for name in variants:
        text = re.sub(_pattern(name), " ", text, flags=re.IGNORECASE)
    return text


def _percents(one: float, other: float, down: bool, share: bool) -> list[float]:
    """Every honest way to say by how many percent `one` is ahead; empty where it is not."""
    if (one >= other) if down else (one <= other):
        return []
    low, high = sorted((one, other))
    found = [100 * (high - low) / value for value in (other, one) if value]
    return [*found, 100 * (high - low)] if share else found


def _factors(one: float, other: float, down: bool) -> list[float]:
    if (one >= other) if down else (one <= other):
        return []
    low, high = sorted((one, other))
    return [high / low, high / low - 1] if low > 0 else []


def _pair(clause: Clause) -> tuple[str, str] | None:
    """Who is compared with whom: the reference stands behind `than` and its like."""
    marker = _AGAINST.search(clause.text)
    if len(clause.variants) != 2 or marker is None:
        return None
    behind = [name for name in clause.variants if _position(clause.text, name) > marker.start()]
    if len(behind) == 1:
        return next(name for name in clause.variants if name != behind[0]), behind[0]
    # `Compared with X, Y is ...`
    first, second = sorted(clause.variants, key=lambda name: _position(clause.text, name))
    return (second, first) if len(behind) == 2 else None


def _named(text: str, variants: set[str]) -> list[str]:
    """The variants that a text names, in order; where one name stands inside another, the longer one is meant."""
    taken: list[tuple[int, int, str]] = []
    for name in sorted(variants, key=len, reverse=True):
        for match in re.finditer(_pattern(name), text, re.IGNORECASE):
            if all(match.end() <= start or match.start() >= end for start, end, _ in taken):
                taken.append((*match.span(), name))
    return list(dict.fromkeys(name for _, _, name in sorted(taken)))


def _position(text: str, name: str) -> int:
    found = re.search(_pattern(name), text, re.IGNORECASE)
    return found.start() if found else -1


def _pattern(name: str) -> str:
    """A name as a word, however its parts are joined."""
    loose = "".join("[-_ ]?" if char in "-_ " else re.escape(char) for char in name)
    return rf"(?<![\w-]){loose}(?!\w)"


def _amount(text: str) -> tuple[re.Match[str], str] | None:
    """A number with its unit, and the word that says which way: `12 % smaller`, `15 % lower training time`, `higher by 3 %`."""
    for amount in _AMOUNT.finditer(text):
        behind = " ".join(text[amount.end() :].split()[:3])
        before = text[: amount.start()] if re.search(r"\bby\s+(?:\w+\s+)?~?$", text[: amount.start()]) else ""
        word = _first(behind, _MORE) or _first(before, _MORE)
        if word is not None:
            return amount, word
    return None


def _first(text: str, words: Mapping[str, str]) -> str | None:
    found = re.search(rf"(?<!\bat )\b({'|'.join(words)})\b", text, re.IGNORECASE)
    return found[1].lower() if found else None


def _shown(column: Column) -> str:
    values = ", ".join(f"{name} {figure.value:.4g}" for name, figure in column.figures.items())
    return f"{column.metric} ({column.where.strip()}): {values}"
