"""Paretune against what people use instead, each at its best documented setting: training, multiple choice, generation, memory.

    python benchmarks/against_peers.py --data DIR [--tokenizer DIR] [--rows tasks-gpt2 ...] [--rounds 5]

DIR, or the environment variable PARETUNE_BENCH_DATA, is a folder with `bmw/articles.jsonl`, `instruct/alpaca_en_demo.json`,
`books/sherlock.txt` and `openbookqa/openbookqa.jsonl`. The peers (`peers.txt`) get an environment of their own, `.venv-peers`.
A duel is one process of ours and one of a peer on the same model, examples and order of steps, which work in turns: one
optimizer step (or one pass over all questions or prompts) each, so that whatever disturbs the machine hits both; the first two
turns do not count. A ratio is taken in each round; its median and range are printed, and of several settings of a peer the
fastest counts.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peers.turns import CLOCK, Worker, now
from peers.workloads import ROWS, Row, write_model, write_tokenizer

from paretune.model.precision import matmul_gflops
from paretune.pipeline.machine import faster_format, fingerprint, measure_precision

HERE = Path(__file__).parent
Turn = tuple[Mapping[str, Any], Mapping[str, Any]]
"""What ours and the other said in one round."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "padded": {},
    "padded, bf16 base": {"weights": "bfloat16"},
    "grouped": {"order": "grouped"},
    "grouped, bf16 base": {"order": "grouped", "weights": "bfloat16"},
    "micro-batches of 2": {"micro": 2},
    "micro-batches of 2, bf16 base": {"micro": 2, "weights": "bfloat16"},
    "one by one": {"micro": 1},
    "one by one, bf16 base": {"micro": 1, "weights": "bfloat16"},
    "padding-free": {"flat": True},
    "padding-free, bf16 base": {"flat": True, "weights": "bfloat16"},
    "padding-free by 2, bf16 base": {"flat": True, "micro": 2, "weights": "bfloat16"},
    "checkpointing": {"checkpointing": True},
    "batch 1": {"batch": 1},
    "batch 4": {"batch": 4},
    "batch 8": {"batch": 8},
    "batch 16": {"batch": 16},
    "batch 32": {"batch": 32},
    "batch 64": {"batch": 64},
    "batch 8, static cache": {"batch": 8, "cache": "static"},
    "batch 16, static cache": {"batch": 16, "cache": "static"},
    "batch 32, static cache": {"batch": 32, "cache": "static"},
    "batch 64, static cache": {"batch": 64, "cache": "static"},
}
"""Of the peers, by name. Examples of a step are sorted by length; `grouped` makes each step of examples of like length."""
OF_TRAINERS = tuple(name for name, setting in SETTINGS.items() if "batch" not in setting)
CANDIDATES: Mapping[str, Mapping[str, Sequence[str]]] = {
    "train": {"trainer": OF_TRAINERS, "trl": OF_TRAINERS},
    "choices": {"lm-eval": ("batch 1", "batch 4", "batch 8", "batch 16", "batch 32")},
    "generate": {"generate": tuple(f"batch {n}{cache}" for cache in ("", ", static cache") for n in (8, 16, 32, 64))},
}

DEFAULTS = {
    "lora": ("one by one, bf16 base", "padding-free by 2, bf16 base"),
    "full": ("one by one", "padding-free"),
    "choices": ("batch 8", "batch 32"),
    "generate": ("batch 16",),
}
"""What is measured unless `--all` asks for every setting. Not every one has been tried on every row: README.md says which."""


@dataclass
class Duel:
    """What came of the turns of one peer with one setting."""

    row: str
    peer: str
    setting: str
    goal: float
    ours: list[float] = field(default_factory=list)
    """Tokens per second, by round; those of the other in the same round."""
    theirs: list[float] = field(default_factory=list)
    rates: list[tuple[float, float]] = field(default_factory=list)
    """GFLOP/s of matrix products, measured between the turns: the best of 1024 x 1024 x 1024, and sustained in a model's"""
    flop_per_token: float = 0.0
    """Of our matrix products, as counted in one step."""
    peaks: tuple[int, int] = (0, 0)
    agreement: str = ""

    @property
    def ratios(self) -> list[float]:
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]


