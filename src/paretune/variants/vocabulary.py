"""Remove the tokens that the training text does not need: rows of the embedding and the head, and entries of the tokenizer.

What stays are the tokens of the training text, special ones, the bytes (or, of a tokenizer without them, the single characters)
that any other text can be written with, and all that byte-pair merges make on the way to a token that stays. Such a tokenizer
writes a text whose tokens all stay as before: the merges inside a token do not depend on its neighbours, so those that it takes
are the ones by which it is made of its own characters, and what is left of the list keeps its order. Of a unigram tokenizer the
best segmentation is still the best among fewer. Other texts get other tokens that give the same text; how many is counted.
"""

import copy
import itertools
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, PreTrainedConfig

from paretune.data.tokenizer import OWN_VOCABULARY, TextTokenizer, load_tokenizer
from paretune.data.tokens import TokenRows, read_tokens
from paretune.errors import StageError
from paretune.model.adapters import count_parameters
from paretune.model.load import load_model
from paretune.pipeline.config_json import why_no_smaller
from paretune.pipeline.resources import Resource
from paretune.pipeline.stage import StageContext
from paretune.pipeline.stage_configs import MethodConfig
from paretune.study.data import SPLITS
from paretune.study.methods import PruneVocabulary
from paretune.variants.cuts import narrower_shapes
from paretune.variants.finish import leave
from paretune.variants.proof import compute_at_once, probe_of, prove_saved
from paretune.variants.width import built

IDS = ("ids", "context", "prompt", "completion", "end")
"""Columns of the tokens."""
_SPARE = re.compile(r"unused|reserved|extra_id|placeholder")
"""Special tokens that no text has."""
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_TEXTS = 200
"""Of each split, that are written anew to show that nothing else changed."""


def prune_vocabulary(context: StageContext) -> dict[str, Any]:
    """Stage body: a model directory with a smaller tokenizer of its own, and `vocabulary.json`, the ids of the base that stay.

    Of the record: `tokens_before` and `tokens_after`, and `rewritten_train`, `_validation`, `_test`: records that the smaller
    tokenizer writes otherwise. StageError for a tokenizer that cannot be made smaller exactly.
    """
    config = context.parse(MethodConfig[PruneVocabulary])
    loaded = load_model(context, torch.float32)
    before, _ = count_parameters(loaded.model)
    rows = {split: read_tokens(context.inputs["tokens"].path, split) for split in SPLITS}
    context.emit(done=0, total=1, part="finding the tokens that are needed")
    loaded.tokenizer.hf.save_pretrained(context.draft)
    file = context.draft / "tokenizer.json"
    if not file.is_file():
        raise StageError("the tokenizer has no tokenizer.json, so its entries cannot be taken out; take the method out for it")
    content = json.loads(file.read_text(encoding="utf-8"))
    model_config, generation = copy.deepcopy(loaded.model.config), copy.deepcopy(loaded.model.generation_config)
    ends = (loaded.tokenizer.prefix_id, loaded.tokenizer.pad_id, *loaded.tokenizer.stop_ids)
    num_rows = loaded.model.get_input_embeddings().num_embeddings
    used = {*used_ids(rows["train"]), *ends, *_named(model_config, generation)}
    kept = [token for token in kept_ids(content, used) if token < num_rows]
    new_ids = {old: new for new, old in enumerate(kept)}
    file.write_text(json.dumps(smaller_tokenizer(content, new_ids), ensure_ascii=False), encoding="utf-8")
    settings_file = context.draft / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text(encoding="utf-8"))
    if table := settings.get("added_tokens_decoder"):
        settings["added_tokens_decoder"] = {str(new_ids[int(k)]): v for k, v in table.items() if int(k) in new_ids}
        settings_file.write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")
    for each in (model_config, model_config.get_text_config(decoder=True), generation):
        _rename(each, new_ids)
    model_config.get_text_config(decoder=True).vocab_size = len(kept)
    index = torch.tensor(kept)
    shapes = narrower_shapes(loaded.model, model_config)
    weights = loaded.model.state_dict()
    cut = {}
    for name, shape in shapes.items():
        dims = [dim for dim, (a, b) in enumerate(zip(weights[name].shape, shape, strict=True)) if a != b]
        if dims:
            if len(dims) > 1 or weights[name].shape[dims[0]] != num_rows:
                raise StageError(f"`{name}` of {tuple(weights[name].shape)} would become {shape} with a smaller vocabulary")
            cut[name] = (dims[0], index)
    smaller = built(loaded.model, model_config, cut, config.base.digest)
    smaller.generation_config = generation
    probe = index.to(smaller.device)[probe_of(smaller)]
    reference = compute_at_once(loaded.model, probe)[..., index.to(smaller.device)]
    proof = prove_saved(smaller, context.draft, reference)
    (context.draft / OWN_VOCABULARY).write_text(json.dumps(kept), encoding="utf-8")
    told = leave(context, smaller, None, before, proof)
    tokenizer = load_tokenizer({"trust_remote_code": False}, Resource(path=context.draft))
    for split in SPLITS:
        _prove_alike(loaded.tokenizer, tokenizer, rows[split], new_ids)
    rewritten = {f"rewritten_{split}": num_rewritten(rows[split], kept) for split in SPLITS}
    return {"tokens_before": num_rows, "tokens_after": len(kept), **rewritten, **told}


def used_ids(rows: TokenRows) -> set[int]:
    """The ids of all texts of a split."""
    return {int(token) for number in range(len(rows)) for ids in _texts(rows[number]) for token in np.unique(ids)}


def num_rewritten(rows: TokenRows, kept: Collection[int]) -> int:
    """Records with a token that is not `kept`."""
    stays = np.array(sorted(kept))
    return sum(any(not np.isin(ids, stays).all() for ids in _texts(rows[number])) for number in range(len(rows)))


