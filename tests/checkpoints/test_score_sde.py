"""score_sde's checkpoints: the flat numbering, what a state tells and leaves open, the nameless EMA list."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dinit.checkpoints.keymap import load_mapped
from dinit.checkpoints.layouts import LAYOUTS, Layout
from dinit.checkpoints.layouts.base import recognise
from dinit.checkpoints.layouts.score_sde import ema_state
from dinit.checkpoints.layouts.score_sde_order import Structure
from dinit.models.base import BACKBONES, Backbone
from dinit.models.ddpm import DDPM
from dinit.models.ncsnpp import NCSNpp

GOLDEN = Path(__file__).parents[1] / "golden" / "backbones" / "ncsnpp_ve_discrete.safetensors"
_THEIRS = {
    "norm_1": "GroupNorm_0",
    "conv_1": "Conv_0",
    "condition": "Dense_0",
    "norm_2": "GroupNorm_1",
    "conv_2": "Conv_1",
}


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(t.shape) for key, t in state.items()}


def _inside(model: Backbone, name: str, key: str, tensor: Tensor) -> dict[str, Tensor]:
    """What is called `key` in our module `name`, under their names."""
    if name.endswith(".attention") and key.startswith("attention."):
        matrices = tensor.chunk(3) if "qkv" in key else [tensor]
        first = 0 if "qkv" in key else 3
        suffix = "W" if key.endswith("weight") else "b"
        return {f"NIN_{first + i}.{suffix}": m.T if m.ndim == 2 else m for i, m in enumerate(matrices)}
    part, _, rest = key.rpartition(".")
    if key == "frequencies":
        return {"W": tensor}
    if name == "time_embedding.sinusoid" and rest == "weight":
        return {key: torch.cat(tensor.chunk(2, dim=1)[::-1], dim=1)}  # [sin, cos]
    if part == "shortcut" and isinstance(model, DDPM):
        return {"NIN_0.W": tensor[:, :, 0, 0].T} if rest == "weight" else {"NIN_0.b": tensor}
    if name.startswith("pyramid") and part == "conv":
        return {f"Conv2d_0.{rest}" if name.endswith("down") and model.config["fir"] else f"Conv_0.{rest}": tensor}
    if part == "conv":
        return {f"Conv_0.{rest}": tensor}  # DDPM's resampling
    if part == "norm" and name.endswith("attention"):
        return {f"GroupNorm_0.{rest}": tensor}
    return {f"{ {**_THEIRS, 'shortcut': 'Conv_2'}[part] }.{rest}" if part else key: tensor}


def foreign(model: Backbone) -> dict[str, Tensor]:
    """The model's weights under score_sde's names, written from the model: the way back of the layout."""
    config = model.config
    widths = [config["channels"] * multiple for multiple in config["channel_mult"]]
    joins = {"none": None, "skip": {"Conv_0.weight": (0, 0, 1, 1)}, "residual": {}}
    order = Structure(
        fourier=config.get("embedding") == "fourier",
        channels=config["channels"],
        in_channels=config["in_channels"],
        out_channels=model.out_channels,
        widths=tuple(widths),
        blocks_per_level=config["blocks_per_level"],
        attention_levels=tuple(config["attention_levels"]),
        join=joins[config.get("input_pyramid", "none")],
        output_pyramid=config.get("output_pyramid") == "skip",
    ).order()
    state: dict[str, Tensor] = {"sigmas": torch.linspace(4, -2, config.get("num_scales", 1000)).exp()}
    for number, name in enumerate(order):
        module = model.get_submodule(name.replace("sinusoid", "mlp.0"))
        for key, tensor in module.state_dict().items():
            nested = key.startswith("mlp.") or (key.startswith("attention.") and not name.endswith("attention"))
            if not nested:
                inner = _inside(model, name, key, tensor).items()
                state |= {f"all_modules.{number}.{theirs}": t.clone() for theirs, t in inner}
    return state


NCSNPP_VARIANTS: dict[str, dict] = {
    "vp": {},
    "no pyramids": {"input_pyramid": "none", "output_pyramid": "none"},
    "averages": {"fir": False, "output_pyramid": "none"},
    "skips": {"input_pyramid": "skip", "channel_mult": (1, 1, 2), "image_size": 16, "attention_levels": (0, 2)},
    "deep": {"blocks_per_level": 3, "channel_mult": (2, 1), "attention_levels": (0,)},
    "one level": {"channel_mult": (2,), "attention_levels": (), "input_pyramid": "none", "output_pyramid": "none"},
    "no attention": {"attention_levels": (), "learn_sigma": True},
    "fourier": {"embedding": "fourier", "scale_by_sigma": True, "centered": False, "num_scales": 70},
}
DDPM_VARIANTS: dict[str, dict] = {
    "plain": {},
    "narrowing": {"channel_mult": (2, 1), "attention_levels": (0, 1), "blocks_per_level": 2},
    "three levels": {"channel_mult": (1, 2, 2), "image_size": 16, "attention_levels": (0, 2)},
    "one level": {"channel_mult": (1,), "attention_levels": (), "learn_sigma": True},
}
CASES = [("ncsnpp", name) for name in NCSNPP_VARIANTS] + [("ddpm", name) for name in DDPM_VARIANTS]


def built(family: str, variant: str) -> Backbone:
    options = (NCSNPP_VARIANTS if family == "ncsnpp" else DDPM_VARIANTS)[variant]
    torch.manual_seed(0)
    model = BACKBONES[family].preset("tiny", **{"num_classes": 0, **options})
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize(("family", "variant"), CASES)
def test_weights_come_back_from_their_names(family: str, variant: str) -> None:
    model, again = built(family, variant), built(family, variant)
    for parameter in again.parameters():
        nn.init.zeros_(parameter)
    layout = LAYOUTS[family]()
    load_mapped(again, layout.prepare(foreign(model)), layout.rules)
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


@pytest.mark.parametrize(("family", "variant"), CASES)
def test_options_are_told_from_the_shapes(family: str, variant: str) -> None:
    model = built(family, variant)
    told = LAYOUTS[family]().options(shapes(foreign(model)))
    assert {"channels", "channel_mult", "blocks_per_level", "attention_levels", "in_channels"} <= told.keys()
    for name, value in told.items():
        assert value is None or value == model.config[name], name
    if family == "ncsnpp":
        untold = {name for name, value in told.items() if value is None}
        levels, residual = len(told["channel_mult"]), told["input_pyramid"] == "residual"
        expected = set() if told["embedding"] == "fourier" else {"scale_by_sigma", "centered"}
        expected |= set() if residual else {"fir"}
        assert untold == expected | ({"input_pyramid", "output_pyramid"} if levels == 1 else set())


@pytest.mark.parametrize("name", sorted(set(NCSNpp.presets) - {"tiny"}))
def test_published_networks_are_told_apart(name: str) -> None:
    with torch.device("meta"):
        model = NCSNpp.preset(name)
        theirs = shapes(foreign(model))
    if model.config["embedding"] == "fourier":
        layout = recognise(theirs)
        assert layout.registry_name == "ncsnpp"
        assert layout.process["name"] == "ve"
    else:
        with pytest.raises(
            ValueError, match=r"could be of ncsnpp-sub-vp, ncsnpp-ve-discrete, ncsnpp-vp; choose one"
        ):
            recognise(theirs)
        layout = LAYOUTS["ncsnpp-ve-discrete" if model.scale_by_sigma else "ncsnpp-vp"]()
    told = layout.options(theirs)
    assert None not in told.values()
    with torch.device("meta"):
        again = NCSNpp(image_size=model.image_size, **told)
    for key in told:
        assert again.config[key] == model.config[key], key


@pytest.mark.parametrize("name", ["cifar10", "256"])
def test_published_ddpm_is_recognised(name: str) -> None:
    with torch.device("meta"):
        theirs = shapes(foreign(model := DDPM.preset(name)))
    layout = recognise(theirs)
    assert (layout.registry_name, layout.process["name"]) == ("ddpm", "vp-discrete")
    told = layout.options(theirs)
    assert all(model.config[key] == value for key, value in told.items())


@pytest.mark.parametrize(
    ("name", "process", "parameterization"),
    [
        ("ncsnpp", {"name": "ve", "sigma_min": 0.01, "sigma_max": 348.0}, "score"),
        ("ncsnpp-vp", {"name": "vp"}, "epsilon"),
        ("ncsnpp-sub-vp", {"name": "sub-vp"}, "epsilon"),
        (
            "ncsnpp-ve-discrete",
            {"name": "ve-discrete", "sigma_min": 0.01, "sigma_max": 348.0, "num_steps": 50},
            "score",
        ),
        ("ddpm", {"name": "vp-discrete", "schedule": "linear"}, "epsilon"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_process_is_read_off_the_noise_levels(
    name: str, process: dict, parameterization: str, dtype: torch.dtype
) -> None:
    ends = torch.tensor([348.0, 0.01], dtype=dtype).log()
    state = {"sigmas": torch.linspace(float(ends[0]), float(ends[1]), 50, dtype=dtype).exp()}
    layout = LAYOUTS[name]()
    assert layout.process_of(state) == process
    assert layout.parameterization == {"name": parameterization}
    assert layout.process_of({}) == layout.process
    if name.startswith("ncsnpp"):
        assert layout.values(state) == {"sigma_min": 0.01, "sigma_max": 348.0}


def test_incomplete_and_disordered_states_are_refused_by_name() -> None:
    layout, state = LAYOUTS["ncsnpp"](), foreign(built("ncsnpp", "skips"))
    cut = {key: t for key, t in state.items() if not re.match(r"all_modules\.7\.", key)}
    with pytest.raises(ValueError, match=r"none for N = \[7\]"):
        layout.prepare(cut)
    last = max(int(key.split(".")[1]) for key in state if key.startswith("all"))
    extra = {**state, f"all_modules.{last + 1}.weight": torch.zeros(3)}
    with pytest.raises(ValueError, match=rf"all_modules.{last + 1}.weight is one module too many"):
        layout.prepare(extra)
    short = {key: t for key, t in state.items() if not re.match(rf"all_modules\.({last}|{last - 1})\.", key)}
    with pytest.raises(ValueError, match="not in the order of a score_sde network"):
        layout.prepare(short)
    for bad in ({}, {"sigmas": torch.ones(3)}, {"all_modules.0.weight": torch.zeros(4, 4)}):
        with pytest.raises(ValueError, match="score_sde"):
            layout.prepare(bad)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("model", {"progressive": "residual"}, "progressive = 'residual' is not covered"),
        ("model", {"resblock_type": "ddpm"}, "resblock_type = 'ddpm' is not covered; published is 'biggan'"),
        ("model", {"skip_rescale": False}, "skip_rescale = False is not covered"),
    ],
)
def test_options_that_we_do_not_cover_are_refused(part: str, change: dict, message: str) -> None:
    reference = {
        "model": {
            "nf": 16,
            "ch_mult": [1, 2],
            "num_res_blocks": 1,
            "attn_resolutions": [8],
            "progressive": "none",
            **change,
        },
        "data": {"image_size": 16, "centered": True},
    }
    with pytest.raises(ValueError, match=message):
        LAYOUTS["ncsnpp"]().arguments(reference)


class Published(nn.Module):
    """Its parts in the order and with the kinds of a score_sde network."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sigmas", torch.ones(5))
        frozen = nn.Module()
        frozen.W = nn.Parameter(torch.randn(4), requires_grad=False)
        matrix = nn.Module()
        matrix.NIN_0 = nn.Module()
        matrix.NIN_0.W = nn.Parameter(torch.randn(3, 3))
        matrix.NIN_0.b = nn.Parameter(torch.randn(3))
        self.all_modules = nn.ModuleList([frozen, nn.Linear(8, 3), matrix, nn.GroupNorm(1, 3)])