def main() -> None:
    arguments = _arguments()
    rows = [row for row in ROWS if not arguments.rows or row.name in arguments.rows]
    python = install_peers(arguments.peers_environment)
    folder = Path(arguments.work or tempfile.mkdtemp(prefix="paretune-bench-"))
    precision = arguments.precision or faster_format(measure_precision("cpu"))
    torch.set_num_threads(arguments.threads)
    os.environ[CLOCK] = arguments.clock
    print_machine(arguments, precision)
    print(HEADER, flush=True)
    duels: list[Duel] = []
    for row in rows:
        place = prepare(row, arguments, folder, precision)
        for peer, candidates in CANDIDATES[row.kind].items():
            if arguments.peers and peer not in arguments.peers:
                continue
            defaults = DEFAULTS[row.method if row.kind == "train" else row.kind]
            for setting in arguments.settings or (candidates if arguments.all else defaults):
                duels.append(fight(row, peer, setting, place, python, arguments))
                print(line_of(duels[-1]), flush=True)
                if arguments.json:
                    with Path(arguments.json).open("a") as out:
                        out.write(json.dumps(asdict(duels[-1])) + "\n")
    print("\n" + summary(duels))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("PARETUNE_BENCH_DATA"), help="folder of the real files")
    parser.add_argument(
        "--tokenizer", default=os.environ.get("PARETUNE_BENCH_TOKENIZER"), help="of GPT-2; one is learned otherwise"
    )
    parser.add_argument("--rows", nargs="*", choices=[row.name for row in ROWS])
    parser.add_argument("--peers", nargs="*", choices=["trainer", "trl", "lm-eval", "generate"])
    parser.add_argument("--settings", nargs="*", choices=SETTINGS, help="of the peers; DEFAULTS otherwise")
    parser.add_argument("--all", action="store_true", help="all settings of the peers")
    parser.add_argument("--rounds", type=int, default=4, help="turns that count")
    parser.add_argument("--warm-up", type=int, default=2, help="turns before them that do not; one of questions and prompts")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: with --threads 1 on a shared machine")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], help="of training; the faster one unless given")
    parser.add_argument("--recompute", action="store_true", help="ours as `paretune run --recompute`; beside `checkpointing`")
    parser.add_argument("--peers-environment", default=".venv-peers")
    parser.add_argument("--work", help="folder for models, studies and logs")
    parser.add_argument("--tiny", action="store_true", help="models of two narrow blocks, to try the script itself")
    parser.add_argument("--json", help="file that every duel is added to")
    arguments = parser.parse_args()
    if not arguments.data:
        parser.error("name the folder of the data: `--data DIR`, or PARETUNE_BENCH_DATA")
    return arguments


def install_peers(environment: str) -> Path:
    """The Python of the peers' environment; torch first and pinned, as another package would fetch the build with CUDA."""
    python = Path(environment).absolute() / "bin" / "python"
    constraints, listed = HERE.parent / "constraints.txt", HERE / "peers.txt"
    done = python.parent.parent / "installed"
    if not done.exists() or done.stat().st_mtime < listed.stat().st_mtime:
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--constraint", str(constraints)]
        subprocess.run([*pip, "torch"], check=True)
        subprocess.run([*pip, "--requirement", str(listed)], check=True)
        done.touch()
    return python


def prepare(row: Row, arguments: argparse.Namespace, folder: Path, precision: str) -> Path:
    """Model, data and study of a row; the folder that holds them."""
    place, tokenizer = folder / row.name, Path(arguments.tokenizer or folder / "tokenizer")
    if not tokenizer.exists():
        write_tokenizer(Path(arguments.data), tokenizer)
    shape = f"tiny-{row.shape}" if arguments.tiny else row.shape
    model = folder / "models" / shape
    if not model.exists():
        write_model(shape, tokenizer, model)
    place.mkdir(parents=True, exist_ok=True)
    if not (place / "model").exists():
        (place / "model").symlink_to(model.absolute())
    steps = arguments.warm_up + arguments.rounds + 1  # one more to count its operations
    study = json.loads(row.write(Path(arguments.data), place, steps))
    study["precision"] = {"compute": precision}
    (place / "study.yaml").write_text(json.dumps(study, indent=1))
    return place


def fight(row: Row, peer: str, setting: str, place: Path, python: Path, arguments: argparse.Namespace) -> Duel:
    """All rounds of one duel."""
    environment = {**OFFLINE, "OMP_NUM_THREADS": str(arguments.threads)}
    kind = f"train-{row.method}" if row.kind == "train" else row.kind
    shared = place / "shared.json"
    asked = [kind, str(place / "study.yaml"), str(shared), str(row.per_turn), *(["--recompute"] if arguments.recompute else [])]
    ours = Worker([sys.executable, str(HERE / "peers/ours.py"), *asked], environment, place / "ours.log")
    ready = ours.hear()
    given = {**SETTINGS[setting], "precision": ready["precision"], "threads": arguments.threads}
    command = [str(python), str(HERE / "peers/theirs.py"), peer, str(place / "model"), str(shared), json.dumps(given)]
    theirs = Worker(command, environment, place / f"{peer}.log")
    theirs.hear()
    duel, turns = Duel(row.name, peer, setting, row.goal), []
    warm_up = arguments.warm_up if row.kind == "train" else 1
    for turn in range(warm_up + arguments.rounds):
        mine, other = ours.ask("step"), theirs.ask("step")
        turns.append((mine, other))
        if row.kind == "train":
            duel.rates.append(gflops(getattr(torch, ready["precision"])))
        if turn >= warm_up:
            duel.ours.append(mine["tokens"] / mine["seconds"])
            duel.theirs.append(other.get("tokens", mine["tokens"]) / other["seconds"])
    duel.peaks = ours.peak_bytes(), theirs.peak_bytes()
    if row.kind == "train":
        counted = ours.ask("count")
        duel.flop_per_token = counted["flop"] / counted["tokens"]
    duel.agreement = "other steps" if "grouped" in setting else AGREEMENTS[row.kind](turns)
    ours.end()
    theirs.end()
    return duel


