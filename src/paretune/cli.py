"""The command `paretune`: parses flags, calls the verbs of `paretune.api`, prints. Heavy imports happen inside the commands."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from paretune.errors import ParetuneError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Which small language model should I ship on my data, and what do I lose if I make it cheaper?",
)

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="The study file.")]
StorePath = Annotated[Path | None, typer.Option("--store", help="Where stages live.  [default: .paretune beside the study]")]
OutPath = Annotated[Path | None, typer.Option("--out", help="Where the outputs go.  [default: results/<study>]")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


@app.command("plan")
def plan_command(study: StudyFile, store: StorePath = None, device: Device = "auto") -> None:
    """Show every stage as new or reused, with the reason, and what a run would take."""
    from paretune.api import open_study
    from paretune.pipeline.estimates import describe_plan

    opened = open_study(study, store, device)
    typer.echo(describe_plan(opened.study, opened.lock, opened.plan, opened.store))


@app.command("run")
def run_command(
    study: StudyFile,
    store: StorePath = None,
    out: OutPath = None,
    device: Device = "auto",
    workers: Annotated[int, typer.Option(min=1, help="Stages side by side.")] = 1,
    accumulate: Annotated[int, typer.Option(min=1, help="Micro-batches an optimizer step is cut into.")] = 1,
    debug: Annotated[bool, typer.Option(help="Show tracebacks of failed stages.")] = False,
) -> None:
    """Run what is missing, then write the comparison."""
    from rich.console import Console

    from paretune.api import open_study
    from paretune.console import Display
    from paretune.pipeline.lock import write_lock
    from paretune.pipeline.runner import run_plan
    from paretune.pipeline.stage import RunOptions

    opened = open_study(study, store, device)
    write_lock(opened.lock, opened.file)
    options = RunOptions(device=device, workers=workers, accumulate=accumulate)
    with Display(Console(stderr=True)) as display:
        outcome = run_plan(opened.plan, opened.store, options, display.show)
    _write_report(opened, out)
    for stage, failure in outcome.failed.items():
        typer.echo(f"failed: {stage.name}: {failure.message}", err=True)
        if debug and failure.traceback:
            typer.echo(failure.traceback, err=True)
    if outcome.blocked:
        typer.echo(f"not run, because they need what failed: {', '.join(s.name for s in outcome.blocked)}", err=True)
    raise typer.Exit(outcome.exit_code)


@app.command("report")
def report_command(study: StudyFile, store: StorePath = None, out: OutPath = None) -> None:
    """Write the outputs again from what is in the store."""
    from paretune.api import open_study

    _write_report(open_study(study, store), out)


@app.command("export")
def export_command(
    study: StudyFile,
    variant: Annotated[str, typer.Argument(metavar="VARIANT", help="A variant of the study.")],
    to: Annotated[Path, typer.Option("--to", help="A directory that does not exist yet, or is empty.")],
    form: Annotated[str, typer.Option("--format", help="hf (whole model) or adapter (PEFT).")] = "hf",
    base: Annotated[str | None, typer.Option(help="Needed where the study has several bases.")] = None,
    data: Annotated[str | None, typer.Option(help="Needed where the study has several datasets.")] = None,
    seed: Annotated[int | None, typer.Option(help="Needed where the variant has several seeds.")] = None,
    store: StorePath = None,
) -> None:
    """Write a variant as a directory that transformers or PEFT loads with no Paretune installed."""
    from paretune.api import open_study
    from paretune.variants.export import Wanted, export_variant

    opened = open_study(study, store)
    typer.echo(export_variant(opened.plan, opened.store, Wanted(variant, base, data, seed), to, form))


def _write_report(opened: Any, out: Path | None) -> None:
    from paretune.analysis.outputs import write_outputs
    from paretune.pipeline.results import read_results

    results = read_results(opened.study, opened.file, opened.lock, opened.plan, opened.store)
    directory = out or opened.results_directory
    written = write_outputs(results, directory)
    report = directory / "report.txt"
    if report in written:
        typer.echo(report.read_text(encoding="utf-8"))
    typer.echo(f"written to {directory}: {', '.join(str(path.relative_to(directory)) for path in written)}", err=True)


def main(argv: Sequence[str] | None = None) -> int:
    """The command as a function: its exit code is 0, 1 (a stage failed) or 2 (a mistake of the user's)."""
    command: Callable[..., Any] = typer.main.get_command(app)
    try:
        return int(command(args=None if argv is None else list(argv), prog_name="paretune", standalone_mode=False) or 0)
    except ParetuneError as error:
        typer.echo(f"error: {error}", err=True)
        return error.exit_code
    except typer.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("interrupted; what is finished is kept, run again to go on", err=True)
        return 130
    except typer.exceptions.TyperException as error:
        error.show()
        return error.exit_code


def run_command_line() -> None:
    sys.exit(main())
