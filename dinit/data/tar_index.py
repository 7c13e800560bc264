"""Tar index: byte offsets of the samples inside a tar, read from its headers once and kept in a file.

WebDataset's convention: consecutive members that share their file name up to the first dot are one sample, and what
follows that dot is the kind of the part (0001.jpg, 0001.cls).
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dinit.files import write_atomically

SUFFIX = ".dinit-index.json"
IMAGES = ("jpg", "jpeg", "png", "webp")
_FORMAT = 1


@dataclass(frozen=True)
class TarIndex:
    """Index of a tar, one entry for each sample in the tar's order.

    Attributes:
        keys: names of the samples.
        offsets: first byte of the image.
        lengths: bytes of the image.
        cls: text of the .cls, or None.
        json: text of the .json, or None.
    """

    keys: list[str]
    offsets: list[int]
    lengths: list[int]
    cls: list[str | None]
    json: list[str | None]


def read_index(tar: Path) -> TarIndex:
    """Index of a tar: from TAR.dinit-index.json if that matches the tar as it is now, else from its headers.

    A new index is written to that file where the folder can be written. ValueError for a tar that is damaged,
    compressed, or has no images.
    """
    stamp = _stamp(tar)
    file = tar.with_name(tar.name + SUFFIX)
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept.pop("stamp") == stamp:
            return TarIndex(**kept)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # missing or damaged: it is made again
    index = make_index(tar)
    with suppress(OSError):  # a read-only folder
        write_atomically(file, json.dumps({"stamp": stamp, **asdict(index)}))
    return index


def make_index(tar: Path) -> TarIndex:
    """Index from all headers of a tar. ValueError for one that is damaged, compressed, or has no images."""
    keys, offsets, lengths, cls, meta = [], [], [], [], []
    for key, parts in _samples(tar):
        images = [kind for kind in parts if kind in IMAGES]
        if len(images) > 1:
            raise ValueError(
                f"sample {key!r} of {tar} has {len(images)} images ({', '.join(images)}); one is wanted"
            )
        if not images:
            continue
        member = parts[images[0]]
        keys.append(key)
        offsets.append(member[0])
        lengths.append(member[1])
        cls.append(_text(tar, key, parts.get("cls")))
        meta.append(_text(tar, key, parts.get("json")))
    if not keys:
        raise ValueError(
            f"{tar} has no images; wanted: members such as 0001.jpg and 0001.cls ({', '.join(IMAGES)})"
        )
    return TarIndex(keys, offsets, lengths, cls, meta)


def _samples(tar: Path) -> Iterator[tuple[str, Mapping[str, tuple[int, int]]]]:
    """(key, {kind: (offset, length)}) of each group of members. ValueError names the tar and what is wrong."""
    key, parts, seen = None, {}, set[str]()
    try:
        with tarfile.open(tar, "r:") as archive:  # "r:": compressed archives cannot be read from the middle
            for member in archive:
                if not member.isreg():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, dot, kind = name.partition(".")
                if not stem or not dot:  # hidden, or of no kind
                    continue
                here = f"{folder}/{stem}" if folder else stem
                if here != key:
                    if key is not None:
                        yield key, parts
                    if here in seen:
                        raise ValueError(
                            f"the members of sample {here!r} of {tar} do not follow each other; sort them"
                        )
                    seen.add(here)
                    key, parts = here, {}
                parts[kind.lower()] = (member.offset_data, member.size)
            _check_end(archive, tar)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(
            f"{tar} is damaged or no plain tar ({error}); unpack a .tar.gz, or copy it again"
        ) from error
    except OSError as error:
        raise ValueError(f"{tar} cannot be read ({error.strerror or error})") from error
    if key is not None:
        yield key, parts


def _check_end(archive: tarfile.TarFile, tar: Path) -> None:
    """ValueError unless the headers ended with a block of zeros: tarfile takes a wrong header for the end."""
    stream: Any = archive.fileobj
    stream.seek(archive.offset)
    block = stream.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or any(block):
        what = "is cut short" if len(block) < tarfile.BLOCKSIZE else "holds no header"
        raise ValueError(f"{tar} {what} at byte {archive.offset}; copy it again")


def _text(tar: Path, key: str, place: tuple[int, int] | None) -> str | None:
    """Text of a part. ValueError where it is not text."""
    if place is None:
        return None
    with tar.open("rb") as stream:
        stream.seek(place[0])
        try:
            return stream.read(place[1]).decode().strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"the label of sample {key!r} of {tar} is no text ({error})") from error


def _stamp(tar: Path) -> list[int]:
    """Size and time of the tar, by which its index is valid. ValueError where there is no tar."""
    try:
        facts = tar.stat()
    except OSError as error:
        raise ValueError(f"{tar} cannot be read ({error.strerror})") from error
    return [_FORMAT, facts.st_size, facts.st_mtime_ns]
