"""The metrics: one row each, with everything that study file, statistics, tables, figures and sentences know of it.

Rows of third parties come with the row of their evaluation or through the entry-point group `paretune.metrics`. A metric that
no row names is shown under its name and compared with nothing.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

Unit = Literal["", "share", "rating", "nats", "bytes", "seconds", "ms", "count", "tokens/s", "joules"]
"""What figures are in: a `share` is of 1 and told in percent, differences of it in points."""


@dataclass(frozen=True)
class Metric:
    """What a score or a cost is called, which way is better, and what is known of its values."""

    name: str
    """In the files, such as `bits_per_byte`."""
    noun: str = ""
    """In a sentence; the name in words unless given."""
    better: Literal["lower", "higher", ""] = ""
    """Empty: shown, and compared with nothing."""
    unit: Unit = ""
    low: float = -math.inf
    """The smallest value that there can be."""
    high: float = math.inf
    heading: str = ""
    """Of a table's column; the noun unless given."""
    title: str = ""
    """Of a figure's panel; the noun unless given."""
    ranks: bool = True
    """A study without a declared family may be decided by it: the first such row that was measured."""
    of_text: bool = False
    """A split of the data has one of it, so that `test perplexity` names it without its evaluation."""
    per_token: bool = False
    """Compared only between models of one tokenizer."""
    exp_of: str = ""
    """Another metric that this one is the exp of; it is stored nowhere, and computed from that."""
    told_as: str = ""
    """The metric, of the same task, whose differences are told in place of its own where they were measured."""
    hypothesis: str = ""
    """The metric that says the same in other units: one hypothesis, one p value."""
    margin: float = 0.0
    """A loss against the best variant that does not matter where a study names no margin: a cheaper variant is recommended
    where it is shown to lose no more."""
    margin_is_relative: bool = False
    """The margin is a share of the best variant's figure."""
    cost: bool = False
    """Of a model rather than of its answers; without examples."""
    median_of: str = ""
    """The metric that this one is the median of, over repeats; taken in its place where it was measured."""
    of_machine: bool = False
    """Depends on the machine: not compared across two."""
    of_training: bool = False
    """Nothing for a variant that is not trained."""
    noise: float = 0.05
    """Relative difference below which two figures of a machine count as equal, however quiet it is."""

    @property
    def words(self) -> str:
        return self.noun or self.name.replace("_", " ")

    @property
    def column(self) -> str:
        return self.heading or self.words

    @property
    def panel(self) -> str:
        return self.title or self.words

    @property
    def sign(self) -> int:
        """-1 where lower is better, 1 where higher is, 0 where neither."""
        return {"lower": -1, "higher": 1, "": 0}[self.better]

    @property
    def is_quality(self) -> bool:
        """Compared between variants, with an interval."""
        return bool(self.better) and not self.cost

    @property
    def width(self) -> float:
        """The largest difference that there can be."""
        return self.high - self.low


_share = partial(Metric, better="higher", unit="share", low=0.0, high=1.0, margin=0.02)
_score = partial(Metric, better="higher", low=0.0, high=1.0, margin=0.02)
_likelihood = partial(Metric, margin=0.01, margin_is_relative=True)
_rating = partial(Metric, better="higher", unit="rating", low=1.0, high=5.0, margin=0.1, ranks=False)
_cost = partial(Metric, better="lower", low=0.0, cost=True)

