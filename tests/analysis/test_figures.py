import itertools
from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from paretune.analysis.curve_figure import _apart, draw_curves
from paretune.analysis.figures import write_figures
from paretune.analysis.looks import looks, short_names
from paretune.analysis.measured import measure
from paretune.analysis.pareto_figure import draw_pareto
from paretune.study.study import load_study
from tests.analysis.synthetic import VARIANTS, Shape, Truth, make_results, study_text


def test_every_base_and_dataset_has_its_figures(tmp_path: Path) -> None:
    shape = Shape(bases=("novels", "stories"), datasets=("news",), seeds=(0,), documents=8, epochs=1)
    written = write_figures(measure(make_results(tmp_path, shape)), tmp_path)
    names = ["curves-news-novels.png", "curves-news-stories.png", "comparison-news.png", "pareto.png"]
    assert [file.name for file in written] == names
    for file in written:
        picture = matplotlib.image.imread(file)
        assert min(picture.shape[:2]) > 300
        assert picture.std() > 0.02


def test_nothing_trained_has_no_curves_and_nothing_measured_no_figure(tmp_path: Path) -> None:
    shape = Shape(variants={"base": VARIANTS["base"]}, documents=6, evaluations=("perplexity",))
    assert [file.name for file in write_figures(measure(make_results(tmp_path, shape)), tmp_path)] == ["comparison-news.png"]


def test_a_variant_looks_the_same_in_every_study_figure_and_no_two_look_alike(tmp_path: Path) -> None:
    variants = {"base": VARIANTS["base"], **{f"v{index}": Truth("[{train.lora: {}}]", 4.0) for index in range(20)}}
    file = tmp_path / "study.yaml"
    file.write_text(study_text(Shape(variants=variants)), encoding="utf-8")
    found = looks(load_study(file))
    assert len(set(found.values())) == 21
    assert len({look.colour for name, look in list(found.items())[:8]}) == 8


def test_long_names_keep_what_tells_them_apart() -> None:
    names = [f"lora-on-all-linear-layers-with-rank-{rank}-and-a-long-tail" for rank in (4, 8, 16)]
    found = short_names(["base", *names])
    assert found["base"] == "base"
    assert [found[name] for name in names] == ["…rank-4…", "…rank-8…", "…rank-16…"]
    same_ends = short_names(["a" * 20 + str(index) + "b" * 60 for index in range(3)])
    assert len(set(same_ends.values())) == 3
    assert all(len(name) <= 36 for name in same_ends.values())


@pytest.mark.parametrize("wanted", [[0.5, 0.5, 0.5], [0.1, 0.12, 0.9], [0.2, 0.5, 0.8]])
def test_labels_are_moved_apart_as_little_as_needed(wanted: list[float]) -> None:
    placed = _apart(np.array(wanted), 0.1)
    assert (np.diff(placed) >= 0.1 - 1e-12).all()
    assert placed.mean() == pytest.approx(np.mean(wanted))
    if np.diff(wanted).min() >= 0.1:
        assert placed.tolist() == wanted


def test_single_evaluations_have_no_panel_of_their_own(tmp_path: Path) -> None:
    measured = measure(make_results(tmp_path, Shape(documents=6, epochs=1, evaluations=("perplexity",))))
    figure = draw_curves(measured, measured.groups[0])
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == ["Train loss (running mean)"]
    (tmp_path / "two").mkdir()
    measured = measure(make_results(tmp_path / "two", Shape(documents=6, epochs=2, evaluations=("perplexity",))))
    figure = draw_curves(measured, measured.groups[0])
    assert figure is not None
    assert len(figure.axes) == 2


def test_names_of_equal_variants_do_not_stand_on_each_other(tmp_path: Path) -> None:
    twins = {name: replace(VARIANTS["original"], ms_per_token=ms) for name, ms in (("one", 4.0), ("two", 4.0), ("far", 60.0))}
    figure = draw_pareto(measure(make_results(tmp_path, Shape(twins, documents=12, epochs=1))))
    assert figure is not None
    FigureCanvasAgg(figure).draw()
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts]
        assert len(boxes) == 3
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
        assert not any("times" in label.get_text() for label in axes.get_xticklabels(minor=True))
