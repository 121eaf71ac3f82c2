"""Our engine as a model of lm-evaluation-harness: its tasks and numbers, with questions laid out as token trees.

    python -m paretune.evaluate.lm_eval --model paretune --model_args pretrained=DIR[,adapter=DIR] --tasks arc_easy ...

takes the arguments of the `lm_eval` command, which finds models of others in no other way: the harness reads no entry points.
Texts become tokens as its own `hf` model makes them (special tokens of the tokenizer, context cut on the left), so that numbers
are equal; a context is encoded once for all of its continuations, and texts of unlike length are packed without padding.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, resolve_max_length
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from paretune.data.tokenizer import load_tokenizer
from paretune.data.trees import Example
from paretune.errors import DataError
from paretune.evaluate.answers import Prompt, write_answers
from paretune.model.forward import num_positions, score
from paretune.model.load import LoadedModel, load_pretrained
from paretune.pipeline.resources import Resource
from paretune.study.evaluations import Prefix

Encoded = tuple[tuple[str, str] | None, list[int], list[int]]
"""The texts of a request, and the tokens of its context and its continuation."""
MAX_NEW_TOKENS = 256
"""Of an answer, where a task does not say; as the harness' `hf` has it."""


@register_model("paretune")
class ParetuneLM(TemplateLM):
    """A causal language model, scored along token trees and answered by branches."""

    def __init__(
        self,
        pretrained: str | LoadedModel,
        adapter: str | None = None,
        *,
        dtype: str = "float32",
        device: str | None = None,
        forward_tokens: int | str = 4096,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        prefix: Prefix = "tokenizer",
        emit: Callable[..., None] = lambda **_: None,
    ) -> None:
        """`pretrained` and `adapter` are directories, or a model as a stage has it; batch sizes are the engine's own affair."""
        super().__init__()
        self.loaded = _load(pretrained, adapter, dtype, device) if isinstance(pretrained, str) else pretrained
        self.packed = self.loaded.packed
        self.tokenizer = self.loaded.tokenizer.hf
        self.forward_tokens = int(forward_tokens)
        self.emit = emit
        self.prefix = prefix
        self.prefix_ids = self.loaded.tokenizer.prefix_ids(prefix)
        self._device = self.loaded.device

    @property
    def eot_token_id(self) -> int:
        return self.loaded.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self.prefix_ids[-1] if self.prefix_ids else self.loaded.tokenizer.prefix_id

    @property
    def max_length(self) -> int:
        return int(resolve_max_length(self.loaded.model.config, self.tokenizer))

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The turns in the tokenizer's own template."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids as the tokenizer makes them by itself, or behind another prefix; no second BOS before a text that has one."""
        if add_special_tokens is None and string.startswith(self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        if add_special_tokens is None and self.prefix != "tokenizer":
            return [*self.prefix_ids, *self.loaded.tokenizer.encode(string)]
        asked = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **asked))

    def _loglikelihood_tokens(self, requests: Sequence[Encoded], **_: Any) -> list[tuple[float, bool]]:
        """The sum of log p (nats) of each continuation, and whether greedy decoding would write it."""
        trunks: dict[tuple[int, ...], np.ndarray] = {}
        examples = []
        for _texts, context, continuation in requests:
            # The last token is predicted and never read, so one more than the model has positions fits.
            room = self.max_length + 1 - len(continuation)
            if room < 1:
                raise DataError(f"a continuation has {len(continuation)} tokens, and the model {self.max_length} positions")
            kept = tuple(context[-room:])
            trunk = trunks.setdefault(kept, np.array(kept, np.int32))
            examples.append(Example(np.array(continuation, np.int32), 0, trunk))
        told = partial(self.emit, part="likelihoods")
        results = score(self.packed, examples, forward_tokens=self.forward_tokens, emit=told)
        answers = [(-float(result.nats.sum()), bool(result.correct.all())) for result in results]
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """The sum of log p (nats) of each whole text, in windows as the harness cuts them: apart, but for the last."""
        windows: list[Encoded] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            ids = self.tok_encode(*request.args, add_special_tokens=None if self.prefix == "tokenizer" else False)
            rolling = get_rolling_token_windows(ids, self.prefix_token_id, max_seq_len=self.max_length, context_len=1)
            pairs = [make_disjoint_window(pair) for pair in rolling]
            windows += [(None, list(context), list(continuation)) for context, continuation in pairs]
            owners += [number] * len(pairs)
        nats = [value for value, _ in self._loglikelihood_tokens(windows)]
        totals = np.bincount(owners, nats, minlength=len(requests)).tolist()
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy answers up to the first of the texts that end them; DataError for a task that samples."""
        prompts = []
        for context, settings in (request.args for request in requests):
            given = normalize_gen_kwargs(dict(settings), MAX_NEW_TOKENS)
            if given["do_sample"]:
                raise DataError(
                    "a task samples its answers (`do_sample: true`), and answers are greedy here; set it to `false`"
                )
            limit = given["max_gen_toks"]
            if limit >= self.max_length:
                raise DataError(
                    f"answers of {limit} tokens (`max_gen_toks`) leave no room in {self.max_length} positions; lower it"
                )
            ids = self.tok_encode(context)[-(self.max_length - limit) :] or [self.prefix_token_id]
            stops = tuple(text for text in handle_stop_sequences(given.get("until"), eos=None) if text)
            prompts.append(Prompt(np.array(ids, np.int32), np.array([], np.int32), limit, stops))
        texts = [answer.text for answer in write_answers(self.loaded, prompts, emit=partial(self.emit, part="answers"))]
        # The harness decodes the new tokens by themselves, without the space that SentencePiece puts before a first word.
        if self.tokenizer.convert_ids_to_tokens(self.tok_encode("a", add_special_tokens=False))[0].startswith("▁"):
            texts = [text.removeprefix(" ") for text in texts]
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts


def _load(pretrained: str, adapter: str | None, dtype: str, device: str | None) -> LoadedModel:
    # The harness' command says `cuda` unless it is told otherwise.
    of_model = torch.device((device or "cuda") if torch.cuda.is_available() else "cpu")
    model = load_pretrained(pretrained, getattr(torch, dtype))
    if adapter is not None:
        from peft import PeftModel  # after `paretune.model`, which keeps it from importing bitsandbytes

        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    tokenizer = load_tokenizer({"trust_remote_code": False}, Resource(path=Path(pretrained)))
    return LoadedModel(model.to(of_model).eval(), tokenizer, of_model, num_positions(model))


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
