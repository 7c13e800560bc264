"""Location of a pipeline's folder by name, and reading of its JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dinit.checkpoints.runs import INDEX, PIPELINE_FOLDER, is_checkpoint, is_run, pipeline_of_run
from dinit.contents import is_hub_id, unfit, wrong_content
from dinit.files import user_path
from dinit.registry import suggest

SHIPPED = Path(__file__).resolve().parent.parent / "pretrained"
PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl")
_FILES = ["*.json", "*.safetensors", "*.md", "*.txt"]  # of a hub repository; never a pickle


def shipped() -> list[str]:
    """Names of the pipelines that come with the package."""
    return sorted(index.parent.name for index in SHIPPED.glob(f"*/{INDEX}"))


def locate(name: str | Path, **hub_options: Any) -> Path:
    """Find the folder of a pipeline: a shipped one, a local folder, or a downloaded hub repository, in this order.

    The folder of a run of training gives its pipeline, or one of its newest checkpoint; see `pipeline_of_run`.

    Args:
        name: A shipped name, a path, or a hub id (owner/name).
        **hub_options: Keywords of huggingface_hub's snapshot_download, such as revision= and token=.

    Returns:
        The folder, on this machine.

    Raises:
        FileNotFoundError: no such pipeline; the error lists what was tried.
        ValueError: the path is a file.
    """
    text, path = str(name), user_path(name)
    if not text.strip():
        raise ValueError(f"a pipeline is the name of a shipped one, a folder or a hub id, got {text!r}")
    if text in shipped():
        return SHIPPED / text
    if is_run(path) or is_checkpoint(path):
        return pipeline_of_run(path)
    if path.is_dir():
        return path
    if path.is_file():
        raise ValueError(unfit(path, f"a pipeline, which is a folder with {INDEX} in it"))
    if path.name == PIPELINE_FOLDER and is_run(path.parent):
        raise FileNotFoundError(
            f"the run in {path.parent} has no {path.name} yet; give {path.parent}, which takes its "
            "newest checkpoint"
        )
    if path.suffix.lower() in PICKLES:
        raise ValueError(
            f"there is no file {name}; and a pickle checkpoint, which can run code when it is opened, is no "
            "pipeline: give the folder that Pipeline.save_pretrained, `dinit train` or `dinit convert` wrote"
        )
    hint = suggest(text, shipped()) if shipped() else ""
    tried = f"there is no pipeline {text}: no shipped pipeline {text!r}{hint}; no folder {path}"
    if not is_hub_id(text):
        raise FileNotFoundError(f"{tried}; and not a hub id, which reads owner/name")
    return _download(text, tried, hub_options)


def _download(repo: str, tried: str, options: dict[str, Any]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, allow_patterns=_FILES, **options))
    except (OSError, ValueError, RuntimeError) as error:  # errors of the hub and of the connection
        reason = str(error).strip().split("\n", 1)[0]
        raise FileNotFoundError(f"{tried}; and the hub gave no {repo!r}: {reason}") from error


def is_own_class(index: Mapping[str, Any]) -> bool:
    """Whether a folder's index is of a pipeline of dinit: the class alone, or as one of a module in the folder."""
    name = index.get("_class_name")
    return name == "Pipeline" or name == ["dinit_pipeline", "Pipeline"]


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. FileNotFoundError, or ValueError where it is not an object in JSON."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    if (reason := wrong_content(path)) is not None:
        raise ValueError(reason)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content
