"""Record of a run's data, by which data at another path is known to be the same."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from dinit.data import ImageData, ImageFolder
from dinit.files import write_atomically
from dinit.training.run.folder import DATA, RunFolderError


def record_of(data: ImageData) -> dict[str, Any]:
    """What identifies the data, wherever it is: pictures, classes, and a hash of its listing.

    Args:
        data: The data set.

    Returns:
        Plain values, for data.json. The listing of a folder is the names and sizes of its files, in order; of other
        data it is the fingerprint.
    """
    return {
        "pictures": len(data),
        "classes": list(data.class_names),
        "image_size": data.image_size,
        "channels": data.channels,
        "listing": _listing(data),
    }


def write_record(out: Path, data: ImageData) -> None:
    """Writes data.json."""
    write_atomically(out / DATA, json.dumps(record_of(data), ensure_ascii=False, indent=1) + "\n")


def read_record(out: Path) -> dict[str, Any] | None:
    """What data.json holds; None for a run without one. RunFolderError where it is damaged."""
    try:
        record = json.loads((out / DATA).read_text(encoding="utf-8"))
        return {**record, "classes": list(record["classes"])}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{out / DATA} is damaged: {error}; remove it") from error


def differs(out: Path, data: ImageData) -> str | None:
    """How the data is another than the run in `out` was begun with; None where it is the same, or not recorded."""
    before = read_record(out)
    if before is None:
        return None
    now = record_of(data)
    if before["classes"] != now["classes"]:
        gone = [name for name in before["classes"] if name not in now["classes"]]
        new = [name for name in now["classes"] if name not in before["classes"]]
        parts = [f"without the class {_some(gone)}"] if gone else []
        parts += [f"with the new class {_some(new)}"] if new else []
        return " and ".join(parts) or "with its classes in another order"
    for key in ("pictures", "image_size", "channels"):
        if before.get(key) != now[key]:
            return f"{key.replace('_', ' ')}: {before.get(key)} there, {now[key]} now"
    if before.get("listing") != now["listing"]:
        return "as many pictures, of other names or sizes"
    return None


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _listing(data: ImageData) -> str:
    if not isinstance(data, ImageFolder):
        return data.fingerprint()
    digest = hashlib.sha256()
    for file in data.files:
        digest.update(f"{file.relative_to(data.root).as_posix()}\0{file.stat().st_size}\0".encode())
    return digest.hexdigest()[:32]
