"""Files of data as lines of text: unpacked by their first bytes, decoded, and held within bounds.

What a file is packed with (gzip, bzip2, xz, zstd, a zip archive of one file) is seen by how it begins, not by its name:
browsers unpack what they download and keep the suffix. A text is UTF-8, or UTF-16 or UTF-32 by its byte order mark or, without
one, where the place of its zero bytes shows it. Nothing here holds more than a line, or MAX_WHOLE_BYTES, whatever comes out.
"""

import bz2
import gzip
import io
import itertools
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from paretune.errors import DataError, NeedsError
from paretune.pipeline.data_files import likely, members

MAX_LINE_BYTES = 64 * 2**20
"""A longer line is no record but a whole file without line ends; reading stops there, so at most this much is held."""
MAX_WHOLE_BYTES = 2**30
"""json and text files are parsed in one piece, which takes about 4 times their size (json of records of 120 bytes)."""
MAX_EXPANSION = 200
"""No text of records becomes so many times smaller by packing; what does is made to fill a disk or a memory."""
_HARMLESS = 64 * 2**20
"""Bytes that may come out of a packed file of any size."""
_SAMPLE = 4 * 2**20
_CHUNK = 2**20
_ZEROS = 0.05
"""With so small a share of zero bytes a text holds the character U+0000."""
_CLEARLY = 10
_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError)


