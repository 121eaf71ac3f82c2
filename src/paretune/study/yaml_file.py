"""Read a YAML 1.2 file into plain values, and remember on which line each of them stands."""

import datetime
import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedKeyMap, CommentedKeySeq, CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from paretune.errors import SpecError, command_line
from paretune.study.base import shown

Path_ = tuple[str | int, ...]
_MAX_BYTES = 1_000_000
_MAX_VALUES = 100_000
"""Aliases of aliases of lists grow exponentially; no study holds as much."""
_QUOTED = '`"{{ title }}"`, with the quotes'


def read_yaml(file: Path) -> tuple[Any, dict[Path_, int]]:
    """The plain value of `file`, and the line (from 1) of each of its keys by path; SpecError if it cannot be read."""
    try:
        if file.exists() and not file.is_file() and not file.is_dir():
            raise SpecError(f"{file}: is no regular file (a device or pipe); write the study into a file")
        if file.stat().st_size > _MAX_BYTES:
            raise SpecError(
                f"{file}: is too large for a study; for a data file, `{command_line('init', file)}` writes a first study"
            )
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise SpecError(f"{file}: no such file; `paretune init DATA` writes a first study file") from None
    except IsADirectoryError:
        raise SpecError(f"{file}: is a directory; name the study file in it") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{file}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None
    except OSError as error:
        way_out = "correct the link" if file.is_symlink() else "check its permissions"
        raise SpecError(f"{file}: cannot be read ({error.strerror}); {way_out}") from None
    if re.match(r"%YAML\s+(?!1\.2\b)", text):
        raise SpecError(f"{file}:1: a study is YAML 1.2; remove the line {shown(text.splitlines()[0])}")
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
    except TypeError:  # ruamel cannot take a mapping of mappings as a key
        raise SpecError(
            f"{file}: a brace in a brace, `{{{{`, that is not in quotes; a template is written {_QUOTED}, and a "
            "method with single braces: `{train.full: {learning_rate: 1.0e-4}}`"
        ) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; brackets in brackets in brackets
        reason = str(error).split(";")[0]
        raise SpecError(
            f"{file}: a value that cannot be read ({reason}); look at dates, long numbers and deep nesting"
        ) from None
    lines: dict[Path_, int] = {}
    return _plain(tree, (), lines, file), lines


def _plain(node: Any, path: Path_, lines: dict[Path_, int], file: Path) -> Any:
    where = f"{file}:{lines.get(path, 1)}: {'.'.join(str(key) for key in path)}"
    is_tagged = isinstance(node, CommentedMap | CommentedSeq) and node.tag.value is not None
    if is_tagged or isinstance(node, TaggedScalar):  # `!!python/tuple`, which asks for another type than it looks like
        raise SpecError(f"{where}: the tag `{node.tag.value}` has no place in a study file; write the plain value")
    if len(lines) > _MAX_VALUES:
        raise SpecError(f"{file}: holds more than {_MAX_VALUES:,} values; do aliases (`*name`) repeat lists of lists?")
    if isinstance(node, CommentedMap):
        return _plain_mapping(node, path, lines, file)
    if isinstance(node, CommentedSeq):
        for index in range(len(node)):
            lines[(*path, index)] = node.lc.item(index)[0] + 1
        return [_plain(item, (*path, index), lines, file) for index, item in enumerate(node)]
    if isinstance(node, bool) or node is None:
        return node
    # ruamel's scalars remember their spelling; the study needs the plain value.
    if isinstance(node, int) and abs(node) >= 2**63:
        raise SpecError(f"{where}: a number of {len(str(node))} digits; 18 are enough for anything")
    if isinstance(node, str) and re.search("[\ud800-\udfff]", node):
        raise SpecError(f"{where}: holds half of a surrogate pair (`\\ud...`), which is no character")
    for plain in (int, float, str):
        if isinstance(node, plain):
            return plain(node)
    if isinstance(node, datetime.date | datetime.datetime):
        return node.isoformat()
    raise SpecError(f"{where}: only texts, numbers, lists and mappings have a place in a study file, got {shown(node)}")


def _plain_mapping(node: CommentedMap, path: Path_, lines: dict[Path_, int], file: Path) -> dict[str, Any]:
    result: dict[str, Any] = {}
    where = ".".join(str(key) for key in path)
    for key, value in node.items():
        # A key that a merge (`<<: *name`) brings has no line of its own.
        line = (node.lc.key(key)[0] if key in (node.lc.data or ()) else node.lc.line) + 1
        here = f"{file}:{line}: {where}: " if where else f"{file}:{line}: "
        if isinstance(key, CommentedMap | CommentedSeq | CommentedKeyMap | CommentedKeySeq):
            raise SpecError(f"{here}braces that are not in quotes; a template is written {_QUOTED}")
        if key is None or isinstance(key, bool):
            raise SpecError(f"{here}`{'null' if key is None else str(key).lower()}` is no name; put it in quotes if it is one")
        name = str(key)
        if name in result:
            raise SpecError(f'{here}found duplicate key "{name}"; each key stands once')
        lines[(*path, name)] = line
        result[name] = _plain(value, (*path, name), lines, file)
    return result


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
    if "got '['" in problem:
        return '; a name with brackets stands in quotes: `"rank[r=4]"`'
    if "'\\t'" in problem:
        return "; write spaces, not tabs"
    if value.startswith(("{{", "{%")):
        return f"; a template is written {_QUOTED}"
    if ": " in value and value[0] not in "\"'{[":
        return "; a text that holds `: ` stands in quotes"
    return "; look for a bracket or quote that is not closed, here or in the lines above, and at the indentation"
