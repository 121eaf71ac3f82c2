"""llama.cpp as a runtime: loss at target positions, and next-token logits of sequences side by side, of a GGUF file.

The package `xllamacpp` carries llama.cpp prebuilt, and its library exports the C interface of `llama.h`, which is called here
through ctypes. Three structs of that interface are used. The batch has been as it is for years; of the parameters of a context
the first fields and one flag are written, those of a model stay as they come. That the fields lie where they are taken to lie
is shown each time: the context is asked for what it was made with, and NeedsError says so where it answers otherwise.
"""

import ctypes
import functools
import importlib.util
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import PretrainedConfig

from paretune.data.trees import Example
from paretune.errors import NeedsError, StageError

PASS_TOKENS = 512
"""Tokens that are read in one pass: llama.cpp's own width."""
_N_CTX, _N_BATCH, _N_UBATCH, _N_SEQ_MAX = 0, 1, 2, 3
"""Positions of 32-bit fields of `llama_context_params`."""
_KV_UNIFIED = 141
"""Position of a byte of it: one pool of entries for all sequences."""


class _ContextParams(ctypes.Structure):
    """`llama_context_params`, in room that is larger than it: the callee reads what it knows."""

    _fields_ = (("words", ctypes.c_uint32 * 128),)


class _ModelParams(ctypes.Structure):
    """`llama_model_params`, as it comes."""

    _fields_ = (("words", ctypes.c_uint64 * 64),)


