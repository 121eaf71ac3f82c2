"""The files that a source names, in the order in which they are read: one, or those of a folder or a pattern."""

import glob
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path

from paretune.errors import DataError, NeedsError
from paretune.study.base import suggestion
from paretune.study.formats import Format, format_of

SAVED = "state.json"
"""Shows a folder of `Dataset.save_to_disk`, which is read as one piece."""
SAVED_DICT = "dataset_dict.json"
"""Shows one of `DatasetDict`, with such a folder for each split."""
_ABOUT = re.compile(r"(readme|licen[cs]e|changelog|citation|dataset_infos?\.json)", re.IGNORECASE)
"""Names of what stands beside the data and is none."""
_SPLIT = re.compile(r"(train|test|validation|valid|val|dev|eval)(?=$|[^a-z])", re.IGNORECASE)
"""How names of files begin that belong to one split."""
_MARKS = re.compile(r"[*?\[]")
_LISTED = 3


def is_one_file(path: Path) -> bool:
    """Whether a path names one file, rather than a folder, or a pattern of several."""
    return path.is_file() or not (path.is_dir() or _MARKS.search(path.name))


def data_files(path: Path, format: Format | None = None) -> list[Path]:
    """The files at `path`: itself, or those of a folder or a pattern (`train-*.parquet`), in the order of their names.

    Of a folder those that are data by their names, or of `format` where it is given; one that `save_to_disk` wrote is one file.
    NeedsError where nothing is there, DataError for a folder of several formats, or of several splits.
    """
    if is_one_file(path):
        return [path]
    if not path.is_dir():
        # Two stars stand for any number of folders.
        files = sorted(file for name in glob.glob(str(path), recursive=True) if (file := Path(name)).is_file())
        if not files:
            raise NeedsError(f"{path}: no file fits this pattern; paths in a study are relative to the study file")
        return files
    if (path / SAVED).is_file():
        return [path]
    if (path / SAVED_DICT).is_file():
        splits = sorted(each.parent.name for each in path.glob(f"*/{SAVED}"))
        names = ", ".join(f"{split}: {{path: {path.name}/{split}}}" for split in splits)
        raise DataError(f"{path}: holds several splits; name them apart: `source: {{{names}}}`")
    inside = sorted(file for file in path.rglob("*") if file.is_file() and not _is_hidden(file.relative_to(path)))
    files = [file for file in inside if not _ABOUT.match(file.name)]
    by_format = {file: format_of(file.name) for file in files}
    if format is not None:
        # A folder may hold files whose names say no format.
        files = [file for file in files if by_format[file] == format] or files
    else:
        known = {each for each in by_format.values() if each is not None}
        if len(known) > 1:
            example = next(file for file in files if by_format[file] is not None)
            pattern = f"{path.name}/*{''.join(example.suffixes[-2:])}"
            raise DataError(f"{path}: holds files of several formats ({_listed(sorted(known))}); name one kind: `{pattern}`")
        files = [file for file in files if by_format[file] is not None or zipfile.is_zipfile(file)]
    if not files:
        there = f"it holds {_listed([file.name for file in inside])}" if inside else "it is empty"
        raise DataError(f"{path}: is a directory without data files ({there}); name a file, or add `format:`")
    prefixes = {match[1].lower() for file in files if (match := _SPLIT.match(file.name))}
    if len(prefixes) > 1:
        patterns = ", ".join(f"`{path.name}/{split}*`" for split in sorted(prefixes))
        raise DataError(
            f"{path}: holds files of several splits ({_listed(sorted(prefixes))}), and reading all as one would mix them; name "
            f"each by a pattern ({patterns}) under `source: {{train: ..., validation: ..., test: ...}}`"
        )
    return files


def format_of_file(file: Path) -> Format | None:
    """By the suffix of its name, or of the one file in a zip archive; None where that names no format."""
    if (format := format_of(file.name)) or not zipfile.is_zipfile(file):
        return format
    with zipfile.ZipFile(file) as archive:
        return next((format_of(name) for name in members(archive)), None)


def members(archive: zipfile.ZipFile) -> list[str]:
    """The files of an archive, without what macOS adds."""
    names = archive.namelist()
    return [name for name in names if not name.endswith("/") and not name.startswith("__MACOSX/") and ".DS_Store" not in name]


def likely(missing: Path) -> str:
    """What is most likely meant by a path at which there is nothing; empty where that cannot be told."""
    if missing.is_symlink():
        try:
            target = missing.readlink()
            missing.stat()
        except OSError as error:
            return f"; it is a link to `{target}`, {'and links to itself' if error.errno == 40 else 'which is not there'}"
    if missing.as_posix().startswith("~") or "/~/" in missing.as_posix():
        return "; `~` is not expanded, write the whole path"
    if re.search("https?:/", missing.as_posix()):
        return "; nothing is fetched from an address, so download it and name the file"
    beside = [entry.name for entry in missing.parent.iterdir()] if missing.parent.is_dir() else []
    near = suggestion(missing.name, beside)
    return near if "did you mean" in near else ""


def _is_hidden(name: Path) -> bool:
    return any(part.startswith((".", "_")) for part in name.parts)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(f"`{name}`" for name in names[:_LISTED]) + more
