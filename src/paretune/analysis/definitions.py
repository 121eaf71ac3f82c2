"""The notes of a report: what its figures are, as far as the study has them."""

from collections.abc import Iterator

from paretune.analysis import wording
from paretune.analysis.measured import Measured


def definitions(measured: Measured) -> Iterator[str]:
    """Sentences on intervals, differences, p values, losses and answers; none on what was not measured."""
    level = f"{100 * measured.level:g} %"
    known = {quantity for quantities in measured.samples.values() for quantity in quantities}
    if known:
        yield (
            f"Intervals ({level}) of single figures are over documents: they say how much other documents of the same kind "
            "would move them. Documents are resampled, not examples; right-or-wrong answers have Wilson's interval."
        )
    if measured.decided:
        yield from _differences(measured, level)
    if any(quantity.metric == "loss" for quantity in known):
        yield (
            "Perplexity is exp of the mean loss in nats per token. Bits per byte is the loss in bits per byte of raw text, and "
            "compares across tokenizers. Neither counts the beginning and the end of a text."
        )
    asked = {name for name, use in measured.study.evaluate.items() if use.kind == "qa"}
    if told := [text for metric, text in _ANSWERS.items() if any(q.metric == metric and q.task in asked for q in known)]:
        yield " ".join(told)
    yield (
        "All figures stand in `results.csv` (every seed), `estimates.csv` (means and intervals), `comparisons.csv`, "
        "`curves.csv`, `audit.csv` and `generations.jsonl`."
    )


_ANSWERS = {
    "accuracy": "A multiple-choice answer is the option with the highest likelihood per byte.",
    "log_likelihood": "Log-likelihood is nats per token of the right answer; higher is better.",
    "exact_match": "Exact match and contains are of generated answers.",
}


def _differences(measured: Measured, level: str) -> Iterator[str]:
    seeds = "With several seeds their spread widens the interval and raises p. " if len(measured.study.seeds) > 1 else ""
    yield (
        "Differences are paired, with the same documents on both sides; so a difference can be detected where the intervals of "
        f"the two figures overlap. {seeds}`no difference detected` does not mean equal: the interval says how large a "
        "difference is still possible, `detectable` how large a one would have been found with probability 0.8."
    )
    declared = measured.study.compare.family
    named = f"those of {wording.listed([wording.code(metric) for metric in declared])}" if declared else "those of the headline"
    family = f"{named} {'(declared)' if declared else '(undeclared: the first metric)'}"
    yield (
        "p is that of sign flips by document (McNemar's exact test for answers), corrected by Holm: "
        f"{family} with the baseline together, other comparisons inside their task, pairs without the baseline as one of all "
        f"pairs. Each interval holds by itself at {level}; a verdict needs both."
    )
