"""Checkpoint layouts of openai/guided-diffusion: the U-Net, its upsamplers and its classifiers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from dinit.checkpoints.claims import Claim, flag, whole
from dinit.checkpoints.keymap import KeyMap, Rule
from dinit.checkpoints.layouts.base import LAYOUTS, Layout, Shapes, check_fixed
from dinit.checkpoints.stored import RunArguments, Stated
from dinit.models.adm import ADM, ADMNetwork
from dinit.models.adm_classifier import ADMClassifier
from dinit.models.adm_superres import ADMSuperRes


def _without_last_axis(weight: Tensor) -> Tensor:
    """A 1-d convolution of kernel 1 as a Linear."""
    return weight.squeeze(-1)


_RES = {
    r"in_layers\.0": "norm_1",
    r"in_layers\.2": "conv_1",
    r"emb_layers\.1": "condition",
    r"out_layers\.0": "norm_2",
    r"out_layers\.3": "conv_2",
    r"skip_connection": "shortcut",
}
_ATTENTION = {"qkv": "qkv", "proj_out": "proj"}
# Places of residual blocks and attentions. On the way up a resolution ends with what doubles it, at
# place 1 or, after attention, 2; the middle is block, attention, block.
_RES_AT = {
    r"input_blocks\.(\d+)\.0": r"encoder.\1.res",
    r"output_blocks\.(\d+)\.0": r"decoder.\1.res",
    r"output_blocks\.(\d+)\.[12]": r"decoder.\1.up",
    r"middle_block\.(0)": r"middle.\1.res",
    r"middle_block\.(2)": r"middle.1.res",
}
_ATTENTION_AT = {
    r"input_blocks\.(\d+)\.1": r"encoder.\1.attention",
    r"output_blocks\.(\d+)\.1": r"decoder.\1.attention",
    r"middle_block\.(1)": r"middle.0.attention",
}
_BODY: KeyMap = (
    Rule(r"time_embed\.([02])\.(weight|bias)", r"time_embedding.mlp.\1.\2"),
    Rule(r"input_blocks\.0\.0\.(weight|bias)", r"encoder.0.conv.\1"),
    Rule(r"input_blocks\.(\d+)\.0\.op\.(weight|bias)", r"encoder.\1.conv.\2"),
    Rule(r"output_blocks\.(\d+)\.[12]\.conv\.(weight|bias)", r"decoder.\1.up.conv.\2"),
    *(
        Rule(rf"{place}\.{part}\.(weight|bias)", rf"{our_place}.{our_part}.\2")
        for place, our_place in _RES_AT.items()
        for part, our_part in _RES.items()
    ),
    *(
        Rule(rf"{place}\.norm\.(weight|bias)", rf"{our_place}.norm.\2")
        for place, our_place in _ATTENTION_AT.items()
    ),
    *(
        Rule(rf"{place}\.{part}\.{kind}", rf"{our_place}.{our_part}.{kind}", change)
        for place, our_place in _ATTENTION_AT.items()
        for part, our_part in _ATTENTION.items()
        for kind, change in (("weight", _without_last_axis), ("bias", None))
    ),
)
ADM_RULES: KeyMap = (
    Rule(r"label_emb\.weight", "label_embedding.weight"),
    *_BODY,
    Rule(r"out\.0\.(weight|bias)", r"head.norm.\1"),
    Rule(r"out\.2\.(weight|bias)", r"head.conv.\1"),
)
CLASSIFIER_RULES: KeyMap = (
    *_BODY,
    Rule(r"out\.0\.(weight|bias)", r"norm.\1"),
    Rule(r"out\.2\.positional_embedding", "pool.positions", Tensor.t),
    Rule(r"out\.2\.qkv_proj\.weight", "pool.qkv.weight", _without_last_axis),
    Rule(r"out\.2\.qkv_proj\.bias", "pool.qkv.bias"),
    Rule(r"out\.2\.c_proj\.weight", "pool.proj.weight", _without_last_axis),
    Rule(r"out\.2\.c_proj\.bias", "pool.proj.bias"),
)

_RENAMED = {
    "image_size": "image_size",
    "in_channels": "in_channels",
    "model_channels": "channels",
    "num_res_blocks": "blocks_per_level",
    "channel_mult": "channel_mult",
    "attention_resolutions": "attention_factors",
    "dropout": "dropout",
    "use_scale_shift_norm": "scale_shift",
}
# Defaults of the published class where ours has others, and what acts in training or in half precision only.
_DEFAULTS = {"channel_mult": [1, 2, 4, 8], "use_scale_shift_norm": False, "resblock_updown": False}
_IGNORED = {"use_checkpoint", "use_fp16"}


def body_arguments(owner: str, reference: Mapping[str, Any]) -> dict[str, Any]:
    """Our arguments, of those that the network and the classifier share, from the published class's.

    ValueError for an argument that neither has.
    """
    check_fixed(owner, reference, {"dims": 2})
    given = {name: value for name, value in {**_DEFAULTS, **reference}.items() if name not in _IGNORED}
    given.pop("dims", None)
    in_block = given.pop("resblock_updown")
    with_conv = given.pop("conv_resample", True)
    qkv_first = given.pop("use_new_attention_order", False)
    head_dim = given.pop("num_head_channels", -1)
    found = {ours: given.pop(theirs) for theirs, ours in _RENAMED.items() if theirs in given}
    if given:
        raise ValueError(f"{owner} with {', '.join(sorted(given))} is not covered; leave them out")
    return {
        **found,
        "head_dim": None if head_dim == -1 else head_dim,
        "attention_order": "qkv-first" if qkv_first else "head-first",
        "resampling": "block" if in_block else "conv" if with_conv else "plain",
    }


def body_options(shapes: Shapes) -> dict[str, Any]:
    """Arguments that network and classifier share, inferred from the tensors; None for what cannot be inferred.

    The entries of the way down at which the resolution is halved are found by the weights of a strided convolution,
    by the gap that an average pooling leaves, and by the doublings on the way up. A classifier with residual blocks
    at those places has none of these; there the number of blocks a resolution follows from widths and attentions.
    """
    channels = shapes["time_embed.0.weight"][1]
    held = {int(match[1]) for key in shapes if (match := re.match(r"input_blocks\.(\d+)\.", key))}
    blocks, resampling = _blocks_per_level(shapes, held)
    widths = _widths(shapes)
    emb = "middle_block.0.emb_layers.1.weight"
    found = {
        "channels": channels,
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "blocks_per_level": blocks,
        "resampling": resampling,
        "scale_shift": shapes[emb][0] == 2 * shapes["middle_block.0.out_layers.3.weight"][0],
    }
    if blocks is None:
        return {**found, "channel_mult": None, "attention_factors": None}
    firsts = range(1, max(held) + 1, blocks + 1)
    mults = [widths[first] / channels for first in firsts]
    return {
        **found,
        "channel_mult": tuple(int(mult) if mult == int(mult) else mult for mult in mults),
        "attention_factors": tuple(2**level for level, first in enumerate(firsts) if _attends(shapes, first)),
    }


def _blocks_per_level(shapes: Shapes, held: set[int]) -> tuple[int | None, str | None]:
    """blocks_per_level and resampling; None where they cannot be inferred. held: entries that have weights."""
    entries = max(held) + 1
    strided = sorted(i for i in held if f"input_blocks.{i}.0.op.weight" in shapes)
    if strided:
        return strided[0] - 1, "conv"
    if len(held) < entries:
        return min(set(range(entries)) - held) - 1, "plain"
    doubled = [
        int(match[1]) for key in shapes if (match := re.match(r"output_blocks\.(\d+)\.[12]\.in_layers\.0\.w", key))
    ]
    if doubled:
        return min(doubled), "block"
    if "output_blocks.0.0.in_layers.0.weight" in shapes:
        return entries - 1, None  # one level
    fitting = [n for n in range(1, entries) if entries % (n + 1) == 0 and _fits(shapes, n, entries)]
    return (fitting[0], "block") if len(fitting) == 1 else (None, "block")


def _widths(shapes: Shapes) -> dict[int, int]:
    """Output channels of the way down's residual blocks."""
    pattern = r"input_blocks\.(\d+)\.0\.out_layers\.3\.weight"
    return {int(match[1]): shape[0] for key, shape in shapes.items() if (match := re.fullmatch(pattern, key))}


