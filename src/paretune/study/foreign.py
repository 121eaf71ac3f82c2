"""What a name that is not known where it stands is called here: a field of another part of the study, or another tool's word.

Where our fields stand is read off the types that parse a study, so that a new field is known at once. What other tools call
things is one table, FOREIGN. A row that names nothing that is there yet says so, and what to do instead.
"""

import functools
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, get_args

from pydantic import BaseModel

from paretune.study.base import Spec, suggestion

METHOD, EVALUATION, COMMAND = "variants:", "evaluate:", "$ "
"""How addresses begin: of methods and evaluations, with their fields after the name (`variants:train.lora.r`), and of commands
and flags (`$ run --memory`). Other addresses are sections and their fields (`train.epochs`, `data.NAME.source.path`)."""
_NEAREST = 3
"""Places of a field that are told at most."""


@dataclass(frozen=True)
class Foreign:
    """What other tools call something of ours."""

    names: str
    """Theirs, with spaces between; small letters, `_` for `-`."""
    ours: str = ""
    """Addresses, with spaces between; `*` stands for any letters."""
    note: str = ""
    """What differs."""
    missing: str = ""
    """What is said where nothing of `ours` is there."""


FOREIGN = (
    # Training: TrainingArguments and SFTConfig, Axolotl, LLaMA-Factory, torchtune.
    Foreign("num_train_epochs num_epochs n_epochs total_epochs max_epochs", "train.epochs"),
    Foreign(
        "total_steps num_steps train_steps max_steps_per_epoch iterations iters", "train.max_steps", "steps of the optimizer"
    ),
    Foreign(
        "per_device_train_batch_size train_batch_size micro_batch_size global_batch_size bs per_gpu_train_batch_size",
        "train.batch_size",
        "examples in one step of the optimizer, however they are cut to fit memory",
    ),
    Foreign(
        "gradient_accumulation_steps grad_accum grad_accumulation_steps accumulation_steps",
        "train.batch_size",
        "it is that of a whole step, which is cut to fit memory by itself, or by `paretune run --accumulate`",
    ),
    Foreign(
        "per_device_eval_batch_size eval_batch_size",
        missing="there is no size of batches to evaluate in: what fits memory is taken",
    ),
    Foreign("auto_find_batch_size", "train.batch_size", "a step is cut to fit memory by itself"),
    Foreign("lr peak_lr base_lr", "variants:train.full.learning_rate variants:train.lora.learning_rate"),
    Foreign(
        "max_seq_length max_seq_len seq_length sequence_len cutoff_len block_size context_length max_len "
        "model_max_length n_ctx",
        "train.max_length",
    ),
    Foreign("lr_scheduler_type lr_scheduler scheduler scheduler_type", "train.schedule"),
    Foreign("warmup_ratio warmup_steps num_warmup_steps lr_warmup_steps", "train.warmup", "a share of all steps"),
    Foreign("wd decay", "train.weight_decay"),
    Foreign("gradient_clipping gradient_clip_val grad_clip max_norm clip_grad_norm", "train.max_grad_norm"),
    Foreign(
        "eval_steps eval_strategy evaluation_strategy eval_every evals_per_epoch val_check_interval", "train.evaluate_every"
    ),
    Foreign("early_stopping_patience patience", "train.early_stopping", "`{patience: 3}`"),
    Foreign("load_best_model_at_end save_best metric_for_best_model", "train.keep", "`best` or `last`"),
    Foreign(
        "save_steps save_strategy save_total_limit saves_per_epoch save_every resume_from_checkpoint checkpoint_interval",
        missing="checkpoints are kept by themselves, and a run that was stopped goes on from the last one",
    ),
    Foreign("logging_steps logging_dir logging_strategy log_every", missing="every step is in curves.csv by itself"),
    Foreign("output_dir out_dir save_dir", "$ run --out", "the outputs go to results/NAME unless given"),
    Foreign(
        "optim optimizer adam_beta1 adam_beta2 adam_epsilon",
        missing="training is by AdamW with betas 0.9 and 0.999, the same for all",
    ),
    Foreign("bf16 fp16 tf32 mixed_precision torch_dtype dtype float16 bfloat16 half pure_bf16", "precision.compute"),
    Foreign("gradient_checkpointing activation_checkpointing use_gradient_checkpointing", "$ run --recompute"),
    Foreign(
        "packing sample_packing neat_packing pack_sequences group_by_length",
        missing="examples are packed by themselves, and kept apart",
    ),
    Foreign(
        "train_on_inputs train_on_prompt completion_only_loss assistant_only_loss mask_prompt dataset_text_field mask_inputs",
        "data.NAME.tasks data.NAME.text",
        "the loss is taken on completions of `tasks` alone, and on all of a `text`",
    ),
    Foreign("seed random_seed random_state data_seed", "seeds", "of training, a list; the split has its own"),
    Foreign("device device_map cuda gpu n_gpu", "$ run --device"),
    Foreign("use_cpu no_cuda", "$ run --device", "`--device cpu`"),
    Foreign("max_memory memory_limit", "$ run --memory"),
    Foreign("num_workers num_proc dataloader_num_workers preprocessing_num_workers dataset_num_proc", "$ run --workers"),
    Foreign(
        "deepspeed fsdp ddp_timeout tensor_parallel_size",
        missing="one machine with one device is used; there is nothing to shard",
    ),
    Foreign(
        "neftune_noise_alpha",
        missing="there is no NEFTune; for fewer repetitions of the training text set `train.lora.dropout`",
    ),
    Foreign(
        "flash_attention flash_attn attn_implementation use_flash_attention_2",
        missing="attention is chosen for the machine by itself",
    ),
    # Adapters: LoraConfig, Unsloth.
    Foreign("rank lora_r lora_rank lora_dim adapter_rank", "variants:train.lora.r"),
    Foreign("lora_alpha", "variants:train.lora.alpha"),
    Foreign("lora_dropout", "variants:train.lora.dropout"),
    Foreign("lora_bias", "variants:train.lora.bias"),
    Foreign(
        "target_modules lora_target_modules lora_target lora_modules modules lora_target_linear", "variants:train.lora.targets"
    ),
    Foreign("target_parameters", "variants:train.lora.experts"),
    Foreign("lora peft adapter train_lora finetuning_type peft_type use_peft peft_config lora_config", "variants:train.lora"),
    Foreign("full finetune fine_tune full_finetune fft sft train.sft full_finetuning train_full freeze", "variants:train.full"),
    Foreign(
        "qlora train.qlora load_in_4bit load_in_8bit quantization_bit bnb_4bit_quant_type bnb_4bit_compute_dtype",
        "variants:train.lora.load",
    ),
    Foreign(
        "use_rslora use_dora modules_to_save init_lora_weights loraplus_lr_ratio",
        missing="adapters are plain LoRA; take it out",
    ),
    Foreign(
        "dpo orpo kto ppo grpo rlhf reward train.dpo train.orpo train.kto train.grpo beta pref_beta",
        "variants:train.dpo variants:train.orpo variants:train.kto",
        missing="training on preferences is not there; train on the better answers as completions of `tasks`",
    ),
    Foreign(
        "ia3 prefix_tuning prompt_tuning train.ia3 train.prefix train.prompt_tuning p_tuning bitfit train.dora galore",
        "variants:train.ia3 variants:train.prefix",
        missing="of adapters there is LoRA: `train.lora`",
    ),
    # Making smaller.
    Foreign(
        "ratio sparsity pruning_ratio prune_ratio amount share", "variants:prune.blocks.fraction variants:prune.mlp.fraction"
    ),
    Foreign(
        "num_layers n_layers num_blocks layers_to_remove num_layers_to_prune drop_layers num_hidden_layers",
        "variants:prune.blocks.count",
    ),
    Foreign("layers layer_ids layer_indices drop block_indices layer_range", "variants:prune.blocks.blocks"),
    Foreign("strategy criterion importance importance_metric method_of_choice pruning_method", "variants:prune.blocks.choose"),
    Foreign(
        "prune pruning prune.layers prune.depth drop_layers layer_drop depth shortgpt shortened_llama", "variants:prune.blocks"
    ),
    Foreign("prune.width prune.channels prune.neurons prune.ffn width", "variants:prune.mlp"),
    Foreign("num_heads n_heads heads_to_prune prune.attention_heads", "variants:prune.heads.count"),
    Foreign(
        "iterative progressive prune.iterative gradual",
        "variants:shrink",
        "one block after the other, each healed and measured",
    ),
    Foreign("replaceme linear_patch linearpatch seam_fix compensation", "variants:prune.blocks.seam"),
    Foreign(
        "prune.attention prune.mlp_blocks prune.sublayers drop_attention drop_mlp",
        "variants:prune.blocks variants:prune.heads variants:prune.mlp",
        "a block without its attention or its MLP is no model that transformers loads",
    ),
    Foreign(
        "skip.blocks early_exit layer_skip dynamic_depth",
        "variants:prune.blocks variants:shrink",
        "depth is fixed here: what is skipped for some texts alone needs code of its own wherever it is served",
    ),
    Foreign(
        "prune.wanda wanda sparsegpt prune.sparse prune.magnitude",
        missing="single weights are not pruned, which makes no model smaller or faster here; take `prune.mlp` or `prune.heads`",
    ),
    Foreign(
        "quantize quantization quant quantize.int4 quantize.gptq gptq awq quantize.awq bnb bitsandbytes int8 int4 nf4 "
        "quantize.bnb quantize.fp8 hqq gguf q4_k_m",
        "variants:quantize.int8 variants:quantize.nf4 variants:quantize.gguf",
    ),
    Foreign(
        "distill distillation knowledge_distillation distill.logits kd teacher teacher_model distill.sequence seqkd gkd "
        "distill.responses distill.answers",
        "variants:distill.*",
        missing="distillation is not there yet",
    ),
    Foreign(
        "merge mergekit slerp ties merge.slerp",
        missing="models are not merged with each other; adapters merge as they are exported",
    ),
    # The base and the data.
    Foreign(
        "model base_model model_name_or_path model_name pretrained models pretrained_model_name_or_path model_id base", "bases"
    ),
    Foreign("repo repo_id hub_model_id hf_repo huggingface", "bases.NAME.hub data.NAME.source.hub"),
    Foreign(
        "dataset datasets dataset_name train_dataset data_path train_data data_files dataset_dir train_file dataset_path",
        "data",
    ),
    Foreign(
        "val_size validation_split test_size val_set_size test_split eval_split_ratio",
        "data.NAME.split",
        "`{train: 0.8, validation: 0.1, test: 0.1}`",
    ),
    Foreign(
        "train_file_path val_file validation_file test_file eval_dataset val_data valid_data",
        "data.NAME.source",
        "`{train: {...}, validation: {...}, test: {...}}`",
    ),
    Foreign("group group_id group_by group_column groups doc_id document_id id_column", "data.NAME.document"),
    Foreign(
        "template prompt_template chat_template prompt_format text_column text_field field", "data.NAME.text data.NAME.tasks"
    ),
    Foreign("dataset_format formatting type ds_type chat format_type", "data.NAME.records"),
    Foreign(
        "instruction_template response_template prompt_column completion_column response_column",
        "data.NAME.tasks",
        "a `prompt` and a `completion`",
    ),
    Foreign("subset dataset_config dataset_config_name name_of_config", "data.NAME.source.config"),
    Foreign("truncation truncate overflow long", "data.NAME.too_long"),
    Foreign("dedup deduplicate deduplication decontaminate", "data.NAME.leakage data.NAME.clean.drop"),
    Foreign("encoding charset", missing="a text is UTF-8, UTF-16 or UTF-32, which is seen by itself"),
    Foreign("sep separator_char csv_separator", "data.NAME.source.delimiter"),
    Foreign(
        "max_samples max_train_samples num_samples subsample",
        missing="all records are used; give a smaller share in `split`, or a smaller file",
    ),
    # Measuring: lm-evaluation-harness, generation settings.
    Foreign("metrics metric eval evals evaluation evaluations benchmark benchmarks", "evaluate"),
    Foreign(
        "mmlu hellaswag arc arc_easy arc_challenge gsm8k winogrande truthfulqa piqa boolq lambada "
        "lambada_openai harness lm_harness lmeval lm_evaluation_harness",
        "evaluate:lm_eval",
        "`lm_eval: {tasks: [...]}`",
    ),
    Foreign("ppl loss bits_per_byte", "evaluate:perplexity"),
    Foreign(
        "rouge bleu bert_score bertscore exact_match f1 accuracy score scores",
        "data.NAME.tasks",
        "`score: [rouge_l]` of a task",
    ),
    Foreign("speed throughput timing ms_per_token tokens_per_second", "evaluate:latency"),
    Foreign("questions multiple_choice mcq quiz", "evaluate:qa"),
    Foreign("samples sample generations generation completions prompts", "evaluate:generate"),
    Foreign("llm_judge judge_model human ratings_by_people", "evaluate:judge evaluate:ratings"),
    Foreign("fewshot num_few_shot n_shot", "evaluate:lm_eval.num_fewshot"),
    Foreign("apply_chat_template", "evaluate:lm_eval.chat_template"),
    Foreign("max_tokens max_gen_toks max_length_generation num_predict", "evaluate:generate.max_new_tokens"),
    Foreign("temp", "evaluate:generate.temperature"),
    Foreign("repeat_penalty", "evaluate:generate.repetition_penalty"),
    Foreign("do_sample sampling", "evaluate:generate.temperature", "0 is greedy"),
    # Comparing and telling.
    Foreign("metric metrics primary_metric main_metric", "compare.family", "`[METRIC]`, what the study decides by"),
    Foreign("reference control compare_to", "compare.baseline"),
    Foreign("alpha_level significance confidence confidence_level ci", "compare.interval"),
    Foreign("tolerance threshold", "compare.margin"),
    Foreign("constraints limits budget requirements", "compare.require"),
    Foreign(
        "report_to wandb tensorboard mlflow trackio comet logger logging use_wandb log_with trackers",
        "track",
        "a section: `track: {wandb: {}}`, or `tensorboard`, `mlflow`, `trackio`",
    ),
    Foreign("wandb_project", "track.wandb.project"),
    Foreign("wandb_entity", "track.wandb.entity"),
    Foreign("wandb_mode", "track.wandb.mode"),
    Foreign("logging_dir tensorboard_dir", "track.tensorboard.dir"),
    Foreign("mlflow_tracking_uri tracking_uri", "track.mlflow.uri"),
    Foreign("push_to_hub hub_strategy hub_token hub_model_id", "$ export --push"),
    Foreign("store cache cache_dir", "$ run --store"),
    Foreign(
        "sweep hyperparameters hparams search grid_search tune.grid",
        "variants",
        "a field of a method takes `{tune: [...]}` or `{grid: [...]}`",
    ),
    Foreign("experiment experiments name run project title", "study"),
    Foreign("variations runs configs candidates", "variants"),
    # Commands and flags.
    Foreign(
        "$train $finetune $fit $sft $evaluate $eval $test $benchmark $start $go $launch $lm_eval $distill $prune",
        "$ run",
        "the study file says what is done",
    ),
    Foreign("dry_run $dry_run $check $validate $status $list $ls", "$ plan"),
    Foreign("$results $show $summary $summarize $plot $table", "$ report"),
    Foreign("$talk $serve $webui $gradio $ui $web $generate $infer $inference", "$ chat", "in the terminal, or through a pipe"),
    Foreign("$quantize $convert $merge $save $download $gguf", "$ export"),
    Foreign("$push $upload $publish", "$ export --push"),
    Foreign("$new $create $setup $scaffold $configure", "$ init"),
    Foreign("$gc $prune_cache $rm $delete $purge", "$ clean"),
    Foreign("$info $env $version $system", "$ doctor"),
    Foreign("$explain $diff $reason", "$ why"),
    Foreign("$docs $reference $help_methods $schema", "$ methods"),
    Foreign("$compare $leaderboard", "$ report"),
    Foreign(
        "=gguf =llama_cpp =ollama",
        "$ export --format",
        "`gguf`, of a variant that ends with `quantize.gguf`",
    ),
    Foreign("=safetensors =pytorch =transformers =huggingface =merged =full =model", "$ export --format", "`hf`"),
    Foreign("=peft =lora", "$ export --format", "`adapter`"),
    Foreign("=onnx =openvino =tflite =coreml =mlx", missing="write `hf`, and convert it with the tools of that format"),
)
"""A name with `$` is a command, one with `=` a format of `export`."""


