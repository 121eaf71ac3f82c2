"""The evaluations that a study can ask for: one config class each, and the table of their rows."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from paretune.errors import SpecError
from paretune.study.base import DATA, FILE, FOLDER, OtherModel, Spec, listed
from paretune.study.data import Source
from paretune.study.formats import Format
from paretune.study.ratings import PREFERENCE, Judge, Ratings, judge_content, judge_fits, ratings_content
from paretune.study.registry import Evaluation, Items, StageParts
from paretune.study.tasks import BERT_SCORE, task_metrics

if TYPE_CHECKING:
    from paretune.study.study import Study

CONTEXT = "{{ context }}\n\n"
Rule = Literal["label", "text", "letter", "from_0", "from_1"]
"""How an answer names the right one of several options."""
Prefix = Literal["auto", "bos", "eos", "none", "tokenizer"]
"""What stands before a text: BOS, or EOS where there is no BOS; BOS; EOS; nothing; or what the tokenizer adds by itself."""
_LAYERS = {
    "roberta-large": 17,
    "roberta-base": 10,
    "distilroberta-base": 5,
    "bert-base-uncased": 9,
    "bert-large-uncased": 18,
    "bert-base-multilingual-cased": 9,
    "bert-base-chinese": 8,
    "distilbert-base-uncased": 5,
    "distilbert-base-multilingual-cased": 5,
    "xlm-roberta-base": 9,
    "xlm-roberta-large": 17,
}
"""The layers that agree best with people's judgement of translations, as the bert-score package has them."""


class Perplexity(Spec):
    """Loss, perplexity, bits per byte and token accuracy on held-out documents."""

    splits: tuple[Literal["train", "validation", "test"], ...] = Field(("validation", "test"), min_length=1)
    """Which splits are scored."""
    stride: int | None = Field(None, ge=1)
    """Tokens between windows of a long document; half of `max_length` unless given. Every token is scored once; where the
    tokenizer puts BOS before every text, it begins every window."""

    @model_validator(mode="after")
    def _distinct_splits(self) -> Self:
        if len(set(self.splits)) < len(self.splits):
            raise ValueError("`splits` names a split twice")
        return self


