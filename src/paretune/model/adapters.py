"""Low-rank adapters through PEFT, and what of a model is trained."""

import copy
import re
import warnings
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULT_TARGETS
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from paretune.errors import SpecError, StageError
from paretune.study.methods import Lora

_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Mixture:
    """The parts of a mixture of experts, by what they are and not by their names; empty lists for a dense model."""

    experts: list[str]
    """Fused parameters of all routed experts of a layer: `experts` matrices in one tensor."""
    modules: list[str]
    """Linear modules of a routed expert of its own."""
    routers: list[str]
    """Modules that choose among the experts."""


def add_lora(model: PreTrainedModel, method: Lora, seed: int) -> PeftModel:
    """Freeze `model` and put trainable float32 adapters beside its target modules, in place; a target that shares its weight
    with an embedding or a head gets one of its own.

    The seed is set here, before the adapter draws its weights. Raises SpecError for targets that the model does not have.
    """
    torch.manual_seed(seed)
    targets, mixture = method.targets, mixture_of(model)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    known = ", ".join(f"`{name}`" for name in sorted({name.rpartition(".")[2] for name in linear}))
    names = [name for name, _ in model.named_modules()]
    for target in [] if isinstance(targets, str) else targets:
        if not any(_ends_in(name, target) for name in names):
            raise SpecError(f"train.lora.targets: no module `{target}` in `{model.config.model_type}`; linear modules: {known}")
    if targets == "default":
        targets = DEFAULT_TARGETS.get(model.config.model_type)
        if targets is None:
            raise SpecError(
                f"train.lora.targets: no default is known for `{model.config.model_type}`; "
                f"write `all-linear` or a list out of {known}"
            )
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=method.r,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        bias=method.bias,
        target_modules=targets,
        # GPT-2's Conv1D keeps its weight transposed; PEFT must be told.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
    )
    wanted = None
    if mixture.experts or mixture.modules:
        head = {name for name, module in model.named_modules() if module is model.get_output_embeddings()}
        left_out = head | set(mixture.routers) | set(mixture.modules)
        chosen = [name for name in linear if name not in left_out]
        if targets != "all-linear":
            regular = isinstance(targets, str)  # the default of some architectures
            chosen = [name for name in names if name not in mixture.modules]
            chosen = [
                name
                for name in chosen
                if (re.fullmatch(targets, name) if regular else any(_ends_in(name, target) for target in targets))
            ]
        experts = mixture.experts if method.experts else []
        wanted = {*chosen, *(mixture.modules if method.experts else [])}
        _name_targets(model, config, sorted(wanted), experts)
        wanted = {f"{name}.weight" for name in wanted} | set(experts)
    elif method.experts:
        raise SpecError(f"train.lora.experts: `{model.config.model_type}` has no routed experts; leave the field out")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")  # what is tied is untied below
        adapted = get_peft_model(model, config)
    if wanted is not None and (missed := wanted ^ adapted_weights(adapted).keys()):
        raise StageError(f"train.lora: PEFT adapts other parts of `{model.config.model_type}` than asked, like `{min(missed)}`")
    untie_adapted(adapted)
    return adapted


def mixture_of(model: PreTrainedModel) -> Mixture:
    """The routed experts of `model`, fused (a parameter of three dimensions) or a list of modules in each block, and routers:
    what stands beside the experts of a layer and gives as many numbers as there are experts."""
    modules = dict(model.named_modules())
    fused = {
        f"{name}.{key}": parameter
        for name, module in modules.items()
        if not isinstance(module, _ConvNd)
        for key, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3
    }
    fields = model.config.get_text_config().to_dict().items()
    counts = {value for key, value in fields if "expert" in key and isinstance(value, int)}
    listed: dict[str, int] = {}
    for name, module in modules.items():
        parts = name.split(".")
        outer = (".".join(parts[:depth]) for depth in range(len(parts) - 1, 0, -1))
        lists = [each for each in outer if isinstance(modules[each], nn.ModuleList)]
        if isinstance(module, nn.Linear) and len(lists) > 1 and len(modules[lists[0]]) in counts:  # type: ignore[arg-type]
            listed[name] = len(modules[lists[0]])  # type: ignore[arg-type]
    layers = {name.rpartition(".")[0].rpartition(".")[0]: len(parameter) for name, parameter in fused.items()}
    layers |= {name.rpartition(".")[0].rpartition(".")[0].rpartition(".")[0]: count for name, count in listed.items()}
    routers = [
        name
        for name, module in modules.items()
        if name not in listed and isinstance(weight := getattr(module, "weight", None), nn.Parameter) and weight.ndim == 2
        if any(len(weight) == count and name.startswith(f"{layer}.") for layer, count in layers.items())
    ]
    return Mixture(list(fused), list(listed), routers)


def adapted_weights(adapted: PeftModel) -> dict[str, nn.Parameter]:
    """The weights of the base that have an adapter beside them, by name in the base."""
    weights = {}
    for name, module in adapted.named_modules():
        if isinstance(module, LoraLayer):
            key = getattr(module, "parameter_name", "weight")
            base = name.removeprefix(_PREFIX).replace(".base_layer", "")
            weights[f"{base}.{key}"] = getattr(module.get_base_layer(), key)
    return weights


def untie_adapted(adapted: PeftModel) -> int:
    """Give the head a weight of its own where it shares an adapted one with the embedding: an adapter is of one of the two, and
    merged into what they share would change both. Returns the parameters that this adds.

    SpecError where an adapted weight is shared otherwise, which no config can say without.
    """
    model, adapters = adapted.get_base_model(), {id(weight) for weight in adapted_weights(adapted).values()}
    owners: dict[int, list[nn.Module]] = {}
    for _, module in model.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            if id(parameter) in adapters:
                owners.setdefault(id(parameter), []).append(module)
    head, embedding = (
        module.get_base_layer() if isinstance(module, LoraLayer) else module
        for module in (model.get_output_embeddings(), model.get_input_embeddings())
    )
    added = 0
    for modules in owners.values():
        if len(modules) == 1:
            continue
        if {id(module) for module in modules} != {id(head), id(embedding)}:
            raise SpecError(
                f"train.lora.targets: a target of `{model.config.model_type}` shares its weight with another part of the "
                "model, which would get the update of the adapter too; leave it out"
            )
        untie_head(model)
        added += head.weight.numel()
    return added


def untie_head(model: PreTrainedModel) -> None:
    """Give the head of `model`, which has an adapter or none, a copy of the matrix that it shares with the embedding."""
    head = model.get_output_embeddings()
    head = head.get_base_layer() if isinstance(head, LoraLayer) else head
    head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}


def _name_targets(model: PreTrainedModel, config: LoraConfig, modules: list[str], experts: list[str]) -> None:
    """Write exactly `modules` and the parameters `experts` into `config`. PEFT reads the names of some mixtures as those of the
    experts of an older transformers, and takes others than were named: such a module is named by its weight, which is taken as
    it stands."""
    config.target_modules = set(modules)
    tried = copy.deepcopy(config)
    convert_peft_config_for_transformers(tried, model, None)
    known = {name for name in modules if isinstance(model.get_submodule(name), nn.Linear | Conv1D | nn.Embedding)}
    kept = set(tried.target_modules or ()) & known
    config.target_modules = kept
    config.target_parameters = sorted([*experts, *(f"{name}.weight" for name in modules if name not in kept)]) or None
    if config.target_parameters and config.lora_dropout:
        raise SpecError(
            f"train.lora.dropout: adapters of fused weights, like `{config.target_parameters[0]}`, take none; write "
            "`dropout: 0`"
        )


def _ends_in(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


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