def _texts(row: Mapping[str, Any]) -> list[np.ndarray]:
    return [np.asarray(row[name], dtype=np.int64) for name in IDS if row.get(name) is not None and len(row[name])]


def kept_ids(content: Mapping[str, Any], used: Iterable[int]) -> list[int]:
    """The ids that stay of a tokenizer, ascending: those `used`, special ones, what any text can be written with, and what the
    merges make on the way. StageError for a tokenizer that cannot lose tokens exactly."""
    if reason := why_no_smaller(content):
        raise StageError(f"the tokenizer cannot be made smaller: {reason}; take `prune.vocabulary` out for this base")
    model = content["model"]
    pieces = model["vocab"].items() if isinstance(model["vocab"], dict) else ((p[0], n) for n, p in enumerate(model["vocab"]))
    ids = dict(pieces)
    texts = {token: text for text, token in ids.items()}
    added = {entry["id"]: entry for entry in content["added_tokens"]}
    special = {token for token, entry in added.items() if entry["special"] and not _SPARE.search(entry["content"])}
    kept = {*(token for token in used if token in texts or token in added), *special}
    whole = model.get("byte_fallback")
    kept |= {token for text, token in ids.items() if (_BYTE.fullmatch(text) if whole else len(text) == 1)}
    if isinstance(model.get("unk_token"), str) and model["unk_token"] in ids:
        kept.add(ids[model["unk_token"]])
    if isinstance(model["vocab"], list) and model.get("unk_id") is not None:
        kept.add(model["unk_id"])
    if "merges" in model:
        ranks = {_pair(merge): rank for rank, merge in enumerate(model["merges"])}
        for token in sorted(kept & texts.keys()):
            kept.update(ids[made] for made in parts_of(texts[token], ranks) if made in ids)
    return sorted(kept)


def parts_of(text: str, ranks: Mapping[tuple[str, str], int]) -> set[str]:
    """All that byte-pair merges make of `text` on the way to its tokens, its characters among them."""
    pieces = list(text)
    made = set(pieces)
    while len(pieces) > 1:
        rank, at = min((ranks.get((a, b), len(ranks)), n) for n, (a, b) in enumerate(itertools.pairwise(pieces)))
        if rank == len(ranks):
            break
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
        made.add(pieces[at])
    return made


def smaller_tokenizer(content: Mapping[str, Any], new_ids: Mapping[int, int]) -> dict[str, Any]:
    """A tokenizer.json with the tokens of `new_ids` alone, numbered so."""
    smaller = copy.deepcopy(dict(content))
    model = smaller["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {text: new_ids[token] for text, token in model["vocab"].items() if token in new_ids}
        known = model["vocab"]
        merges = [merge for merge in model["merges"] if "".join(_pair(merge)) in known]
        model["merges"] = [merge for merge in merges if all(part in known for part in _pair(merge))]
    else:
        model["vocab"] = [piece for token, piece in enumerate(model["vocab"]) if token in new_ids]
        model["unk_id"] = None if model.get("unk_id") is None else new_ids[model["unk_id"]]
    smaller["added_tokens"] = [
        {**entry, "id": new_ids[entry["id"]]} for entry in smaller["added_tokens"] if entry["id"] in new_ids
    ]
    if smaller.get("post_processor"):
        smaller["post_processor"] = _processor(smaller["post_processor"], new_ids)
    if smaller.get("padding"):
        smaller["padding"]["pad_id"] = new_ids.get(smaller["padding"]["pad_id"], 0)
    return smaller


def _processor(value: Any, new_ids: Mapping[int, int]) -> Any:
    """A post-processor with its ids numbered anew: `ids` of templates, and the pairs (text, id) of BERT's and RoBERTa's."""
    if isinstance(value, dict):
        return {
            key: [new_ids[token] for token in entry]
            if key == "ids"
            else [entry[0], new_ids[entry[1]]]
            if key in ("sep", "cls")
            else _processor(entry, new_ids)
            for key, entry in value.items()
        }
    return [_processor(entry, new_ids) for entry in value] if isinstance(value, list) else value


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _named(*configs: PreTrainedConfig | GenerationConfig) -> set[int]:
    """The ids that configs name."""
    named = set()
    for config in configs:
        for name, value in config.to_dict().items():
            if re.search(r"_token_ids?$", name) and value is not None:
                named.update([value] if isinstance(value, int) else [each for each in value if isinstance(each, int)])
    return named


def _rename(config: PreTrainedConfig | GenerationConfig, new_ids: Mapping[int, int]) -> None:
    """Number the ids that a config names anew, in place; what no token has any more is left out."""
    for name, value in config.to_dict().items():
        if re.search(r"_token_ids?$", name) and value is not None:
            if isinstance(value, int):
                setattr(config, name, new_ids.get(value))
            elif all(isinstance(each, int) for each in value):
                setattr(config, name, [new_ids[each] for each in value if each in new_ids])


def _prove_alike(before: TextTokenizer, after: TextTokenizer, rows: TokenRows, new_ids: Mapping[int, int]) -> None:
    """StageError unless texts are written as before where all their tokens stay, and give the same text where not."""
    for number in range(min(_TEXTS, len(rows))):
        for ids in _texts(rows[number]):
            text = before.decode(ids.tolist())
            expected, found = before.encode(text, literally=True), after.encode(text, literally=True)
            same = [new_ids[token] for token in expected] == found if {*expected} <= new_ids.keys() else None
            if same is False or (same is None and after.decode(found) != before.decode(expected)):
                raise StageError(
                    f"the smaller tokenizer does not write {text[:40]!r} as the whole one does; this tokenizer cannot lose "
                    "tokens, take `prune.vocabulary` out for this base"
                )