class Qa(Spec):
    """Questions with known answers: multiple choice by likelihood, factual by likelihood and by generation."""

    LATER: ClassVar = ("format", "context", "prefix", "right_option", "references", "too_long")
    path: str | None = Field(None, json_schema_extra=FILE)
    """JSON, JSON lines, CSV, Parquet or a sheet in a form that people have, packed or not; relative to the study file.
    Options stand in a list (`options`, `choices`, `endings`, ...) or in columns (`option_a`, `choice0`, `distractor1`, ...);
    `plan` says how they are read."""
    builtin: str | None = None
    """A question set that ships with the package."""
    format: Literal["own", "openbookqa", "arc", "mmlu", "sciq", "boolq", "pubmedqa"] | None = None
    """`own` (`question`, `options`, `answer`; or no options, and `answers` where several are right), `openbookqa`, `arc`,
    `mmlu`, `sciq`, `boolq` (yes or no) or `pubmedqa` (yes, no or maybe); the fields of a record say it unless given. With
    `own`, answers without a list `options` are the answers themselves, also where they look like the letter of an option."""
    right_option: Rule | None = None
    """How a record names the right one of its options: its `text`, `label` or `letter`, or its number, `from_0` or `from_1`.
    Decided from all records unless given, and refused where they do not tell, as a few numbers between 1 and 3 do not."""
    references: tuple[str, ...] = ()
    """What is right too as an answer to a factual question: fields, with a text or a list of texts each, or templates. The best
    score counts, metric by metric; `log_likelihood` is that of `answer`, or of the first where a record has none."""
    _one_reference = field_validator("references", mode="before")(listed)
    too_long: Literal["skip", "error", "cut", "keep_end"] = "skip"
    """Questions that are longer, with an option or room for an answer, than a base can read: `skip` leaves them out for every
    variant of the base and counts them (comparisons between bases are on the questions that both could read), `error` stops
    before the run, `cut` shortens what is read first, or the question where there is nothing, at its end, and `keep_end` at its
    beginning, counted too."""
    slice_by: tuple[str, ...] = ()
    """Fields of a question that the scores are broken down by."""
    context: str = CONTEXT
    """Template of what stands before `prompt` where the format has a text to read first: SciQ, BoolQ, PubMedQA."""
    prompt: str = "Question: {{ question }}\nAnswer:"
    """Template over the fields of a question."""
    answer: str = " {{ answer }}"
    """Template of an option, and of the gold answer."""
    max_new_tokens: int = Field(32, ge=1)
    """Longest generated answer to a factual question; it ends at the first line break."""
    prefix: Prefix = "auto"
    """The token before a question, on which likelihoods depend: `auto` is BOS, or EOS where a tokenizer has no BOS, as before
    every text in training, `perplexity`, `forgetting` and `choose: loss`; `bos`, `eos` or `none`; or `tokenizer`, what the
    tokenizer adds by itself, as in `lm_eval`."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.builtin is None):
            raise ValueError("name exactly one of `path` and `builtin`")
        return self


class Generate(Spec):
    """Continuations of prompts, side by side for all variants."""

    LATER: ClassVar = ("raw",)
    prompts: tuple[str, ...] = Field(min_length=1)
    """Texts to continue; of a dataset of chats (`records: messages | sharegpt`), what a user says, to be answered."""
    raw: bool = False
    """Continue the prompts as they are, of a dataset of chats too."""
    max_new_tokens: int = Field(100, ge=1)
    """Longest continuation."""
    temperature: float = Field(0.0, ge=0)
    """0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draw from the likeliest tokens that have this probability together; 1 keeps the whole vocabulary."""
    top_k: int = Field(0, ge=0)
    """Draw from so many of the likeliest tokens; 0 keeps the whole vocabulary."""
    repetition_penalty: float = Field(1.0, gt=0)
    """1 leaves the logits as they are."""
    seed: int = 0
    """Of the sampling."""

    @model_validator(mode="after")
    def _sampling_needs_temperature(self) -> Self:
        if self.temperature == 0 and (self.top_p < 1 or self.top_k > 0):
            raise ValueError("`top_p` and `top_k` do nothing at `temperature: 0`, which is greedy; set a temperature")
        if 0 < self.temperature < 1e-6:
            raise ValueError("`temperature` is so small that logits over it are no numbers; write 0, which is greedy")
        if any(not prompt for prompt in self.prompts):
            raise ValueError("a prompt is empty")
        return self


class Latency(Spec):
    """Time to the first token and for each further token, one sequence at a time. Several prompt lengths or batch sizes are
    several entries: `long: {kind: latency, prompt_tokens: 512}`."""

    LATER: ClassVar = ("batch_size",)
    prompt_tokens: int = Field(64, ge=1)
    """Length of each prompt, cut from the data."""
    batch_size: int = Field(1, ge=1, le=256)
    """Sequences that are read and written at once."""
    new_tokens: int = Field(64, ge=2)
    """Tokens that are generated after it."""
    repeats: int = Field(20, ge=1)
    """Runs that are timed."""
    warmup: int = Field(3, ge=0)
    """Runs before them that are not."""


class Encoder(OtherModel):
    """A pretrained encoder, such as RoBERTa, whose vectors of tokens `bert_score` compares: `path` or `hub`."""

    layer: int | None = Field(None, ge=1)
    """The layer that the vectors are taken after; unless given that of the bert-score package for the models that it knows
    by name (17 of `FacebookAI/roberta-large`), and the last of others."""

    def layer_of(self, num_layers: int) -> int:
        """The layer, of an encoder with so many."""
        return self.layer or _LAYERS.get((self.hub or "").rpartition("/")[2], num_layers)


class Tasks(Spec):
    """The answers to a dataset's tasks that have `score` or `labels`, on held-out records. Asked without an entry here, too."""

    splits: tuple[Literal["validation", "test"], ...] = Field(("test",), min_length=1)
    """Which splits are answered."""
    max_documents: int | None = Field(None, ge=1)
    """Of each split so many at most, the first by the order of the split; all unless given."""
    encoder: Encoder | None = None
    """What `bert_score` of the tasks compares texts with."""

    @model_validator(mode="after")
    def _distinct_splits(self) -> Self:
        if len(set(self.splits)) < len(self.splits):
            raise ValueError("`splits` names a split twice")
        return self


