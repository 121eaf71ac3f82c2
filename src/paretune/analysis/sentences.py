"""What one comparison says, in words: the parts that the sentences of a report are put together from.

Every function takes measured numbers and returns words that hold for them, or None where there is nothing to say.
"""

import math

from paretune.analysis import wording
from paretune.analysis.choose import latency_name
from paretune.analysis.compare import Difference
from paretune.analysis.costs import ratio
from paretune.analysis.measured import Measured, difference_of
from paretune.analysis.scores import Place, Quantity
from paretune.study.compare import LOWER_IS_BETTER, OF_HARNESS, TO_ONE
from paretune.study.ratings import RUBRIC

NOUNS = {
    "loss": "perplexity",
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte",
    "token_accuracy": "token accuracy",
    "accuracy": "accuracy",
    "accuracy_generated": "accuracy of the written answers",
    "exact_match": "exact match",
    "contains": "share of answers that contain the right one",
    "log_likelihood": "log-likelihood of the right answers",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "bert_score_f1": "BERTScore",
    "set_f1": "F1 of sets",
    "acc": "accuracy",
    "acc_norm": "accuracy (by length)",
    "forgetting": "forgetting",
    "word_loss": "loss per word",
    "byte_loss": "loss per byte",
}
SHARES = frozenset(
    {
        *("token_accuracy", "accuracy", "accuracy_unnormalised", "accuracy_generated", "exact_match", "contains"),
        "stopped_by_eos",
        *OF_HARNESS,
    }
)
COST_WORDS = {
    "model_bytes": "model size",
    "adapter_bytes": "adapter size",
    "ms_per_token": "time per token",
    "ms_per_token_median": "time per token",
    "first_token_ms": "time to the first token",
    "train_seconds": "training time",
    "wall_seconds": "time all in all",
    "peak_memory_bytes": "peak memory",
    "trainable_parameters": "trained parameters",
}
_OF_TEXT = frozenset({"loss", "perplexity", "bits_per_byte", "token_accuracy"})
"""Metrics that a split of the data has one of."""
_UNITS = {"loss": "%", "log_likelihood": "nats per token"}
_SIZE_STEP = 0.002
"""Relative difference of sizes that is worth a word."""


def named(place: Place) -> str:
    return wording.code(place.variant)


def noun(quantity: Quantity) -> str:
    """`test perplexity`, `accuracy on qa`, `test ROUGE-L on summary`."""
    word = NOUNS.get(quantity.metric, quantity.metric.replace("_", " "))
    text = f"{quantity.split} {word}" if quantity.split else word
    return text if quantity.split and quantity.metric in _OF_TEXT else f"{text} on {wording.code(quantity.task)}"


def spoken(measured: Measured, place: Place, quantity: Quantity) -> Quantity:
    """The quantity to speak of within one base: perplexity (stored as loss) where bits per byte rank."""
    loss = quantity._replace(metric="loss")
    stored = measured.samples.get(place, {})
    return loss if quantity.metric == "bits_per_byte" and loss in stored else quantity


def as_shown(measured: Measured, place: Place, quantity: Quantity) -> Quantity:
    """The same as a figure: perplexity where a difference of losses is spoken of."""
    found = spoken(measured, place, quantity)
    return found._replace(metric="perplexity") if found.metric == "loss" else found


def value_of(difference: Difference, mean: float) -> str:
    """One side of a difference as it is spoken of."""
    metric = difference.quantity.metric
    if metric == "loss":
        return wording.number(math.exp(min(mean, 700)))
    return wording.share(mean) if metric in SHARES else wording.number(mean)


def unit_of(quantity: Quantity) -> str:
    """What amounts of a quantity are in, where they carry a unit."""
    return "points" if quantity.metric in SHARES else _UNITS.get(quantity.metric, "")


def amount_of(difference: Difference, *, signed: bool = False) -> str:
    """`3.1 %` for perplexity, `10.0 points` for shares, `0.024` otherwise."""
    return _amount(difference.quantity.metric, difference.mean, signed)


