"""The figures of a study and their files: loss curves of each base on each dataset, a comparison of each dataset."""

from pathlib import Path

import matplotlib as mpl

from paretune.analysis.comparison_figure import draw_comparison
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
            file = folder / comparison_name(dataset)
            if (figure := draw_comparison(measured, dataset)) is not None:
                figure.savefig(file)
                written.append(file)
        if (figure := draw_pareto(measured)) is not None:
            figure.savefig(folder / PARETO_NAME)
            written.append(folder / PARETO_NAME)
    return written


PARETO_NAME = "pareto.png"


def curves_name(group: Group) -> str:
    return f"curves-{group.dataset}-{group.base}.png"


def comparison_name(dataset: str) -> str:
    return f"comparison-{dataset}.png"
