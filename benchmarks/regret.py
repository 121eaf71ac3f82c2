"""What each choice of blocks in a store costs beside the best set of as many, of those that a search of all sets has measured.

    python benchmarks/regret.py STORE [--sets NAME=BLOCK,BLOCK ...]

STORE holds a `prune.blocks` with `choose: loss, budget: {search: all}` (`studies/real-pairs.yaml`); the sets that its others
chose for the same base are looked up in those scores, all on one text, and so are the sets that are named, of studies in other
stores. Prints rows of Markdown.
"""

import argparse
import json
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--sets", nargs="*", default=[], metavar="NAME=BLOCK,BLOCK")
    arguments = parser.parse_args()
    named = [
        (name, tuple(map(int, blocks.split(",")))) for name, _, blocks in (each.rpartition("=") for each in arguments.sets)
    ]
    records = [json.loads(file.read_text()) for file in arguments.store.glob("prune.blocks-*/record.json")]
    (every,) = (each for each in records if (each["config"]["method"].get("budget") or {}).get("search") == "all")
    scores = {tuple(one["removed"]): one["score"] for one in every["metrics"]["block_scores"]}
    whole, tokens = scores[()], every["metrics"]["calibration_tokens"]
    took = every["metrics"]["choice_seconds"]
    print(f"{tokens:,} tokens, {len(scores)} sets, {took:,.0f} s; nats per token, the whole {whole:.4f}\n")
    print("| blocks | chosen by | set | more than the whole | more than the best | rank |\n" + "|---" * 6 + "|")
    for size in sorted({len(removed) for removed in scores} - {0}):
        ranked = sorted((score, removed) for removed, score in scores.items() if len(removed) == size)
        chosen = {(told(each), tuple(each["metrics"]["removed_blocks"])) for each in records if each is not every} | set(named)
        rows = [("all sets, the best", ranked[0][1]), *sorted(row for row in chosen if len(row[1]) == size)]
        for name, removed in rows:
            rank = 1 + [one for _, one in ranked].index(removed)
            cost = f"{scores[removed] - whole:.4f} | {scores[removed] - ranked[0][0]:.4f} | {rank} of {len(ranked)}"
            print(f"| {size} | {name} | {', '.join(map(str, removed))} | {cost} |")


def told(record: dict[str, Any]) -> str:
    method = record["config"]["method"]
    text = f", {method['calibration']['tokens']:,} tokens" if "calibration" in method else ""
    return f"`{method['choose']}`{text}" + (f", `seam: {method['seam']}`" if method.get("seam", "none") != "none" else "")


if __name__ == "__main__":
    main()