def gflops(dtype: torch.dtype) -> tuple[float, float]:
    """The best rate of 1024 x 1024 x 1024, and the median one of the models' own shape: 2048 tokens by 768 x 3072."""
    left, right = torch.randn(2048, 768).to(dtype), torch.randn(768, 3072).to(dtype)
    times = []
    end = now() + 0.3
    while now() < end:
        start = now()
        left @ right
        times.append(now() - start)
    return matmul_gflops(dtype, torch.device("cpu")), 2 * 2048 * 768 * 3072 / statistics.median(times) / 1e9


def agreement_of_losses(turns: Sequence[Turn]) -> str:
    apart = max(abs(mine["loss"] - other["loss"]) for mine, other in turns)
    return f"loss {turns[-1][0]['loss']:.4f} and {turns[-1][1]['loss']:.4f} at the end, at most {apart:.4f} apart"


def agreement_of_choices(turns: Sequence[Turn]) -> str:
    mine, other = ([value for turn in turns for sums in turn[side]["sums"] for value in sums] for side in (0, 1))
    apart = max(abs(a - b) for a, b in zip(mine, other, strict=True))
    asked = [len(turn[0]["sums"]) for turn in turns]
    right = [
        (sum(turn[0][ours] for turn in turns), sum(round(turn[1][name] * n) for turn, n in zip(turns, asked, strict=True)))
        for ours, name in (("accuracy_unnormalised", "acc"), ("accuracy", "acc_bytes"))
    ]
    plain, by_bytes = (f"{a} and {b} right" for a, b in right)
    return f"log-likelihoods within {apart:.1e} nats; {plain} of {sum(asked)}, by bytes {by_bytes}"


def agreement_of_answers(turns: Sequence[Turn]) -> str:
    pairs = [pair for turn in turns for pair in zip(turn[0]["answers"], turn[1]["answers"], strict=True)]
    return f"{sum(a == b for a, b in pairs)} of {len(pairs)} answers the same to the last token"


AGREEMENTS: Mapping[str, Callable[[Sequence[Turn]], str]] = {
    "train": agreement_of_losses,
    "choices": agreement_of_choices,
    "generate": agreement_of_answers,
}


def print_machine(arguments: argparse.Namespace, precision: str) -> None:
    packages = ("paretune", "torch", "transformers", "peft")
    machine = fingerprint()
    print(
        f"machine: {machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {platform.system()}; "
        f"{arguments.threads} threads, {arguments.clock} clock, Python {platform.python_version()}"
    )
    pinned = (HERE / "peers.txt").read_text().split()
    print("peers: " + ", ".join(line for line in pinned if "==" in line))
    print(
        "ours: " + ", ".join(f"{name} {version(name)}" for name in packages) + f"; training in {precision}, the rest in float32"
    )
    print("command: python " + " ".join(sys.argv) + "\n")


COLUMNS = ("row", "peer, setting", "ours, tokens/s", "theirs", "times as fast", "goal", "agreement", "peak GiB", "GFLOP/s")
HEADER = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def line_of(duel: Duel) -> str:
    ours, theirs = (
        f"{statistics.median(rates):,.0f} ({min(rates):,.0f}-{max(rates):,.0f})" for rates in (duel.ours, duel.theirs)
    )
    ratios = f"{statistics.median(duel.ratios):.2f} ({min(duel.ratios):.2f}-{max(duel.ratios):.2f})"
    rate = ""
    if duel.rates:
        reached = duel.flop_per_token * statistics.median(duel.ours) / 1e9
        best, sustained = (statistics.median(rates) for rates in zip(*duel.rates, strict=True))
        rate = (
            f"{reached:.0f}: {reached / sustained:.0%} of {sustained:.0f} sustained, {reached / best:.0%} of {best:.0f} at best"
        )
    peaks = " / ".join(f"{peak / 2**30:.2f}" for peak in duel.peaks)
    cells = (duel.row, f"{duel.peer}, {duel.setting}", ours, theirs, ratios, f"{duel.goal:g}", duel.agreement, peaks, rate)
    return "| " + " | ".join(cells) + " |"


def summary(duels: Sequence[Duel]) -> str:
    """By row the setting that was fastest for the peers, and the least memory that any of them took."""
    lines = ["| row | best of the peers | times as fast | goal | memory, ours / least of theirs |", "|---|---|---|---|---|"]
    for name in dict.fromkeys(duel.row for duel in duels):
        of_row = [duel for duel in duels if duel.row == name]
        best = min(of_row, key=lambda duel: statistics.median(duel.ratios))
        memory = max(duel.peaks[0] for duel in of_row) / min(duel.peaks[1] for duel in of_row)
        ratio = f"{statistics.median(best.ratios):.2f} ({min(best.ratios):.2f}-{max(best.ratios):.2f})"
        lines.append(f"| {name} | {best.peer}, {best.setting} | {ratio} | {best.goal:g} | {memory:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
