"""Cards are read back by the hub's own client, and say what the study has found."""

from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import DatasetCard, ModelCard

from paretune.analysis.facts import find
from paretune.analysis.findings import Findings
from paretune.analysis.scores import Entrant
from paretune.pipeline.base_card import BaseCard, base_card
from paretune.pipeline.records import Results
from paretune.report.cards import cards, model_card
from paretune.study.study import Base, load_study
from tests.analysis.synthetic import Shape, make_results

SMALL = Shape(documents=12, epochs=1, evaluations=("perplexity", "qa", "latency"))
FULL = Entrant("novels", "news", "full")


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return make_results(tmp_path, SMALL)


@pytest.fixture
def findings(results: Results) -> Findings:
    return find(results)


def test_every_variant_and_dataset_has_a_card_that_the_hub_reads(findings: Findings) -> None:
    texts = cards(findings)
    names = {f"cards/novels-news-{variant}/README.md" for variant in ("base", "full", "original", "reduced")}
    assert set(texts) == names | {"cards/data/news/README.md"}
    for name in names:
        card = ModelCard(texts[name])
        entrant = Entrant("novels", "news", name.split("/")[1].removeprefix("novels-news-"))
        found = {(result.metric_type, result.dataset_split): result.metric_value for result in card.data.eval_results}
        for quantity, estimate in findings.estimates[entrant].items():
            if quantity.metric in ("perplexity", "accuracy") and quantity.split != "validation" and not quantity.slice:
                assert found[quantity.metric, quantity.split or None] == pytest.approx(estimate.mean, abs=1e-6)
        assert "paretune" in card.data.tags
    assert DatasetCard(texts["cards/data/news/README.md"]).data.pretty_name == "news"


def test_variants_whose_names_join_alike_have_cards_of_their_own(tmp_path: Path) -> None:
    shape = replace(SMALL, bases=("a", "a-b"), datasets=("b-c", "c"), evaluations=("perplexity",))
    texts = cards(find(make_results(tmp_path, shape)))
    first, second = texts["cards/a-b-c-full/README.md"], texts["cards/a-b-c-full-2/README.md"]
    assert "from the base `a` on the data `b-c`" in first
    assert "from the base `a-b` on the data `c`" in second
    assert len(texts) == 2 * 2 * 4 + 2


def test_a_card_tells_of_methods_scores_limits_and_risks_and_of_no_place(findings: Findings) -> None:
    text = model_card(findings, FULL).replace("\\", "")
    assert "| full | train.full (learning_rate 3e-05)" in text
    assert "Against full, paired by document" not in text  # it is the baseline itself
    assert "Against full, paired by document" in model_card(findings, FULL._replace(variant="reduced"))
    assert "One learning rate a method" in text.split("## Limitations")[1].split("## Ethical")[0]
    risks = text.split("## Ethical considerations")[1]
    assert "Unsafe text was not looked for: the study names no `safety`." in risks
    assert "The licence of the base `novels` is not known" in risks
    assert "models/novels" not in text


def test_a_hub_base_is_named_as_the_hub_wants_it(results: Results) -> None:
    text = results.study_file.read_text(encoding="utf-8").replace("path: models/novels", "hub: some/model")
    results.study_file.write_text(text, encoding="utf-8")
    card = ModelCard(model_card(find(replace(results, study=load_study(results.study_file))), FULL))
    assert card.data.base_model == "some/model"


def test_licence_and_language_are_those_of_the_base(results: Results) -> None:
    front = "license: other\nlicense_name: novel-terms\nlicense_link: https://example.org/terms\nlanguage: [de, en]"
    text = model_card(find(with_readme(results, f"---\n{front}\n---\n# novels\n")), FULL)
    data = ModelCard(text).data
    assert (data.license, data.license_name, data.license_link) == ("other", "novel-terms", "https://example.org/terms")
    assert data.language == ["de", "en"]
    assert "The base `novels` is under the licence `novel-terms` (`https://example.org/terms`), as its card says" in text


@pytest.mark.parametrize(
    "readme",
    [
        "# novels, without metadata\n",
        "---\nlicense: [mit\n---\n",
        "---\n- license\n---\n",
        "---\nlicense: {name: mit}\nlicense_link: LICENSE\nlanguage: [en, no]\n---\n",
        "---\nlicense: " + "x" * 300 + "\n---\n",
    ],
)
def test_a_licence_that_cannot_be_read_is_not_known(results: Results, readme: str) -> None:
    text = model_card(find(with_readme(results, readme)), FULL)
    assert "The licence of the base `novels` is not known" in text
    data = ModelCard(text).data
    assert (data.license, data.license_link, data.language) == (None, None, None)


def with_readme(results: Results, content: str) -> Results:
    """With what a README.md in the directory of the base says."""
    directory = results.study_file.parent / "models" / "novels"
    directory.mkdir(parents=True)
    (directory / "README.md").write_text(content, encoding="utf-8")
    card = base_card(results.study.bases["novels"], results.study_file.parent, None)
    return replace(results, base_cards={"novels": card})


def test_bases_that_ship_with_a_package_say_theirs(tmp_path: Path) -> None:
    assert base_card(Base(builtin="newsroom-base"), tmp_path, None) == BaseCard("", "mit", languages=("en",))
    assert base_card(Base(builtin="smollm2-135m-instruct"), tmp_path, None).licence == "apache-2.0"


def test_an_export_keeps_its_lines_of_use(findings: Findings) -> None:
    text = model_card(findings, FULL, "# full\n\n## Use\n\nfive lines\n")
    assert ModelCard(text).data.eval_results
    assert text.index("five lines") < text.index("# What was measured") < text.index("## Evaluation")
    assert "writes it with the lines that load it" not in text
