"""Checkpoint layouts of yang-song/score_sde_pytorch: NCSN++, DDPM++ and DDPM, with modules numbered in a flat list.

A positional NCSN++ has the same tensors whether it was trained on VP, sub-VP or discrete VE. There is one layout
for each, so that `recognise` calls such a state ambiguous and names them: pass layout="ncsnpp-vp" (DDPM++ too),
"ncsnpp-sub-vp" or "ncsnpp-ve-discrete".

Number N of `all_modules.N` depends on the options, so that no fixed table of names can place it. `prepare` does: it
reads the options off the tensors, lists our modules in the order in which they are numbered, and renames each
`all_modules.N` to the module it is. The rules, which are fixed, then rename what is inside a module.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from dinit.checkpoints.claims import Pair, flag, number, whole, word
from dinit.checkpoints.keymap import KeyMap, Rule
from dinit.checkpoints.layouts.base import LAYOUTS, Layout, Shapes, check_fixed, published
from dinit.checkpoints.layouts.score_sde_order import Structure
from dinit.checkpoints.stored import RunArguments
from dinit.checkpoints.tables import decimal, geometric, precision
from dinit.diffusion import Process


def _sin_cos(weight: Tensor) -> Tensor:
    """Their sinusoid is [sin, cos], ours [cos, sin]: the two halves of the columns are swapped."""
    return weight.roll(weight.shape[1] // 2, dims=1)


def _kernel(weight: Tensor) -> Tensor:
    """A matrix stored (in, out) as the weight of a 1x1 convolution."""
    return weight.T[:, :, None, None].contiguous()


def _transposed(weight: Tensor) -> Tensor:
    return weight.T.contiguous()


_BLOCK = {
    "GroupNorm_0": "norm_1",
    "Conv_0": "conv_1",
    "Dense_0": "condition",
    "GroupNorm_1": "norm_2",
    "Conv_1": "conv_2",
    "Conv_2": "shortcut",
}
_BLOCKS = r"((?:encoder|middle|decoder|downs|ups)\..+)"
NCSNPP: KeyMap = (
    Rule(r"sigmas", None),
    Rule(r"time_embedding\.W", "time_embedding.frequencies"),
    Rule(r"time_embedding\.sinusoid\.weight", "time_embedding.mlp.0.weight", _sin_cos),
    Rule(r"time_embedding\.sinusoid\.bias", "time_embedding.mlp.0.bias"),
    Rule(r"(time_embedding\.mlp\.[02]|stem|(?:coarse_heads\.\d+|head)\.(?:norm|conv))\.(weight|bias)", r"\1.\2"),
    Rule(r"(.+)\.attention\.GroupNorm_0\.(.+)", r"\1.attention.norm.\2"),
    Rule(r"(.+)\.attention\.qkv\.W", r"\1.attention.attention.qkv.weight"),
    Rule(r"(.+)\.attention\.qkv\.b", r"\1.attention.attention.qkv.bias"),
    Rule(r"(.+)\.attention\.NIN_3\.W", r"\1.attention.attention.proj.weight", _transposed),
    Rule(r"(.+)\.attention\.NIN_3\.b", r"\1.attention.attention.proj.bias"),
    Rule(r"(pyramid\..+)\.Conv(?:2d)?_0\.(.+)", r"\1.conv.\2"),
    *(Rule(rf"{_BLOCKS}\.{part}\.(.+)", rf"\1.{ours}.\2") for part, ours in _BLOCK.items()),
)
DDPM: KeyMap = (
    Rule(r"((?:downs|ups)\.\d+)\.Conv_0\.(.+)", r"\1.conv.\2"),
    Rule(rf"{_BLOCKS}\.NIN_0\.W", r"\1.shortcut.weight", _kernel),
    Rule(rf"{_BLOCKS}\.NIN_0\.b", r"\1.shortcut.bias"),
    *NCSNPP,
)

# Options of the published configurations that none of them varies and ours do not have.
_FIXED = {
    "normalization": "GroupNorm",
    "nonlinearity": "swish",
    "resamp_with_conv": True,
    "conditional": True,
}
_FIXED_NCSNPP = {
    "fir_kernel": [1, 3, 3, 1],
    "skip_rescale": True,
    "resblock_type": "biggan",
    "progressive_combine": "sum",
}
_PYRAMIDS = {"none": "none", "input_skip": "skip", "output_skip": "skip", "residual": "residual"}

_TELL_FIR = ("channels", "channel_mult", "blocks_per_level", "input_pyramid", "output_pyramid", "embedding")


# training.sde -> process where training is continuous, and where it is not.
SDES = {
    "vpsde": ("vp", "vp-discrete"),
    "subvpsde": ("sub-vp", "sub-vp"),
    "vesde": ("ve", "ve-discrete"),
}
# Process -> layout of a positional NCSN++ that was trained on it.
SDE_LAYOUTS = {"vp": "ncsnpp-vp", "sub-vp": "ncsnpp-sub-vp", "ve": "ncsnpp-ve-discrete"}


def _sde(kind: str, values: Mapping[str, Any], published: Mapping[str, Any]) -> dict[str, Any]:
    """The process of that kind with the ends that are stored; those of the published one where they are not."""
    found = dict(published) if published["name"] == kind else {"name": kind}
    if kind == "vp-discrete":
        steps = values.get("num_scales", 1000)
        ends = {"beta_start": values.get("beta_min", 0.1) / steps, "beta_end": values.get("beta_max", 20.0) / steps}
        usual = steps == 1000 and ends == {"beta_start": 1e-4, "beta_end": 0.02}
        return (
            {**found, "schedule": "linear"}
            if usual
            else {**found, "schedule": "linear", "num_steps": steps, **ends}
        )
    names = ("beta_min", "beta_max") if kind in ("vp", "sub-vp") else ("sigma_min", "sigma_max")
    if kind == "ve-discrete" and "num_scales" in values:
        found["num_steps"] = values["num_scales"]
    # Ends in the state itself are more certain than those of the arguments.
    return {**found, **{name: float(values[name]) for name in names if name in values and name not in found}}


class _ScoreSDE(Layout):
    """What the networks of the repository share."""

    resampling_blocks: ClassVar[bool]

    def process_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """The process, with the ends of its noise levels where the state contains them."""
        return {**self.process, **{name: v for name, v in self.values(state).items() if name in self.process}}

    def values(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Our arguments that are inferred from values, not from shapes: the ends of the noise levels, if stored."""
        return {}

    chain_steps: ClassVar[int] = 1000
    stated_names: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "channels": ("nf",),
        "channel_mult": ("ch_mult",),
        "blocks_per_level": ("num_res_blocks",),
        "fir": ("fir",),
        "sigma_min": ("sigma_min",),
        "sigma_max": ("sigma_max",),
        "num_scales": ("num_scales",),
    }

    def sampling(self, process: Process, learned: bool) -> dict[str, Any]:
        if not process.registry_name.startswith("ve"):
            return super().sampling(process, learned)
        pc = {"predictor": "reverse-diffusion", "corrector": "langevin", "snr": 0.16}
        return {"sampler": {"name": "predictor-corrector", **pc}, "steps": 1000, "grid": {"name": "uniform"}}

    def stated_training(self, run: RunArguments, published: Pair) -> Pair:
        """Process by `training.sde`, `training.continuous` and the ends of its noise in `model`."""
        stated = run.get("sde", groups=("training",))
        if stated is None:
            return published
        continuous = flag(run.get("continuous", groups=("training",)))
        names = word(stated, SDES, "--process")
        kind = names[self.process["name"].endswith("-discrete") if continuous is None else not continuous]
        if self.process["name"].partition("-")[0] != kind.partition("-")[0]:
            raise ValueError(
                f"{stated}, but layout {self.registry_name!r} is of networks that were trained on "
                f"{self.process['name']}: --layout {SDE_LAYOUTS[names[0]]}"
            )
        ends = {name: run.get(name) for name in ("beta_min", "beta_max", "sigma_min", "sigma_max", "num_scales")}
        values = {name: whole(one) if name == "num_scales" else number(one) for name, one in ends.items() if one}
        return _sde(kind, values, published[0]), published[1]

    def structure(self, shapes: Shapes) -> Structure:
        return Structure.of(shapes, self.resampling_blocks)

    def prepare(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every `all_modules.N` under our module's name, and the q, k and v of an attention joined into one."""
        order = list(self.structure({key: tuple(t.shape) for key, t in state.items()}).order())
        named: dict[str, Tensor] = {}
        for key, tensor in state.items():
            match = re.fullmatch(r"all_modules\.(\d+)\.(.+)", key)
            if match and int(match[1]) >= len(order):
                raise ValueError(
                    f"{key} is one module too many: its options, read off the tensors, give {len(order)} modules"
                )
            named[f"{order[int(match[1])]}.{match[2]}" if match else key] = tensor
        for name in [name for name in order if name.endswith(".attention")]:
            weights = [named.pop(f"{name}.NIN_{i}.W") for i in range(3)]  # each (in, out)
            named[f"{name}.qkv.W"] = torch.cat(weights, dim=1).T.contiguous()
            named[f"{name}.qkv.b"] = torch.cat([named.pop(f"{name}.NIN_{i}.b") for i in range(3)])
        return named

    def options(self, shapes: Shapes) -> dict[str, Any]:
        found = self.structure(shapes)
        return {
            "in_channels": found.in_channels,
            "channels": found.channels,
            "channel_mult": tuple(width // found.channels for width in found.widths),
            "blocks_per_level": found.blocks_per_level,
            "attention_levels": found.attention_levels,
            "num_classes": 0,
            "learn_sigma": found.out_channels == 2 * found.in_channels,
        }

    def arguments(self, reference: Mapping[str, Any]) -> dict[str, Any]:
        model, data = reference["model"], reference["data"]
        check_fixed(self.reference[0], model, _FIXED)
        sides = [data["image_size"] >> level for level in range(len(model["ch_mult"]))]
        return {
            "image_size": data["image_size"],
            "in_channels": data.get("num_channels", 3),
            "channels": model["nf"],
            "channel_mult": tuple(model["ch_mult"]),
            "blocks_per_level": model["num_res_blocks"],
            "attention_levels": tuple(i for i, side in enumerate(sides) if side in model["attn_resolutions"]),
            "num_classes": 0,
        }


@LAYOUTS.register("ncsnpp")
class NCSNppLayout(_ScoreSDE):
    """NCSN++ with Fourier features of sigma: continuous VE, images in [0, 1], the output is the score."""

    backbone: ClassVar[str] = "ncsnpp"
    reference: ClassVar[tuple[str, ...]] = ("NCSNpp",)
    rules: ClassVar[KeyMap] = NCSNPP
    signature: ClassVar[tuple[str, ...]] = (r"all_modules\.0\.W", r"all_modules\.\d+\.Conv_2\.weight")
    process: ClassVar[dict[str, Any]] = {"name": "ve", "sigma_min": 0.01, "sigma_max": 50.0}
    parameterization: ClassVar[dict[str, Any]] = {"name": "score"}
    pixel_range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    resampling_blocks: ClassVar[bool] = True

    def options(self, shapes: Shapes) -> dict[str, Any]:
        found = self.structure(shapes)
        inferred = {
            **super().options(shapes),
            # With a single resolution nothing is joined, whatever the option was.
            "input_pyramid": found.input_pyramid if len(found.widths) > 1 else None,
            "output_pyramid": ("skip" if found.output_pyramid else "none") if len(found.widths) > 1 else None,
            "embedding": "fourier" if found.fourier else "positional",
            # Both published kinds of positional network have the same tensors; see the layouts below.
            "scale_by_sigma": True if found.fourier else None,
            "centered": False if found.fourier else None,
        }
        if "sigmas" in shapes:
            inferred["num_scales"] = shapes["sigmas"][0]
        # A residual input pyramid has a further convolution where it filters; otherwise filters cannot be inferred.
        known = {name: value for name, value in inferred.items() if name in _TELL_FIR}
        filtered = None if found.join is None or found.input_pyramid == "skip" else "Conv2d_0.weight" in found.join
        return {**inferred, "fir": published("ncsnpp", "fir", **known) if filtered is None else filtered}

    def values(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        if "sigmas" not in state:
            return {}
        sigmas, presets = state["sigmas"], self.model.presets.values()
        ends = {"sigma_min": sigmas[-1], "sigma_max": sigmas[0]}
        known = {name: tuple(sorted({one[name] for one in presets if name in one})) for name in ends}
        return {name: decimal(end, precision(sigmas), known[name]) for name, end in ends.items()}

    def tables(self, backbone: Any) -> dict[str, Tensor]:
        return {"sigmas": geometric(backbone.sigma_max, backbone.sigma_min, backbone.num_scales)}

    def arguments(self, reference: Mapping[str, Any]) -> dict[str, Any]:
        model = reference["model"]
        check_fixed("NCSNpp", model, _FIXED_NCSNPP)
        if model["progressive"] == "residual":
            raise ValueError(
                "NCSNpp with progressive = 'residual' is not covered; published are none and output_skip"
            )
        return {
            **super().arguments(reference),
            "fir": model["fir"],
            "input_pyramid": _PYRAMIDS[model["progressive_input"]],
            "output_pyramid": _PYRAMIDS[model["progressive"]],
            "embedding": model["embedding_type"],
            "scale_by_sigma": model["scale_by_sigma"],
            "centered": reference["data"]["centered"],
            "sigma_min": float(model["sigma_min"]),
            "sigma_max": float(model["sigma_max"]),
            "num_scales": model["num_scales"],
        }


class _Positional(NCSNppLayout):
    """NCSN++ or DDPM++ with a sinusoid of the noise label."""

    reference: ClassVar[tuple[str, ...]] = ()  # "ncsnpp" reads the published arguments of all
    signature: ClassVar[tuple[str, ...]] = (r"all_modules\.0\.weight", r"all_modules\.\d+\.Conv_2\.weight")
    discrete: ClassVar[bool] = False

    def options(self, shapes: Shapes) -> dict[str, Any]:
        return {**super().options(shapes), "scale_by_sigma": self.discrete, "centered": not self.discrete}


@LAYOUTS.register("ncsnpp-vp")
class VPLayout(_Positional):
    """NCSN++ or DDPM++ on continuous VP: the time input is 999 t, images in [-1, 1]."""

    process: ClassVar[dict[str, Any]] = {"name": "vp"}
    pixel_range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    parameterization: ClassVar[dict[str, Any]] = {"name": "epsilon"}


@LAYOUTS.register("ncsnpp-sub-vp")
class SubVPLayout(VPLayout):
    """NCSN++ or DDPM++ on continuous sub-VP: the time input is 999 t, images in [-1, 1]."""

    process: ClassVar[dict[str, Any]] = {"name": "sub-vp"}


@LAYOUTS.register("ncsnpp-ve-discrete")
class VEDiscreteLayout(_Positional):
    """NCSN++ on discrete VE: the time input is a noise level's index, images in [0, 1], output the score."""

    process: ClassVar[dict[str, Any]] = {
        "name": "ve-discrete",
        "sigma_min": 0.01,
        "sigma_max": 50.0,
        "num_steps": 1000,
    }
    discrete: ClassVar[bool] = True

    def process_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        levels = {"num_steps": len(state["sigmas"])} if "sigmas" in state else {}
        return {**super().process_of(state), **levels}


@LAYOUTS.register("ddpm")
class DDPMLayout(_ScoreSDE):
    """DDPM on its chain of 1000 steps, images in [-1, 1]; for weights of the continuous VP pass that process."""

    backbone: ClassVar[str] = "ddpm"
    reference: ClassVar[tuple[str, ...]] = ("DDPM",)
    rules: ClassVar[KeyMap] = DDPM
    signature: ClassVar[tuple[str, ...]] = (r"all_modules\.0\.weight", r"all_modules\.3\.GroupNorm_1\.weight")
    resampling_blocks: ClassVar[bool] = False

    def recognises(self, shapes: Shapes) -> bool:
        # NCSN++ has every name that DDPM has, and also the 1x1 convolutions of its blocks.
        return super().recognises(shapes) and not any(key.endswith(".Conv_2.weight") for key in shapes)

    def arguments(self, reference: Mapping[str, Any]) -> dict[str, Any]:
        check_fixed("DDPM", reference["model"], {"embedding_type": "positional", "scale_by_sigma": False})
        check_fixed("DDPM", reference["data"], {"centered": True})
        return super().arguments(reference)


def ema_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The EMA weights of a training checkpoint, under the names that the layouts take.

    checkpoint: {"model": the network's state, "ema": {"shadow_params": [...]}, ...} as score_sde writes it. The
    list has no names: it holds the trainable parameters in the order of the state. Buffers (sigmas) and the frozen
    Fourier frequencies are not among them and come from the model. ValueError where the checkpoint has no such
    parts, or where counts or shapes disagree.
    """
    model, ema = checkpoint.get("model"), checkpoint.get("ema")
    if not isinstance(model, Mapping) or not isinstance(ema, Mapping) or "shadow_params" not in ema:
        raise ValueError(
            "a score_sde training checkpoint has 'model' and 'ema' with 'shadow_params', "
            f"got {sorted(checkpoint)[:5]}; a bare state needs no conversion"
        )
    state = {key.removeprefix("module."): tensor for key, tensor in model.items()}
    trained = [key for key in state if key != "sigmas" and not re.fullmatch(r"all_modules\.\d+\.W", key)]
    shadow = list(ema["shadow_params"])
    if len(shadow) != len(trained):
        raise ValueError(
            f"the EMA has {len(shadow)} tensors and the model {len(trained)} trainable parameters; "
            "they are of different networks, or the file is incomplete"
        )
    for key, tensor in zip(trained, shadow, strict=True):
        if tensor.shape != state[key].shape:
            raise ValueError(
                f"the EMA's tensor for {key} has shape {tuple(tensor.shape)}, the model's has "
                f"{tuple(state[key].shape)}; they are of different networks, or in another order"
            )
    return {**state, **dict(zip(trained, shadow, strict=True))}
