import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from paretune.analysis.findings import Findings, Group
from paretune.analysis.measure import measure
from paretune.pipeline.records import Results
from paretune.report import figures, looks, maps
from paretune.study import registry
from paretune.study.metrics import Metric
from paretune.study.study import load_study
from tests.analysis.synthetic import VARIANTS, Shape, Truth, make_results, study_text, write_scores

SMALL = Shape(documents=8, epochs=1, seeds=(0,))


def test_every_base_and_dataset_has_its_figures(tmp_path: Path) -> None:
    shape = replace(SMALL, bases=("novels", "stories"))
    findings = measure(make_results(tmp_path, shape))
    written = figures.write_figures(findings, tmp_path)
    names = [
        *(figures.curves_name(findings, group) for group in findings.groups),
        figures.comparison_name("news"),
        *(maps.questions_name(findings, group, "qa") for group in findings.groups),
        maps.BEST_NAME,
        figures.PARETO_NAME,
    ]
    assert [file.name for file in written if file.suffix == ".png"] == names
    for file in written[::2]:
        picture = matplotlib.image.imread(file)
        assert min(picture.shape[:2]) > 300
        assert picture.std() > 0.02


def test_nothing_trained_has_no_curves_and_nothing_measured_no_figure(tmp_path: Path) -> None:
    shape = Shape(variants={"base": VARIANTS["base"]}, documents=6, evaluations=("perplexity",))
    findings = measure(make_results(tmp_path, shape))
    written = [file.name for file in figures.write_figures(findings, tmp_path)]
    assert written == [figures.comparison_name("news"), "comparison-news.svg"]


def test_vector_figures_hold_text_and_are_equal_for_equal_findings(tmp_path: Path) -> None:
    findings = measure(make_results(tmp_path, SMALL))
    first, second = (
        {file.name: file.read_bytes() for file in figures.write_figures(findings, tmp_path / name)} for name in ("a", "b")
    )
    assert first == second
    drawn = {name: content.decode() for name, content in first.items() if name.endswith(".svg")}
    assert len(drawn) == len(first) / 2
    for name, text in drawn.items():
        assert "</text>" in text, name
        assert "reduced" in text, name
        assert "dc:date" not in text, name


def test_names_of_files_need_no_matplotlib() -> None:
    code = "import sys, paretune.report.figures as f; f.comparison_name('news'); sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_variant_looks_the_same_in_every_figure_of_a_study_and_no_two_look_alike(tmp_path: Path) -> None:
    variants = {"base": VARIANTS["base"], **{f"v{index}": Truth("[{train.lora: {}}]", 4.0) for index in range(20)}}
    file = tmp_path / "study.yaml"
    file.write_text(study_text(Shape(variants=variants)), encoding="utf-8")
    styles = list(looks.looks(load_study(file)).values())
    assert len({(look.colour, look.line, look.marker) for look in styles}) == 21
    assert len({look.colour for look in styles[:8]}) == 8


def test_long_names_keep_what_tells_them_apart() -> None:
    names = [f"lora-on-all-linear-layers-with-rank-{rank}-and-a-long-tail" for rank in (4, 8, 16)]
    short = looks.short_names(["base", *names])
    assert short["base"] == "base"
    assert [short[name] for name in names] == ["…rank-4…", "…rank-8…", "…rank-16…"]
    same_ends = looks.short_names(["a" * 20 + str(index) + "b" * 60 for index in range(3)])
    assert len(set(same_ends.values())) == 3
    assert all(len(name) <= 36 for name in same_ends.values())


@pytest.mark.parametrize("losses", [(4.0, 4.0, 4.0), (4.0, 4.02, 4.8), (3.5, 4.1, 4.8)])
def test_names_beside_curves_are_moved_apart_as_little_as_needed(tmp_path: Path, losses: tuple[float, ...]) -> None:
    variants = {f"v{index}": replace(VARIANTS["original"], loss=loss) for index, loss in enumerate(losses)}
    findings = measure(make_results(tmp_path, replace(SMALL, variants=variants, epochs=2, seed_effect=0.0)))
    figure = figures.draw_curves(findings, findings.groups[0])
    assert figure is not None
    axes = figure.axes[-1]
    gap = 11.5 / (axes.get_window_extent().height / figure.dpi * 72)
    wanted = np.array([name.xy[1] for name in axes.texts])
    moved = np.array([name.xyann[1] for name in axes.texts])
    assert (np.diff(moved) >= gap - 1e-9).all()
    assert moved.mean() == pytest.approx(wanted.mean())
    if np.diff(wanted).min() >= gap:
        assert moved == pytest.approx(wanted)