class LmEval(Spec):
    """Tasks of lm-evaluation-harness, by its prompts and metrics, with Paretune's engine as the model."""

    LATER: ClassVar = ("prefix",)
    tasks: tuple[str, ...] = Field(min_length=1)
    """Names of tasks, groups or tags."""
    num_fewshot: int | None = Field(None, ge=0)
    """Examples before each question; as the task says unless given."""
    limit: int | None = Field(None, ge=1)
    """Of each task so many documents, the first; all unless given."""
    include_path: str | None = Field(None, json_schema_extra=FOLDER)
    """A folder with task files (YAML) of your own; their `data_files` are relative to it."""
    chat_template: bool = False
    """Put prompts into the chat template of the tokenizer."""
    prefix: Prefix = "tokenizer"
    """The token before a prompt: `tokenizer` is what the tokenizer adds by itself, often nothing, as in the harness; `auto`,
    `bos`, `eos` and `none` mean what they mean in `qa`, whose default is `auto`."""

    @model_validator(mode="after")
    def _distinct_tasks(self) -> Self:
        if len(set(self.tasks)) < len(self.tasks) or "" in self.tasks:
            raise ValueError("`tasks` names a task twice, or nothing")
        return self


class Forgetting(Spec):
    """Bits per byte on text outside the domain, and by how much it is worse than the untouched base's (`forgetting`)."""

    path: str = Field(json_schema_extra=DATA)
    """A file, folder or pattern as `data` takes it; relative to the study file."""
    format: Format | None = None
    """By the file's suffix unless given."""
    text: str = "{{ text }}"
    """Template over the fields of a record."""
    document: str | None = None
    """A field; its records are one document, a cluster of the error bars. Each record is one unless given."""
    max_documents: int | None = Field(None, ge=1)
    """So many documents at most, the first of the file."""
    stride: int | None = Field(None, ge=1)
    """Tokens between windows of a long document; half of `train.max_length` unless given."""

    @model_validator(mode="after")
    def _format_is_known(self) -> Self:
        Source(path=self.path, format=self.format)
        return self


def _check_stride(config: Perplexity | Forgetting, study: "Study", name: str) -> None:
    if config.stride is not None and config.stride >= study.train.max_length:
        raise SpecError(
            f"evaluate.{name}.stride: `{config.stride}` leaves no context between windows of `train.max_length: "
            f"{study.train.max_length}` tokens; write 1 to {study.train.max_length - 1}"
        )


def _check_encoder_is_named(config: Tasks, study: "Study", _: str) -> None:
    for name, dataset in study.data.items():
        by_encoder = [task for task, scoring in dataset.scored.items() if BERT_SCORE in scoring["score"]]
        if by_encoder and config.encoder is None:
            entry = f"tasks.{by_encoder[0]}" if dataset.tasks else "records"
            raise SpecError(
                f"data.{name}.{entry}.score: `{BERT_SCORE}` needs an encoder; write `evaluate: {{tasks: {{encoder: "
                "{hub: FacebookAI/roberta-large}}}` (1.4 GB), or `{path: DIR}` for one on this machine"
            )


def _generate_content(config: Generate, parts: StageParts) -> dict[str, Any]:
    chats = {"chats": True} if parts.chats and not config.raw else {}
    return {"evaluation": config.model_dump(mode="json", exclude={"raw"}) | chats}


def _tasks_content(config: Tasks, parts: StageParts) -> dict[str, Any]:
    content = config.model_dump(mode="json", exclude={"encoder"}) | {"tasks": parts.tasks}
    if any(BERT_SCORE in task["score"] for task in parts.tasks.values()):
        assert config.encoder is not None, "a study that scores with it names it"
        digest, num_layers = parts.model("encoder", "encoder")
        content["encoder"] = {"digest": digest, "layer": config.encoder.layer_of(num_layers)}
    return {"evaluation": content}


LIKELIHOODS = ("bits_per_byte", "loss", "perplexity", "token_accuracy")
QUESTION_METRICS = ("accuracy", "accuracy_unnormalised", "log_likelihood", "exact_match", "contains")


