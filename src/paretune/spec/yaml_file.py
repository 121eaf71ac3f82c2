"""Read a YAML 1.2 file into plain values, and remember on which line each of them stands."""

import datetime
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedKeyMap, CommentedKeySeq, CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from paretune.errors import SpecError

Path_ = tuple[str | int, ...]
_QUOTED = '`"{{ title }}"`, with the quotes'


def read_yaml(file: Path) -> tuple[Any, dict[Path_, int]]:
    """The plain value of `file`, and the line (from 1) of each of its keys by path; SpecError if it cannot be read."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError(f"{file}: no such file; `paretune init DATA` writes a first study file") from None
    except IsADirectoryError:
        raise SpecError(f"{file}: is a directory; name the study file in it") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{file}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None
    except OSError as error:
        raise SpecError(f"{file}: cannot be read ({error.strerror})") from None
    try:
        tree = YAML(typ="rt").load(text)
    except DuplicateKeyError as error:
        line = error.problem_mark.line + 1
        raise SpecError(f"{file}:{line}: {str(error.problem).split(' with value')[0]}; each key stands once") from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = str(error.problem or error.context)
        raise SpecError(f"{file}:{line}: not YAML: {problem}{_way_out(problem, text, line)}") from None
    except YAMLError as error:
        raise SpecError(f"{file}: not YAML: {str(error).splitlines()[0]}") from None
    lines: dict[Path_, int] = {}
    return _plain(tree, (), lines, file), lines


def _plain(node: Any, path: Path_, lines: dict[Path_, int], file: Path) -> Any:
    where = ".".join(str(key) for key in path)
    if _has_tag(node):
        raise SpecError(
            f"{file}:{lines.get(path, 1)}: {where}: the tag `{node.tag.value}` has no place in a study file; "
            "write the plain value"
        )
    if isinstance(node, CommentedMap):
        result = {}
        for key, value in node.items():
            if isinstance(key, CommentedMap | CommentedSeq | CommentedKeyMap | CommentedKeySeq):
                line = node.lc.line + 1
                raise SpecError(f"{file}:{line}: {where}: braces that are not in quotes; a template is written {_QUOTED}")
            lines[(*path, str(key))] = node.lc.key(key)[0] + 1
            result[str(key)] = _plain(value, (*path, str(key)), lines, file)
        return result
    if isinstance(node, CommentedSeq):
        for index in range(len(node)):
            lines[(*path, index)] = node.lc.item(index)[0] + 1
        return [_plain(item, (*path, index), lines, file) for index, item in enumerate(node)]
    if isinstance(node, bool) or node is None:
        return node
    # ruamel's scalars remember their spelling; the study needs the plain value.
    for plain in (int, float, str):
        if isinstance(node, plain):
            return plain(node)
    if isinstance(node, datetime.date | datetime.datetime):
        return node.isoformat()
    raise SpecError(f"{file}: {where}: a value of type {type(node).__name__} has no place in a study file")


def _has_tag(node: Any) -> bool:
    """Whether a value carries a tag like `!!python/tuple`, which asks for another type than it looks like."""
    if isinstance(node, TaggedScalar):
        return True
    return isinstance(node, CommentedMap | CommentedSeq) and node.tag.value is not None


def _way_out(problem: str, text: str, number: int) -> str:
    """What is most likely wrong with line `number` of a text that is not YAML."""
    if "alias" in problem:
        return "; a text that begins with `*` stands in quotes"
    if "another document" in problem:
        return "; a study is one document, so remove the line `---`"
    lines = text.splitlines()
    line = lines[number - 1] if number <= len(lines) else ""
    value = line.partition(": ")[2].strip()
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return "; indent with spaces, not with tabs"
    if value.startswith(("{{", "{%")):
        return f"; a template is written {_QUOTED}"
    if ": " in value and value[0] not in "\"'{[":
        return "; a text that holds `: ` stands in quotes"
    return "; look for a bracket or quote that is not closed, here or in the lines above, and at the indentation"