def checkpoint() -> tuple[Published, dict]:
    torch.manual_seed(0)
    model = Published()
    shadow = [p.detach() + 1 for p in model.parameters() if p.requires_grad]
    state = {f"module.{key}": t for key, t in model.state_dict().items()}
    ema = {"decay": 0.999, "num_updates": 7, "shadow_params": shadow}
    return model, {"optimizer": {}, "model": state, "ema": ema, "step": 7}


def test_ema_list_gets_its_names() -> None:
    model, saved = checkpoint()
    found = ema_state(saved)
    assert list(found) == list(model.state_dict())
    for name, tensor in model.state_dict().items():
        trained = name != "sigmas" and name != "all_modules.0.W"
        assert torch.equal(found[name], tensor + 1 if trained else tensor), name


def test_ema_of_a_published_network_loads() -> None:
    state = {k.removeprefix("state."): t for k, t in load_file(GOLDEN).items() if k.startswith("state.")}
    trained = [t for key, t in state.items() if key != "sigmas"]
    model = {f"module.{key}": t if key == "sigmas" else torch.zeros_like(t) for key, t in state.items()}
    found = ema_state({"model": model, "ema": {"shadow_params": trained}, "optimizer": {}, "step": 1})
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], t) for key, t in state.items())
    layout: Layout = LAYOUTS["ncsnpp-ve-discrete"]()
    options = {**layout.options(shapes(found)), **layout.values(found), "fir": True, "image_size": 16}
    model = NCSNpp(**options)
    assert (model.config["sigma_max"], model.config["num_scales"]) == (50.0, 40)
    load_mapped(model, layout.prepare(found), layout.rules)


def test_ema_that_does_not_fit_is_refused() -> None:
    _, saved = checkpoint()
    shadow = saved["ema"]["shadow_params"]
    with pytest.raises(ValueError, match="5 tensors and the model 6 trainable"):
        ema_state({**saved, "ema": {"shadow_params": shadow[:-1]}})
    with pytest.raises(ValueError, match=r"for all_modules.1.weight has shape \(3,\), the model's has \(3, 8\)"):
        ema_state({**saved, "ema": {"shadow_params": shadow[::-1]}})
    for bad in ({}, {"state_dict": {}}, {"model": saved["model"]}, {"model": {}, "ema": {"decay": 0.9}}):
        with pytest.raises(ValueError, match="'model' and 'ema' with 'shadow_params', got"):
            ema_state(bad)
