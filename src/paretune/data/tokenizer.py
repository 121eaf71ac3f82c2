"""A base's tokenizer with the few rules that training, scoring and generation share.

The prefix token (BOS, or EOS where there is no BOS) stands before every text and is never scored. Pieces of a text are
tokenized apart and joined literally (the seam rule), so a piece that continues a text must not get the dummy space that
SentencePiece-style tokenizers put before what they take for the beginning of a text.
"""

import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from paretune.data.control import ControlTokens, sources_of
from paretune.data.documents import document_rows
from paretune.data.tokens import kept_counts, read_tokens, refuse_empty_split, writing_tokens
from paretune.data.too_long import shortened_text
from paretune.data.trees import num_windows
from paretune.errors import DataError, NeedsError
from paretune.pipeline.hub import fetch_model
from paretune.pipeline.resources import Resource
from paretune.pipeline.stage import Artifact, StageContext
from paretune.pipeline.stage_configs import TokenizeConfig
from paretune.study.data import SPLITS
from paretune.study.evaluations import Prefix

SCHEMA = pa.schema(
    {
        "split": pa.string(),
        "document": pa.string(),
        "example": pa.string(),
        "ids": pa.list_(pa.int32()),
        "bytes": pa.int64(),
        "lossless": pa.bool_(),
    }
)
OWN_VOCABULARY = "vocabulary.json"
"""In an artifact whose tokenizer is its own, and not that of the base."""
_MARKS = ("\ue000", "\n", ".")
"""What is put before a piece to keep the dummy space off it; the first is private use, so no merge reaches into the piece."""


@dataclass(frozen=True)
class TextTokenizer:
    hf: PreTrainedTokenizerBase
    prefix_id: int
    """BOS, or EOS where the tokenizer has none."""
    eos_id: int
    stop_ids: frozenset[int]
    """All ids that end a generation: EOS, and what the model's generation config adds."""
    pad_id: int
    """Only ever under a mask."""
    num_rows: int | None = None
    """Of the model's embedding; None where that is not known."""

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Of control tokens, which are no text."""
        special = {token_id for token_id, token in self.hf.added_tokens_decoder.items() if token.special}
        return frozenset({self.eos_id, *self.stop_ids, *special})

    def encode(self, text: str, *, literally: bool = False) -> list[int]:
        """Ids of a text from its beginning, without special tokens but those that are written in it; `literally` without these
        too: what looks like one is then text. DataError for a text that the model has no row for."""
        split = {"split_special_tokens": True} if literally else {}
        ids = list(self.hf(text, add_special_tokens=False, verbose=False, **split)["input_ids"])
        if self.num_rows is not None and max(ids, default=0) >= self.num_rows:
            raise DataError(
                f"the text `{text[:40]}` holds the token `{self.hf.convert_ids_to_tokens(max(ids))}`, {max(ids)}, and the "
                f"embedding of the base has {self.num_rows} rows; take it out of the text, or resize the embedding of the base"
            )
        return ids

    def encode_continuation(self, text: str, *, literally: bool = False) -> list[int]:
        """Ids of a piece that follows other text, without the dummy space of a beginning; `literally` as of `encode`.

        NeedsError for a tokenizer that puts a space there all the same: what is scored would be another text.
        """
        start = self.encode("a")
        if not text or not self.hf.convert_ids_to_tokens(start)[0].startswith(("▁", "Ġ")):
            return self.encode(text, literally=literally)
        before, first = self.decode(start), None
        for ids in self._without_space(text, literally):
            joined = self.decode([*start, *ids])
            if joined == before + text:
                return ids
            first = first or (ids, joined)
        if first is None or first[1] == f"{before} {text}":
            raise NeedsError(
                f"its tokenizer puts a space before every piece of a text, also before {text[:20]!r} in the middle of one; "
                "write `add_prefix_space: false` into tokenizer_config.json"
            )
        return first[0]  # of a text that the tokenizer does not give back

    def _without_space(self, text: str, literally: bool) -> Iterator[list[int]]:
        """The ways to the ids of a piece by a tokenizer that puts a space before the beginning of a text."""
        if text.startswith(" "):
            # The dummy space is that of the piece; byte-level tokenizers add none where there is one.
            yield self.encode(text[1:], literally=literally)
            yield self.encode(text, literally=literally)
        for mark in _MARKS:
            marked, begun = self.encode(mark + text, literally=literally), self.encode(mark)
            if marked[: len(begun)] == begun:
                yield marked[len(begun) :]

    @property
    def adds_prefix(self) -> bool:
        """Whether it puts `prefix_id` before every text by itself."""
        return list(self.hf("a")["input_ids"])[:1] == [self.prefix_id]

    def prefix_ids(self, prefix: Prefix) -> list[int]:
        """The tokens before a text; NeedsError for a BOS token that there is not."""
        if prefix == "tokenizer":
            ids, alone = list(self.hf("a")["input_ids"]), self.encode("a")
            return ids[: next(n for n in range(len(ids)) if ids[n : n + len(alone)] == alone)]
        if prefix == "bos" and self.hf.bos_token_id is None and self.prefix_id == self.eos_id:
            raise NeedsError("`prefix: bos`: its tokenizer has no BOS token; write `auto` or `eos`")
        return {"none": [], "eos": [self.eos_id]}.get(prefix, [self.prefix_id])

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.hf.decode(list(ids), clean_up_tokenization_spaces=False))


def pretrained_arguments(base: Mapping[str, Any], resource: Resource) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` takes for a base: a directory, in the cache for one of the hub, and keyword arguments.

    Not the name of a hub repository: `from_pretrained` would ask the hub a dozen times, also for what the cache holds. A run
    has fetched the model before its first stage; an export may find the cache cleared, and says that it downloads.
    """
    arguments: dict[str, Any] = {"trust_remote_code": base["trust_remote_code"]}
    if not resource.hub:
        return str(resource), arguments
    return str(fetch_model(resource.hub, str(resource.commit), lambda text: print(text, file=sys.stderr))), arguments  # noqa: T201  seen before it begins


