"""Contents of a file that is not what its name promises: a Git LFS pointer, a web page, an archive, a text."""

from __future__ import annotations

import re
from pathlib import Path

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
        return f"{path} is damaged or no checkpoint: it is a text ({line[:80]!r}), not weights; download it again"
    return None
