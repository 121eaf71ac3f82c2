"""What a token takes on this machine, by base and kind of work: asked once (`paretune.train.probe`), and kept in the store."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from paretune.pipeline.config_json import num_blocks, vocabulary_size, width
from paretune.pipeline.duration import Rates
from paretune.pipeline.lock import Lock
from paretune.pipeline.machine import fingerprint
from paretune.pipeline.plan import Plan
from paretune.pipeline.records import write_whole
from paretune.pipeline.resources import count_weights
from paretune.pipeline.stage import canonical_json
from paretune.pipeline.store import Store
from paretune.study.study import Study

_REVISION = 1
"""Raised where the probe would answer otherwise."""
_LIMIT_SECONDS = 300
"""A probe that takes longer is given up."""
_OPERATIONS = 40e9
"""A second of a core, in products of matrices; recent ones do two to five times as many."""
_BYTES_READ = 5e9
"""Of weights, a second."""
_CALL = 1e-3
"""Seconds of a pass through a block, however small."""


def measure_rates(study: Study, lock: Lock, plan: Plan, store: Store, say: Callable[[str], None]) -> dict[str, Rates]:
    """By the digest of a base what its work takes here; without the bases that have no stage to run or cannot be probed.

    What is not known yet is measured in a process of its own, which imports torch, after `say` was told; a base costs some
    ten seconds. Kept by machine and config, so that another base of the same shape is known already.
    """
    questions, files = _questions(study, lock, plan, store)
    rates: dict[str, Rates] = {digest: kept for digest, file in files.items() if (kept := _read(file)) is not None}
    if missing := [digest for digest in questions if digest not in rates]:
        bases = f"{len(missing)} base{'s' if len(missing) > 1 else ''}"
        say(f"timing {bases} with windows of {study.train.max_length} tokens on this machine, once, for the forecast ...")
        try:
            answers = _ask([questions[digest] for digest in missing])
        except (subprocess.SubprocessError, OSError, ValueError) as error:
            reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
            say(f"no time is forecast: {reason}")  # and no reason to refuse a plan
            answers = []
        for digest, answer in zip(missing, answers, strict=False):
            rates[digest] = answer
            with suppress(OSError):  # a store that cannot be written asks again
                files[digest].parent.mkdir(parents=True, exist_ok=True)
                write_whole(files[digest], json.dumps(answer))
    return {digest: of_base for digest, of_base in rates.items() if of_base}


def kept_rates(study: Study, lock: Lock, plan: Plan, store: Store) -> dict[str, Rates]:
    """As `measure_rates`, of what an earlier plan has measured, in whichever number format; nothing unless all is there."""
    for compute in ("bfloat16", "float32", "float16"):
        _, files = _questions(study, replace(lock, compute=compute), plan, store)
        rates = {digest: kept for digest, file in files.items() if (kept := _read(file))}
        if files and len(rates) == len(files):
            return rates
    return {}


def rough_rates(lock: Lock) -> dict[str, Rates]:
    """As `measure_rates`, by arithmetic: two operations a weight and token in a pass, six in one with its gradient (Kaplan et
    al., https://arxiv.org/abs/2001.08361), at a speed that most machines reach; of bases whose weights are at hand."""
    rates: dict[str, Rates] = {}
    for base in lock.bases.values():
        if (directory := base.resource.directory()) is None:
            continue
        blocks, weights = num_blocks(base.config) or 1, count_weights(directory)
        head = (vocabulary_size(base.config) or 0) * width(base.config)
        embeddings = head if base.config.get("tie_word_embeddings", True) else 2 * head
        sizes = max(0, weights - embeddings) / blocks, head  # of a block, and of the rest that multiplies
        operations, bytes_read = _OPERATIONS * (os.cpu_count() or 1), _BYTES_READ

        def line(per_token: float, per_pass: float, sizes: tuple[float, float] = sizes) -> tuple[float, float, float, float]:
            (of_pass, of_token), (rest_pass, rest_token) = ((_CALL + per_pass * size, per_token * size) for size in sizes)
            return of_pass, of_token, rest_pass, rest_token

        once, again = 2 / operations, 4 / bytes_read
        rates[base.digest] = {
            "score": line(once, 0),
            "write": line(once, again),
            "decode": line(again, 0),
            "train.full": line(3 * once, 6 * again),  # weights, gradients and moments are read, and some written
            "load": (0.0, 0.0, 0.5 + 2 * 4 * weights / 2**30, 0.0),
        }
    return rates


def _questions(study: Study, lock: Lock, plan: Plan, store: Store) -> tuple[dict[str, dict[str, Any]], dict[str, Path]]:
    """By the digest of a base that has stages to run, what its probe is asked, and the file that keeps the answer."""
    trainings: dict[str, dict[str, Any]] = {base.digest: {} for base in lock.bases.values()}
    to_run: set[str] = set()
    for stage in plan.stages:
        if "base" in stage.config and stage.kind != "tokenize":
            digest, method = stage.config["base"]["digest"], stage.config.get("method", {})
            if store.find(stage) is None:
                to_run.add(digest)
            if "train" in stage.config:
                method = method.get("lora") or method
                shape = {name: method[name] for name in ("r", "targets") if name in method}
                trainings[digest].setdefault(stage.kind, shape or None)
    questions = {}
    for base in lock.bases.values():
        if base.digest in to_run:
            directory = base.resource.directory()
            questions[base.digest] = {
                "config": dict(base.config),
                "directory": str(directory.resolve()) if directory else None,
                "length": study.train.max_length,
                "device": lock.device,
                "compute": lock.compute,
                "evaluate": lock.evaluate,
                "trainings": trainings[base.digest],
            }
    return questions, {digest: store.root / "rates" / f"{_key(question)}.json" for digest, question in questions.items()}


def _ask(questions: list[dict[str, Any]]) -> list[Rates]:
    command = [sys.executable, "-m", "paretune.train.probe"]
    finished = subprocess.run(
        command, input=json.dumps(questions), capture_output=True, text=True, check=True, timeout=_LIMIT_SECONDS
    )
    answers: list[Rates] = json.loads(finished.stdout)
    return answers


def _read(file: Path) -> Rates | None:
    try:
        kept: Rates = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return kept


def _key(question: Mapping[str, Any]) -> str:
    threads = os.environ.get("OMP_NUM_THREADS")
    asked = {"revision": _REVISION, "machine": fingerprint(), "threads": threads, "question": dict(question)}
    return hashlib.sha256(canonical_json(json.loads(json.dumps(asked))).encode()).hexdigest()[:16]