def unknown(name: str, known: Collection[str], where: str) -> str:
    """What follows `unknown key`: what it is called here, or the nearest of those that are known, and where it belongs."""
    near = suggestion(name, known)
    is_near = near.startswith("; did you mean")
    elsewhere = belongs(name, where)
    return called(name, where) or (f"{near}{elsewhere}" if is_near else elsewhere or near)


def called(name: str, where: str = "", commands: Collection[str] = ()) -> str:
    """`; it is called `alpha` here, in `train.lora` ...` for a name of other tools; empty for one that is in no row.

    `commands` are the addresses of commands and flags that are there; those of a row are taken to be, unless it says `missing`.
    """
    rows = _by_name().get(_normal(name), [])
    row = max(rows, key=lambda row: _shared(row.ours, where), default=None)
    if row is None:
        return ""
    wanted = _addresses_in(row.ours)
    there = {*addresses(), *commands, *(address for address in wanted if address.startswith(COMMAND) and not row.missing)}
    ours = [address for pattern in wanted for address in sorted(there) if fnmatchcase(address, pattern)]
    if not ours:
        return f"; {row.missing}"
    nearest = max(_shared(address, where) for address in ours)
    ours = [address for address in ours if _shared(address, where) == nearest]
    names = dict.fromkeys(
        f"`paretune {address.removeprefix(COMMAND)}`" if address.startswith(COMMAND) else f"`{addresses()[address]}`"
        for address in ours
    )
    owners = dict.fromkeys(owner for address in ours if (owner := _owner(address)))
    place = f", in {' and '.join(owners)}" if owners else ""
    return f"; it is called {' and '.join(names)} here{place}{f': {row.note}' if row.note else ''}"


