"""The command `paretune`: parses flags, calls the verbs of `paretune.api`, prints. Heavy imports happen inside the commands."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paretune.errors import DataError, NeedsError, ParetuneError, SpecError, StoreError, command_line
from paretune.pipeline.signals import Terminated, ended_by_signals

if TYPE_CHECKING:
    from paretune.pipeline.results import OpenStudy

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Which small language model should I ship on my data, and what do I lose if I make it cheaper?",
)


def _tell_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"paretune {version('paretune')}")
        raise typer.Exit


@app.callback()
def _every_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Say which this is.")
    ] = False,
) -> None:
    pass


StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="The study file.")]
StorePath = Annotated[Path | None, typer.Option("--store", help="Where stages live.  [default: .paretune beside the study]")]
OutPath = Annotated[
    Path | None, typer.Option("--out", help="Where the outputs go.  [default: results/<study> in the folder that you are in]")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Memory = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Use at most 6GB, 6GiB, or 50% of what there is.  [default: what is free]")
]
Recompute = Annotated[bool, typer.Option(help="Train in less memory, and slower.")]

_INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


@app.command("init")
def init_command(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="A data file or folder: jsonl, json, csv, xlsx, parquet, text ...")
    ],
    to: Annotated[Path, typer.Option("--to", help="The study file to write.")] = Path("study.yaml"),
    base: Annotated[
        str | None,
        typer.Option(help="A model: its directory, a .gguf file, or its name on the hub.  [default: the one that ships]"),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.1, help="Train so little that a run is forecast to take no longer.")
    ] = None,
) -> None:
    """Look at a data file and write a study file that runs as it is."""
    from paretune.app.init import write_first_study

    if to.exists():
        raise SpecError(f"--to: `{to}` exists; name another file")
    if (data / "config.json").is_file():
        raise DataError(f"{data}: is the directory of a model, which goes with `--base`; name a data file, or a folder of some")
    told = write_first_study(data, to, base, minutes)
    typer.echo(to.read_text(encoding="utf-8"))
    typer.echo("\n".join([*told, f"written to {to}; look at it, then: {command_line('run', to)}"]))


@app.command("plan")
def plan_command(
    study: StudyFile, store: StorePath = None, device: Device = "auto", memory: Memory = None, recompute: Recompute = False
) -> None:
    """Show every stage as new or reused, with the reason, and what a run would take."""
    from paretune.api import open_study
    from paretune.pipeline.machine import memory_limit
    from paretune.pipeline.plan_text import describe_plan
    from paretune.pipeline.rates import measure_rates
    from paretune.pipeline.stage import RunOptions

    opened = open_study(study, store, device)
    options = RunOptions(device=device, memory=memory_limit(memory, opened.lock.device), recompute=recompute)
    say = partial(typer.echo, err=True)
    rates = measure_rates(opened.study, opened.lock, opened.plan, opened.store, say)
    typer.echo(describe_plan(opened.study, opened.lock, opened.plan, opened.store, options, rates, opened.file.parent))


@app.command("run")
def run_command(
    study: StudyFile,
    store: StorePath = None,
    out: OutPath = None,
    device: Device = "auto",
    workers: Annotated[int, typer.Option(min=1, help="Stages side by side.")] = 1,
    accumulate: Annotated[int, typer.Option(min=1, help="Micro-batches an optimizer step is cut into.")] = 1,
    memory: Memory = None,
    recompute: Recompute = False,
    debug: Annotated[bool, typer.Option(help="Show tracebacks of failed stages.")] = False,
) -> None:
    """Run what is missing, then write the comparison."""
    from rich.console import Console

    from paretune.api import open_study
    from paretune.app.track import tracking
    from paretune.console import Display
    from paretune.pipeline.lock import lock_file, write_lock
    from paretune.pipeline.machine import memory_limit
    from paretune.pipeline.plan import pending
    from paretune.pipeline.results import describe_documents, small_splits
    from paretune.pipeline.runner import run_plan
    from paretune.pipeline.stage import RunOptions

    opened = open_study(study, store, device)
    limit = memory_limit(memory, opened.lock.device)
    write_lock(opened.lock, opened.file)
    for resource in pending(opened.plan, opened.store):
        resource.fetch(lambda text: typer.echo(text, err=True))
    opened.store.prepare()
    for line in describe_documents(opened.study, opened.plan, opened.store):
        typer.echo(line, err=True)
    options = RunOptions(device=device, workers=workers, accumulate=accumulate, memory=limit, recompute=recompute)
    with tracking(opened.study, opened.plan, opened.store, opened.file.parent) as trackers:
        with Display(Console(stderr=True), command_line("run", study, store=store)) as display:
            outcome = run_plan(opened.plan, opened.store, options, display.show, opened.file)
        opened = replace(opened, plan=outcome.plan)
        for warning in [] if outcome.failed else small_splits(opened.plan, opened.store):
            typer.echo(warning, err=True)
        is_written = _write_report(opened, out, shown="answer.txt")
        results = (out or opened.results_directory) if is_written else None
        trackers.finish(opened.plan, [opened.file, lock_file(opened.file)], results, partial(typer.echo, err=True))
    if is_written:
        # Above the report, the display has told it once, and it has scrolled away. Each message once, with its stages.
        messages: dict[str, list[str]] = {}
        for stage, failure in outcome.failed.items():
            messages.setdefault(failure.message, []).append(stage.name)
        for message, names in messages.items():
            typer.echo(f"failed: {', '.join(names)}: {message}", err=True)
    if debug:
        for failure in outcome.failed.values():
            typer.echo(failure.traceback, err=True)
    if outcome.blocked:
        typer.echo(f"{len(outcome.blocked)} stages did not run, because they need what failed", err=True)
    raise typer.Exit(outcome.exit_code)


@app.command("report")
def report_command(
    study: StudyFile,
    store: StorePath = None,
    out: OutPath = None,
    figures: Annotated[bool, typer.Option(help="Draw the figures.")] = True,
) -> None:
    """Write the outputs again from what is in the store."""
    from paretune.api import open_study
    from paretune.pipeline.plan import cell_name
    from paretune.pipeline.runs import live_runs

    opened, again = open_study(study, store), command_line("run", study, store=store)
    if not _write_report(opened, out, shown="report.txt", figures=figures):
        raise StoreError(f"{opened.store.root}: holds no result of this study; first: `{again}`")
    cells = opened.plan.cells
    missing = [cell_name(cell) for cell in cells if not all(map(opened.store.find, cell.stages))]
    if missing:
        stages = {stage.name for stage in opened.plan.stages}
        runs = [run.name for run in live_runs(opened.store) if stages.intersection(run.stages)]
        way_on = f"a run is on ({'; '.join(runs)})" if runs else f"`{again}` goes on"
        typer.echo(f"unfinished: {len(missing)} of {len(cells)} lack something: {', '.join(missing)}; {way_on}", err=True)


@app.command("rate")
def rate_command(
    study: StudyFile,
    to: Annotated[Path, typer.Option("--to", help="The sheet to write, a .csv file.")],
    items: Annotated[int, typer.Option(min=1, help="Prompts; each is rated once for every variant.")] = 20,
    of: Annotated[
        list[str] | None, typer.Option(help="A generation or task to take texts of; repeat it.  [default: all]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of prompts and their order.")] = 0,
    every_seed: Annotated[bool, typer.Option("--every-seed", help="Texts of all training seeds, not the first alone.")] = False,
    store: StorePath = None,
) -> None:
    """Write a blind sheet of what the variants wrote, for people to rate from 1 to 5."""
    from paretune.api import open_study
    from paretune.evaluate.ratings import write_blind_sheet

    opened = open_study(study, store)
    summary = write_blind_sheet(
        opened.study, opened.plan, opened.store, to, num_prompts=items, of=of or [], seed=seed, every_seed=every_seed
    )
    typer.echo(summary)


@app.command("why")
def why_command(
    study: StudyFile,
    stage: Annotated[
        str, typer.Argument(metavar="STAGE", help="A stage as `plan` names it, or the beginning of its name; or a variant.")
    ],
    store: StorePath = None,
) -> None:
    """Say why a stage is new: which fields differ from the nearest artifact of its kind."""
    from paretune.api import open_study
    from paretune.pipeline.why import explain

    opened = open_study(study, store)
    typer.echo(explain(opened.plan, opened.store, stage))


@app.command("export")
def export_command(
    study: StudyFile,
    variant: Annotated[str, typer.Argument(metavar="VARIANT", help="A variant of the study.")],
    to: Annotated[Path, typer.Option("--to", help="A directory that does not exist yet, or is empty.")],
    form: Annotated[
        str, typer.Option("--format", help="hf (whole model), adapter (PEFT), gguf or int8.  [default: as it was measured]")
    ] = "",
    base: Annotated[str | None, typer.Option(help="Needed where the study has several bases.")] = None,
    data: Annotated[str | None, typer.Option(help="Needed where the study has several datasets.")] = None,
    seed: Annotated[int | None, typer.Option(help="Needed where the variant has several seeds.")] = None,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="A repository of the hub that is to hold the directory, private.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Let everybody see the repository; asks first.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Make it public without asking.")] = False,
    store: StorePath = None,
) -> None:
    """Write a variant as a directory that transformers or PEFT loads with no Paretune installed."""
    from paretune.analysis.facts import find
    from paretune.analysis.scores import Entrant
    from paretune.api import open_study
    from paretune.pipeline.hub import check_repository_name, push_model
    from paretune.pipeline.plan import Wanted, find_cell
    from paretune.pipeline.results import read_results
    from paretune.report.cards import model_card
    from paretune.variants.export import CARD, export_variant

    if push is not None:
        check_repository_name(push, "--push")
    elif public:
        raise SpecError("--public: goes with `--push OWNER/NAME`")
    if public and not yes:
        if not sys.stdin.isatty():
            raise SpecError(f"--public: everybody will see `{push}`, which is asked about in a terminal only; add `--yes`")
        if not typer.confirm(f"let everybody see `{push}`: the weights, and the card with a record of the held-out data?"):
            raise SpecError("--public: not confirmed, and nothing is written or sent")
    opened, wanted = open_study(study, store), Wanted(variant, base, data, seed)
    told = export_variant(opened.plan, opened.store, wanted, to, form, partial(typer.echo, err=True))
    cell = find_cell(opened.plan, wanted)
    findings = find(read_results(opened))
    entrant = Entrant(cell.base, cell.dataset, cell.variant)
    if findings.estimates.get(entrant):
        use = (to / CARD).read_text(encoding="utf-8")
        (to / CARD).write_text(model_card(findings, entrant, use), encoding="utf-8")
    typer.echo(told)
    if push is not None:
        address = push_model(to, push, f"Variant {variant} of the study {opened.study.study}", public=public)
        typer.echo(f"{'public' if public else 'private'}: {address}")


@app.command("chat")
def chat_command(
    study: StudyFile,
    variant: Annotated[str, typer.Argument(metavar="VARIANT", help="A variant of the study.")],
    other: Annotated[str | None, typer.Argument(metavar="[VARIANT]", help="Another, beside it.")] = None,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Of an answer, at most.")] = 256,
    seed: Annotated[int, typer.Option(help="Of the draws of a temperature above 0.")] = 0,
    system: Annotated[str, typer.Option(help="What the model is told before a chat.")] = "",
    base: Annotated[str | None, typer.Option(help="Needed where the study has several bases.")] = None,
    data: Annotated[str | None, typer.Option(help="Needed where the study has several datasets.")] = None,
    trained_with: Annotated[
        int | None, typer.Option("--trained-with", help="A training seed.  [default: the first of a variant]")
    ] = None,
    device: Device = "auto",
    store: StorePath = None,
) -> None:
    """Talk to one or two variants, by the chat template of the base where it has one; prompts may come through a pipe."""
    from paretune.api import open_study
    from paretune.app.chat import chat
    from paretune.app.conversation import Asking

    asking = Asking(temperature, max_new_tokens, seed, system)
    opened = open_study(study, store, device)
    again = command_line("run", study, store=store)
    chat(opened, [variant, *([other] if other else [])], asking, (base, data, trained_with), again)


@app.command("dashboard")
def dashboard_command(
    study: StudyFile,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Of this machine alone.  [default: the first free one from 8501 on]")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Of all models that are loaded: 6GB, 6GiB, or 50%.  [default: most of what is free]"),
    ] = None,
    device: Device = "auto",
    store: StorePath = None,
) -> None:
    """Show the comparison in a browser: curves while it runs, variants to talk to side by side, texts to rate blindly."""
    from paretune.pipeline.machine import has, way_to

    if not has("streamlit", "cpu"):
        raise NeedsError(f"dashboard: needs {way_to('streamlit', 'cpu')}")
    from paretune.app.dashboard import Served, serve

    serve(Served(study, store, device, memory), port, partial(typer.echo, err=True))


@app.command("gate")
def gate_command(
    study: Annotated[Path | None, typer.Argument(metavar="STUDY", help="The study file.")] = None,
    variant: Annotated[str | None, typer.Argument(metavar="VARIANT", help="What would ship.")] = None,
    against: Annotated[str | None, typer.Option(help="The variant that it would replace.  [default: the baseline]")] = None,
    within: Annotated[
        list[str] | None, typer.Option(help="METRIC=NUMBER: worse by no more; or METRIC=2%, a part of the figure. Repeat it.")
    ] = None,
    at_most: Annotated[list[str] | None, typer.Option(help="METRIC=NUMBER: a figure or cost no larger. Repeat it.")] = None,
    at_least: Annotated[list[str] | None, typer.Option(help="METRIC=NUMBER: a figure no smaller. Repeat it.")] = None,
    base: Annotated[str | None, typer.Option(help="Needed where the study has several bases.")] = None,
    data: Annotated[str | None, typer.Option(help="Needed where the study has several datasets.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the verdict and what it rests on, as JSON.")] = None,
    verify: Annotated[Path | None, typer.Option(help="Check such a file again from the store.")] = None,
    store: StorePath = None,
) -> None:
    """Say whether a variant may ship: exit 0 where every bound is shown to hold, 1 where one is shown broken, 3 where the data
    cannot tell."""
    from paretune import api
    from paretune.analysis import gate
    from paretune.report.words import say
    from paretune.study.compare import parse_bounds

    if verify is not None:
        content = gate.read_json(verify)
        study, variant, against = Path(content["study_file"]), content["variant"], content["against"]
        base, data, bounds = content["base"], content["data"], parse_bounds(content["bounds"])
    elif study is None or variant is None:
        raise SpecError("write `paretune gate STUDY VARIANT --within METRIC=NUMBER`, or `paretune gate --verify FILE`")
    else:
        asked: dict[str, dict[str, str]] = {}
        for flag, values in (("within", within), ("at_most", at_most), ("at_least", at_least)):
            for value in values or ():
                metric, equals, number = value.partition("=")
                if not equals or not number:
                    raise SpecError(f"--{flag.replace('_', '-')}: expected METRIC=NUMBER, got `{value}`")
                asked.setdefault(metric, {})[flag] = number
        bounds = parse_bounds(asked)
    verdict, rests_on = api.gate(study, variant, against, bounds, base, data, store)
    if verify is not None:
        gate.verify(content, rests_on, api.open_results(study, store), verify)
    if out is not None:
        gate.write_json(rests_on, study, out)
    for fact in (*verdict.checks, verdict):
        typer.echo(say(fact))
    raise typer.Exit(gate.EXIT_CODES[verdict.verdict])


@app.command("methods")
def methods_command(markdown: Annotated[bool, typer.Option(help="The whole reference of the study file.")] = False) -> None:
    """Show what can be written in a study."""
    from paretune.study import reference

    typer.echo(reference.markdown() if markdown else reference.methods_text(), nl=not markdown)


@app.command("doctor")
def doctor_command() -> None:
    """Show what this machine can run."""
    from paretune.pipeline.doctor import examine

    text, sound = examine(Path())
    typer.echo(text)
    raise typer.Exit(0 if sound else 2)


@app.command("clean")
def clean_command(
    studies: Annotated[
        list[Path] | None, typer.Argument(metavar="[STUDY...]", help="All studies whose artifacts stay, however old.")
    ] = None,
    store: Annotated[
        Path | None, typer.Option("--store", help="Where stages live.  [default: .paretune beside the study, or here]")
    ] = None,
    older_than: Annotated[str | None, typer.Option(help="Only what no run has used for so long, like 30d, 12h or 2w.")] = None,
    yes: Annotated[bool, typer.Option(help="Remove without asking.")] = False,
) -> None:
    """Show what the store holds by study, and remove what no study named here needs, or what is old."""
    from paretune.api import open_study
    from paretune.pipeline.clean import parse_age, remove, size_of, sizes, unused
    from paretune.pipeline.runs import known_studies
    from paretune.pipeline.store import Store

    age = None if older_than is None else parse_age(older_than)
    opened = [open_study(study, store) for study in studies or []]
    if len({each.store.root.resolve() for each in opened}) > 1:
        raise SpecError("the studies have different stores; name one with --store, or clean them one by one")
    artifacts = opened[0].store if opened else Store(store or Path(".paretune"))
    held = sizes(artifacts)
    for file, seconds, num_bytes in held.studies:
        typer.echo(f"{num_bytes / 1e6:10.1f} MB  {file}, run {_ago(seconds)}")
    typer.echo(f"{held.shared / 1e6:10.1f} MB  shared by several of them\n{held.others / 1e6:10.1f} MB  of no study known here")
    if not opened and age is None:
        typer.echo("to remove what is old: `paretune clean --older-than 30d`; what no study needs: name all that use the store")
        return
    found = unused(artifacts, [each.plan for each in opened], age)
    if not found:
        typer.echo("nothing to remove: every artifact is named by a study" if opened else "nothing to remove: all is younger")
        return
    typer.echo("to remove:")
    needed_by: dict[str, list[str]] = {}
    for known in known_studies(artifacts):
        for stage in known.stages:
            needed_by.setdefault(stage, []).append(known.file)
    for directory in found:
        used, owners = _ago(time.time() - directory.stat().st_mtime), needed_by.get(directory.name, [])
        of_studies = f", of {' and '.join(owners)}" if owners else ""
        typer.echo(f"{size_of(directory) / 1e6:10.1f} MB  {directory}, used {used}{of_studies}")
    losing = sorted({file for directory in found for file in needed_by.get(directory.name, [])})
    if losing:
        typer.echo(f"what these studies need goes too, and they would run it again: {', '.join(losing)}")
    if yes or typer.confirm(f"remove {len(found)} directories?"):
        remove(found)
        typer.echo(f"removed {len(found)} directories")


def _ago(seconds: float) -> str:
    days = int(seconds // 86_400)
    return "today" if days < 1 else f"{days:,} day{'s' if days > 1 else ''} ago"


def _write_report(opened: "OpenStudy", out: Path | None, *, shown: str, figures: bool = True) -> bool:
    """Write the comparison and print the file called `shown`; False, with nothing written, where nothing is measured yet."""
    from paretune.pipeline.results import read_results
    from paretune.report.outputs import write_outputs
    from paretune.study.evaluations import SIZE

    results = read_results(opened)
    if not any(set(cell.evaluations) - {SIZE.name} for cell in results.cells):
        return False
    directory = out or opened.results_directory
    written = write_outputs(results, directory, figures=figures)
    typer.echo(f"written to {directory}: {', '.join(str(path.relative_to(directory)) for path in written)}", err=True)
    typer.echo((directory / shown).read_text(encoding="utf-8"))
    typer.echo(f"the whole report: {directory / 'report.html'} in a browser, or report.txt beside it", err=True)
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """The command as a function: its exit code is 0, 1 (a stage failed) or 2 (a mistake of the user's).

    128 and the number of the signal if one has ended it.
    """
    command: Callable[..., Any] = typer.main.get_command(app)
    try:
        _check_place()
        with ended_by_signals():
            code = int(command(args=None if argv is None else list(argv), prog_name="paretune", standalone_mode=False) or 0)
    except Terminated as end:
        typer.echo(f"ended by {end.name}; what is finished is kept, run again to go on", err=True)
        return int(end.code)
    except ParetuneError as error:
        typer.echo(f"error: {error}", err=True)
        return error.exit_code
    except typer.Exit as stop:
        return stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except typer.exceptions.TyperException as error:
        if told := _told(error, list(sys.argv[1:] if argv is None else argv)):
            typer.echo(f"error: {told}", err=True)
        else:
            error.show()
        return error.exit_code
    if code == _INTERRUPTED:  # typer makes this of a KeyboardInterrupt
        typer.echo("interrupted; what is finished is kept, run again to go on", err=True)
    return code


def _check_place() -> None:
    """NeedsError where nothing could work, whatever is asked for."""
    if sys.flags.optimize > 1:
        raise NeedsError("`python -OO` takes docstrings out, without which transformers does not load; use `-O`, or neither")
    try:
        os.getcwd()
    except OSError as error:
        raise NeedsError(f"the folder that you are in is gone ({error.strerror}); `cd` into one that is there") from None


def _told(error: typer.exceptions.TyperException, given: Sequence[str]) -> str:
    """What is said of a command or an option that there is none of, where the parser itself would not know the way out."""
    from paretune.study.base import suggestion
    from paretune.study.foreign import belongs, called

    first = given[0] if given else ""
    commands = [command.name or str(command.callback and command.callback.__name__) for command in app.registered_commands]
    if Path(first).suffix in (".yaml", ".yml"):
        return f"`{first}` is no command; write what to do with it: `{command_line('run', first)}`"
    if first not in commands and (way_out := called(f"${first}", commands=[f"$ {name}" for name in commands])):
        return f"No such command '{first}'{way_out}"
    option, context = getattr(error, "option_name", None), getattr(error, "ctx", None)
    if not option or not context:
        return ""
    options = [name for parameter in context.command.params for name in parameter.opts]
    name = option.lstrip("-").replace("-", "_")
    elsewhere = belongs(name)
    way_out = called(name) or (f"{elsewhere} of the study file" if elsewhere else suggestion(option, options))
    return f"No such option: {option}{way_out}"


def run_command_line() -> None:
    sys.exit(main())


if __name__ == "__main__":
    run_command_line()
