"""Containers of tensors: files of torch.save, opened as data only, and safetensors.

Nothing in a file is ever run: pickles are opened with weights_only=True and in no other way.
"""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from dinit.contents import wrong_weights

PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".tar")  # .pth.tar too
SUFFIXES = (*PICKLES, ".safetensors")
_CHUNK = 2**22
_REASON = 200  # characters of another library's message
# What torch.load raises for damaged files, other than UnpicklingError.
_DAMAGED = (
    RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError,
    ArithmeticError, MemoryError, ImportError, struct.error,
)  # fmt: skip


def read_file(path: Path) -> Any:
    """The contents of a file: a state for safetensors, any plain data for the others.

    ValueError: its name is not that of a checkpoint, or it is damaged, something else, or contains more than data.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path} is no checkpoint by its name; those end in {', '.join(SUFFIXES)}")
    if (reason := wrong_weights(path)) is not None:
        raise ValueError(reason)
    if suffix == ".tar" and tarfile.is_tarfile(path):
        raise ValueError(f"{path} is a tar archive, not a checkpoint; unpack it and give the file in it")
    if suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or no safetensors file: {error}; download it again") from error
    return _read_pickle(path)


def _read_pickle(path: Path) -> Any:
    """torch.load without running anything. A zip is mapped, so that an optimiser's state costs no memory."""
    zipped = zipfile.is_zipfile(path)
    if zipped:
        _check_sums(path)
    try:
        # DiT's and SiT's checkpoints hold the command line of their training, as argparse keeps it.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(path, str(error))) from error
    except _DAMAGED as error:
        reason = str(error).splitlines()[0][:_REASON] if str(error) else "it ends too early"
        if isinstance(error, UnicodeError):
            reason = "names in it are no text"
        if isinstance(error, KeyError):  # whose text is the bare key
            reason = "no pickle in it"
        raise ValueError(f"{path} is damaged or no checkpoint ({reason}); copy or download it again") from error


def _refusal(path: Path, reason: str) -> str:
    """Why a pickle was not opened: it names code, or it is no pickle at all."""
    code = re.search(r"Unsupported (?:global|class|operand).*?([\w.]+\.\w+)", reason) or re.search(
        r"GLOBAL ([\w.]+)", reason
    )
    if code is None:
        return f"{path} is damaged or no checkpoint of PyTorch; copy or download it again"
    return (
        f"{path} holds more than data: it names {code[1]}, and opening that could run code, so it was not opened. "
        "Use a safetensors file, or, if you trust this one, extract its state_dict and save that as safetensors"
    )


def _check_sums(path: Path) -> None:
    """Compare the checksums that a zip stores, which torch.load does not. ValueError for a wrong one."""
    try:
        with zipfile.ZipFile(path) as archive:
            for part in archive.infolist():
                if part.CRC:  # 0: written without checksums
                    with archive.open(part) as stream:
                        while stream.read(_CHUNK):
                            pass
    except (zipfile.BadZipFile, zlib.error, *_DAMAGED) as error:
        raise ValueError(f"{path} is damaged ({str(error)[:_REASON]}); copy or download it again") from error
