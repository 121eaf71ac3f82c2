"""Read a YAML 1.2 file into plain values, and remember on which line each of them stands."""

import datetime
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from paretune.errors import SpecError

Path_ = tuple[str | int, ...]


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
        raise SpecError(f"{file}:{line}: not YAML: {error.problem or error.context}") from None
    except YAMLError as error:
        raise SpecError(f"{file}: not YAML: {str(error).splitlines()[0]}") from None
    lines: dict[Path_, int] = {}
    return _plain(tree, (), lines, file), lines


def _plain(node: Any, path: Path_, lines: dict[Path_, int], file: Path) -> Any:
    if isinstance(node, CommentedMap):
        result = {}
        for key, value in node.items():
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
    where = ".".join(str(key) for key in path)
    raise SpecError(f"{file}: {where}: a value of type {type(node).__name__} has no place in a study file")