class _Bounded(io.RawIOBase):
    """What comes out of a packed file: DataError where it is damaged, or more than any text that was packed."""

    def __init__(self, stream: BinaryIO, file: BinaryIO, path: Path) -> None:
        self._stream, self._file, self._path, self._num_read = stream, file, path, 0
        self._most = max(_HARMLESS, MAX_EXPANSION * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            data = self._stream.read(len(buffer))
        except _DAMAGED as error:
            raise DataError(f"{self._path}: is packed, and damaged or cut off ({error}); copy it again, whole") from None
        self._num_read += len(data)
        if self._num_read > self._most:
            raise DataError(
                f"{self._path}: more than {self._most:,} bytes come out of {self._path.stat().st_size:,}, which is no packed "
                "text (the rest was not read)"
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        self._file.close()
        super().close()


def opened_as_is(path: Path) -> BinaryIO:
    """The bytes of a file; DataError or NeedsError where it cannot be read."""
    if path.is_dir():
        raise DataError(f"{path}: is a directory; name one file, or separate files for `train`, `validation` and `test`")
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{path}: is no regular file (a device or pipe); name a file")
        return path.open("rb")
    except FileNotFoundError:
        raise NeedsError(f"{path}: no such file{likely(path) or '; paths in a study are relative to the study file'}") from None
    except OSError as error:
        way_out = "correct the link" if path.is_symlink() else "check its permissions"
        raise DataError(f"{path}: cannot be read ({error.strerror}); {way_out}") from None


def opened(path: Path) -> BinaryIO:
    """The bytes of a file, unpacked; DataError or NeedsError where it cannot be read."""
    file = opened_as_is(path)
    unpack = _unpacking(file)
    if unpack is None:
        return file
    try:
        return cast("BinaryIO", io.BufferedReader(_Bounded(unpack(file, path), file, path), buffer_size=2**16))
    except DataError:
        file.close()
        raise
    except _DAMAGED as error:
        raise DataError(f"{path}: is packed, and damaged or cut off ({error}); copy it again, whole") from None


def _unzipped(file: BinaryIO, path: Path) -> BinaryIO:
    archive = zipfile.ZipFile(file)
    names = members(archive)
    if len(names) != 1:
        listed = ", ".join(f"`{name}`" for name in names[:3])
        raise DataError(f"{path}: holds {len(names)} files ({listed}), and one is read; unpack it and name the folder")
    if archive.getinfo(names[0]).flag_bits & 1:
        raise DataError(f"{path}: `{names[0]}` is locked with a password; unpack it and name the file")
    return cast("BinaryIO", archive.open(names[0]))


def _zstd(file: BinaryIO, _: Path) -> BinaryIO:
    import pyarrow

    return cast("BinaryIO", pyarrow.CompressedInputStream(file, "zstd"))


_PACKED: dict[bytes, Callable[[BinaryIO, Path], BinaryIO]] = {
    b"\x1f\x8b": lambda file, _: cast("BinaryIO", gzip.GzipFile(fileobj=file)),
    b"BZh": lambda file, _: cast("BinaryIO", bz2.BZ2File(file)),
    b"\xfd7zXZ\0": lambda file, _: cast("BinaryIO", lzma.LZMAFile(file)),  # noqa: SIM115  its caller closes it
    b"\x28\xb5\x2f\xfd": _zstd,
    b"PK\x03\x04": _unzipped,
}
"""How packed files begin, and what unpacks them."""


def _unpacking(file: BinaryIO) -> Callable[[BinaryIO, Path], BinaryIO] | None:
    begin = file.read(6)
    file.seek(0)
    return next((unpack for magic, unpack in _PACKED.items() if begin.startswith(magic)), None)


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number from 1 and text of each line, its line end included."""
    offset = 0
    with opened(path) as file:
        encoding = _encoding(file.peek(4096))  # type: ignore[attr-defined]
        if encoding != "utf-8":
            yield from _wide_lines(file, encoding, path)
            return
        for number in itertools.count(1):
            line = file.readline(MAX_LINE_BYTES + 1)
            if not line:
                return
            if len(line) > MAX_LINE_BYTES:
                raise _too_long(path, number)
            yield number, _decoded(line, path, number, offset)
            offset += len(line)


def whole_text(path: Path) -> str:
    """A file as text; DataError where it is larger than MAX_WHOLE_BYTES."""
    with opened(path) as file:
        encoding = _encoding(file.peek(4096))  # type: ignore[attr-defined]
        data = file.read(MAX_WHOLE_BYTES + 1)
    if len(data) > MAX_WHOLE_BYTES:
        raise DataError(
            f"{path}: is larger than {MAX_WHOLE_BYTES // 2**30} GiB, and json and text files are read in one piece; "
            "write one record a line (`format: jsonl`), which is read line by line"
        )
    if encoding == "utf-8":
        return _decoded(data, path, 1, 0)
    try:
        return data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data[: error.start].decode(encoding, errors="replace").count("\n") + 1
        raise _badly_encoded(path, line, encoding) from None


def text_chunks(path: Path) -> Iterator[str]:
    """The same a mebibyte of characters at a time, of a file of any size, all line ends as `\n`."""
    with opened(path) as file:
        encoding = _encoding(file.peek(4096))  # type: ignore[attr-defined]
        with io.TextIOWrapper(file, encoding=encoding, newline=None) as text:
            try:
                yield text.read(_CHUNK).removeprefix("\ufeff")
                while chunk := text.read(_CHUNK):
                    yield chunk
            except UnicodeDecodeError:
                whole_text(path)  # tells where
                raise _badly_encoded(path, 1, encoding) from None


def size_as_text(path: Path) -> float:
    """Bytes of a file as they are read; of a packed one by how its first four mebibytes expand. DataError for a damaged one."""
    size = path.stat().st_size
    with opened(path) as text, opened_as_is(path) as file:
        unpack = _unpacking(file)
        num_read = len(text.read(_SAMPLE)) if unpack else size
        if unpack is None or num_read < _SAMPLE:
            return num_read
        again = unpack(file, path)  # kept, as some close their file with themselves
        return size * len(again.read(_SAMPLE)) / file.tell()


def _wide_lines(file: BinaryIO, encoding: str, path: Path) -> Iterator[tuple[int, str]]:
    number = 1
    with io.TextIOWrapper(file, encoding=encoding, newline="\n") as text:
        try:
            for number in itertools.count(1):
                line = text.readline(MAX_LINE_BYTES // 4 + 1)
                if not line:
                    return
                if len(line) > MAX_LINE_BYTES // 4:
                    raise _too_long(path, number)
                yield number, line.removeprefix("\ufeff") if number == 1 else line
        except UnicodeDecodeError:
            raise _badly_encoded(path, number, encoding) from None


def _encoding(begin: bytes) -> str:
    """The encoding of a text that begins so: by its mark, or by where zero bytes stand, of which UTF-8 text has none."""
    for mark, name in ((b"\xff\xfe\0\0", "utf-32-le"), (b"\0\0\xfe\xff", "utf-32-be"), (b"\xff\xfe", "utf-16-le")):
        if begin.startswith(mark):
            return name
    if begin.startswith(b"\xfe\xff"):
        return "utf-16-be"
    if begin.count(0) <= len(begin) * _ZEROS:
        return "utf-8"
    whole = len(begin) // 4
    zeros = [begin[place : 4 * whole : 4].count(0) for place in range(4)]
    # Of four bytes; no character needs the first of UTF-32, and Latin letters and spaces leave half of UTF-16 empty.
    for name, shown in (
        ("utf-32-le", zeros[3] == whole > zeros[0] and zeros[2] >= whole / 2),
        ("utf-32-be", zeros[0] == whole > zeros[3] and zeros[1] >= whole / 2),
        ("utf-16-le", zeros[1] + zeros[3] > _CLEARLY * (zeros[0] + zeros[2])),
        ("utf-16-be", zeros[0] + zeros[2] > _CLEARLY * (zeros[1] + zeros[3])),
    ):
        if whole and shown:
            return name
    return "utf-8"


def _decoded(data: bytes, path: Path, line: int, offset: int) -> str:
    """`data`, which stands at byte `offset` (from 0) in line `line`, as text without a byte order mark."""
    try:
        return data.decode("utf-8-sig" if offset == 0 else "utf-8")
    except UnicodeDecodeError as error:
        at = error.start + (3 if offset == 0 and data.startswith(b"\xef\xbb\xbf") else 0)
        line += data.count(b"\n", 0, at)
        raise DataError(
            f"{path}: line {line}: byte offset {offset + at} (0x{data[at]:02x}) is not UTF-8; "
            "find out its encoding and convert it, for instance `iconv -f WINDOWS-1252 -t UTF-8`"
        ) from None


def _badly_encoded(path: Path, line: int, encoding: str) -> DataError:
    return DataError(f"{path}: line {line}: is not {encoding.upper()}, as the file begins; was it copied whole?")


def _too_long(path: Path, number: int) -> DataError:
    return DataError(
        f"{path}: line {number}: is longer than {MAX_LINE_BYTES // 2**20} MiB, which is no record "
        "(the rest was not read); if the file is one JSON list, write one record a line"
    )
