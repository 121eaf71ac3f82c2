"""Paretune against what people use instead, each at its best documented setting: training, multiple choice, generation, memory.

    python benchmarks/against_peers.py --data DIR [--tokenizer DIR] [--rows tasks-gpt2 ...] [--rounds 5]

DIR holds `bmw/articles.jsonl`, `instruct/alpaca_en_demo.json`, `books/sherlock.txt` and `openbookqa/openbookqa.jsonl`, or is named
by PARETUNE_BENCH_DATA. The peers (`peers.txt`) are installed into an environment of their own, `.venv-peers`. A duel is one
process of ours and one of a peer on the same model, examples and order of steps, which work in turns: one optimizer step (or one
pass over all questions or prompts) each, so that whatever disturbs the machine hits both; the first two turns do not count.
A ratio is taken in each round; its median and range are printed, and of several settings of a peer the best counts.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "peers"))

from turns import Worker
from workloads import ROWS, Row, write_model, write_tokenizer

from paretune.pipeline.machine import faster_format, fingerprint, measure_precision

WARM_UP = 2
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "padded": {},
    "padded, bf16 base": {"weights": "bfloat16"},
    "grouped": {"order": "grouped"},
    "grouped, bf16 base": {"order": "grouped", "weights": "bfloat16"},
    "micro-batches of 2": {"micro": 2},
    "micro-batches of 2, bf16 base": {"micro": 2, "weights": "bfloat16"},
    "padding-free": {"flat": True},
    "checkpointing": {"checkpointing": True},
    "batch 1": {"batch": 1},
    "batch 8": {"batch": 8},
    "batch 16": {"batch": 16},
    "batch 32": {"batch": 32},
}
"""Of the peers, by name. Examples of a step are sorted by length; `grouped` makes the steps themselves of examples of like length."""
TRAINERS = ("padded", "padded, bf16 base", "grouped", "grouped, bf16 base", "micro-batches of 2", "micro-batches of 2, bf16 base", "padding-free")
CANDIDATES: Mapping[str, Mapping[str, Sequence[str]]] = {
    "train": {"trainer": TRAINERS, "trl": TRAINERS},
    "choices": {"lm-eval": ("batch 1", "batch 8", "batch 32")},
    "generate": {"generate": ("batch 8", "batch 16", "batch 32")},
}

FASTEST: Mapping[tuple[str, str], Sequence[str]] = {}
"""By row and peer, where not all candidates are tried: what was fastest when all were."""


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
    losses: list[tuple[float, float]] = field(default_factory=list)
    gflops: list[float] = field(default_factory=list)
    """Rate of a matrix product, measured between the turns."""
    flop_per_token: float = 0.0
    """Of our matrix products, as counted in one step."""
    peaks: tuple[int, int] = (0, 0)
    agreement: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def ratios(self) -> list[float]:
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]


def main() -> None:
    arguments = _arguments()
    rows = [row for row in ROWS if not arguments.rows or row.name in arguments.rows]
    python = install_peers(arguments.peers_environment)
    folder = Path(arguments.work or tempfile.mkdtemp(prefix="paretune-bench-"))
    precision = arguments.precision or faster_format(measure_precision("cpu"))
    print_machine(arguments, precision)
    print(HEADER, flush=True)
    duels: list[Duel] = []
    for row in rows:
        place = prepare(row, arguments, folder, precision)
        for peer, candidates in CANDIDATES[row.kind].items():
            if arguments.peers and peer not in arguments.peers:
                continue
            for setting in arguments.settings or FASTEST.get((row.name, peer), candidates):
                duels.append(fight(row, peer, setting, place, python, arguments, precision))
                print(line_of(duels[-1]), flush=True)
                if arguments.json:
                    with Path(arguments.json).open("a") as out:
                        out.write(json.dumps(asdict(duels[-1])) + "\n")
    print("\n" + summary(duels))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("PARETUNE_BENCH_DATA"), help="folder of the real files")
    parser.add_argument("--tokenizer", default=os.environ.get("PARETUNE_BENCH_TOKENIZER"), help="of GPT-2; one is learned otherwise")
    parser.add_argument("--rows", nargs="*", choices=[row.name for row in ROWS])
    parser.add_argument("--peers", nargs="*", choices=["trainer", "trl", "lm-eval", "generate"])
    parser.add_argument("--settings", nargs="*", choices=SETTINGS, help="of the peers; the fastest known ones otherwise")
    parser.add_argument("--rounds", type=int, default=4, help="turns that count")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--precision", choices=["float32", "bfloat16"], help="of training; the faster one unless given")
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
    steps = WARM_UP + arguments.rounds + 1  # one more to count its operations
    study = json.loads(row.write(Path(arguments.data), place, steps))
    study["precision"] = {"compute": precision}
    (place / "study.yaml").write_text(json.dumps(study, indent=1))
    return place


def fight(
    row: Row, peer: str, setting: str, place: Path, python: Path, arguments: argparse.Namespace, precision: str
) -> Duel:
    """All rounds of one duel."""
    environment = {**OFFLINE, "OMP_NUM_THREADS": str(arguments.threads)}
    kind = f"train-{row.method}" if row.kind == "train" else row.kind
    shared = place / "shared.json"
    ours = Worker(
        [sys.executable, str(HERE / "peers/ours.py"), kind, str(place / "study.yaml"), str(shared)], environment, place / "ours.log"
    )
    ready = ours.hear()
    given = {**SETTINGS[setting], "precision": ready["precision"], "threads": arguments.threads}
    ours.ask("step")  # the first turn also writes what the other side is to answer
    theirs = Worker(
        [str(python), str(HERE / "peers/theirs.py"), peer, str(place / "model"), str(shared), json.dumps(given)],
        environment,
        place / f"{peer}.log",
    )
    duel = Duel(row.name, peer, setting, row.goal, versions={k: v for k, v in theirs.hear().items() if k != "ready"})
    theirs.ask("step")
    warm_up = WARM_UP if row.kind == "train" else 1
    for turn in range(1, warm_up + arguments.rounds):
        mine, other = ours.ask("step"), theirs.ask("step")
        if "loss" in mine:
            duel.losses.append((mine["loss"], other["loss"]))
            duel.gflops.append(ours.ask("rate")["gflops"])
        if turn >= warm_up:
            duel.ours.append(mine["tokens"] / mine["seconds"])
            duel.theirs.append(other.get("tokens", mine["tokens"]) / other["seconds"])
    if row.kind == "train":
        counted = ours.ask("count")
        duel.flop_per_token = counted["flop"] / counted["tokens"]
    else:
        answered = json.loads(shared.read_text())
        duel.agreement = (agreement_of_choices if row.kind == "choices" else agreement_of_answers)(answered, other)
    duel.peaks = ours.end()["peak_bytes"], theirs.end()["peak_bytes"]
    return duel


def agreement_of_choices(mine: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    pairs = [pair for a, b in zip(mine["sums"], other["sums"], strict=True) for pair in zip(a, b, strict=True)]
    apart = max(abs(a - b) for a, b in pairs)
    scores = (
        f"accuracy {mine['accuracy_unnormalised']:.4f} and {other['acc']:.4f}, "
        f"by bytes {mine['accuracy']:.4f} and {other['acc_bytes']:.4f}"
    )
    return f"log-likelihoods within {apart:.1e} nats; {scores}"


def agreement_of_answers(mine: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    pairs = list(zip(mine["answers"], other["answers"], strict=True))
    same = sum(a == b for a, b in pairs)
    return f"{same} of {len(pairs)} answers are the same to the last token"


def print_machine(arguments: argparse.Namespace, precision: str) -> None:
    packages = ("paretune", "torch", "transformers", "peft")
    print(f"machine: {fingerprint()}; {arguments.threads} threads, Python {platform.python_version()}, {platform.system()}")
    print("ours: " + ", ".join(f"{name} {version(name)}" for name in packages) + f"; training in {precision}, the rest in float32")
    print("command: python " + " ".join(sys.argv) + "\n")


HEADER = (
    "| row | peer, setting | ours, tokens/s | theirs | times as fast | goal | agreement | peak memory, GB | of the product rate |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def line_of(duel: Duel) -> str:
    ours, theirs = (f"{statistics.median(rates):,.0f} ({min(rates):,.0f}-{max(rates):,.0f})" for rates in (duel.ours, duel.theirs))
    ratios = f"{statistics.median(duel.ratios):.2f} ({min(duel.ratios):.2f}-{max(duel.ratios):.2f})"
    agreement, rate = duel.agreement, ""
    if duel.losses:
        agreement = "other steps" if "grouped" in duel.setting else agreement_of_losses(duel.losses)
        reached = duel.flop_per_token * statistics.median(duel.ours) / 1e9
        rate = f"{reached:.0f} of {statistics.median(duel.gflops):.0f} GFLOP/s"
    peaks = " / ".join(f"{peak / 2**30:.2f}" for peak in duel.peaks)
    cells = (duel.row, f"{duel.peer}, {duel.setting}", ours, theirs, ratios, f"{duel.goal:g}", agreement, peaks, rate)
    return "| " + " | ".join(cells) + " |"


def agreement_of_losses(losses: Sequence[tuple[float, float]]) -> str:
    last = losses[-1]
    return f"loss {last[0]:.4f} and {last[1]:.4f} at the end, at most {max(abs(a - b) for a, b in losses):.4f} apart"


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
