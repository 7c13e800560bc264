"""Contents of files that are not what their names promise, such as Git LFS pointers; weights that a folder has."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

SHARD = re.compile(r"(\d+)-of-(\d+)")
_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")

_IMAGES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")

RECORDED = "a PNG, or a folder of PNGs, that `dinit generate` wrote"
_POINTER = b"version https://git-lfs"
_START = 512
_GZIP, _TORCH = b"\x1f\x8b", (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def wrong_content(path: Path) -> str | None:
    """Why `path` cannot be the binary or JSON file that its name promises, and what to do; None if nothing is seen.

    Only the first bytes are read. OSError of the disk.
    """
    with path.open("rb") as stream:
        start = stream.read(_START)
    if not start:
        return f"{path} is empty; copy or download it again"
    if start.startswith(_POINTER):
        size = re.search(rb"\nsize (\d+)", start)
        whole = f" of a file of {int(size[1]):,} bytes" if size else ""
        return (
            f"{path} is a Git LFS pointer{whole}, not the file itself; run `git lfs pull` in its repository, or "
            "download the file"
        )
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return f"{path} is a web page, not the file itself; download it again, from the address of the file"
    if start.startswith(_GZIP):
        return f"{path} is compressed by gzip; unpack it first"
    return None


def wrong_weights(path: Path) -> str | None:
    """As `wrong_content`, for a file of weights: it may also be named as another container, or be a short text."""
    if (reason := wrong_content(path)) is not None:
        return reason
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(_START)
    named = path.suffix.lower() == ".safetensors"
    if named and start.startswith(_TORCH) and start[8:9] != b"{":
        return f"{path} is a file of torch.save by its content, no safetensors file; rename it to {path.stem}.pt"
    if not named and start[8:9] == b"{" and 2 <= int.from_bytes(start[:8], "little") <= size - 8:
        return f"{path} is a safetensors file by its content; rename it to {path.stem}.safetensors"
    line = start.decode("utf-8", "replace").strip().split("\n", 1)[0]
    if size < _START and line.isprintable() and len(line) > 3 and "\ufffd" not in line:
        kind = "safetensors file" if named else "checkpoint"
        return f"{path} is damaged or no {kind}: it is a text ({line[:80]!r}), not weights; download it again"
    return None


def wrong_folder(folder: Path) -> str | None:
    """As `wrong_content`, for the configurations and weights directly in a local folder of diffusers."""
    files = sorted(file for end in ("json", "safetensors") for file in folder.glob(f"*.{end}") if file.is_file())
    return next((reason for file in files if (reason := wrong_content(file)) is not None), None)


def weight_variants(folder: Path, ends: Sequence[str] = (".safetensors", ".bin")) -> dict[str, Path]:
    """The sets of weights in a model folder of diffusers.

    Args:
        folder: The folder.
        ends: Endings of weights; the first that the folder has counts.

    Returns:
        Variant ("fp16", "" is the usual one) to its file, or to the index of its shards.
    """
    found: dict[str, Path] = {}
    for end in ends:
        for stem in _STEMS:
            name = re.compile(rf"{stem}(?:\.([\w-]+))?{re.escape(end)}(?:\.index(?:\.([\w-]+))?\.json)?")
            for file in sorted(folder.glob(f"{stem}*")):
                match = name.fullmatch(file.name)
                if match and not SHARD.search(file.name):
                    found.setdefault(match[1] or match[2] or "", file)
            if found:
                return found
    return found


def usual_variant(folder: Path, variant: str | None = None) -> str | None:
    """The variant that a model folder of diffusers is loaded with.

    Args:
        folder: The folder; one without safetensors is left to its loader.
        variant: The given one.

    Returns:
        The variant, in the words of diffusers' `variant`: None is the usual one. Where there is no usual one, the
        only one.

    Raises:
        ValueError: the given one is not there, or there is no usual one and several others.
    """
    found = weight_variants(folder, (".safetensors",))
    if not found or (variant or "") in found:
        return variant
    names = ", ".join(name or "the usual one" for name in found)
    if variant is not None:
        raise ValueError(f"{folder} has no weights of the variant {variant!r}, it has {names}")
    if len(found) > 1:
        raise ValueError(f"{folder} has weights of the variants {names}: choose one, variant={min(found)!r}")
    return next(iter(found))


def is_hub_id(text: str) -> bool:
    """Whether a text can be the id of a repository of the Hub, owner/name, and not a path."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]*[\w-]", text) is not None


