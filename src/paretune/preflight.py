"""What can be refused before the first stage: a study against its bases, its questions and the first record of its data.

A mistake that a stage would find after hours of others is found here in a moment. Nothing here imports torch or loads weights:
bases are known by config.json, tokenizer.json and the headers of their safetensors files. What cannot be known so is left to
the stages, which check again.
"""

import functools
import itertools
import json
from pathlib import Path

from tokenizers import Tokenizer

from paretune.data.outside import outside_documents
from paretune.data.questions import Request, read_questions, request_of, slices_of
from paretune.data.records import Form, parse_form, read_record
from paretune.data.safety import labels_of, read_words
from paretune.data.sheets import read_sheet
from paretune.data.sources import BUILTIN, iterate_rows
from paretune.data.templates import Template, is_blank, named_value, parse_template
from paretune.errors import DataError, NeedsError, SpecError
from paretune.pipeline.hub import cached_model
from paretune.pipeline.lock import Lock, LockedBase, count_blocks, num_positions
from paretune.pipeline.weights import weight_shapes
from paretune.study.base import suggestion
from paretune.study.data import Dataset, Source
from paretune.study.evaluations import Encoder, Forgetting, Generate, Latency, Perplexity, Qa, Tasks
from paretune.study.methods import PruneBlocks, TrainLora
from paretune.study.ratings import Ratings
from paretune.study.safety import Classifier, Safety
from paretune.study.study import Study
from paretune.study.variants import MethodUse

_VOCABULARIES = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken")
_STREAMED = ("jsonl", "csv", "parquet")
"""Formats whose first record is read without the rest."""
_SAME_NAMES = frozenset(
    ("gpt2", "gpt_neox", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "smollm3", "opt")
)
"""Architectures whose modules are called in their files as they are in memory; others may be renamed as they are loaded."""


def check_study(study: Study, lock: Lock, folder: Path) -> None:
    """Raises SpecError, DataError or NeedsError for what no run of `study` could do; relative paths start at `folder`."""
    for name, dataset in study.data.items():
        _check_dataset(dataset, f"data.{name}", folder)
    for name, base in lock.bases.items():
        directory = _directory(base)
        if directory is not None:
            weight_shapes(directory)
            _check_tokenizer(directory, f"bases.{name}")
    for name, variant in study.variants.items():
        for base, chain in itertools.product(variant.bases or study.bases, variant.chains):
            _check_methods(chain, name, base, lock.bases[base])
    if study.safety is not None:
        _check_safety(study.safety, lock, folder)
    for name, use in study.evaluate.items():
        where, config = f"evaluate.{name}", use.config
        if isinstance(config, Perplexity | Forgetting):
            _check_stride(config, study.train.max_length, where)
        if isinstance(config, Forgetting):
            _check_outside(config, where, folder)
        elif isinstance(config, Latency):
            _check_latency(config, lock, where)
        elif isinstance(config, Generate):
            _check_prompts(config, lock, where)
        elif isinstance(config, Qa):
            _check_questions(config, lock, where, folder)
        elif isinstance(config, Ratings):
            for file in config.files:
                read_sheet(folder / file, config.criteria)
        elif isinstance(config, Tasks) and config.encoder is not None and lock.encoder is not None:
            _check_encoder(config.encoder, lock.encoder, f"{where}.encoder")


def _check_dataset(dataset: Dataset, where: str, folder: Path) -> None:
    form = parse_form(dataset, where)
    _check_fields(form, dataset, where)
    sources = [dataset.source] if isinstance(dataset.source, Source) else [source for _, source in dataset.source]
    for source in sources:
        if source.builtin and source.builtin not in BUILTIN:
            raise SpecError(f"{where}.source.builtin: no dataset `{source.builtin}`{suggestion(source.builtin, BUILTIN)}")
        if source.path and source.resolved_format in _STREAMED:
            row = next(iterate_rows(source, str(folder / source.path)))
            read_record(form, row)
            for key, field in (("document", dataset.document), ("stratify", dataset.stratify)):
                if field is not None and not (form.drops_empty and is_blank(row.values.get(field, ""))):
                    named_value(row.values, field, key, row.where)