def interval_of(difference: Difference, *, signed: bool = True) -> str:
    """`95 % interval +2.2 to +4.0 %`; unsigned (both ends on one side of 0) `95 % interval 2.2 to 4.0 %`."""
    if not math.isfinite(difference.low) or not math.isfinite(difference.high):
        return f"{sources(difference)}: too few for an interval"
    ends = [_within_reach(difference.quantity, end) for end in (difference.low, difference.high)]
    if not signed and difference.mean < 0:
        ends.reverse()
    finest = wording.decimals(max(map(abs, ends)), 2) + 1  # an end near 0 has no digits of its own
    first, last = (_amount(difference.quantity.metric, end, signed, finest) for end in ends)
    level = f"{100 * difference.level:g} % interval"
    if first.startswith("x ") and last.startswith("x "):
        return f"{level} {first[2:]} to {last[2:]} times"
    number, _, unit = first.partition(" ")
    return f"{level} {number if unit == last.partition(' ')[2] else first} to {last}"


def _within_reach(quantity: Quantity, value: float) -> float:
    """A difference of scores between 0 and 1 cannot be larger than 1, which the intervals of two or three seeds do not know."""
    return max(-1.0, min(1.0, value)) if quantity.metric in TO_ONE else value


def quality_clause(difference: Difference, whose: str = "its") -> str:
    """`its test perplexity is 3.1 % higher (95 % interval 2.2 to 4.0 %)`, or that no difference is detected."""
    what, side = noun(difference.quantity), "higher" if difference.mean > 0 else "lower"
    tripled = difference.quantity.metric == "loss" and difference.mean > math.log(3)
    shown = _by_factor(difference) if tripled else f"{amount_of(difference)} {side}"
    if difference.detected:
        return f"{whose} {what} is {shown} ({interval_of(difference, signed=False)})"
    if difference.detected_for_weights:
        return (
            f"{whose} {what} is {shown} in these runs, but the {difference.n_seeds} seeds lie too far apart to expect that "
            f"of new ones ({interval_of(difference)})"
        )
    if difference.verdict == "equivalent":
        margin = _amount(difference.quantity.metric, difference.margin or 0.0, signed=False)
        return (
            f"{whose} {what} is equivalent, within {margin} ({amount_of(difference, signed=True)}, {interval_of(difference)})"
        )
    shown = f"{amount_of(difference, signed=True)}, {interval_of(difference)}{detectable(difference)}"
    return f"no difference in {what} is detected ({shown})"


def detectable(difference: Difference) -> str:
    """`; 1.2 % would have been detected`: the smallest difference found with probability 0.8; empty where there is none."""
    found = detectable_of(difference)
    return f"; {found} would have been detected" if found else ""


def detectable_of(difference: Difference) -> str:
    """The smallest difference that would have been detected, in the words of `amount_of`; empty where none would."""
    if not math.isfinite(difference.mde) or difference.mde == 0:
        return ""
    if _within_reach(difference.quantity, difference.mde) < difference.mde:
        return ""  # more than there can be
    return _amount(difference.quantity.metric, difference.mde, signed=False)


def cost_text(metric: str, value: float) -> str:
    """A figure of a metric with its unit: `50 ms`, `28.4 MB`."""
    if metric.endswith("_bytes"):
        return wording.size(value)
    if metric.endswith("seconds"):
        return wording.seconds(value)
    if "parameters" in metric:
        return wording.count(value)
    return (
        f"{wording.number(value)} ms" if metric in ("ms_per_token", "ms_per_token_median", "first_token_ms") else f"{value:g}"
    )


def cost_clauses(measured: Measured, variant: Place, reference: Place) -> tuple[list[str], list[str]]:
    """What is clearly cheaper about `variant`, and what is clearly dearer, as `trains 1.14x faster`."""
    cheaper: list[str] = []
    dearer: list[str] = []
    for value, less, more in _cost_words(measured, variant, reference):
        (cheaper if value < 1 else dearer).append(less if value < 1 else more)
    return cheaper, dearer


