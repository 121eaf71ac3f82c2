"""What can be told of a study's data, questions, sheets and word list before the first stage, by their first records."""

from collections.abc import Sequence
from pathlib import Path

from paretune.data.control import WAYS_OUT, held, pattern_of, pieces_of, sources_of
from paretune.data.files import size_as_text
from paretune.data.outside import outside_documents
from paretune.data.questions import QuestionSet, read_question_set, request_of, slices_of
from paretune.data.records import parse_form, read_record
from paretune.data.references import is_template
from paretune.data.safety import labels_of, read_words
from paretune.data.sheets import read_sheet
from paretune.data.sources import BUILTIN, iterate_rows
from paretune.data.templates import Template, is_blank, named_value, parse_template
from paretune.errors import DataError, NeedsError, SpecError
from paretune.pipeline.checks import num_tokens
from paretune.pipeline.config_json import architectures, num_positions
from paretune.pipeline.data_files import data_files, format_of_file
from paretune.pipeline.preflight import Setting, check_files
from paretune.pipeline.resources import read_tokenizer
from paretune.study.base import suggestion
from paretune.study.data import Dataset
from paretune.study.evaluations import Forgetting, Qa
from paretune.study.ratings import Ratings
from paretune.study.safety import Safety

_WHOLE = ("json", "text")
"""Formats whose first record is not read without the rest."""


def check_dataset(dataset: Dataset, setting: Setting) -> None:
    """Templates that use fields of a record, and a first record that has them."""
    where, form = setting.where, parse_form(dataset, setting.where)
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
    for source in dataset.sources.values():
        if source.builtin and source.builtin not in BUILTIN:
            raise SpecError(f"{where}.source.builtin: no dataset `{source.builtin}`{suggestion(source.builtin, BUILTIN)}")
        files = [file for path in source.paths for file in data_files(setting.folder / path, source.format)]
        _check_batch(files, setting)
        if files and (source.resolved_format or format_of_file(files[0])) not in _WHOLE:
            row = next(iterate_rows(source, [str(setting.folder / path) for path in source.paths]))
            _check_control_tokens(dataset, pieces_of(read_record(form, row)), row.where, setting)
            for key, field in (("document", dataset.document), ("stratify", dataset.stratify)):
                if field is not None and not (form.drops_empty and is_blank(row.values.get(field, ""))):
                    named_value(row.values, field, key, row.where)


def _check_batch(files: Sequence[Path], setting: Setting) -> None:
    """SpecError for steps of more examples than the data has bytes: whatever it holds, no step is ever full."""
    batch = setting.study.train.batch_size
    if batch > 2**20 and files and all(file.is_file() for file in files):
        size = sum(map(size_as_text, files))
        if batch > size:
            raise SpecError(
                f"train.batch_size: {batch:,} examples of a step are more than the {size:,.0f} bytes of `{setting.where}` can "
                "hold; usual are 4 to 128"
            )


def _check_control_tokens(dataset: Dataset, pieces: Sequence[tuple[str, str]], where: str, setting: Setting) -> None:
    """DataError for a record that holds control tokens of a base as text, where the study does not say what is done."""
    sources = sources_of(dataset.model_dump(mode="json"))
    for name, base in setting.lock.bases.items():
        directory = base.resource.directory()
        if dataset.control_tokens is None and directory is not None and (directory / "tokenizer.json").is_file():
            added = read_tokenizer(directory / "tokenizer.json").get_added_tokens_decoder().values()
            pattern = pattern_of(tuple(token.content for token in added if token.special))
            for piece, text in pieces:
                if found := held(pattern, text, sources.get(piece, "")):
                    raise DataError(f"{where}: holds `{min(found)}` as text, a control token of base `{name}`; {WAYS_OUT}")