def usable_positions(config: PretrainedConfig) -> int:
    """Tokens that an encoder reads at most, 512 where its config names no limit: RoBERTa's begin after the padding token's."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None) or 512
    behind = config.model_type in ("roberta", "xlm-roberta", "camembert")
    return int(positions - (config.pad_token_id or 0) - 1 if behind else positions)


def load_tokenizer(base: Mapping[str, Any], resource: Resource, model: Artifact | None = None) -> TextTokenizer:
    """The tokenizer of a base, or of what was made of it, where a method on the way to `model` has rewritten it.

    NeedsError if its files are missing, or it has no end-of-text token that the model can read.
    """
    while model is not None:
        if (model.path / OWN_VOCABULARY).is_file():
            base, resource = {"trust_remote_code": False}, Resource(path=model.path)
            break
        model = model.inputs.get("model")
    name, arguments = pretrained_arguments(base, resource)
    try:
        hf = AutoTokenizer.from_pretrained(name, **arguments)
        config = AutoConfig.from_pretrained(name, **arguments)
    except (OSError, ValueError) as error:
        raise NeedsError(f"{name}: tokenizer cannot be loaded: {str(error).splitlines()[0]}") from None
    try:
        generation = GenerationConfig.from_pretrained(name)
    except OSError:
        generation = GenerationConfig.from_model_config(config)
    eos_id = hf.eos_token_id if hf.eos_token_id is not None else _first(config.eos_token_id)
    if eos_id is None:
        raise NeedsError(f"{name}: its tokenizer has no end-of-text token; add `eos_token` to tokenizer_config.json")
    bos_id = hf.bos_token_id if hf.bos_token_id is not None else _first(config.bos_token_id)
    rows = config.get_text_config().vocab_size
    for token in (eos_id, bos_id):
        if token is not None and token >= rows:
            raise NeedsError(
                f"{name}: its tokenizer has {len(hf)} tokens, its embedding {rows} rows: `{hf.convert_ids_to_tokens(token)}` "
                f"is token {token}, which the model cannot read; take the tokenizer that belongs to it"
            )
    if hf.pad_token_id is not None and hf.pad_token_id >= rows:
        hf.pad_token = hf.convert_ids_to_tokens(eos_id)  # what is padded stands under a mask, so any token does
    return TextTokenizer(
        hf=hf,
        prefix_id=eos_id if bos_id is None else bos_id,
        eos_id=eos_id,
        stop_ids=frozenset({eos_id, *_all(generation.eos_token_id)}),
        pad_id=eos_id if hf.pad_token_id is None else hf.pad_token_id,
        num_rows=rows,
    )


def tokenize(context: StageContext) -> dict[str, Any]:
    """Stage body: the documents of a dataset as the ids of one tokenizer, in `tokens.arrow`.

    Raises DataError for a document longer than `max_length` where the study says `too_long: error`.
    """
    config = context.parse(TokenizeConfig)
    tokenizer = load_tokenizer(context.config["base"], context.resources["base"], context.inputs.get("model"))
    file = context.inputs["data"].path / "documents.parquet"
    skipped, cut, max_length, lengths = 0, 0, config.max_length, array("q")
    longest, longest_length = dict[str, Any](), 0
    dataset = context.inputs["data"].record.config["dataset"]
    control = ControlTokens(tokenizer, config.control_tokens, sources_of(dataset))
    total = control.check((row["example"], [("text", row["text"])]) for row in document_rows(file))
    with writing_tokens(context.draft, SCHEMA) as writer:
        for number, row in enumerate(document_rows(file)):
            treated = control.treated("text", row["text"])
            ids = control.encode(treated, continues=False)
            # The prefix and EOS belong to the example as it is trained.
            length = len(ids) + 2
            if length > longest_length:
                longest, longest_length = row, length
            lengths.append(length)
            text = control.plain(treated)
            lossless = tokenizer.decode(ids) == text
            if length > max_length and config.too_long in ("cut", "keep_end"):
                ids, text = shortened_text(tokenizer, ids, text, max_length - 2, config.too_long)
                cut += 1
            elif length > max_length and config.too_long != "windows":
                skipped += 1
                continue
            writer.add({**row, "ids": ids, "bytes": len(text.encode()), "lossless": lossless})
            if number % 200 == 0:
                context.emit(done=number, total=total)
    if skipped and config.too_long == "error":
        named = f"document `{longest['document']}` (record {longest['example']})"
        raise DataError(too_long(named, lengths, max_length, "`too_long: windows`, `skip`, `cut` or `keep_end`"))
    tokens = read_tokens(context.draft)
    refuse_empty_split(tokens, max_length, "write `too_long: windows`")
    sizes = {split: tokens.of_split(split).lengths("ids") for split in SPLITS}
    metrics = {f"tokens_{split}": int(sizes[split].sum()) for split in SPLITS}
    # Training examples: prefix, ids and EOS in windows that overlap by one token.
    metrics |= {f"windows_{split}": int(num_windows(sizes[split], max_length).sum()) for split in SPLITS}
    lossy = int((~tokens.column("lossless").to_numpy()).sum())
    counts = {"skipped_examples": skipped, "lossy_examples": lossy, "control_examples": control.num_examples}
    counts |= {"cut_examples": cut} if cut else {}
    return {**metrics, **kept_counts(tokens), **counts}


def too_long(longest: str, lengths: Sequence[int], max_length: int, way_out: str) -> str:
    """The message where some of `lengths`, in tokens, are more than `max_length`; `longest` names the longest."""
    enough = int(np.quantile(lengths, 0.95, method="higher"))
    return (
        f"{sum(length > max_length for length in lengths)} of {len(lengths)} are too long: the longest, {longest} has "
        f"{max(lengths)} tokens and `train.max_length` is {max_length}; raise it, or write {way_out}; "
        f"{enough} tokens would hold 95 % of them"
    )


def _first(ids: int | list[int] | None) -> int | None:
    return next(iter(_all(ids)), None)


def _all(ids: int | list[int] | None) -> list[int]:
    return [] if ids is None else [ids] if isinstance(ids, int) else ids
