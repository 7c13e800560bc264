"""Checks of a command line before anything heavy is imported: names, words, files and folders."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dinit.cli.names import registry_of
from dinit.contents import unfit
from dinit.files import user_path
from dinit.registry import UnknownName, suggest

DTYPES = ("float32", "bfloat16", "float16")
# Kinds of devices in torch's own list; which of them this machine has, torch reports later.
_DEVICES = re.compile(
    r"auto|(cpu|cuda|mps|xpu|hpu|mtia|xla|maia|ipu|vulkan|meta|lazy|mkldnn|opengl|opencl|ideep|hip|ve|fpga|"
    r"privateuseone)(:\d+)?"
)
_OF_A_CALL = ("samplers", "grids", "guidance")
_USUAL_DEVICES = ["auto", "cpu", "cuda", "cuda:1", "mps"]


def check_entry(kind: str, text: str | Mapping[str, Any] | None, more: Sequence[str] = ()) -> None:
    """Whether a registry has the name and the options of a text or a mapping; None is not given.

    Args:
        kind: of `dinit.cli.names.PLACES`.
        text: NAME[:KEY=VALUE,…], or a mapping with `name`.
        more: further 'KEY=VALUE'.

    Raises:
        ValueError: an unknown name or option, a value of another type, or text of another form.
    """
    if text is None:
        return
    try:
        registry_of(kind).check(text, more)
    except UnknownName:
        for other in _OF_A_CALL if kind in _OF_A_CALL else ():
            registry_of(other).names()  # so that the message names another kind that has it
        registry_of(kind).check(text, more)


def check_images(what: str) -> None:
    """ValueError for what can be neither real images in files nor a data set; imports nothing heavy."""
    path = user_path(what)
    empty = path.is_dir() and not any(path.iterdir())
    if empty or (path.is_file() and path.suffix.lower() not in (".npz", ".npy")):
        raise ValueError(unfit(path, "real images: a folder of pictures, a .npz, or a data set"))
    if not path.exists():
        check_entry("datasets", what)


def check_word(what: str, word: str | None, known: Sequence[str]) -> None:
    """ValueError where a word is none of those known; `what` is its noun in the message."""
    if word is not None and word not in known:
        raise ValueError(f"unknown {what} {word!r}{suggest(word, list(known))}")


def check_device(name: str) -> None:
    """ValueError for a word that no version of torch has for a device."""
    if not _DEVICES.fullmatch(name):
        raise ValueError(f"device {name!r} cannot be used{suggest(name, _USUAL_DEVICES)}")


def check_there(path: Path, noun: str, advice: str = "") -> None:
    """FileNotFoundError where there is nothing at a path; noun: what should be there; advice: how to get it."""
    if not user_path(path).exists():
        raise FileNotFoundError(f"there is no {noun} {path}{advice and f'; {advice}'}")


def check_folder(path: Path, noun: str) -> None:
    """As `check_there`, for a folder. NotADirectoryError where it is a file."""
    check_there(path, noun)
    if not user_path(path).is_dir():
        raise NotADirectoryError(unfit(user_path(path), f"the folder of a {noun}"))


def is_classifier(name: str) -> bool:
    """Whether a text can be the folder of a classifier of `dinit classifier`, or its name in the usual folder."""
    return "/" in name or user_path(name).is_dir() or Path("classifiers", name).is_dir()


def check_autoencoder(name: str) -> None:
    """FileNotFoundError for a name that is neither a folder nor a Hub id."""
    path = user_path(name)
    if path.is_file():
        raise ValueError(unfit(path, "an AutoencoderKL: its folder, a pipeline's folder, or a Hub id"))
    if not path.is_dir() and not is_hub_id(name):
        raise FileNotFoundError(
            f"there is no autoencoder {name}: give a folder, or a Hub id, which reads owner/name"
        )


def check_pipeline(name: str) -> None:
    """Whether a pipeline can be there: what `locate` reports of a name that is no folder and no Hub id."""
    from dinit.checkpoints.locating import INDEX, locate, shipped

    path = user_path(name)
    if not name or (not path.is_dir() and not is_hub_id(name)):
        locate(name)
    elif path.is_dir() and name not in shipped() and not _has_pipeline(path):
        raise FileNotFoundError(unfit(path, f"a pipeline, and {path / INDEX} is missing"))


def check_default_sampler(name: str, options: Sequence[str]) -> None:
    """Whether the default sampler of a pipeline on this machine has options.

    Args:
        name: of the pipeline.
        options: 'KEY=VALUE'.

    Raises:
        ValueError: an unknown option, a value of another type, or text of another form.
    """
    if is_hub_id(name):
        return
    from dinit.checkpoints.locating import INDEX

    try:
        index = json.loads((_located(name) / INDEX).read_text(encoding="utf-8"))
        default = index["defaults"]["sampler"]
        default = default if isinstance(default, str) else default["name"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # opening it reports what is wrong
    if isinstance(default, str):
        check_entry("samplers", default, options)


def _has_pipeline(folder: Path) -> bool:
    """Whether a folder is of a pipeline, or of a run, which opening it looks into."""
    from dinit.checkpoints.runs import INDEX, is_checkpoint, is_run

    return (folder / INDEX).is_file() or is_run(folder) or is_checkpoint(folder)


def _located(name: str) -> Path:
    """The folder of a pipeline on this machine; the step of an unfinished run is named where it is opened."""
    from dinit.checkpoints.locating import locate

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return locate(name)


def is_hub_id(name: str) -> bool:
    """Whether a name can only be one of the Hub, owner/name."""
    return name.count("/") == 1 and name[:1] not in "./~" and name[-1] != "/" and not user_path(name).exists()


def classes_of(name: str) -> tuple[int, list[str] | None] | None:
    """Number and names of the classes of a pipeline in a folder of this machine; None where they are not known."""
    if is_hub_id(name):
        return None
    from dinit.checkpoints.locating import INDEX, is_own_class

    folder = _located(name)
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        config = json.loads((folder / "backbone" / "config.json").read_text(encoding="utf-8"))
        if not is_own_class(index):
            return None
        names = index.get("class_names")
        return int(config["num_classes"]), names if names is None else [str(one) for one in names]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # opening it reports what is wrong


_SMALL = 256 << 20  # bytes of weights; the import of diffusers is a small part of the work of larger ones


def is_small_in_pixels(name: str) -> bool:
    """Whether a pipeline is a small one of dinit, in a folder of this machine, and works on pixels."""
    if is_hub_id(name):
        return False
    from dinit.checkpoints.locating import INDEX, is_own_class

    folder = _located(name)
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        in_pixels = index.get("vae_reference") is None and not (folder / "vae").exists()
        weights = sum(file.stat().st_size for file in (folder / "backbone").glob("*.safetensors"))
        return is_own_class(index) and in_pixels and weights <= _SMALL
    except (OSError, ValueError, AttributeError):
        return False  # opening it reports what is wrong