def test_single_evaluations_have_no_panel_of_their_own(tmp_path: Path) -> None:
    for epochs, num_panels in ((1, 1), (2, 2)):
        (root := tmp_path / str(epochs)).mkdir()
        findings = measure(make_results(root, Shape(documents=6, epochs=epochs, evaluations=("perplexity",))))
        figure = figures.draw_curves(findings, findings.groups[0])
        assert figure is not None
        assert [axes.get_title() for axes in figure.axes] == ["Train loss (running mean)", "Validation loss"][:num_panels]


def test_names_of_equal_variants_do_not_stand_on_each_other(tmp_path: Path) -> None:
    twins = {name: replace(VARIANTS["original"], ms_per_token=ms) for name, ms in (("one", 4.0), ("two", 4.0), ("far", 60.0))}
    figure = figures.draw_pareto(measure(make_results(tmp_path, Shape(twins, documents=12, epochs=1))))
    assert figure is not None
    FigureCanvasAgg(figure).draw()
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts]
        assert len(boxes) == 3
        assert not any(first.overlaps(second) for first, second in itertools.combinations(boxes, 2))
        assert not any("times" in label.get_text() for label in axes.get_xticklabels(minor=True))


def test_of_many_variants_the_frontier_and_the_base_are_named(tmp_path: Path) -> None:
    cut = replace(VARIANTS["base"], methods="[{prune.blocks: {count: 1}}]", loss=6.0)  # untrained, but not untouched
    many = {"base": VARIANTS["base"]} | {f"cut{n}": replace(cut, loss=6 + n / 10) for n in range(12)}
    figure = figures.draw_pareto(measure(make_results(tmp_path, Shape(many, documents=12, epochs=1))))
    assert figure is not None
    assert [[text.get_text() for text in axes.texts] for axes in figure.axes if axes.texts] == [["base"]] * 2


def test_a_grid_of_numbers_is_a_line_and_of_two_fields_a_map(tmp_path: Path) -> None:
    tuned = VARIANTS["original"]
    rank = "[{train.lora: {r: {grid: [2, 4, 32]}}}]"
    both = "[{train.lora: {r: {grid: [2, 4]}, alpha: {grid: [8, 16]}}}]"
    variants = {f"rank[r={r}]": replace(tuned, methods=rank, loss=4 + r / 100) for r in (2, 4, 32)}
    variants |= {f"both[r={r},alpha={a}]": replace(tuned, methods=both, loss=4 + r + a / 100) for r in (2, 4) for a in (8, 16)}
    variants |= {"base": VARIANTS["base"]}
    findings = measure(make_results(tmp_path, replace(SMALL, variants=variants, evaluations=("perplexity",))))
    (group,) = findings.groups
    figure = maps.draw_grids(findings, group)
    assert figure is not None
    lines, cells = figure.axes
    means = [findings.estimate(group.entrant(f"rank[r={r}]"), group.headline).mean for r in (2, 4, 32)]
    assert lines.get_lines()[0].get_xydata().tolist() == [[2, means[0]], [4, means[1]], [32, means[2]]]
    assert lines.get_xscale() == "log"
    assert (cells.get_xlabel(), cells.get_ylabel(), cells.get_title()) == ("alpha", "r", "both")
    shades = cells.images[0].get_array()
    assert shades[0, 0] == 1
    assert shades[1, 1] == 0
    assert maps.draw_grids(*_without_grids(tmp_path / "other")) is None


def _without_grids(root: Path) -> tuple[Findings, Group]:
    root.mkdir()
    findings = measure(make_results(root, replace(SMALL, evaluations=("perplexity",))))
    return findings, findings.groups[0]