def trade_sentence(measured: Measured, variant: Place, reference: Place, quantity: Quantity) -> str | None:
    """`variant` against `reference` in cost and quality; None where no quality can be compared."""
    difference = difference_of(measured, variant, reference, spoken(measured, variant, quantity))
    if difference is None:
        return None
    cheaper, dearer = cost_clauses(measured, variant, reference)
    if not cheaper and not dearer:
        if difference.detected or difference.detected_for_weights:
            whose = f"{named(variant)}'s"
            return f"Against {named(reference)}, {quality_clause(difference, whose)}."
        return f"Between {named(variant)} and {named(reference)}, {quality_clause(difference)}."
    first, *others = cheaper + dearer
    parts = [f"{named(variant)} {first} than {named(reference)}", *others]
    # A gain on one side and a loss on the other is a trade, and reads as one.
    worse = difference.detected and not difference.better
    joint = (
        "but" if (cheaper and not dearer and worse) or (dearer and not cheaper and difference.detected and not worse) else "and"
    )
    return f"{', '.join(parts)}, {joint} {quality_clause(difference)}."


def _cost_words(measured: Measured, variant: Place, reference: Place) -> list[tuple[float, str, str]]:
    """Ratio of each cost that clearly differs, with the words for less and for more of it; each can be followed by `than`."""
    found: list[tuple[float, str, str]] = []
    # Adapters are merged before they are shipped: the exported weights are the size, and what was trained is told apart.
    stored = ratio(measured.costs, "model_bytes", variant, reference)
    if stored is not None and abs(stored.value - 1) > _SIZE_STEP:
        amount = wording.change(stored.value, signed=False)
        larger = f"is {amount} larger" if stored.value < 3 else f"is {wording.times(stored.value)} larger"
        found.append((stored.value, f"is {amount} smaller", larger))
    if (speed := training_speed(measured, variant, reference)) is not None:
        found.append((1 / speed, f"trains {wording.times(speed)} faster", f"trains {wording.times(1 / speed)} slower"))
    memory = ratio(measured.costs, "peak_memory_bytes", variant, reference)
    if memory is not None and memory.clear:
        amount = wording.change(memory.value, signed=False)
        found.append((memory.value, f"needs {amount} less memory to train", f"needs {amount} more memory to train"))
    latency = ratio(measured.costs, latency_name(measured, [variant, reference]), variant, reference)
    if latency is not None and latency.clear:
        faster, slower = wording.times(1 / latency.value), wording.times(latency.value)
        found.append((latency.value, f"generates {faster} faster", f"generates {slower} slower"))
    return found


def training_speed(measured: Measured, variant: Place, reference: Place) -> float | None:
    """How many times as many tokens a second; None if unknown, unclear or measured on different machines."""
    speed = ratio(measured.costs, "train_tokens_per_second", variant, reference)
    return speed.value if speed is not None and speed.clear else None


def _amount(metric: str, value: float, signed: bool, finest: int = 9) -> str:
    if metric == "loss":
        return wording.change(math.exp(min(value, 700)), signed=signed)
    shown = value if signed else abs(value)
    if metric in SHARES:
        return f"{100 * shown:+.1f} points" if signed else f"{100 * shown:.1f} points"
    places = min(wording.decimals(value, 2), finest)
    if round(shown, places) == 0:
        return "0"
    unit = _UNITS.get(metric, "")
    return f"{shown:{'+' if signed else ''}.{places}f} {unit}".rstrip()


def _by_factor(difference: Difference) -> str:
    return f"{wording.number(math.exp(min(difference.mean, 700)), 2)} times as high"


def sources(difference: Difference) -> str:
    """What the interval is over: `60 documents`, or `10 questions`."""
    of_questions = "prompt" if difference.quantity.metric in RUBRIC else "question"
    return wording.plural(difference.n_documents, "document" if difference.quantity.split else of_questions)


def better_word(quantity: Quantity) -> str:
    """`lowest` or `highest`, whichever is best."""
    return "lowest" if quantity.metric in LOWER_IS_BETTER else "highest"
