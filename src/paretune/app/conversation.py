"""Conversations with variants as they ship and were measured: the models, each loaded once, and the turns of each.

A variant answers by the engine of the evaluations: at temperature 0 it says what `evaluate.generate` writes for the same
prompt. Where the base has a chat template, or the data are chats, turns are kept; else each prompt is continued by itself.
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from threading import Condition, Event, Thread

import torch
from transformers.utils.logging import disable_progress_bar

from paretune.data.chat import Message, chat_prompt, turn_of
from paretune.errors import DataError, NeedsError, ParetuneError, SpecError, StoreError
from paretune.evaluate.answers import Decoding
from paretune.evaluate.generate import generate
from paretune.evaluate.outputs import StoppedBy
from paretune.model.llama_cpp import LlamaCpp
from paretune.model.load import LoadedModel, load_model
from paretune.pipeline.plan import PlannedCell, Wanted, cell_name, find_cell
from paretune.pipeline.results import OpenStudy
from paretune.pipeline.stage import RunOptions, StageContext
from paretune.pipeline.store import Store
from paretune.report.words import size
from paretune.study.evaluations import SIZE

_COLDEST = 1e-6
"""The least temperature above 0 by which logits can be divided."""
_THREADS = torch.get_num_threads()
"""Before any was told to take fewer, which new threads take over."""
_STOPPED: dict[StoppedBy, str] = {
    "max_new_tokens": "; cut at the limit of new tokens",
    "context": "; cut at the last position of the model",
}

Say = Callable[[str], None]


@dataclass(frozen=True)
class Asking:
    """How answers are written; SpecError for a temperature that is none."""

    temperature: float = 0.0
    max_new_tokens: int = 256
    seed: int = 0
    system: str = ""
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature != 0 and not _COLDEST <= self.temperature < float("inf"):
            raise SpecError(f"--temperature: `{self.temperature}`; write 0, which takes the likeliest token, or up to about 2")

    @property
    def decoding(self) -> Decoding:
        return Decoding(self.temperature, self.top_p, self.top_k, self.repetition_penalty)


@dataclass(frozen=True)
class Reply:
    text: str
    new_tokens: int
    first_seconds: float
    """To the first token, the prompt read."""
    seconds: float
    stopped_by: StoppedBy

    def __str__(self) -> str:
        behind = self.seconds - self.first_seconds
        speed = f", then {(self.new_tokens - 1) / behind:,.1f} tokens/s" if self.new_tokens > 1 and behind > 0 else ""
        cut = _STOPPED.get(self.stopped_by, "")
        return f"{self.new_tokens:,} tokens, first after {self.first_seconds:.2f} s{speed}{cut}"


@dataclass(frozen=True)
class Shipped:
    """A variant of a study as it ships."""

    cell: PlannedCell
    store: Store
    again: str
    """The command that trains it."""

    @property
    def name(self) -> str:
        return cell_name(self.cell)

    @property
    def key(self) -> tuple[str, ...]:
        return (self.name, *(stage.key for stage in self.cell.methods))

    def check(self) -> None:
        """StoreError where it is not trained yet, or was removed."""
        if not all(map(self.store.find, self.cell.methods)):
            raise StoreError(f"`{self.name}` is not trained yet, or was removed; first: `{self.again}`")

    @property
    def num_bytes(self) -> int:
        """Of its weights in memory, as far as that is known before they are loaded: 0 where it was not measured."""
        measured = self.cell.evaluations[SIZE.name]
        record = self.store.find(measured)
        if record is None:
            return 0
        last = self.cell.methods[-1].kind if self.cell.methods else ""
        whole = 4 if self.cell.methods or measured.config["precision"] == "float32" else 2
        return int(record.metrics["model_bytes"] if last.startswith("quantize.") else whole * record.metrics["parameters"])

    def load(self) -> LoadedModel:
        """The model, with what is tried once of it behind it; StoreError where it is not trained yet, or was removed."""
        self.check()
        measured = next(iter(self.cell.evaluations.values()))  # any of them knows the model and how it ships
        inputs = {role: self.store.artifact(parent) for role, parent in measured.inputs.items() if role == "model"}
        disable_progress_bar()
        context = StageContext(measured.config, inputs, measured.resources, RunOptions(), Path(), lambda **_: None)
        try:
            loaded = load_model(context)
        except OSError as error:
            raise StoreError(f"`{self.name}` cannot be read ({error}); `{self.again}` makes it again") from None
        generate(loaded, ["a"], 1)
        return loaded


class Models:
    """Models that are loaded, each once, for whoever asks: what was not used for longest is let go before another is loaded
    that does not fit beside it.

    A model is used by one at a time. None is loaded while another is used, for that sets torch's default number format, which
    is the whole process's.
    """

    def __init__(self, memory: int | None, say: Say = lambda _: None) -> None:
        """`memory` is that of all weights together, in bytes; `say` is told when one is loaded."""
        self.memory, self.say = memory, say
        self._loaded: dict[tuple[str, ...], LoadedModel] = {}
        """The one that was used last at the end."""
        self._sizes: dict[tuple[str, ...], int] = {}
        self._in_use: set[tuple[str, ...]] = set()
        self._changed = Condition()

    @property
    def names(self) -> list[str]:
        """Of those that are loaded."""
        return [name for name, *_ in list(self._loaded)]

    def fit_together(self, several: Sequence[Shipped]) -> bool:
        return self.memory is None or sum(map(self._size, several)) <= self.memory

    @contextmanager
    def use(self, shipped: Shipped) -> Iterator[LoadedModel]:
        """The model, for nobody else in the block; waits until it is free.

        NeedsError where it does not fit alone, StoreError where it is not trained yet or was removed, loaded or not.
        """
        key = shipped.key
        with self._changed:
            self._changed.wait_for(lambda: key not in self._in_use and (key in self._loaded or not self._in_use))
            loaded = self._loaded.pop(key, None)
            shipped.check()
            self._loaded[key] = loaded or self._load(shipped)
            self._in_use.add(key)
        try:
            yield self._loaded[key]
        finally:
            with self._changed:
                self._in_use.remove(key)
                self._changed.notify_all()

    def _size(self, shipped: Shipped) -> int:
        return self._sizes.get(shipped.key) or shipped.num_bytes

    def _load(self, shipped: Shipped) -> LoadedModel:
        self._make_room(shipped)
        self.say(f"loading `{shipped.name}`")
        loaded = shipped.load()
        self._sizes[shipped.key] = weight_bytes(loaded)
        self._make_room(shipped)
        return loaded

    def _make_room(self, shipped: Shipped) -> None:
        needed = self._size(shipped)
        if self.memory is None:
            return
        if needed > self.memory:
            raise NeedsError(
                f"--memory: `{shipped.name}` takes {size(needed)}, and {size(self.memory)} are allowed; allow more, or take a "
                "smaller variant"
            )
        while self._loaded and needed + sum(self._sizes[key] for key in self._loaded) > self.memory:
            del self._loaded[next(iter(self._loaded))]
            gc.collect()


def weight_bytes(loaded: LoadedModel) -> int:
    """What the weights of a model take in memory; tied ones once."""
    if isinstance(loaded.model, LlamaCpp):
        return loaded.model.num_bytes
    held = [*loaded.model.parameters(), *loaded.model.buffers()]
    # Layers of whole numbers keep theirs as plain attributes.
    held += [value for module in loaded.model.modules() for value in vars(module).values() if torch.is_tensor(value)]
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}.values())


@dataclass
class Conversation:
    """A variant and what has been said to it."""

    name: str
    use: Callable[[], AbstractContextManager[LoadedModel]]
    of_chats: bool
    """Whether it was trained on chats, which have a form in bases without a template too."""
    plain: bool = False
    """Continues each prompt by itself, whatever its base has."""
    messages: list[Message] = field(default_factory=list)

    @cached_property
    def has_template(self) -> bool:
        with self.use() as loaded:
            return loaded.tokenizer.hf.chat_template is not None

    @property
    def has_turns(self) -> bool:
        return not self.plain and (self.of_chats or self.has_template)

    @property
    def manner(self) -> str:
        """How it is asked, in words."""
        if self.plain:
            return f"`{self.name}` continues each prompt by itself"
        if self.has_template:
            return f"`{self.name}` is asked by the chat template of its base"
        if self.of_chats:
            return f"`{self.name}` is asked as `User: ... Assistant:`, as it was trained: its base has no chat template"
        return f"`{self.name}` continues each prompt by itself: its base has no chat template"

    def begin(self, system: str) -> None:
        """Forget all turns; DataError for a system prompt where there is none to be had."""
        if system and not self.has_turns:
            raise DataError(f"{self.manner}, so there is no system prompt; write it into the prompt")
        messages: list[Message] = [{"role": "system", "content": system}] if system else []
        if messages:  # that the template takes it
            with self.use() as loaded:
                self._prompt(loaded, [*messages, {"role": "user", "content": "x"}])
        self.messages = messages

    def answer(self, said: str, asking: Asking, seed: int, on_text: Callable[[str], None]) -> Reply:
        """The answer to `said` after the turns so far, which `keep` adds it to; DataError where that is too long.

        `on_text` is told the text so far after each token; what it raises ends the answer.
        """
        has_turns, first = self.has_turns, list[float]()

        def heard(text: str) -> None:
            first.append(time.perf_counter())
            on_text(text)

        with self.use() as loaded:
            started = time.perf_counter()
            prompt = self._prompt(loaded, [*self.messages, {"role": "user", "content": said}]) if has_turns else said
            (made,) = generate(loaded, [prompt], asking.max_new_tokens, asking.decoding, seed=seed, on_text=heard)
            ended = time.perf_counter()
        return Reply(made.text, made.new_tokens, (first or [ended])[0] - started, ended - started, made.stopped_by)

    def keep(self, said: str, reply: Reply) -> None:
        if self.has_turns:
            self.messages += [{"role": "user", "content": said}, turn_of(reply.text)]

    def _prompt(self, loaded: LoadedModel, messages: Sequence[Message]) -> str:
        return chat_prompt(loaded.tokenizer, messages, where=self.name)


def conversation(opened: OpenStudy, wanted: Wanted, again: str, models: Models) -> Conversation:
    """The variant that is wanted, not loaded yet; the first of its training seeds unless one is wanted.

    SpecError for one that is not in the study or not the only one; StoreError where it is not trained yet, with `again`, the
    command that does it.
    """
    cells = [cell for cell in opened.plan.cells if cell.variant == wanted.variant]
    seeds = dict.fromkeys(cell.seed for cell in cells if cell.seed is not None)
    if wanted.seed is not None and seeds and wanted.seed not in seeds:
        raise SpecError(f"--trained-with: no `{wanted.seed}`; there is {', '.join(f'`{seed}`' for seed in seeds)}")
    seed = next(iter(seeds), None) if wanted.seed is None else wanted.seed
    cell = find_cell(opened.plan, Wanted(wanted.variant, wanted.base, wanted.data, seed))
    shipped = Shipped(cell, opened.store, again)
    shipped.check()
    return Conversation(wanted.variant, partial(models.use, shipped), of_chats=opened.study.data[cell.dataset].chats)


class Answers:
    """What several variants say to one prompt, while they write: side by side on the cores that there are, or in turn.

    Two write at once where both models fit into memory. What is said is read at any time; `stop` ends it.
    """

    def __init__(
        self, talks: Sequence[Conversation], said: str, asking: Asking, seed: int, *, begins: bool, at_once: bool
    ) -> None:
        """`begins` where nothing was said before: with the system prompt of `asking`."""
        self.talks, self.said, self.asking, self.seed = talks, said, asking, seed
        self.begins, self.at_once = begins, at_once
        self.texts = [""] * len(talks)
        self.replies: list[Reply | None] = [None] * len(talks)
        self.failures = [""] * len(talks)
        """What went wrong, in words."""
        self._stopped = Event()
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def stop(self) -> None:
        """After the token that is under way; what was said so far is no reply."""
        self._stopped.set()

    def keep(self) -> None:
        """Make what was said a turn of each conversation."""
        for talk, reply in zip(self.talks, self.replies, strict=True):
            if reply is not None:
                talk.keep(self.said, reply)

    def _run(self) -> None:
        if not self.at_once:
            for index in range(len(self.talks)):
                self._guarded(index, self._answer, _THREADS)
            return
        for index in range(len(self.talks)):  # none is loaded while another writes
            self._guarded(index, self._load)
        share = max(1, _THREADS // len(self.talks))
        work = [partial(self._guarded, index, self._answer, share) for index in range(len(self.talks))]
        threads = [Thread(target=each, daemon=True) for each in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _load(self, index: int) -> None:
        with self.talks[index].use():
            pass

    def _answer(self, index: int, num_threads: int) -> None:
        def heard(text: str) -> None:
            self.texts[index] = text.rstrip("\ufffd")  # half a character, which the next token completes
            if self._stopped.is_set():
                raise _Stopped

        if self.failures[index]:
            return
        torch.set_num_threads(num_threads)
        if self.begins:
            self.talks[index].begin(self.asking.system)
        reply = self.talks[index].answer(self.said, self.asking, self.seed, heard)
        self.texts[index], self.replies[index] = reply.text, reply

    def _guarded(self, index: int, do: Callable[..., None], *arguments: int) -> None:
        try:
            if not self._stopped.is_set():
                do(index, *arguments)
        except _Stopped:
            pass
        except ParetuneError as error:
            self.failures[index] = str(error)
        except Exception as error:  # noqa: BLE001  told in the place of the answer, and the others go on
            self.failures[index] = f"{type(error).__name__}: {error}"


class _Stopped(Exception):
    pass