def test_the_best_base_of_each_dataset_is_framed(tmp_path: Path) -> None:
    shape = replace(SMALL, bases=("novels", "stories"), datasets=("news", "tales"), evaluations=("perplexity",))
    findings = measure(make_results(tmp_path, shape))
    figure = maps.draw_best(findings)
    assert figure is not None
    (axes,) = figure.axes
    best = {g.dataset: min(g.base for g in findings.groups) for g in findings.groups}  # the second is made harder
    assert set(best.values()) == {"novels"}
    framed = [(round(box.get_x() + 0.48), round(box.get_y() + 0.46)) for box in axes.patches]
    assert sorted(framed) == [(0, 0), (1, 0)]
    bold = [text.get_text() for text in axes.texts if text.get_fontweight() == "bold"]
    means = [findings.estimates[g.choice.best][g.headline].mean for g in findings.groups if g.choice and g.base == "novels"]
    assert [float(text.split()[0]) for text in bold] == pytest.approx(means, abs=0.01)
    (tmp_path / "one").mkdir()
    assert maps.draw_best(measure(make_results(tmp_path / "one", replace(SMALL, evaluations=("perplexity",))))) is None


def test_questions_are_drawn_by_every_field_that_slices_them(tmp_path: Path) -> None:
    findings = measure(make_results(tmp_path, SMALL))
    figure = maps.draw_questions(findings, findings.groups[0], "qa")
    assert figure is not None
    assert all("by difficulty" in axes.get_title() for axes in figure.axes)
    assert [label.get_text() for label in figure.axes[-1].get_yticklabels()] == ["easy (5)", "hard (5)"]
    assert maps.draw_questions(findings, findings.groups[0], "generate") is None


def test_what_lies_far_away_is_a_number_at_the_edge(tmp_path: Path) -> None:
    worst = replace(VARIANTS["base"], methods="[{prune.blocks: {count: 1}}]", loss=60.0)
    near = {f"cut{n}": replace(worst, loss=6 + n / 10) for n in range(6)}
    figure = figures.draw_pareto(measure(make_results(tmp_path, Shape(near | {"worst": worst}, documents=12, epochs=1))))
    assert figure is not None
    for axes in filter(lambda axes: axes.texts, figure.axes):
        assert axes.get_ylim()[1] < 60
        assert sum(text.get_text().startswith("↑ ") for text in axes.texts) == 1


def test_each_of_two_latencies_has_its_panels(tmp_path: Path) -> None:
    findings = measure(_with_second_latency(make_results(tmp_path, SMALL), tmp_path))
    comparison, pareto = figures.draw_comparison(findings, "news"), figures.draw_pareto(findings)
    assert comparison is not None
    assert pareto is not None
    titles = [axes.get_title() for axes in comparison.axes]
    assert titles[-2:] == ["Milliseconds per token\non latency", "Milliseconds per token\non twice"]
    labels = [axes.get_xlabel() for axes in pareto.axes]
    assert labels == ["model size", "time per token on latency", "time per token on twice", "training time"]


def test_a_headline_of_others_is_drawn_like_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Metric("coverage", "coverage of facts", "higher", "share", 0.0, 1.0, title="Facts covered")
    monkeypatch.setattr(registry, "METRICS", (row, *registry.METRICS))
    registry.metrics.cache_clear()
    registry.metric_of.cache_clear()
    try:
        findings = _with_coverage(make_results(tmp_path, SMALL))
        comparison, pareto = figures.draw_comparison(findings, "news"), figures.draw_pareto(findings)
    finally:
        registry.metrics.cache_clear()
        registry.metric_of.cache_clear()
    assert comparison is not None
    assert pareto is not None
    assert comparison.axes[0].get_title() == "Facts covered on generate\nhigher is better"
    assert [text.get_text() for text in comparison.axes[0].texts] == ["70 %", "60 %", "50 %", "40 %"]
    assert pareto.axes[0].get_ylabel() == "coverage of facts on generate\nhigher is better"


def _with_second_latency(results: Results, root: Path) -> Results:
    file = root / "study.yaml"
    file.write_text(file.read_text(encoding="utf-8") + "  twice: {kind: latency, repeats: 5}\n", encoding="utf-8")
    cells = [replace(cell, evaluations={**cell.evaluations, "twice": cell.evaluations["latency"]}) for cell in results.cells]
    return replace(results, study=load_study(file), cells=tuple(cells))


def _with_coverage(results: Results) -> Findings:
    for index, cell in enumerate(results.cells):
        shares = 0.7 - 0.1 * index + 0.01 * (-1.0) ** np.arange(8)
        rows = [
            {"split": "", "document": str(at), "example": str(at), "metric": "coverage", "value": share, "weight": 1.0}
            for at, share in enumerate(shares)
        ]
        write_scores(cell.evaluations["generate"].path, rows)
    return measure(results)
