"""The figures of a study and their files: loss curves of each base and dataset, a comparison and the tasks of each dataset."""

from pathlib import Path

import matplotlib as mpl

from paretune.analysis.comparison_figure import draw_comparison, draw_tasks
from paretune.analysis.curve_figure import draw_curves
from paretune.analysis.looks import STYLE
from paretune.analysis.measured import Group, Measured
from paretune.analysis.pareto_figure import draw_pareto


def write_figures(measured: Measured, out: Path) -> list[Path]:
    """Draw every figure that there are numbers for into `out`/figures and return the files."""
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with mpl.rc_context(STYLE):
        for group in measured.groups:
            file = folder / curves_name(group)
            if (figure := draw_curves(measured, group)) is not None:
                figure.savefig(file)
                written.append(file)
        for dataset in dict.fromkeys(group.dataset for group in measured.groups):
            for name, draw in ((comparison_name(dataset), draw_comparison), (tasks_name(dataset), draw_tasks)):
                if (figure := draw(measured, dataset)) is not None:
                    figure.savefig(folder / name)
                    written.append(folder / name)
        if (figure := draw_pareto(measured)) is not None:
            figure.savefig(folder / PARETO_NAME)
            written.append(folder / PARETO_NAME)
    return written


PARETO_NAME = "pareto.png"


def curves_name(group: Group) -> str:
    return f"curves-{group.dataset}-{group.base}.png"


def comparison_name(dataset: str) -> str:
    return f"comparison-{dataset}.png"


def tasks_name(dataset: str) -> str:
    return f"tasks-{dataset}.png"