@functools.cache
def addresses() -> Mapping[str, str]:
    """Every section, field, method and evaluation of a study by its address, with the name that stands last in it."""
    from paretune.study.registry import evaluations, methods
    from paretune.study.study import Study

    found: dict[str, str] = {}
    for name, field in Study.model_fields.items():
        found[name] = name
        if name not in ("variants", "evaluate"):
            owner = f"{name}.NAME" if name in ("bases", "data") else name
            found |= dict(_fields(field.annotation, owner))
    rows: tuple[tuple[str, Mapping[str, Any]], ...] = ((METHOD, methods()), (EVALUATION, evaluations()))
    for kind, table in rows:
        for name, row in table.items():
            found[f"{kind}{name}"] = name
            found |= dict(_fields(row.config, f"{kind}{name}"))
    return found


def _fields(annotation: Any, owner: str) -> Iterator[tuple[str, str]]:
    """Address and name of each field of the models in an annotation, those of nested models too."""
    for model in _models(annotation):
        for name, field in model.model_fields.items():
            yield f"{owner}.{name}", name
            yield from _fields(field.annotation, f"{owner}.{name}")


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def belongs(name: str, where: str = "") -> str:
    """`; `r` belongs in ...`: where a field of that name stands, in the parts nearest to `where`; empty where nowhere."""
    owners = {address.rpartition(".")[0]: address for address, last in addresses().items() if last == name and "." in address}
    # Those of `source.train` are those of `source` again.
    outer = [each for owner, each in owners.items() if not any(owner.startswith(f"{other}.") for other in owners)]
    outer.sort(key=lambda address: address.count("."))  # a method of one step before one that takes it among others
    most = max((_shared(address, where) for address in outer), default=0)
    told = list(dict.fromkeys(_owner(address) for address in outer if _shared(address, where) == most))
    more = ", or elsewhere" if len(told) > _NEAREST else ""
    return f"; `{name}` belongs in {', or '.join(told[:_NEAREST])}{more}" if told else ""


