import ast
import functools
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_map_of_the_tree_names_every_module() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (tree,) = re.findall(r"```\nsrc/paretune/\n(.*?)^scripts/", text, re.DOTALL | re.MULTILINE)
    for part in re.split(r"\n(?=  [a-z]+/ )", tree)[1:]:
        folder, _, words = part.strip().partition("/")
        modules = {file.stem for file in (ROOT / "src" / "paretune" / folder).glob("*.py")} - {"__init__"}
        named = set(re.findall(r"[a-z_0-9]+", words))
        assert modules <= named, (folder, modules - named)


def test_architecture_names_files_that_are_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    files = set(re.findall(r"`((?:[a-z]+/)?[a-z_]+\.py)`", text))
    assert len(files) > 30
    known = {str(file.relative_to(ROOT / "src" / "paretune")) for file in (ROOT / "src" / "paretune").rglob("*.py")}
    missing = {file for file in files if not any(name == file or name.endswith(f"/{file}") for name in known)}
    assert not missing


def test_no_chain_of_imports_is_longer_than_ten() -> None:
    trees = {
        ".".join(file.relative_to(ROOT / "src").with_suffix("").parts): ast.parse(file.read_text(encoding="utf-8"))
        for file in (ROOT / "src" / "paretune").rglob("*.py")
    }
    imports = {name: [n for n in tree.body if isinstance(n, ast.ImportFrom) and n.module] for name, tree in trees.items()}

    @functools.cache
    def chain(name: str) -> tuple[str, ...]:
        named = {each for n in imports[name] for a in n.names for each in (n.module, f"{n.module}.{a.name}") if each in trees}
        return (name, *max((chain(each) for each in named - {name}), key=len, default=()))

    longest = max(map(chain, trees), key=len)
    assert len(longest) <= 10, longest