def _attends(shapes: Shapes, entry: int) -> bool:
    return f"input_blocks.{entry}.1.qkv.weight" in shapes


def _fits(shapes: Shapes, blocks: int, entries: int) -> bool:
    """Whether resolutions of so many blocks have one width and one choice of attention each, none at their ends."""
    widths = _widths(shapes)
    levels = [range(first, first + blocks) for first in range(1, entries, blocks + 1)]
    halvings = [level[0] - 1 for level in levels[1:]]
    return all(len({(widths[i], _attends(shapes, i)) for i in level}) == 1 for level in levels) and not any(
        _attends(shapes, i) or f"input_blocks.{i}.0.skip_connection.weight" in shapes for i in halvings
    )


def _untold(presets: Mapping[str, Mapping[str, Any]], found: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that cannot be inferred, from the published size with the same others; None without such a size."""
    shared = ("in_channels", "channels", "channel_mult", "blocks_per_level", "attention_factors")
    like = [preset for preset in presets.values() if all(preset[name] == found[name] for name in shared)]
    if not like:
        return {"head_dim": None, "num_heads": None, "attention_order": None}
    # What a preset leaves out is the default.
    names = ("head_dim", "num_heads", "attention_order", "image_size")
    return {name: like[0][name] for name in names if name in like[0]}


def _adm_claims(run: RunArguments) -> list[Claim]:
    """What guided-diffusion's flags state in another form than dinit's arguments have."""
    found = []
    for flag_name, argument in (("num_head_channels", "head_dim"), ("num_heads_upsample", "decoder_heads")):
        stated = run.get(flag_name)
        if stated and stated.value is not None:
            found.append(Claim(stated, argument, None if stated.value == -1 else whole(stated)))
    order, mults = run.get("use_new_attention_order"), run.get("channel_mult")
    first = flag(order)
    if order and first is not None:
        found.append(Claim(order, "attention_order", "qkv-first" if first else "head-first"))
    if mults and mults.value is not None:
        found.append(Claim(mults, "channel_mult", _numbers(mults)))
    classes = run.get("class_cond")
    conditional = flag(classes)
    if classes and conditional is not None:
        found.append(Claim(classes, "null_class", False) if conditional else Claim(classes, "num_classes", 0))
    updown = run.get("resblock_updown")
    if updown and flag(updown):
        found.append(Claim(updown, "resampling", "block"))
    resolutions, side = run.get("attention_resolutions"), run.get("image_size")
    if resolutions and side and resolutions.value is not None:
        factors = tuple(sorted(whole(side) // size for size in _numbers(resolutions) if size))
        found.append(Claim(resolutions, "attention_factors", factors))
    return found


def _numbers(stated: Stated) -> tuple[Any, ...]:
    """Numbers of a list, or of text such as "32,16,8". ValueError names the argument."""
    parts = stated.value.split(",") if isinstance(stated.value, str) else stated.value
    try:
        numbers = [float(part) for part in (parts if isinstance(parts, (list, tuple)) else [parts])]
        return tuple(int(number) if number == int(number) else number for number in numbers)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{stated}, which must be numbers with commas between them: correct it") from None


class _UNetLayout(Layout):
    """What the network and its super-resolution form have in common."""

    network: ClassVar[type[ADMNetwork]]
    label_table: ClassVar[str | None] = r"label_emb\.weight"
    null_row: ClassVar[bool] = False
    lone_null_row: ClassVar[bool] = False
    image_size_in_tensors: ClassVar[bool] = False
    clips: ClassVar[bool] = True
    stated_names: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "channels": ("num_channels", "model_channels"),
        "blocks_per_level": ("num_res_blocks",),
        "num_heads": ("num_heads",),
        "scale_shift": ("use_scale_shift_norm",),
        "learn_sigma": ("learn_sigma",),
    }
    rules: ClassVar[KeyMap] = ADM_RULES
    signature: ClassVar[tuple[str, ...]] = (
        r"input_blocks\.0\.0\.weight",
        r"middle_block\.1\.qkv\.weight",
        r"middle_block\.0\.emb_layers\.1\.weight",
        r"time_embed\.0\.weight",
        r"output_blocks\.0\.0\.in_layers\.0\.weight",
        r"out\.2\.weight",
    )

    def options(self, shapes: Shapes) -> dict[str, Any]:
        found = body_options(shapes)
        found["in_channels"] //= self.network.stem_inputs
        classes = shapes["label_emb.weight"][0] if "label_emb.weight" in shapes else 0
        return {
            **found,
            **_untold(self.network.presets, found),
            "num_classes": classes,
            "null_class": not classes,
            "learn_sigma": shapes["out.2.weight"][0] == 2 * found["in_channels"],
        }

    def claims(self, run: RunArguments) -> list[Claim]:
        return [*super().claims(run), *_adm_claims(run)]

    def arguments(self, reference: Mapping[str, Any]) -> dict[str, Any]:
        name, given = self.reference[0], dict(reference)
        decoder_heads = given.pop("num_heads_upsample", -1)
        classes = given.pop("num_classes", None) or 0
        out_channels, in_channels = given.pop("out_channels"), given["in_channels"]
        if out_channels not in (in_channels, 2 * in_channels):
            raise ValueError(
                f"{name} with out_channels = {out_channels} is not covered; it must be in_channels = "
                f"{in_channels}, or twice that with a learned variance"
            )
        return {
            "num_heads": given.pop("num_heads", 1),
            "decoder_heads": None if decoder_heads == -1 else decoder_heads,
            **body_arguments(name, given),
            "num_classes": classes,
            "null_class": not classes,
            "learn_sigma": out_channels == 2 * in_channels,
        }


@LAYOUTS.register("adm")
class ADMLayout(_UNetLayout):
    """openai/guided-diffusion: 64, 128, 256 and 512 pixels, unconditional and LSUN models."""

    backbone: ClassVar[str] = "adm"
    network: ClassVar[type[ADMNetwork]] = ADM
    reference: ClassVar[tuple[str, ...]] = ("UNetModel",)

    def recognises(self, shapes: Shapes) -> bool:
        # An upsampler has the same names; its input is two RGB images, joined along the channels.
        return super().recognises(shapes) and shapes["input_blocks.0.0.weight"][1] != 6

    def trained_on(self, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        process, parameterization = super().trained_on(options)
        small = ADM.presets["64"]
        if all(options.get(name) == small[name] for name in ("channels", "channel_mult", "blocks_per_level")):
            process["schedule"] = "cosine"
        return process, parameterization


@LAYOUTS.register("adm-superres")
class ADMSuperResLayout(_UNetLayout):
    """openai/guided-diffusion: the upsamplers, whose condition is a small image as well as the label."""

    backbone: ClassVar[str] = "adm"
    network: ClassVar[type[ADMNetwork]] = ADMSuperRes
    reference: ClassVar[tuple[str, ...]] = ("SuperResModel",)

    @property
    def model(self) -> type[ADMSuperRes]:
        return ADMSuperRes

    def recognises(self, shapes: Shapes) -> bool:
        return super().recognises(shapes) and shapes["input_blocks.0.0.weight"][1] == 6


@LAYOUTS.register("adm-classifier")
class ADMClassifierLayout(Layout):
    """openai/guided-diffusion: the classifiers of noisy images."""

    backbone: ClassVar[str] = "adm"
    reference: ClassVar[tuple[str, ...]] = ("EncoderUNetModel",)
    rules: ClassVar[KeyMap] = CLASSIFIER_RULES
    signature: ClassVar[tuple[str, ...]] = (r"input_blocks\.0\.0\.weight", r"out\.2\.positional_embedding")

    @property
    def model(self) -> type[ADMClassifier]:
        return ADMClassifier

    def options(self, shapes: Shapes) -> dict[str, Any]:
        found = body_options(shapes)
        untold = _untold(ADMClassifier.presets, found)
        untold.pop("num_heads", None)  # it has head_dim only
        if found["channel_mult"] is not None:
            side = math.isqrt(shapes["out.2.positional_embedding"][1] - 1)
            untold["image_size"] = side * 2 ** (len(found["channel_mult"]) - 1)
        return {**found, **untold, "num_classes": shapes["out.2.c_proj.weight"][0]}

    def arguments(self, reference: Mapping[str, Any]) -> dict[str, Any]:
        given = dict(reference)
        check_fixed("EncoderUNetModel", {"pool": "adaptive", **given}, {"pool": "attention"})
        for unused in ("pool", "num_heads", "num_heads_upsample"):  # the pool needs head_dim, which sets all heads
            given.pop(unused, None)
        classes = given.pop("out_channels")
        return {**body_arguments("EncoderUNetModel", given), "num_classes": classes}
