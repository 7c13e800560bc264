"""Where the samples lie inside a tar: read from its headers once, and kept, so that any can be read alone.

WebDataset's convention: members that follow each other and share their name up to the first dot of its last part
are one sample, and what comes after that dot is a part's kind (0001.jpg, 0001.cls).
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
    """One entry a sample, in the tar's order. offsets, lengths: where its image's bytes begin, how many they are.

    cls, json: what its .cls and .json hold, as text, or None.
    """

    keys: list[str]
    offsets: list[int]
    lengths: list[int]
    cls: list[str | None]
    json: list[str | None]


def read_index(tar: Path) -> TarIndex:
    """The index beside the tar, if it is of the tar as it is now; else read from its headers, and kept there.

    It is kept as TAR.dinit-index.json; where that folder cannot be written, for this process alone. ValueError for
    a tar that is damaged, packed, or has no images.
    """
    stamp = _stamp(tar)
    beside = tar.with_name(tar.name + SUFFIX)
    try:
        kept = json.loads(beside.read_text(encoding="utf-8"))
        if kept.pop("stamp") == stamp:
            return TarIndex(**kept)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # none, or not ours: it is made again
    index = make_index(tar)
    with suppress(OSError):  # a folder that we may only read
        write_atomically(beside, json.dumps({"stamp": stamp, **asdict(index)}))
    return index


def make_index(tar: Path) -> TarIndex:
    """Reads all headers. ValueError for a tar that is damaged, packed, or has no images."""
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
            f"{tar} has no images; wanted: members such as 0001.jpg beside 0001.cls ({', '.join(IMAGES)})"
        )
    return TarIndex(keys, offsets, lengths, cls, meta)


def _samples(tar: Path) -> Iterator[tuple[str, Mapping[str, tuple[int, int]]]]:
    """(key, {kind: (offset, length)}) of each group of members. ValueError names the tar and what is wrong."""
    key, parts, seen = None, {}, set[str]()
    try:
        with tarfile.open(tar, "r:") as archive:  # "r:": packed archives cannot be read from the middle
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
    """A part's contents. ValueError where they are no text."""
    if place is None:
        return None
    with tar.open("rb") as stream:
        stream.seek(place[0])
        try:
            return stream.read(place[1]).decode().strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"the label of sample {key!r} of {tar} is no text ({error})") from error


def _stamp(tar: Path) -> list[int]:
    """What changes when the tar does. ValueError where there is none."""
    try:
        facts = tar.stat()
    except OSError as error:
        raise ValueError(f"{tar} cannot be read ({error.strerror})") from error
    return [_FORMAT, facts.st_size, facts.st_mtime_ns]