def _check_fields(form: Form, dataset: Dataset, where: str) -> None:
    """SpecError for a template that would say the same of every record."""
    if not form.tasks and form.chat is None and not form.context.fields:
        raise SpecError(
            f"{where}.text: `{dataset.template}` uses no field of a record, so all texts would be the same; "
            "a field is written `{{ name }}`"
        )
    for task in form.tasks:
        if not task.completion.fields:
            raise SpecError(
                f"{where}.tasks.{task.name}.completion: `{task.completion.source}` uses no field of a record, so all answers "
                "would be the same; a field is written `{{ name }}`"
            )


def _check_tokenizer(directory: Path, where: str) -> None:
    if not any(file for pattern in _VOCABULARIES for file in directory.glob(pattern)):
        raise NeedsError(f"{where}: `{directory}` holds no tokenizer ({', '.join(_VOCABULARIES)}); copy it beside the model")
    file = directory / "tokenizer.json"
    try:
        json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    except (OSError, ValueError) as error:
        raise NeedsError(f"{where}: `{file}` cannot be read as JSON ({error}); copy it again") from None


def _check_methods(chain: tuple[MethodUse, ...], name: str, base: str, locked: LockedBase) -> None:
    num_blocks = count_blocks(locked.config)
    for index, use in enumerate(chain):
        where = f"variants.{name}[{index}].{use.name}"
        if isinstance(use.config, PruneBlocks) and num_blocks is not None:
            num_blocks -= _count_removed(use.config, num_blocks, where, base)
        elif isinstance(use.config, TrainLora) and not isinstance(use.config.targets, str):
            _check_targets(use.config.targets, f"{where}.targets", base, locked)


def _count_removed(config: PruneBlocks, num_blocks: int, where: str, base: str) -> int:
    has = f"base `{base}` has {num_blocks} blocks at this point, 0 to {num_blocks - 1}"
    count = config.count or len(config.blocks or ())
    outside = [index for index in config.blocks or () if index >= num_blocks]
    if outside:
        raise SpecError(f"{where}.blocks: there is no block `{outside[0]}`; {has}")
    if count >= num_blocks:
        field = "count" if config.count else "blocks"
        raise SpecError(f"{where}.{field}: removing {count} leaves no block; {has}, so remove at most {num_blocks - 1}")
    return count


def _check_targets(targets: tuple[str, ...], where: str, base: str, locked: LockedBase) -> None:
    directory = _directory(locked)
    if directory is None or locked.config.get("model_type") not in _SAME_NAMES:
        return
    shapes = weight_shapes(directory)
    linear = {name.removesuffix(".weight") for name, shape in shapes.items() if name.endswith(".weight") and len(shape) == 2}
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            inside_blocks = sorted(
                {name.rpartition(".")[2] for name in linear if any(part.isdigit() for part in name.split("."))}
            )
            known = ", ".join(f"`{name}`" for name in inside_blocks)
            raise SpecError(f"{where}: base `{base}` has no linear module `{target}`; it has {known}")


def _check_outside(config: Forgetting, where: str, folder: Path) -> None:
    if not _template(config.text, f"{where}.text").fields:
        raise SpecError(f"{where}.text: `{config.text}` uses no field of a record, so all texts would be the same")
    try:
        outside_documents(folder / config.path, config.text, config.document, config.format, max_documents=1)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _check_stride(config: Perplexity | Forgetting, max_length: int, where: str) -> None:
    if config.stride is not None and config.stride >= max_length:
        raise SpecError(
            f"{where}.stride: `{config.stride}` leaves no context between windows of `train.max_length: {max_length}` tokens; "
            f"write 1 to {max_length - 1}"
        )


def _check_latency(config: Latency, lock: Lock, where: str) -> None:
    for name, base in lock.bases.items():
        positions, asked = num_positions(base), config.prompt_tokens + config.new_tokens
        if positions is not None and asked > positions:
            raise SpecError(
                f"{where}: `prompt_tokens: {config.prompt_tokens}` and `new_tokens: {config.new_tokens}` are {asked} tokens, "
                f"and base `{name}` reaches {positions}; lower one of them"
            )


