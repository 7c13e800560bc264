"""Atomic files and folders: written under a temporary name, flushed, renamed."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_PREFIX, _SUFFIX = ".dinit-", ".tmp"
LOCK = ".lock"


def user_path(path: str | Path) -> Path:
    """The path, with the home folder in place of ~ at its beginning; unchanged where there is no such user."""
    return Path(os.path.expanduser(path))


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A temporary folder next to `target` to write into; it becomes `target` when the block ends without error.

    Everything in it reaches the disk before the rename, so after a crash `target` is whole or absent. An
    existing `target` is replaced. On an error the temporary folder is removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=_PREFIX, suffix=_SUFFIX, dir=target.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())  # mkdtemp makes it private to its owner
        for path in sorted(temporary.rglob("*")):
            if path.is_file():
                path.chmod(0o666 & ~_umask())  # safetensors' writer makes them private too
            _sync(path)
        _sync(temporary)
        if target.exists():
            remove_folder(target)
        os.replace(temporary, target)
        _sync(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_atomically(target: Path, content: bytes | str) -> None:
    """Writes a file, text as UTF-8, replacing an existing one. OSError of the disk."""
    with whole_file(target) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_file(target: Path) -> Iterator[BinaryIO]:
    """A stream to write into; what was written becomes `target`, flushed, when the block ends without error."""
    handle, temporary = tempfile.mkstemp(prefix=_PREFIX, suffix=_SUFFIX, dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes it private to its owner
        os.replace(temporary, target)
        _sync(target.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def remove_folder(path: Path) -> None:
    """Removes a folder so that no half of it is ever seen under its name."""
    leftover = Path(tempfile.mkdtemp(prefix=_PREFIX, suffix=_SUFFIX, dir=path.parent))
    os.replace(path, leftover)  # onto an empty folder
    shutil.rmtree(leftover)


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Holds the folder for this process alone, making it if need be. OSError where another process holds it.

    The hold ends with the process, however it ends. It is the process's own: children do not inherit it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "a", encoding="utf-8") as stream:
        try:
            import fcntl
        except ImportError:  # Windows: nothing is held
            yield
            return
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                yield  # a file system without locks
                return
            raise OSError(
                f"another process is writing into {folder}; wait for it or end it, or give another folder"
            ) from error
        yield


def is_held(folder: Path) -> bool:
    """Whether another process holds the folder by `only_writer`. True where that cannot be known."""
    try:
        import fcntl
    except ImportError:
        return True
    if not (folder / LOCK).exists():
        return False
    with open(folder / LOCK, "a", encoding="utf-8") as stream:
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def is_leftover(path: Path) -> bool:
    """Whether this is a temporary file or folder of a run that was killed."""
    return path.name.startswith(_PREFIX) and path.name.endswith(_SUFFIX)


def remove_leftovers(folder: Path) -> None:
    """Removes what killed runs left half written in `folder`. Only for the one process that writes there."""
    for path in list(folder.glob(f"{_PREFIX}*{_SUFFIX}")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def _sync(path: Path) -> None:
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows does not open folders
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
