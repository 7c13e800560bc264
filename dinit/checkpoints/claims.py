"""What a run's arguments state about its network and its process, as arguments of dinit's classes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dinit.checkpoints.stored import RunArguments, Stated
from dinit.models.base import BACKBONES
from dinit.registry import UnknownName, suggest

# What the name of a published size fixes; flags and channels are arguments of their own.
_OF_SIZES = ("hidden_size", "embed_dim", "depth", "num_heads", "patch_size")
# Arguments that leave no trace in the tensors: what is stated counts, not the published size of the same shape.
UNSEEN = ("num_heads", "head_dim", "decoder_heads", "attention_order", "skip_stride")
MODEL_NAMES = ("model", "model_type", "model_name", "arch")
_CLASSES = ("num_classes", "n_classes", "class_num", "nb_classes")
_LABEL_DROPOUT = (
    "class_dropout_prob",
    "class_drop_prob",
    "label_dropout",
    "label_dropout_prob",
    "label_drop_prob",
    "cond_drop_prob",
    "uncond_prob",
    "p_uncond",
    "cfg_prob",
)
_PIXELS = ("image_size", "img_size", "resolution")
_LATENT = ("latent_size", "input_size")
# Pixels for each position of a latent, by the channels of the autoencoders that published programs have.
_FACTORS = {1: 1, 3: 1, 4: 8, 32: 16}
_IMAGENET = 1000
_ROUND = (10, 100, 200, _IMAGENET)  # classes of well-known data sets
Pair = tuple[dict[str, Any], dict[str, Any]]


@dataclass(frozen=True)
class Claim:
    """An argument of the backbone that a run's arguments state.

    Attributes:
        stated: The run's argument.
        argument: Of the backbone.
        value: Of that argument.
    """

    stated: Stated
    argument: str
    value: Any


def size_claims(run: RunArguments, backbone: str) -> list[Claim]:
    """The arguments of the published size that `model` names, such as "DiT-XL/2"; none for another name."""
    stated = run.get(*MODEL_NAMES, groups=("model",))
    if stated is None or not isinstance(stated.value, str):
        return []
    try:
        name, preset = BACKBONES.resolve(stated.value)
    except UnknownName:
        return []
    if name != backbone:
        return []
    return [Claim(stated, argument, value) for argument, value in preset.items() if argument in _OF_SIZES]


def named_claims(run: RunArguments, names: Mapping[str, Iterable[str]]) -> list[Claim]:
    """The arguments that are stored under names of their own.

    Args:
        run: The run's arguments.
        names: Argument of the backbone to its names in published programs.
    """
    found = {argument: run.get(*others) for argument, others in names.items()}
    return [Claim(stated, argument, _tuple(stated.value)) for argument, stated in found.items() if stated]


def other_family(run: RunArguments, backbone: str) -> str | None:
    """A note where `model` names a size of another backbone than the one that the weights are read as."""
    stated = run.get(*MODEL_NAMES, groups=("model",))
    if stated is None or not isinstance(stated.value, str):
        return None
    try:
        name, _ = BACKBONES.resolve(stated.value)
    except UnknownName:
        return None
    return None if name == backbone else f"{stated} is of backbone {name!r}, and it was read as {backbone!r}"


def disagreement(claim: Claim, found: Any) -> str | None:
    """What is wrong, in words, where the tensors have another value than is stated; None where nothing is."""
    if claim.argument in UNSEEN or found is None or _tuple(found) == claim.value:
        return None
    means = "" if _tuple(claim.stated.value) == claim.value else f", which has {claim.argument} = {claim.value}"
    return (
        f"{claim.stated}{means}, but its tensors have {claim.argument} = {found}: --option "
        f"{claim.argument}={json.dumps(found)} if they are right"
    )


def image_side(run: RunArguments, in_channels: int, known: int | None) -> tuple[int | None, str | None]:
    """Height of the network's input by the run's arguments, and what is wrong where the tensors have another.

    Args:
        run: The run's arguments.
        in_channels: Of the network; latents of 4 channels are 8 times smaller than the image, of 32 16 times.
        known: What the tensors have; None where they have no table of positions.
    """
    latent, pixels = run.get(*_LATENT), run.get(*_PIXELS, groups=("data", "dataset"))
    stated = latent or pixels
    if stated is None:
        return None, None
    side = whole(stated)
    ratio = run.get("downsample_ratio", groups=("vae", "data"))
    factor = 1 if latent else whole(ratio) if ratio else _FACTORS.get(in_channels)
    if factor is None:
        return None, None
    if known is None:
        return side // factor, None
    if known in (side, side // factor):
        return known, None
    means = "" if factor == 1 else f", {side // factor} for its latents"
    return None, (
        f"{stated}{means}, but its tensors have a table of positions for {known}: --option image_size={known} if "
        "they are right"
    )


@dataclass(frozen=True)
class Labels:
    """The classes that a label table has, and how that was decided.

    Attributes:
        num_classes: Classes.
        null_class: Whether the last row is the null label's.
        notes: What was assumed, in words.
        doubtful: Whether the assumption is no more than the program's default.
    """

    num_classes: int
    null_class: bool
    notes: tuple[str, ...] = ()
    doubtful: bool = False


def read_labels(
    rows: int,
    run: RunArguments,
    options: Mapping[str, Any],
    null_row: bool,
    certain: bool = False,
    lone_null: bool = True,
) -> Labels:
    """The classes of a label table, by the given options, the run's arguments, or its number of rows.

    Args:
        rows: Of the table.
        run: The run's arguments.
        options: Given by the caller: num_classes, null_class.
        null_row: Whether the published program adds a row for the null label.
        certain: Whether it always does.
        lone_null: Whether dinit's class has a table without classes, for the null label alone.

    Returns:
        Classes and null label.

    Raises:
        ValueError: these contradict each other, or nothing decides.
    """
    if "num_classes" in options or "null_class" in options:
        return _given_labels(rows, options)
    if rows == 1:
        return Labels(0, True) if lone_null else Labels(1, False)
    if certain:
        return Labels(rows - 1, True)
    classes = run.get(*_CLASSES, groups=("data", "dataset"))
    dropout = run.get(*_LABEL_DROPOUT, groups=("data", "train", "training"))
    either = (
        f"--option null_class=true ({rows - 1} classes and the null label) or --option null_class=false ({rows} "
        "classes)"
    )
    trained = None if dropout is None or dropout.value is None else _positive(dropout)
    if classes is not None and classes.value is not None:
        count = whole(classes, least=0)
        if rows - count not in (0, 1):
            raise ValueError(f"{classes}, but the label table has {rows} rows; give {either}")
        if trained is not None and trained != (rows > count):
            raise ValueError(f"{classes} and {dropout}, but the label table has {rows} rows; give {either}")
        return Labels(count, rows > count)
    if trained is not None:
        return Labels(rows - trained, trained)
    if rows - 1 == _IMAGENET:
        return Labels(rows - 1, True)
    if rows == _IMAGENET:
        return Labels(rows, False, (f"its label table has {rows} rows: {rows} classes, and no null label",))
    if null_row and rows in _ROUND:
        raise ValueError(
            f"its label table has {rows} rows, and whether the last is the null label's cannot be inferred; "
            f"give {either}"
        )
    if not null_row:
        note = (
            f"its label table has {rows} rows, read as {rows} classes, as its program trains them; --option "
            f"null_class=true is for {rows - 1} classes and the null label"
        )
        return Labels(rows, False, (note,), doubtful=True) if rows - 1 in _ROUND else Labels(rows, False)
    note = (
        f"its label table has {rows} rows, read as {rows - 1} classes and the null label, as its program trains "
        f"them; --option null_class=false is for {rows} classes without one"
    )
    return Labels(rows - 1, True, (note,), doubtful=rows - 1 not in _ROUND)


def _given_labels(rows: int, options: Mapping[str, Any]) -> Labels:
    null = options.get("null_class")
    count = options.get("num_classes")
    if null is not None and not isinstance(null, bool):
        raise ValueError(f"null_class is true or false, got {null!r}")
    if count is None:
        return Labels(rows - bool(null), bool(null))
    if isinstance(count, bool) or not isinstance(count, int):
        raise ValueError(f"num_classes is a whole number, got {count!r}")
    fitting = rows - count in (0, 1) if null is None else rows - count == null
    if not fitting:
        raise ValueError(
            f"num_classes = {count}{'' if null is None else f' and null_class = {null}'} was given, but the label "
            f"table has {rows} rows: {rows - 1} classes and the null label, or {rows} classes (null_class = False)"
        )
    return Labels(count, rows > count)


def whole(stated: Stated, least: int = 1) -> int:
    """The value as a whole number of at least `least`. ValueError names the argument."""
    if isinstance(stated.value, bool) or not isinstance(stated.value, int) or stated.value < least:
        raise ValueError(f"{stated}, which must be a whole number of at least {least}: correct it")
    return stated.value


def number(stated: Stated) -> float:
    """The value as a positive number. ValueError names the argument."""
    value = stated.value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise ValueError(f"{stated}, which must be a positive number: correct it")
    return value


def flag(stated: Stated | None) -> bool | None:
    """The value as a truth value; None where nothing is stored. ValueError names the argument."""
    if stated is None or stated.value is None:
        return None
    if stated.value not in (True, False):
        raise ValueError(f"{stated}, which must be true or false: correct it")
    return bool(stated.value)


def word(stated: Stated, known: Mapping[str, Any], instead: str) -> Any:
    """What a word stands for. ValueError names the argument, what is accepted, and what to give instead."""
    if isinstance(stated.value, str) and stated.value.lower() in known:
        return known[stated.value.lower()]
    raise ValueError(
        f"{stated}, unknown{suggest(str(stated.value), list(known))}; {instead} sets what it was trained on"
    )


def _positive(stated: Stated) -> bool:
    if isinstance(stated.value, bool) or not isinstance(stated.value, (int, float)) or not 0 <= stated.value <= 1:
        raise ValueError(f"{stated}, which must be a fraction in [0, 1]: correct it")
    return stated.value > 0


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


# --- what it was trained on ---

_GIVE_PROCESS, _GIVE_PARAMETERIZATION = "--process", "--parameterization"
_PATHS = {"linear": {"name": "flow"}, "gvp": {"name": "gvp"}, "vp": {"name": "vp"}}
_REVERSED = {"velocity": "reversed-velocity", "noise": "reversed-epsilon", "score": "reversed-score"}
_SCHEDULES = {
    "linear": "linear",
    "scaled_linear": "scaled-linear",
    "cosine": "cosine",
    "squaredcos_cap_v2": "cosine",
}
_PREDICTIONS = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "noise": "epsilon",
    "sample": "x0",
    "x0": "x0",
    "xstart": "x0",
    "x_start": "x0",
    "v_prediction": "v",
    "v": "v",
}


def transport(run: RunArguments, published: Pair) -> Pair:
    """Process and parameterization of SiT's training arguments, whose time runs from noise to data.

    Args:
        run: The run's arguments: path_type and prediction.
        published: What counts where they are not stored.

    Raises:
        ValueError: an unknown path or prediction.
    """
    process, parameterization = published
    if path := run.get("path_type", groups=("transport",)):
        process = dict(word(path, _PATHS, _GIVE_PROCESS))
    if prediction := run.get("prediction", groups=("transport",)):
        parameterization = {"name": word(prediction, _REVERSED, _GIVE_PARAMETERIZATION)}
    return process, parameterization


def chain(run: RunArguments, published: Pair) -> Pair:
    """Process and parameterization of the arguments of guided-diffusion and its descendants, on a chain of betas.

    Where a run has SiT's path_type, its network was trained as SiT is, whatever its class.

    Args:
        run: The run's arguments: noise_schedule, diffusion_steps, predict_xstart and their like.
        published: What counts where they are not stored.

    Raises:
        ValueError: an unknown schedule or prediction, or rescaled timesteps of another chain than of 1000 steps.
    """
    if run.get("path_type", groups=("transport",)):
        return transport(run, ({"name": "flow"}, {"name": "reversed-velocity"}))
    groups = ("diffusion", "model_and_diffusion")
    process, parameterization = dict(published[0]), dict(published[1])
    if schedule := run.get("noise_schedule", "beta_schedule", groups=groups):
        process["schedule"] = word(schedule, _SCHEDULES, _GIVE_PROCESS)
    steps = run.get("diffusion_steps", "num_train_timesteps", groups=groups)
    if steps is not None and whole(steps) != 1000:
        process["num_steps"] = whole(steps)
        if flag(run.get("rescale_timesteps", groups=groups)):
            raise ValueError(
                f"{steps} and rescale_timesteps = True: dinit has no time input that is scaled to 1000; give "
                f"{_GIVE_PROCESS} and {_GIVE_PARAMETERIZATION} to convert it all the same"
            )
    if prediction := run.get("prediction_type", "parameterization", "predict_type", "prediction", groups=groups):
        parameterization = {"name": word(prediction, _PREDICTIONS, _GIVE_PARAMETERIZATION)}
    for name, meaning in (("predict_xstart", "x0"), ("predict_v", "v")):
        if flag(run.get(name, groups=groups)):
            parameterization = {"name": meaning}
    return process, parameterization