METRICS = (
    # What variants are ranked by, the first that was measured.
    _likelihood("bits_per_byte", "bits per byte", "lower", low=0.0, title="Bits per byte", of_text=True, told_as="loss"),
    _likelihood(
        "loss",
        "perplexity",
        "lower",
        "nats",
        low=0.0,
        heading="loss",
        title="Loss, nats per token",
        of_text=True,
        per_token=True,
        hypothesis="bits_per_byte",
    ),
    _share("accuracy", heading="accuracy (likelihood)", title="Accuracy"),
    _share("acc_norm", "accuracy (by length)"),
    _share("acc", "accuracy"),
    _share("exact_match", title="Exact match"),
    _share("contains", "share of answers that contain the right one", heading="contains the answer", title="Answer contained"),
    _share("squad_em", "exact match as SQuAD has it", heading="exact match (SQuAD)"),
    _score("set_f1", "F1 of sets"),
    _score("rouge_l", "ROUGE-L"),
    Metric("bert_score_f1", "BERTScore", "higher", margin=0.02),
    _score("rouge_1", "ROUGE-1"),
    _score("rouge_2", "ROUGE-2"),
    _likelihood(
        "log_likelihood",
        "log-likelihood of the right answers",
        "higher",
        "nats",
        high=0.0,
        heading="log-likelihood",
        title="Log-likelihood of the answer",
        per_token=True,
    ),
    # What is compared and decides nothing by itself.
    Metric(
        "perplexity",
        "perplexity",
        "lower",
        low=1.0,
        of_text=True,
        per_token=True,
        ranks=False,
        exp_of="loss",
        hypothesis="bits_per_byte",
    ),
    _share("token_accuracy", of_text=True, per_token=True, ranks=False),
    _share("accuracy_unnormalised", ranks=False),
    _share("accuracy_generated", "accuracy of the written answers", heading="accuracy (as written)", ranks=False),
    _share("acc_bytes", ranks=False),
    _share("em", ranks=False),
    _share("f1", ranks=False),
    _likelihood("word_loss", "loss per word", "lower", low=0.0, ranks=False),
    _likelihood("byte_loss", "loss per byte", "lower", low=0.0, ranks=False),
    Metric("forgetting", "forgetting", "lower", ranks=False),
    _rating("coherence"),
    _rating("relevance"),
    _share("preference", "share of pairs in which its text is preferred", heading="preferred", ranks=False),
    # The shape of answers.
    _share("stopped_by_eos", better="", heading="ended by itself"),
    Metric("length_ratio", heading="length ratio", low=0.0),
    _share("filtered", better=""),
    Metric("new_tokens", unit="count", low=0.0),
    Metric("new_words", unit="count", low=0.0),
    # Costs; those of which less is better can be weighed against quality, the first ones unless a study names others.
    _cost("model_bytes", "model size", unit="bytes", title="Model size, exported"),
    _cost("ms_per_token", "time per token", unit="ms", heading="ms per token", title="Milliseconds per token", of_machine=True),
    _cost(
        "train_seconds",
        "training time",
        unit="seconds",
        heading="training",
        title="Training time, seconds",
        of_machine=True,
        of_training=True,
    ),
    _cost("first_token_ms", "time to the first token", unit="ms", heading="first token, ms", of_machine=True),
    _cost("adapter_bytes", "adapter size", unit="bytes", heading="adapter"),
    _cost("parameters", "parameters", unit="count"),
    _cost("trainable_parameters", "trained parameters", unit="count", heading="trained", of_training=True),
    _cost("wall_seconds", "time all in all", unit="seconds", heading="all in all", of_machine=True, of_training=True),
    # Of a small model the peak of memory is mostly the process itself.
    _cost("peak_memory_bytes", "peak memory", unit="bytes", of_machine=True, of_training=True, noise=0.1),
    _cost(
        "ms_per_token_median", "time per token", unit="ms", heading="ms per token", of_machine=True, median_of="ms_per_token"
    ),
    _cost(
        "first_token_ms_median",
        "time to the first token",
        unit="ms",
        heading="first token, ms",
        of_machine=True,
        median_of="first_token_ms",
    ),
    _cost("train_tokens", "tokens learned", unit="count", better=""),
    _cost("train_tokens_read", "tokens read", unit="count", better=""),
    _cost(
        "train_tokens_per_second",
        "tokens per second",
        unit="tokens/s",
        better="higher",
        heading="tokens read per second",
        of_machine=True,
    ),
    _cost("prefill_tokens_per_second", unit="tokens/s", better="", heading="prompt tokens per second", of_machine=True),
    _cost("new_tokens_per_second", unit="tokens/s", better="", heading="new tokens per second", of_machine=True),
    _cost("joules_per_token", "energy per token", unit="joules", better="", heading="joules per token", of_machine=True),
    _cost("tuning_seconds", "time of tuning", unit="seconds", better="", of_machine=True),
    _cost("tuning_steps", "steps of tuning", unit="count", better=""),
)
"""In the order in which a study is judged by them."""
DEFAULT_COSTS = ("model_bytes", "ms_per_token", "train_seconds")
"""What is weighed against quality unless a study names its costs, the most important first."""