def _check_prompts(config: Generate, lock: Lock, where: str) -> None:
    for index, prompt in enumerate(config.prompts):
        for name, base in lock.bases.items():
            length, positions = _length(base, prompt), num_positions(base)
            if positions is not None and length >= positions:
                raise SpecError(
                    f"{where}.prompts[{index}]: `{prompt[:40]}...` has {length} tokens, and base `{name}` reaches {positions} "
                    "positions, which leaves no room for a new one; shorten it"
                )


def _check_questions(config: Qa, lock: Lock, where: str, folder: Path) -> None:
    prompt, answer = _template(config.prompt, f"{where}.prompt"), _template(config.answer, f"{where}.answer")
    context = _template(config.context, f"{where}.context")
    if not prompt.fields:
        raise SpecError(f"{where}.prompt: `{config.prompt}` uses no field of a question, so all prompts would be the same")
    if "answer" not in answer.fields:
        raise SpecError(f"{where}.answer: `{config.answer}` does not use `{{{{ answer }}}}`, so all options would be the same")
    try:
        found = read_questions(f"builtin:{config.builtin}" if config.path is None else folder / config.path, config.format)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    for question in found:
        try:
            slices_of(question, config.slice_by)
            request = request_of(question, prompt, answer, context)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        for name, base in lock.bases.items():
            _check_fit(request, name, base, where)


def _check_fit(request: Request, name: str, base: LockedBase, where: str) -> None:
    length, positions = max(_length(base, request.prompt + answer) for answer in request.answers), num_positions(base)
    if positions is not None and length > positions:
        raise DataError(
            f"{where}: question `{request.question.id}` has {length} tokens with its answer, and base `{name}` reaches "
            f"{positions} positions; shorten it, or leave it out"
        )


def _length(base: LockedBase, text: str) -> int:
    """Tokens of a text and the prefix; its bytes at most, and 0 where the tokenizer is not at hand and they are too many."""
    positions, upper = num_positions(base), len(text.encode()) + 1
    if positions is None or upper < positions:
        return upper
    directory = _directory(base)
    if directory is None or not (directory / "tokenizer.json").is_file():
        return 0
    return len(_tokenizer(directory / "tokenizer.json").encode(text, add_special_tokens=False).ids) + 1


@functools.cache
def _tokenizer(file: Path) -> Tokenizer:
    return Tokenizer.from_file(str(file))


def _check_encoder(encoder: Encoder, locked: LockedBase, where: str) -> None:
    num_layers, directory = count_blocks(locked.config), _directory(locked)
    if num_layers is None:
        raise NeedsError(f"{where}: its config.json names no number of layers, so it is no encoder; take RoBERTa, or BERT")
    if encoder.layer is not None and encoder.layer > num_layers:
        raise SpecError(f"{where}.layer: there is no layer `{encoder.layer}`; it has {num_layers}, so write 1 to {num_layers}")
    if directory is not None:
        weight_shapes(directory)
        _check_tokenizer(directory, where)


def _check_safety(safety: Safety, lock: Lock, folder: Path) -> None:
    if safety.words is not None:
        try:
            read_words(folder / safety.words)
        except DataError as error:
            raise DataError(f"safety.words: {error}") from None
    if safety.classifier is not None and lock.classifier is not None:
        _check_classifier(safety.classifier, lock.classifier)


def _check_classifier(classifier: Classifier, locked: LockedBase) -> None:
    where = "safety.classifier"
    names = locked.config.get("architectures") or []
    if names and not any(name.endswith("ForSequenceClassification") for name in names):
        raise NeedsError(f"{where}: is no classifier of texts but `{names[0]}`; name a model `...ForSequenceClassification`")
    labels = labels_of(locked.config)
    for label in classifier.unsafe:
        if label not in labels:
            raise SpecError(f"{where}.unsafe: it has no label `{label}`{suggestion(label, labels)}")
    directory = _directory(locked)
    if directory is not None:
        weight_shapes(directory)
        _check_tokenizer(directory, where)


def _template(source: str, where: str) -> Template:
    try:
        return parse_template(source)
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from None


def _directory(base: LockedBase) -> Path | None:
    """Where the files of a base are; None for a hub model that is not in the cache yet."""
    if not base.resource.startswith("hub:"):
        return Path(base.resource)
    name, _, commit = base.resource.removeprefix("hub:").partition("@")
    return cached_model(name, commit)