def check_outside(config: Forgetting, setting: Setting) -> None:
    """`forgetting`: a template that uses a field, and a first document."""
    where = setting.where
    if not _template(config.text, f"{where}.text").fields:
        raise SpecError(f"{where}.text: `{config.text}` uses no field of a record, so all texts would be the same")
    try:
        outside_documents(setting.folder / config.path, config.text, config.document, config.format, max_documents=1)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def check_questions(config: Qa, setting: Setting) -> None:
    """`qa`: templates that use the question and the answer, and questions that every base can read, some at least."""
    where = setting.where
    prompt, answer = _template(config.prompt, f"{where}.prompt"), _template(config.answer, f"{where}.answer")
    _template(config.context, f"{where}.context")
    for entry in filter(is_template, config.references):
        _template(entry, f"{where}.references")
    if not prompt.fields:
        raise SpecError(f"{where}.prompt: `{config.prompt}` uses no field of a question, so all prompts would be the same")
    if "answer" not in answer.fields:
        raise SpecError(f"{where}.answer: `{config.answer}` does not use `{{{{ answer }}}}`, so all options would be the same")
    try:
        found = _questions(config, setting)
        for question in found.questions:
            slices_of(question, config.slice_by)
        for name, lengths in _too_long(config, setting, found).items():
            if config.too_long == "error" or (config.too_long == "skip" and len(lengths) == len(found.questions)):
                (question, length), positions = next(iter(lengths.items())), num_positions(setting.lock.bases[name].config)
                raise DataError(
                    f"question `{question}` has {length} tokens with its answer, and base `{name}` reaches {positions} "
                    f"positions; shorten it, or write `too_long: {'skip` or `' if config.too_long == 'error' else ''}cut`"
                )
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def tell_questions(config: Qa, setting: Setting) -> list[str]:
    """`qa`: how the file was read, and what is too long for a base."""
    found = _questions(config, setting)
    lines = [f"{setting.where}: {len(found.questions)} questions: {'; '.join(found.read_as)}"]
    for name, lengths in _too_long(config, setting, found).items():
        done = "left out for all its variants" if config.too_long == "skip" else "cut to fit"
        lines.append(
            f"{setting.where}: {len(lengths)} of them longer than base `{name}` reads "
            f"({num_positions(setting.lock.bases[name].config)} tokens), {done} (`too_long: {config.too_long}`)"
        )
    return lines


def _questions(config: Qa, setting: Setting) -> QuestionSet:
    file = f"builtin:{config.builtin}" if config.path is None else setting.folder / config.path
    return read_question_set(file, config.format, config.right_option, config.references)


def _too_long(config: Qa, setting: Setting, found: QuestionSet) -> dict[str, dict[str, int]]:
    """By base that cannot read all questions to the end of each answer, those that it cannot, with their tokens."""
    templates = [parse_template(source) for source in (config.prompt, config.answer, config.context)]
    requests = {question.id: request_of(question, *templates) for question in found.questions}
    too_long: dict[str, dict[str, int]] = {}
    for name, base in setting.lock.bases.items():
        positions = num_positions(base.config)
        for question, request in requests.items() if positions is not None else ():
            length = max(num_tokens(base, request.prompt + option) for option in request.answers)
            if length > positions:
                too_long.setdefault(name, {})[question] = length
    return too_long


def check_sheets(config: Ratings, setting: Setting) -> None:
    """`ratings`: filled sheets."""
    for file in config.files:
        read_sheet(setting.folder / file, config.criteria)


def check_safety(safety: Safety, setting: Setting) -> None:
    """A list of words, and a classifier that has the labels."""
    if safety.words is not None:
        try:
            read_words(setting.folder / safety.words)
        except DataError as error:
            raise DataError(f"safety.words: {error}") from None
    if safety.classifier is not None:
        where = "safety.classifier"
        locked = setting.lock.models[where]
        names = architectures(locked.config)
        if names and not any(name.endswith("ForSequenceClassification") for name in names):
            raise NeedsError(
                f"{where}: is no classifier of texts but `{names[0]}`; name a model `...ForSequenceClassification`"
            )
        labels = labels_of(locked.config)
        for label in safety.classifier.unsafe:
            if label not in labels:
                raise SpecError(f"{where}.unsafe: it has no label `{label}`{suggestion(label, labels)}")
        check_files(locked, where)


def _template(source: str, where: str) -> Template:
    try:
        return parse_template(source)
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from None
