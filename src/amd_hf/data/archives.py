"""Reading members of tar and zip archives by their position, without ever unpacking them."""

from __future__ import annotations

import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

LOCAL_HEADER_BYTES = 30
LOCAL_HEADER_MAGIC = b"PK\x03\x04"
# No frame is this large; a deflated member that grows beyond it is an attack or damaged.
MAX_MEMBER_BYTES = 256 * 1024 * 1024
# What the standard library raises on headers that nobody would write.
HEADER_ERRORS: tuple[type[Exception], ...] = (
    *(tarfile.TarError, zipfile.BadZipFile, struct.error, zlib.error),
    *(OSError, ValueError, ArithmeticError, LookupError, EOFError),
    *(NotImplementedError, RecursionError, AttributeError, TypeError, MemoryError),
)


@dataclass(frozen=True)
class Member:
    """A file in an archive: name, position and length of its stored bytes."""

    name: str
    offset: int
    size: int
    is_deflated: bool = False
    checksum: int = 0


class CutArchiveError(ValueError):
    """An archive ends before its last member does."""


def check_member_name(archive: Path, name: str) -> None:
    """Raises a ValueError for a member whose name leads out of the archive.

    Nothing is ever unpacked here, but such an archive was made to harm whoever unpacks it, and its
    names would reach keys and file names.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if (
        not name
        or path.is_absolute()
        or ".." in path.parts
        or path.parts[:1] == ("~",)
        or "\0" in name
    ):
        raise ValueError(
            f"`source` {str(archive)!r} holds the unsafe path {name!r}; archives must hold relative"
            " paths without `..` only."
        )


def tar_members(path: Path) -> Iterator[Member]:
    """Yields the files of an uncompressed tar in order; only headers are read.

    Raises:
        ValueError: If the archive is no plain tar or holds links, devices or unsafe paths.
        CutArchiveError: After the last whole member, if the archive ends too early.
    """
    length = path.stat().st_size
    try:
        archive = tarfile.open(path, "r:")  # noqa: SIM115 (closed by the `with` below)
    except HEADER_ERRORS as error:
        raise ValueError(
            f"`source` {str(path)!r} is no uncompressed tar ({error}); decompress it, or download"
            " it again."
        ) from error
    with archive:
        for info in _headers(archive, path):
            if info.isdir():
                continue
            check_member_name(path, info.name)
            if not info.isreg() or info.issparse():
                raise ValueError(
                    f"`source` {str(path)!r} holds {info.name!r}, which is a link or a device;"
                    " only regular files are accepted."
                )
            if info.offset_data + info.size > length:
                raise CutArchiveError(f"{path} ends inside {info.name}")
            yield Member(info.name, info.offset_data, info.size)
        end = archive.offset
    if not _ends_with_zeros(path, length):
        raise CutArchiveError(f"{path} has no end-of-archive mark")
    # Behind a damaged header `tarfile` sees the end of the archive.
    if any(read_bytes(path, end, tarfile.BLOCKSIZE)):
        raise CutArchiveError(f"{path} has a damaged header at byte {end}")


def _headers(archive: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    """Yields the headers of a tar; each must lie behind the one before it.

    Raises:
        ValueError: If a header states what no header can, such as a negative size.
        CutArchiveError: If the archive ends within a header.
    """
    previous = -1
    while True:
        try:
            info = archive.next()
        except tarfile.TarError as error:
            raise CutArchiveError(f"{path} ends too early ({error})") from error
        except HEADER_ERRORS as error:
            raise ValueError(
                f"`source` {str(path)!r} has a damaged header behind byte {max(previous, 0)}"
                f" ({type(error).__name__}: {error}); download it again."
            ) from error
        if info is None:
            return
        if info.offset <= previous or info.size < 0:
            raise ValueError(
                f"`source` {str(path)!r} has a damaged header at byte {info.offset} (size"
                f" {info.size}); download it again."
            )
        previous = info.offset
        archive.members = []  # type: ignore[attr-defined]
        yield info


def _ends_with_zeros(path: Path, length: int) -> bool:
    """Says whether the last 1024 bytes are the zero blocks that end a tar."""
    return not any(read_bytes(path, max(length - 1024, 0), 1024))


def read_bytes(path: Path, offset: int, size: int) -> bytes:
    """Returns up to `size` bytes at `offset`."""
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def zip_members(path: Path) -> Iterator[Member]:
    """Yields the files of a zip in order; `offset` is that of the local header.

    Raises:
        ValueError: If the archive is damaged, encrypted, or holds links or unsafe paths.
    """
    length = path.stat().st_size
    try:
        archive = zipfile.ZipFile(path)
    except HEADER_ERRORS as error:
        raise ValueError(
            f"`source` {str(path)!r} is no complete zip ({error}); download it again."
        ) from error
    with archive:
        for info in archive.infolist():
            check_member_name(path, info.filename)
            if info.is_dir():
                continue
            if stat.S_ISLNK(info.external_attr >> 16):
                raise ValueError(
                    f"`source` {str(path)!r} holds the link {info.filename!r}; only regular files"
                    " are accepted."
                )
            if info.flag_bits & 1:
                raise ValueError(
                    f"`source` {str(path)!r} is encrypted ({info.filename!r}); unpack it first."
                )
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(
                    f"`source` {str(path)!r} holds {info.filename!r} in an unusual compression;"
                    " unpack it first."
                )
            if not 0 <= info.header_offset <= length - info.compress_size:
                raise ValueError(
                    f"`source` {str(path)!r} has a damaged directory ({info.filename!r} lies"
                    " outside of the file); download it again."
                )
            is_deflated = info.compress_type == zipfile.ZIP_DEFLATED
            yield Member(
                info.filename, info.header_offset, info.compress_size, is_deflated, info.CRC
            )


def read_tar_member(path: Path, offset: int, size: int) -> bytes:
    """Returns `size` bytes at `offset`.

    Raises:
        OSError: If the file is gone or ends too early.
    """
    data = read_bytes(path, offset, size)
    if len(data) != size:
        raise OSError(f"{path} ends inside a member at byte {offset}")
    return data


def read_zip_member(
    path: Path, header: int, size: int, *, is_deflated: bool, checksum: int
) -> bytes:
    """Returns the unpacked bytes of the member whose local header starts at byte `header`.

    Raises:
        OSError: If the file is gone or ends too early.
        ValueError: If the member is damaged.
    """
    with path.open("rb") as file:
        file.seek(header)
        fields = file.read(LOCAL_HEADER_BYTES)
        if len(fields) < LOCAL_HEADER_BYTES or not fields.startswith(LOCAL_HEADER_MAGIC):
            raise ValueError(f"{path} has no member at byte {header}")
        name_length = int.from_bytes(fields[26:28], "little")
        extra_length = int.from_bytes(fields[28:30], "little")
        file.seek(name_length + extra_length, 1)
        data = file.read(size)
    if len(data) != size:
        raise OSError(f"{path} ends inside a member at byte {header}")
    if is_deflated:
        try:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, MAX_MEMBER_BYTES)
        except zlib.error as error:
            raise ValueError(f"{path} has a damaged member at byte {header}") from error
    if zlib.crc32(data) != checksum:
        raise ValueError(f"{path} has a damaged member at byte {header}")
    return data
