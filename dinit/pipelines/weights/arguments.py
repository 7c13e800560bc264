"""What a checkpoint is of: its layout, and the backbone's arguments by its tensors and what is stored with them."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from dinit.checkpoints.advice import also_in_python
from dinit.checkpoints.claims import MODEL_NAMES, UNSEEN, disagreement, image_side, other_family, read_labels, word
from dinit.checkpoints.layouts import Layout, candidates
from dinit.checkpoints.layouts.score_sde import SDE_LAYOUTS, SDES
from dinit.checkpoints.reading import Checkpoint
from dinit.checkpoints.recognition import Recognised, recognise_state
from dinit.checkpoints.stored import RunArguments
from dinit.registry import suggest

_NO_TENSOR = (*UNSEEN, "mlp_norm_eps", "freq_shift")  # arguments that no tensor of a folder of diffusers shows


def recognise_checkpoint(checkpoint: Checkpoint, run: RunArguments, layout: str | None) -> Recognised:
    """The layout: the given one, that of the SDE that a run's arguments name, or by tensors, values and names."""
    sde = run.get("sde", groups=("training",))
    if layout is None and sde is not None:
        found = candidates({key: tuple(tensor.shape) for key, tensor in checkpoint.state.items()})
        named = SDE_LAYOUTS[word(sde, SDES, "--layout")[0]]
        if len(found) > 1 and named in found:
            return Recognised(named, f"its arguments have {sde}")
    model = run.get(*MODEL_NAMES, groups=("model",))
    args = {} if model is None else {"model": model.value}
    return recognise_state(checkpoint.state, checkpoint.path, args, layout)


def backbone_arguments(
    recognised: Recognised, checkpoint: Checkpoint, run: RunArguments, options: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The backbone's arguments: from the tensors, what is stored with them, and the options; and assumptions.

    ValueError where they disagree, or do not suffice.
    """
    layout = recognised.layout
    shapes = {key: tuple(tensor.shape) for key, tensor in checkpoint.state.items()}
    try:
        found = {**layout.options(shapes), **layout.values(checkpoint.state)}
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise ValueError(
            f"{checkpoint.path} is of layout {recognised.name} ({recognised.evidence}), but the sizes cannot be "
            f"inferred from it: {_reason(error)}; a part of it is lost, or it is of another family"
        ) from error
    accepted = [name for name in inspect.signature(layout.model.__init__).parameters if name != "self"]
    for name in options:
        if name not in accepted:
            raise ValueError(f"{called(layout)} has no argument {name!r}{suggest(name, accepted)}")
    stored = _configured(layout, checkpoint, found)
    try:
        stated, notes = _stated(layout, checkpoint, run, found, options)
    except ValueError as error:
        raise ValueError(f"{checkpoint.path}, read as {recognised.name}: {error}") from error
    given = {**stated, **stored, **options}
    unknown = [name for name, value in found.items() if value is None and name not in given]
    if unknown:
        commands = " ".join(f"--option {name}=..." for name in unknown)
        raise ValueError(
            f"{checkpoint.path}: {', '.join(unknown)} cannot be inferred from the tensors, and no published "
            f"{layout.model.__name__} has these sizes; give what it was trained with (null for none): {commands}"
        )
    found |= given
    if "image_size" in accepted and "image_size" not in found:
        notes.append(
            "image_size is assumed to be the default, it cannot be inferred: --option image_size=N sets it"
        )
    return found, notes


def _configured(layout: Layout, checkpoint: Checkpoint, found: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by the folder's config.json. ValueError where the tensors have others."""
    if not checkpoint.config:
        return {}
    stored = layout.arguments(checkpoint.config)
    for name, value in stored.items():
        if name not in _NO_TENSOR and found.get(name) not in (None, value):
            raise ValueError(
                f"config.json of {checkpoint.path} gives {name} = {value}, but its tensors have {name} = "
                f"{found[name]}: correct the file, or download the folder again"
            )
    return stored


def _stated(
    layout: Layout,
    checkpoint: Checkpoint,
    run: RunArguments,
    found: Mapping[str, Any],
    options: Mapping[str, Any],
) -> tuple[dict[str, Any], list[str]]:
    """Arguments that the run's own arguments state, and notes. ValueError where the tensors have others."""
    claims = [claim for claim in layout.claims(run) if claim.argument in found or claim.argument in UNSEEN]
    # An option with another value than the published size has: the network is not of that size.
    named = {claim.stated.key for claim in claims if options.get(claim.argument, claim.value) != claim.value}
    claims = [claim for claim in claims if claim.stated.key not in named and claim.argument not in options]
    for claim in claims:
        if wrong := disagreement(claim, found.get(claim.argument)):
            raise ValueError(wrong)
    unseen = [claim for claim in claims if claim.argument in UNSEEN or found[claim.argument] is None]
    stated = {claim.argument: claim.value for claim in unseen}
    other = other_family(run, layout.backbone)
    notes: list[str] = [] if other is None else [other]
    if "image_size" not in options and "in_channels" in found:
        known = found.get("image_size") if layout.image_size_in_tensors else None
        side, wrong = image_side(run, found["in_channels"], known)
        if wrong:
            raise ValueError(wrong)
        stated |= {} if side is None else {"image_size": side}
    rows = layout.label_rows({key: tuple(tensor.shape) for key, tensor in checkpoint.state.items()})
    if rows is not None:
        labels = read_labels(
            rows, run, options, layout.null_row, layout.always_null_row, lone_null=layout.lone_null_row
        )
        notes += labels.notes
        if labels.doubtful:
            warnings.warn(f"{checkpoint.path}: {also_in_python(labels.notes[0])}", stacklevel=2)
        stated |= {"num_classes": labels.num_classes, "null_class": labels.null_class}
    return stated, notes


def called(layout: Layout) -> str:
    """What messages call the network: by its name as a backbone, which a classifier or an upsampler has not."""
    return f"backbone {layout.backbone!r}" if layout.denoises else layout.model.__name__


def _reason(error: Exception) -> str:
    return f"tensor {error} is missing" if isinstance(error, KeyError) else str(error)