def _task_metrics(study: "Study") -> set[str]:
    """What the tasks of any dataset are scored by; by likelihood too, where they have labels."""
    scored = [task for dataset in study.data.values() for task in dataset.scored.values()]
    labelled = ("accuracy_unnormalised", "log_likelihood") if any(task.get("labels") for task in scored) else ()
    return {*labelled, *(name for task in scored for name in task_metrics(task))}


SIZE = Evaluation("size", Spec, "paretune.evaluate.cost:evaluate_size")
"""Parameters and bytes: made of every variant without being asked for, so it stands in no study and not in the table."""
EVALUATIONS = (
    Evaluation(
        "forgetting",
        Forgetting,
        "paretune.evaluate.forgetting:evaluate_forgetting",
        content=lambda config, parts: {"evaluation": config.model_dump(mode="json") | {"max_length": parts.max_length}},
        items=Items("paretune.data.outside:outside_texts", fields=("text", "document", "format", "max_documents")),
        needs_untouched=True,
        scores_texts=True,
        fits=_check_stride,
        check="paretune.data.checks:check_outside",
        revision=3,
        section="paretune.report.qualities:forgetting_section",
        measures=lambda _config, _study: (*LIKELIHOODS, "forgetting"),
    ),
    Evaluation(
        "generate",
        Generate,
        "paretune.evaluate.generate:evaluate_generate",
        content=_generate_content,
        writes_text=True,
        texts_are_rated=True,
        check="paretune.pipeline.checks:check_prompts",
        revision=2,
        section="paretune.report.qualities:generations_section",
        measures=lambda _config, _study: (),
    ),
    Evaluation(
        "judge",
        Judge,
        "paretune.evaluate.judge:evaluate_judge",
        content=judge_content,
        rates_texts=True,
        fits=judge_fits,
        section="paretune.report.qualities:ratings_section",
        measures=lambda config, _study: config.criteria,
    ),
    Evaluation(
        "latency",
        Latency,
        "paretune.evaluate.cost:evaluate_latency",
        revision=2,
        uses_tokens=True,
        measures_time=True,
        check="paretune.pipeline.checks:check_latency",
        section="paretune.report.making:cost_section",
        measures=lambda _config, _study: ("ms_per_token", "first_token_ms"),
    ),
    Evaluation(
        "lm_eval",
        LmEval,
        "paretune.evaluate.harness_tasks:evaluate_lm_eval",
        items=Items(
            "paretune.evaluate.harness_tasks:task_texts", fields=("tasks", "limit"), places=("include_path",), package="lm_eval"
        ),
        needs=("lm_eval",),
        section="paretune.report.qualities:harness_section",
    ),
    Evaluation(
        "perplexity",
        Perplexity,
        "paretune.evaluate.likelihood:evaluate_perplexity",
        uses_tokens=True,
        scores_texts=True,
        fits=_check_stride,
        revision=2,
        section="paretune.report.qualities:held_out_section",
        measures=lambda _config, _study: LIKELIHOODS,
    ),
    Evaluation(
        "qa",
        Qa,
        "paretune.evaluate.qa:evaluate_qa",
        items=Items(
            "paretune.data.questions:question_texts",
            fields=("format", "right_option", "references"),
            places=("path", "builtin"),
            revision=2,
        ),
        scores_texts=True,
        writes_text=True,
        check="paretune.data.checks:check_questions",
        tells="paretune.data.checks:tell_questions",
        revision=3,
        section="paretune.report.qualities:questions_section",
        measures=lambda _config, _study: QUESTION_METRICS,
    ),
    Evaluation(
        "ratings",
        Ratings,
        "paretune.evaluate.ratings:evaluate_ratings",
        content=ratings_content,
        rates_texts=True,
        check="paretune.data.checks:check_sheets",
        section="paretune.report.qualities:ratings_section",
        measures=lambda config, _study: (*config.criteria, PREFERENCE),
    ),
    Evaluation(
        "tasks",
        Tasks,
        "paretune.evaluate.tasks:evaluate_tasks",
        content=_tasks_content,
        uses_tokens=True,
        answers_tasks=True,
        writes_text=True,
        texts_are_rated=True,
        fits=_check_encoder_is_named,
        check="paretune.pipeline.checks:check_encoder",
        revision=3,
        section="paretune.report.qualities:tasks_section",
        measures=lambda _config, study: _task_metrics(study),
    ),
)
