"""The documentation against what it is about: links, commands, studies, the example of an extension, and the site as built."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer.main
from ruamel.yaml import YAML

from paretune.cli import app
from paretune.study.study import load_study
from tests.conftest import write_study

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
GENERATED = {"bad-input.md", "study-file.md"}
"""Made by programs that have tests of their own."""
FENCE = re.compile(r"^( *)```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
SMALL = """
study: small
bases: {small: {builtin: newsroom-base}}
data: {news: {source: {builtin: newsroom}, document: title, text: "{{ text }}"}}
variants: {base: [], full: [{train.full: {learning_rate: 1.0e-3}}], original: [{train.lora: {learning_rate: 1.0e-3}}]}
evaluate: {perplexity: {}, generate: {prompts: ["The"]}}
"""
parse_yaml = YAML(typ="safe").load


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    return [text for _, found, _, text in FENCE.findall(page.read_text(encoding="utf-8")) if found == language]


def anchors(page: Path) -> set[str]:
    """As mkdocs and GitHub make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    plain = (re.sub(r"[`*]|\[|\]\([^)]*\)", "", heading).strip().lower() for heading in headings)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading)) for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        if not re.match(r"https?:", link) and (not target.exists() or (anchor and anchor not in anchors(target))):
            broken.append(link)
    assert not broken


def commands() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines = [line for _, _, _, block in FENCE.findall(text) for line in block.splitlines()]
        inline = re.findall(r"`(paretune [^`]+)`", FENCE.sub("", text).replace("\\|", "|").replace("\n", " "))
        for said in [*lines, *inline]:
            if page.name not in GENERATED and (found := re.match(r"\s*(?:\S+/)?paretune ([a-z][^#|>]*)", said)):
                yield name_of(page), found[1]


def test_commands_have_the_options_that_are_written() -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    wrong, seen = [], 0
    for page, said in commands():
        name, *arguments = shlex.split(re.sub(r"[\[\]]|\.\.\.", " ", said))
        seen += 1
        if name not in known:
            wrong.append((page, said))
            continue
        options = {option for each in known[name].params for option in [*each.opts, *each.secondary_opts]}
        wrong += [
            (page, said) for each in arguments if each.startswith("-") and each.partition("=")[0] not in options | {"--help"}
        ]
    assert not wrong
    assert seen > 40


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_studies_load(page: Path, tmp_path: Path) -> None:
    """Whole ones as they are; a part in the place of that part of a small study, or of its dataset."""
    if page.name == "extending.md":
        return  # its evaluation is installed below
    for number, text in enumerate(blocks(page, "yaml")):
        written: dict[str, Any] = parse_yaml(text)
        if "study" not in written:
            study, file = parse_yaml(SMALL), tmp_path / f"{number}.yaml"
            into = study["data"]["news"] if written.keys() & {"clean", "tasks", "control_tokens"} else study
            if "tasks" in written:
                del into["text"]
            for name, value in written.items():
                into[name] = value if name in ("seeds", "tasks") else into.get(name, {}) | value if name in into else value
            with file.open("w") as stream:
                YAML().dump(study, stream)
        else:
            (file := tmp_path / f"{number}.yaml").write_text(text)
        assert load_study(file).variants


def without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        short = {name: Path(item).name for name, item in value.items() if name == "path"}
        return {name: without_folders(item) for name, item in value.items()} | short
    return [without_folders(item) for item in value] if isinstance(value, list) else value


def test_the_studies_of_guides_are_those_of_the_repository() -> None:
    told = {}
    for page in (DOCS / "guides").glob("*.md"):
        told |= {study["study"]: study for study in map(parse_yaml, blocks(page, "yaml")) if "study" in study}
    assert len(told) >= 5
    for name, study in told.items():
        assert study == without_folders(parse_yaml((ROOT / "studies" / f"{name}.yaml").read_text(encoding="utf-8"))), name


def test_the_navigation_lists_every_page() -> None:
    settings = parse_yaml((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = re.findall(r"[\w/-]+\.md", str(settings["nav"]))
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_nothing_of_one_machine_stands_in_the_documentation() -> None:
    for page in PAGES:
        assert not re.search(r"(?<![\w.])/(?:work|root|home|tmp)/", page.read_text(encoding="utf-8")), page


def test_the_example_of_an_extension_runs(tmp_path: Path) -> None:
    text = (DOCS / "extending.md").read_text(encoding="utf-8")
    files = {title: block for _, _, title, block in FENCE.findall(text) if title}
    packages = tmp_path / "packages"
    for title in ("repetition/__init__.py", "repetition/work.py"):
        (packages / title).parent.mkdir(parents=True, exist_ok=True)
        (packages / title).write_text(files[title])
    (entry,) = re.findall(r'\[project.entry-points."(.+)"\]\n(\w+) = "(.+)"', files["pyproject.toml"])
    metadata = packages / "repetition-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: repetition\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[{}]\n{} = {}\n".format(*entry))
    (evaluate,) = blocks(DOCS / "extending.md", "yaml")
    study = """
study: small
bases: {tiny: {path: model}}
data: {notes: {source: {path: notes.jsonl}, document: title, text: "{{ title }} {{ content }}"}}
train: {max_length: 64}
precision: {compute: float32}
variants: {base: []}
"""
    file = write_study(tmp_path, study + evaluate)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(packages), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "paretune.cli", "run", str(file), "--out", str(tmp_path / "out")]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert ",repetition,,repeated_trigrams," in (tmp_path / "out" / "results.csv").read_text()
    assert "share of repeated trigrams" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.skipif(find_spec("material") is None, reason="needs the extra `docs`")
def test_the_site_is_built_strictly_and_asks_for_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(list(DOCS.rglob("*.md")))  # and that of what is not found
    for page in pages:
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img|iframe)[^>]+src=\"?https?:[^>]*>|<link[^>]+href=\"?https?:[^>]*>", text)
        assert not fetched, page
    for sheet in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"url\(['\"]?https?:|@import", sheet.read_text(encoding="utf-8")), sheet