def unfit(path: Path, wanted: str) -> str:
    """The message for a file or folder that is something else than a command or a function takes.

    Args:
        path: As it was given.
        wanted: What is taken, with its article: 'a recipe (.yaml)'.

    Returns:
        What the path is, what is wanted, and the command that takes it, where there is one. A path without a file
        is absent.
    """
    if not path.exists():
        return f"there is no file or folder {path}; wanted: {wanted}"
    try:
        kind, command = _kind_of_folder(path) if path.is_dir() else _kind_of_file(path)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror or error}"
    tail = "" if command is None else f"; `{command.format(shlex.quote(str(path)))}` takes it"
    return f"{path} is {kind}, wanted: {wanted}{tail}"


def check_picture(path: Path, needs_record: bool = True) -> None:
    """Whether a file can be a PNG with the record of a call in it; only the beginnings of its parts are read.

    Args:
        path: a file.
        needs_record: False for one that may be of a set, which has the record in its folder.

    Raises:
        ValueError: it is of another kind, ends early, or has no record where it needs one.
    """
    with path.open("rb") as stream:
        if stream.read(8) != b"\x89PNG\r\n\x1a\n":
            raise ValueError(unfit(path, RECORDED))
        recorded, size = False, path.stat().st_size
        while (head := stream.read(8))[4:] != b"IEND":
            length, place = int.from_bytes(head[:4], "big"), stream.tell()
            if len(head) < 8 or place + length > size:
                raise ValueError(f"{path} is damaged: it ends early; copy or download it again")
            recorded |= head[4:] in (b"tEXt", b"zTXt", b"iTXt") and stream.read(6) == b"dinit\0"
            stream.seek(place + length + 4)
    if needs_record and not recorded:
        raise ValueError(f"{path} has no dinit manifest; only PNGs that `dinit generate` wrote have one")


def _kind_of_folder(folder: Path) -> tuple[str, str | None]:
    """What a folder holds, and the command that takes it."""
    names = {entry.name for entry in folder.iterdir()}
    if not names:
        return "an empty folder", None
    if "model_index.json" in names:
        return "a pipeline's folder", "dinit generate {}"
    if "recipe.yaml" in names:
        return "a run's folder", "dinit info {}"
    if "manifest.json" in names:
        return "a folder of images that dinit generated", "dinit replay {}"
    if any(Path(name).suffix.lower() in _PICTURES for name in names):
        return "a folder of pictures", "dinit evaluate {}"
    return "a folder", None


def _kind_of_file(path: Path) -> tuple[str, str | None]:
    """What a file is by its content, else by its name, and the command that takes it."""
    with path.open("rb") as stream:
        start = stream.read(1 << 16)
    suffix = path.suffix.lower()
    if not start:
        return "an empty file", None
    if start.startswith(b"\x89PNG") and re.search(rb"(tEXt|zTXt|iTXt)dinit\0", start):
        return "a picture that dinit generated", "dinit replay {}"
    if start.startswith(_IMAGES) or start[8:12] == b"WEBP":
        return "a picture", None
    if start[8:9] == b"{" and 2 <= int.from_bytes(start[:8], "little") <= path.stat().st_size - 8:
        return "a file of weights (safetensors)", "dinit convert {} --to FOLDER"
    if start.startswith(b"\x93NUMPY") or suffix == ".npz":
        return "a file of arrays", "dinit evaluate {}"
    if start.startswith(_TORCH) or suffix in (".pt", ".pth", ".ckpt", ".bin"):
        return "a pickle checkpoint (torch)", "dinit convert {} --to FOLDER"
    if suffix in (".yaml", ".yml"):
        recipe = re.search(rb"^(backbone|training|finetune)\s*:", start, re.MULTILINE)
        return ("a recipe", "dinit train {}") if recipe else ("a YAML file", None)
    if suffix == ".json":
        return "a JSON file", None
    return "a text" if b"\0" not in start else "a file of another kind", None