def _owner(address: str) -> str:
    """Where an address stands, in words; empty at the top of the study."""
    kind = next((kind for kind in (METHOD, EVALUATION) if address.startswith(kind)), "")
    if not kind or address.startswith(COMMAND):
        owner = "" if address.startswith(COMMAND) else address.rpartition(".")[0]
        return f"`{owner}`" if owner else ""
    rest, section = address.removeprefix(kind), kind.removesuffix(":")
    if rest in _rows_of(kind):
        return f"`{section}`"
    return f"`{rest.rpartition('.')[0]}` (in `{section}`)"


def _rows_of(kind: str) -> Collection[str]:
    from paretune.study.registry import evaluations, methods

    return (methods() if kind == METHOD else evaluations()).keys()


def _addresses_in(ours: str) -> list[str]:
    """`$ run --out` is one address, although it holds spaces."""
    return re.findall(r"\$ \S+(?: --\S+)?|\S+", ours)


def _shared(address: str, where: str) -> int:
    """How many of the first keys an address shares with a place of a study."""
    ours, theirs = re.split(r"[.:]", address), re.split(r"[.:\[]", where)
    count = 0
    for one, other in zip(ours, theirs, strict=False):
        if one not in (other, "NAME"):
            break
        count += 1
    return count


@functools.cache
def _by_name() -> Mapping[str, list[Foreign]]:
    table: dict[str, list[Foreign]] = {}
    for row in FOREIGN:
        for name in row.names.split():
            table.setdefault(name, []).append(row)
    return table


def _normal(name: str) -> str:
    """`--num-train-epochs` is `num_train_epochs`, `loraAlpha` `lora_alpha`."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.lstrip("-")) if not name.isupper() else name
    return words.lower().replace("-", "_")
