"""Tar index: byte offsets of the samples inside a tar, read from its headers once and kept in a file.

WebDataset's convention: consecutive members that share their file name up to the first dot are one sample, and what
follows that dot is the kind of the part (0001.jpg, 0001.cls).
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from posixpath import dirname, join, normpath
from typing import Any

from dinit.data.images import readable_suffixes
from dinit.files import write_atomically

SUFFIX = ".dinit-index.json"
IMAGES = ("jpg", "jpeg", "png", "webp")  # of several pictures of a sample, one of these is meant
TEXTS = ("cls", "txt", "text", "json", "label", "labels", "class", "target", "category", "index", "id")
_LONGEST = 1 << 20  # bytes of a text that is kept
_FORMAT = 2
_FEW = 10  # links after links that are followed

Place = tuple[int, int]  # offset and length


@dataclass(frozen=True)
class TarIndex:
    """Index of a tar, one entry for each sample in the tar's order.

    Attributes:
        keys: names of the samples.
        offsets: first byte of the image.
        lengths: bytes of the image.
        texts: for each kind of part that is text, such as cls, its text in every sample, or None.
        unused: what of the tar is not in the index, as {what: [count, an example]}.
    """

    keys: list[str]
    offsets: list[int]
    lengths: list[int]
    texts: dict[str, list[str | None]]
    unused: dict[str, list[Any]]


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
            index = TarIndex(**kept)
            if {len(one) for one in (index.offsets, index.lengths, *index.texts.values())} == {len(index.keys)}:
                return index
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # missing or damaged: it is made again
    index = make_index(tar)
    with suppress(OSError):  # a read-only folder
        write_atomically(file, json.dumps({"stamp": stamp, **asdict(index)}))
    return index


def make_index(tar: Path) -> TarIndex:
    """Index from all headers of a tar. ValueError for one that is damaged, compressed, or has no images."""
    unused: dict[str, list[Any]] = {}
    samples = dict(_samples(tar, unused))
    kinds = _picture_kinds(samples.values())
    keys, places, parts_of = [], [], []
    for key, parts in samples.items():
        images = [kind for kind in parts if kind in IMAGES] or [kind for kind in parts if kind in kinds]
        if len(images) > 1:
            raise ValueError(
                f"sample {key!r} of {tar} has {len(images)} images ({', '.join(images)}); one is wanted"
            )
        if not images:
            _count(unused, "samples without a picture", f"{key}.{next(iter(parts))}")
            continue
        keys.append(key)
        places.append(parts.pop(images[0]))
        parts_of.append(parts)
    if not keys:
        names = [f"{key}.{kind}" for key, parts in samples.items() for kind in parts]
        raise ValueError(f"{tar} has no images; {_wanted(names)}")
    empty = [key for key, (_, length) in zip(keys, places, strict=True) if not length]
    if empty:
        raise ValueError(f"{len(empty)} pictures of {tar} are empty, the first that of sample {empty[0]!r}")
    texts: dict[str, list[str | None]] = {}
    with tar.open("rb") as stream:
        for row, (key, parts) in enumerate(zip(keys, parts_of, strict=True)):
            for kind, (offset, length) in parts.items():
                if kind.rpartition(".")[2] not in TEXTS or length > _LONGEST:
                    _count(unused, f".{kind}", f"{key}.{kind}")
                    continue
                stream.seek(offset)
                text = stream.read(length).decode("utf-8-sig", "surrogateescape").strip(" \t\r\n\0")
                texts.setdefault(kind, [None] * len(keys))[row] = text
    offsets, lengths = ([place[k] for place in places] for k in (0, 1))
    return TarIndex(keys, offsets, lengths, texts, unused)


def _samples(tar: Path, unused: dict[str, list[Any]]) -> Iterator[tuple[str, dict[str, Place]]]:
    """(key, {kind: place}) of each group of members. ValueError names the tar and what is wrong."""
    key, parts, seen = None, {}, set[str]()
    for name, place in _members(tar, unused):
        folder, _, base = name.rpartition("/")
        stem, dot, kind = base.partition(".")
        if base.startswith("._") or "__MACOSX" in folder.split("/"):  # what macOS adds
            continue
        if not stem or not dot or not kind:
            _count(unused, "names that are hidden or of no kind", name)
            continue
        here = f"{folder}/{stem}" if folder else stem
        if here != key:
            if key is not None:
                yield key, parts
            if here in seen:
                raise ValueError(f"the members of sample {here!r} of {tar} do not follow each other; sort them")
            seen.add(here)
            key, parts = here, {}
        if kind.lower() in parts:
            raise ValueError(f"{tar} has the member {name!r} twice; make it again with one of them")
        parts[kind.lower()] = place
    if key is not None:
        yield key, parts


def _members(tar: Path, unused: dict[str, list[Any]]) -> Iterator[tuple[str, Place]]:
    """Names and places of all files; of a link, the place of the file that it leads to in the same tar."""
    try:
        with tarfile.open(tar, "r:") as archive:  # "r:": compressed archives cannot be read from the middle
            members = list(archive)
            _check_end(archive, tar)
    except OSError as error:
        raise ValueError(f"{tar} cannot be read ({error.strerror or error})") from error
    except _CutTar as error:
        raise ValueError(str(error)) from error
    except Exception as error:  # tarfile's and Python's own, as the damage may be
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"{tar} is damaged or no plain tar ({reason}); unpack a .tar.gz, or copy it again"
        ) from error
    sparse = next((member for member in members if member.sparse is not None), None)
    if sparse is not None:
        raise ValueError(f"{tar} has the sparse member {sparse.name!r}; make it again without --sparse")
    files = {normpath(member.name): member for member in members if member.isreg()}
    links = {normpath(member.name): _target(member) for member in members if member.islnk() or member.issym()}
    for member in members:
        if member.isreg():
            yield member.name, (member.offset_data, member.size)
        elif member.islnk() or member.issym():
            target = _target(member)
            for _ in range(_FEW):
                target = links.get(target, target) if target not in files else target
            if target in files:
                yield member.name, (files[target].offset_data, files[target].size)
            else:
                _count(unused, "links to what the tar does not hold", member.name)
        elif not member.isdir():
            _count(unused, "members that are no files", member.name)


class _CutTar(Exception):
    """The headers did not end with a block of zeros."""


def _check_end(archive: tarfile.TarFile, tar: Path) -> None:
    """_CutTar unless the headers ended with a block of zeros: tarfile takes a wrong header for the end."""
    stream: Any = archive.fileobj
    stream.seek(archive.offset)
    block = stream.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or any(block):
        what = "is cut short" if len(block) < tarfile.BLOCKSIZE else "holds no header"
        raise _CutTar(f"{tar} {what} at byte {archive.offset}; copy it again")


def _target(member: tarfile.TarInfo) -> str:
    """Name of what a link leads to: a hard link's is the whole name, a symbolic link's starts in its folder."""
    return normpath(join(dirname(member.name), member.linkname) if member.issym() else member.linkname)


def _picture_kinds(samples: Iterable[Mapping[str, Place]]) -> set[str]:
    """Kinds of part that are the picture of a sample, besides the usual ones.

    Further formats, such as bmp, where no sample has them next to a usual picture, as masks lie there; and where no
    sample has a picture of such a kind, the one kind with a dot that all have, such as image.jpg.
    """
    readable = {suffix[1:] for suffix in readable_suffixes()}
    listed = [set(parts) for parts in samples]
    with_usual = [kinds for kinds in listed if not kinds.isdisjoint(IMAGES)]
    plain = readable - set().union(*with_usual)
    if with_usual or any(not kinds.isdisjoint(plain) for kinds in listed):
        return plain
    dotted = [[kind for kind in kinds if kind.rpartition(".")[2] in readable] for kinds in listed]
    first = next((kinds for kinds in dotted if kinds), [])
    alike = len(first) == 1 and all(kinds in ([], first) for kinds in dotted)
    return set(first) if alike else set()


_DOTS = "a sample's name ends at the first dot of its file name, so that names must not have others: rename 1.5.jpg"


def _wanted(names: list[str]) -> str:
    readable = readable_suffixes()
    dotted = next((name for name in names if Path(name).suffix.lower() in readable), None)
    if dotted is not None:
        return f"it has {dotted!r}, but {_DOTS}"
    found = f"; it has {names[0]!r}" if names else ""
    return f"wanted: members such as 0001.jpg and 0001.cls ({', '.join(IMAGES)}, …){found}"


def _count(unused: dict[str, list[Any]], what: str, example: str) -> None:
    unused.setdefault(what, [0, example])[0] += 1


def _stamp(tar: Path) -> list[int]:
    """Size and time of the tar, by which its index is valid. ValueError where there is no tar."""
    try:
        facts = tar.stat()
    except OSError as error:
        raise ValueError(f"{tar} cannot be read ({error.strerror})") from error
    return [_FORMAT, facts.st_size, facts.st_mtime_ns]
