"""What guessing the next tokens of greedy answers gains: a variant's answers to tasks, with guesses and without.

    python benchmarks/guesses.py STUDY VARIANT [--store DIR] [--answers 16] [--rounds 3] [--threads 1]

STUDY has tasks, and VARIANT has run. Each round takes the next so many prompts of the test split; both ways write them, one
after the other in one process. Processor time; the median and range of the ratios over the rounds, passes of the model, and
whether the answers are the same to the last token.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from paretune.api import open_study
from paretune.data.tokenizer import read_tokens
from paretune.evaluate import answers
from paretune.evaluate.tasks import prompts_of, questions_of
from paretune.model.load import load_model
from paretune.model.shared_context import SharedContexts
from paretune.pipeline.stage import RunOptions, StageContext


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("variant")
    parser.add_argument("--store")
    for name, default in (("answers", 16), ("rounds", 3), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    opened = open_study(options.study, store=options.store)
    cell = next(cell for cell in opened.plan.cells if cell.variant == options.variant)
    stage = cell.evaluations["perplexity"]
    inputs = {"model": opened.store.artifact(cell.methods[-1])} if cell.methods else {}
    loaded = load_model(StageContext(stage.config, inputs, stage.resources, RunOptions(), Path(), lambda **_: None), fused=True)
    (tokens,) = (opened.store.artifact(each).path for each in opened.plan.tokens.values())
    dataset = next(iter(opened.study.data.values()))
    prompts = prompts_of(questions_of(read_tokens(tokens, "test")), dataset.scored, loaded)
    guessing, passes, through = answers._Draft.guesses, [0], SharedContexts.step

    def counted(*arguments: object) -> torch.Tensor:
        passes[0] += 1
        return through(*arguments)  # type: ignore[arg-type]

    SharedContexts.step = counted  # type: ignore[method-assign, assignment]
    ratios = []
    for number in range(options.rounds):
        asked = prompts[number * options.answers : (number + 1) * options.answers]
        sides = {}
        for name, guesses in (("without", lambda _: []), ("with", guessing)):
            answers._Draft.guesses = guesses  # type: ignore[method-assign, assignment]
            passes[0], started = 0, time.process_time()
            written = [answer.ids for answer in answers.write_answers(loaded, asked)]
            sides[name] = time.process_time() - started, passes[0], written
        (plain, plain_passes, texts), (guessed, fewer, others) = sides["without"], sides["with"]
        same = sum(one == other for one, other in zip(texts, others, strict=True))
        print(f"{plain:.1f} s, {plain_passes} passes; {guessed:.1f} s, {fewer}; {same} of {len(texts)} the same", flush=True)
        ratios.append(plain / guessed)
    print(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) times as fast")


if __name__ == "__main__":
    main()