class _Batch(ctypes.Structure):
    """`llama_batch`."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


@functools.cache
def _library() -> Any:
    """llama.cpp, silent; NeedsError where the package is missing."""
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or not spec.submodule_search_locations:
        raise NeedsError("llama.cpp: the package `xllamacpp` is missing; `pip install 'paretune[gguf]'`")
    (file,) = Path(spec.submodule_search_locations[0]).glob("xllamacpp*.so")
    lib = ctypes.CDLL(str(file))
    handle, number = ctypes.c_void_p, ctypes.c_int32
    for name, result, arguments in (
        ("llama_model_default_params", _ModelParams, ()),
        ("llama_context_default_params", _ContextParams, ()),
        ("llama_model_load_from_file", handle, (ctypes.c_char_p, _ModelParams)),
        ("llama_model_free", None, (handle,)),
        ("llama_model_size", ctypes.c_uint64, (handle,)),
        ("llama_init_from_model", handle, (handle, _ContextParams)),
        ("llama_free", None, (handle,)),
        ("llama_model_get_vocab", handle, (handle,)),
        ("llama_vocab_n_tokens", number, (handle,)),
        ("llama_tokenize", number, (handle, ctypes.c_char_p, number, ctypes.POINTER(number), number, *[ctypes.c_bool] * 2)),
        ("llama_n_ctx", ctypes.c_uint32, (handle,)),
        ("llama_n_ctx_seq", ctypes.c_uint32, (handle,)),
        ("llama_n_batch", ctypes.c_uint32, (handle,)),
        ("llama_n_ubatch", ctypes.c_uint32, (handle,)),
        ("llama_n_seq_max", ctypes.c_uint32, (handle,)),
        ("llama_set_n_threads", None, (handle, number, number)),
        ("llama_get_memory", handle, (handle,)),
        ("llama_memory_seq_cp", None, (handle, *[number] * 4)),
        ("llama_memory_seq_rm", ctypes.c_bool, (handle, *[number] * 3)),
        ("llama_batch_init", _Batch, (number, number, number)),
        ("llama_batch_free", None, (_Batch,)),
        ("llama_decode", number, (handle, _Batch)),
        ("llama_get_logits", ctypes.POINTER(ctypes.c_float), (handle,)),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    lib.silence = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    lib.llama_log_set(lib.silence, None)
    lib.llama_backend_init()
    return lib


class LlamaCpp:
    """A GGUF file in llama.cpp, on the CPU."""

    device = torch.device("cpu")

    def __init__(self, file: Path, config: PretrainedConfig) -> None:
        """`config` is that of the model that the file was made of. StageError where llama.cpp does not load the file."""
        self.file, self.config = file, config
        self._lib = _library()
        self._model = self._lib.llama_model_load_from_file(str(file).encode(), self._lib.llama_model_default_params())
        if not self._model:
            raise StageError(f"{file}: llama.cpp cannot load it: an architecture that it does not know, or a damaged file")
        self._vocabulary = self._lib.llama_model_get_vocab(self._model)
        self.num_bytes: int = self._lib.llama_model_size(self._model)
        self.num_words: int = self._lib.llama_vocab_n_tokens(self._vocabulary)

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self._lib.llama_model_free(self._model)

    def encode(self, text: str) -> list[int]:
        """The ids of a text by llama.cpp's own tokenizer, nothing before or behind them, control tokens as text."""
        data = text.encode()
        room = (ctypes.c_int32 * (len(data) + 8))()
        count = self._lib.llama_tokenize(self._vocabulary, data, len(data), room, len(room), False, False)
        return room[: max(count, 0)]

    @contextmanager
    def session(self, num_tokens: int, num_sequences: int = 1) -> Iterator["Session"]:
        """Room for `num_tokens` tokens of all sequences together."""
        params = self._lib.llama_context_default_params()
        wanted = {
            "ctx": max(PASS_TOKENS, -(-num_tokens // 256) * 256),
            "batch": PASS_TOKENS,
            "ubatch": PASS_TOKENS,
            "seq_max": num_sequences,
        }
        for position, value in zip((_N_CTX, _N_BATCH, _N_UBATCH, _N_SEQ_MAX), wanted.values(), strict=True):
            params.words[position] = value
        ctypes.cast(ctypes.byref(params), ctypes.POINTER(ctypes.c_uint8))[_KV_UNIFIED] = 1
        context = self._lib.llama_init_from_model(self._model, params)
        if not context:
            raise StageError(f"{self.file}: llama.cpp makes no context of {num_tokens} tokens; is there too little memory?")
        try:
            made = {name: getattr(self._lib, f"llama_n_{name}")(context) for name in wanted}
            if made != wanted or self._lib.llama_n_ctx_seq(context) != made["ctx"]:
                raise NeedsError(
                    f"llama.cpp: `xllamacpp` is of another version than is known here (asked for {wanted}, got {made}); "
                    "`pip install 'paretune[gguf]'` takes the right one"
                )
            threads = torch.get_num_threads()
            self._lib.llama_set_n_threads(context, threads, threads)
            yield Session(self._lib, context, self.num_words)
        finally:
            self._lib.llama_free(context)

    def score(self, examples: Sequence[Example]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Of each example, in their order: -log p of its targets (nats, float64), and whether each is the most likely token.

        A trunk is read once for the examples that follow each other on it.
        """
        if not examples:
            return
        longest = max(example.num_tokens for example in examples)
        with self.session(2 * longest + 1, num_sequences=2) as session:
            trunk, last = None, torch.empty(0, self.num_words)
            for example in examples:
                if example.trunk is None:
                    trunk, before = None, 0
                    session.drop(0)
                    session.drop(1)
                else:
                    before = len(example.trunk)
                    if trunk is not example.trunk:
                        session.drop(0)
                        last = session.read(0, example.trunk.tolist(), 0, last=1)
                        trunk = example.trunk
                    session.drop(1)
                    session.copy(0, 1)
                nats, correct = [], []
                # The logits behind the last token predict nothing.
                logits_parts = session.read_parts(1, example.ids[:-1].tolist(), before, first=max(0, example.first_target - 1))
                parts = [last] if example.first_target == 0 else []
                done = example.first_target
                for logits_TV in itertools.chain(parts, logits_parts):
                    targets = torch.from_numpy(example.ids[done : done + len(logits_TV)].astype(np.int64))
                    nats.append(cross_entropy(logits_TV, targets, reduction="none").double().numpy())
                    correct.append((logits_TV.argmax(-1) == targets).numpy())
                    done += len(logits_TV)
                yield np.concatenate(nats), np.concatenate(correct)


class Session:
    """A context of llama.cpp: sequences with what has been read of each."""

    def __init__(self, lib: Any, context: Any, num_words: int) -> None:
        self._lib, self._context, self._num_words = lib, context, num_words
        self._memory = lib.llama_get_memory(context)

    def copy(self, source: int, target: int) -> None:
        """`target` goes on where `source` is; nothing is computed anew."""
        self._lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def drop(self, sequence: int) -> None:
        """Forget a sequence."""
        self._lib.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def read(self, sequence: int, ids: Sequence[int], position: int, *, last: int) -> torch.Tensor:
        """Read `ids`, of which the first stands at `position`; the logits behind the last ones, shape [last, V]."""
        parts = list(self.read_parts(sequence, ids, position, first=len(ids) - last))
        return torch.cat(parts) if parts else torch.empty(0, self._num_words)

    def read_parts(self, sequence: int, ids: Sequence[int], position: int, *, first: int) -> Iterator[torch.Tensor]:
        """The same pass by pass: logits behind `ids[first:]`."""
        for start in range(0, len(ids), PASS_TOKENS):
            part = ids[start : start + PASS_TOKENS]
            wanted = [start + index >= first for index in range(len(part))]
            logits = self.step([sequence] * len(part), range(position + start, position + start + len(part)), part, wanted)
            if len(logits):
                yield logits

    def step(
        self, sequences: Sequence[int], positions: Sequence[int], ids: Sequence[int], wanted: Sequence[bool] | None = None
    ) -> torch.Tensor:
        """One pass over at most 512 tokens of any sequences; logits behind those that are `wanted` (all), shape [wanted, V]."""
        count = len(ids)
        batch = self._lib.llama_batch_init(count, 0, 1)
        try:
            batch.n_tokens = count
            for index in range(count):
                batch.token[index], batch.pos[index] = int(ids[index]), positions[index]
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequences[index]
                batch.logits[index] = wanted is None or wanted[index]
            if code := self._lib.llama_decode(self._context, batch):
                raise StageError(f"llama.cpp cannot read {count} tokens (code {code}); is there too little memory?")
        finally:
            self._lib.llama_batch_free(batch)
        num_rows = count if wanted is None else sum(wanted)
        if not num_rows:
            return torch.empty(0, self._num_words)
        pointer = self._lib.llama_get_logits(self._context)
        # Copied: the next pass writes into the same memory.
        return torch.from_numpy(np.ctypeslib.as_array(pointer, (num_rows, self._num_words)).copy())
