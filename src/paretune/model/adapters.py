"""Low-rank adapters through PEFT, and what of a model is trained."""

import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from paretune.errors import SpecError
from paretune.study.methods import TrainLora


def add_lora(model: PreTrainedModel, method: TrainLora, seed: int) -> PeftModel:
    """Freeze `model` and put trainable float32 adapters beside its target modules, in place.

    The seed is set here, before the adapter draws its weights. Raises SpecError for targets that the model does not have.
    """
    torch.manual_seed(seed)
    targets = method.targets
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D))
    known = ", ".join(f"`{name}`" for name in sorted({name.rpartition(".")[2] for name in linear}))
    names = [name for name, _ in model.named_modules()]
    for target in [] if isinstance(targets, str) else targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise SpecError(f"train.lora.targets: no module `{target}` in `{model.config.model_type}`; linear modules: {known}")
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=method.r,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        bias=method.bias,
        target_modules=None if targets == "default" else targets if isinstance(targets, str) else list(targets),
        # GPT-2's Conv1D keeps its weight transposed; PEFT must be told.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")
            return get_peft_model(model, config)
    except ValueError as error:
        if targets != "default":
            raise
        raise SpecError(
            f"train.lora.targets: no default is known for `{model.config.model_type}` ({str(error).splitlines()[0]}); "
            f"write `all-linear` or a list out of {known}"
        ) from None


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """All parameters and the trainable ones, tied tensors once."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def freeze_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Frozen matrices of linear layers and embeddings in `dtype`; norms, biases and whatever is trained stay as they are.

    What an embedding gives is float32 again, so the residual stream is under autocast, in LoRA as in full fine-tuning. Whatever
    stays is copied: a tensor of a safetensors file holds on to the memory of the whole file.
    """
    others = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding) and type(m) is not nn.Embedding}
    for module in model.modules():
        if not isinstance(module, nn.Linear | Conv1D | nn.Embedding) or module.weight.requires_grad:
            continue
        if id(module.weight) in others:  # of embeddings that compute in the dtype of their weight, tied to a head or not
            continue
        module.weight.data = module.weight.data.to(dtype)
        if type(module) is nn.Embedding:
            module.register_forward_hook(lambda module, arguments, output: output.float())
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype != dtype:
            tensor.data = tensor.data.clone()


def set_base_dropout(model: nn.Module, rate: float | str) -> list[float]:
    """Set every dropout of the base to `rate` unless it is `keep`; returns the rates now in force, without zeros."""
    rates = set()
    for module in model.modules():
        # `p` of a Dropout, or a plain number such as Llama's `attention_dropout`.
        numbers = (name for name, value in vars(module).items() if "dropout" in name and isinstance(value, float))
        for name in ["p"] if isinstance(module, nn.Dropout) else list(numbers):
            if rate != "keep":
                setattr(module, name, float(rate))
            rates.add(float(getattr(module, name)))
    return sorted(rates - {0.0})
