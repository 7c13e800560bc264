"""Averaged weights in a training checkpoint are read under every published name, or refused by their name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from reference import GOLDEN, Reference

from dinit.checkpoints.entries import is_averaged
from dinit.checkpoints.reading import read_checkpoint

State = dict[str, Tensor]
EMA: State = {key: one.clone() for key, one in Reference(GOLDEN / "dit_sigma.safetensors").state.items()}
TABLE = "pos_embed"
RAW: State = {key: one if key == TABLE else one + 1 for key, one in EMA.items()}
OTHER: State = {key: one if key == TABLE else one - 1 for key, one in EMA.items()}
TRAINED = [key for key in EMA if key != TABLE]
VAE: State = {"encoder.conv_in.weight": torch.ones(2, 2), "decoder.conv_out.bias": torch.ones(2)}


def prefixed(prefix: str, state: State) -> State:
    return {prefix + key: one for key, one in state.items()}


def flat(prefix: str, old: str, new: str) -> State:
    return {prefix + key.replace(old, new): EMA[key] for key in TRAINED}


def optimizer(**more: Any) -> dict[str, Any]:
    """Adam's state, whose moments are averages of gradients."""
    moments = {i: {"step": torch.tensor(9.0), "exp_avg": one, **more} for i, one in enumerate(RAW.values())}
    return {"state": moments, "param_groups": [{"lr": 1e-4, "params": list(moments)}]}


COUNT = torch.tensor(5)
# What programs save, each with the averaged weights in it.
FORMS: dict[str, Callable[[], dict[Any, Any]]] = {
    "dit": lambda: {"model": RAW, "ema": EMA, "opt": optimizer(), "args": {"model": "DiT-XL/2"}},
    "ema_weights": lambda: {"model": RAW, "ema_weights": EMA},
    "upper case": lambda: {"model": RAW, "EMA": EMA},
    "camel case": lambda: {"model": RAW, "modelEMA": EMA},
    "averaged_params": lambda: {"params": RAW, "averaged_params": EMA, "step": 3},
    "shadow": lambda: {"model": RAW, "shadow": EMA},
    "polyak": lambda: {"weights": RAW, "polyak_weights": EMA},
    "swa": lambda: {"model": RAW, "swa_state_dict": prefixed("module.", EMA) | {"n_averaged": COUNT}},
    "pair of entries": lambda: {"model_state_dict": RAW, "ema_model_state_dict": EMA, "epoch": 4},
    "pair with the name behind": lambda: {"network": RAW, "network_ema": EMA, "discriminator": VAE},
    "timm": lambda: {"state_dict": RAW, "state_dict_ema": EMA, "arch": "dit", "metric": 3.0},
    "module and decay": lambda: {"model": RAW, "ema": {"module": EMA, "decay": 0.9999}},
    "state_dict inside": lambda: {"model": RAW, "ema": {"state_dict": EMA, "updates": 7}},
    "shadow inside": lambda: {"model": RAW, "ema": {"decay": 0.99, "shadow": EMA, "backup": RAW}},
    "model inside": lambda: {"model": RAW, "ema": {"model": prefixed("module.", EMA)}},
    "two deep": lambda: {"model": RAW, "extra_state": {"epoch": 3, "ema": EMA}},
    "three deep": lambda: {"state": {"model": RAW, "algorithms": [["EMA", {"ema_model": {"params": EMA}}]]}},
    "buffers are not averaged": lambda: {"model": RAW, "ema": {key: EMA[key] for key in TRAINED}},
    "a list as score_sde keeps it": lambda: {
        "model": prefixed("module.", RAW),
        "ema": {"decay": 0.99, "num_updates": 5, "shadow_params": [EMA[key] for key in TRAINED]},
    },
    "a list as diffusers keeps it": lambda: {
        "model": RAW,
        "ema_state": {"shadow_params": list(EMA.values()), "temp_stored_params": list(RAW.values()), "decay": 0.99},
    },
    "a list alone": lambda: {"model": RAW, "ema_params": [EMA[key] for key in TRAINED]},
    "a list in the optimiser": lambda: {"state_dict": RAW, "optimizer_states": [{"ema": list(EMA.values())}]},
    "ema-pytorch": lambda: {
        **prefixed("online_model.", RAW),
        **prefixed("ema_model.", EMA),
        "initted": COUNT,
        "step": COUNT,
    },
    "ema-pytorch in an entry": lambda: {
        "step": 3,
        "model": RAW,
        "ema": {**prefixed("online_model.", RAW), **prefixed("ema_model.", EMA), "initted": COUNT, "step": COUNT},
    },
    "ema-pytorch inside a module": lambda: {
        "state_dict": {
            **prefixed("net.", RAW),
            **prefixed("ema.online_model.", RAW),
            **prefixed("ema.ema_model.", EMA),
            "ema.initted": COUNT,
        }
    },
    "Lightning": lambda: {
        "state_dict": {**prefixed("model.", RAW), **prefixed("ema.", EMA), **prefixed("vae.", VAE)},
        "optimizer_states": [optimizer()],
    },
    "Lightning, ema_net": lambda: {"state_dict": {**prefixed("net.", RAW), **prefixed("ema_net.module.", EMA)}},
    "LitEma": lambda: {
        "state_dict": {
            **prefixed("model.diffusion_model.", RAW),
            **flat("model_ema.diffusion_model", ".", ""),
            "model_ema.decay": torch.tensor(0.9999),
            "model_ema.num_updates": torch.tensor(8),
            "betas": torch.full((1000,), float("inf")),  # of the wrapper, no weights
            **prefixed("first_stage_model.", VAE),
        },
        "pytorch-lightning_version": "2.0",
    },
    "OpenMMLab": lambda: {"state_dict": {**RAW, **flat("ema_", ".", "_")}, "meta": {"epoch": 3}},
    "averages next to their tensors": lambda: {"model": {**RAW, **{f"{key}_ema": EMA[key] for key in TRAINED}}},
    "Lightning's averaging": lambda: {
        "state_dict": EMA,
        "current_model_state": RAW,
        "averaging_state": {"n_averaged": COUNT},
    },
    "Lightning's SWA": lambda: {
        "state_dict": RAW,
        "callbacks": {"StochasticWeightAveraging": {"n": 3, "average_model_state": EMA}},
    },
    "named pairs": lambda: {"model": RAW, "ema": [(key, EMA[key]) for key in TRAINED]},
    "a head for training alone": lambda: {"model": {**RAW, "projector.weight": torch.ones(3, 3)}, "ema": EMA},
    "one module deeper": lambda: {
        "state_dict": {**prefixed("model.net.", RAW), **prefixed("model.ema.", EMA), **prefixed("loss.", VAE)}
    },
    "compiled": lambda: {"model": prefixed("_orig_mod.", RAW), "ema": prefixed("_orig_mod.", EMA)},
    "distributed": lambda: {"model": prefixed("module.", RAW), "ema": EMA},
    "blocks compiled one by one": lambda: {
        "model": RAW,
        "ema": {key.replace("blocks.0.", "blocks.0._orig_mod."): one for key, one in EMA.items()},
    },
    "sharded blocks": lambda: {
        "ema": {key.replace("blocks.", "_fsdp_wrapped_module.blocks."): one for key, one in EMA.items()}
    },
    "the same twice": lambda: {"model": RAW, "ema": EMA, "state_dict_ema": prefixed("module.", EMA)},
    "another network's too": lambda: {"model": RAW, "ema": EMA, "vae_ema": VAE},
    "half precision": lambda: {"model": {key: one.half() for key, one in RAW.items()}, "ema": EMA},
    "next to a bare state": lambda: {**RAW, "ema": EMA, "epoch": 3},
    "alone": lambda: {"ema": EMA, "step": 3},
    "damaged raw weights": lambda: {"model": {**RAW, TRAINED[0]: RAW[TRAINED[0]] * float("nan")}, "ema": EMA},
}


def saved(folder: Path, content: object, name: str = "a.pt") -> Path:
    torch.save(content, folder / name)
    return folder / name


def same(state: State, expected: State) -> bool:
    return state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in state)


@pytest.mark.parametrize("form", FORMS)
def test_the_average_is_read(form: str, tmp_path: Path) -> None:
    file = saved(tmp_path, FORMS[form]())
    read = read_checkpoint(file)
    assert same(read.state, EMA)
    assert same(read_checkpoint(file, "ema").state, EMA)


# No average, or one that is named by its prefix alone and has no raw weights.
WITHOUT_RAW = ("sharded blocks", "alone", "a head for training alone")


@pytest.mark.parametrize("form", [form for form in FORMS if form not in WITHOUT_RAW and "damaged" not in form])
def test_the_raw_weights_are_read_where_they_are_wanted(form: str, tmp_path: Path) -> None:
    state = read_checkpoint(saved(tmp_path, FORMS[form]()), "model").state
    assert same(
        {key: one.float() for key, one in state.items()},
        {k: v.half().float() for k, v in RAW.items()} if form == "half precision" else RAW,
    )


# Names with the letters of an average, and none in them.
HARMLESS: dict[str, Callable[[], dict[Any, Any]]] = {
    "numbers": lambda: {"model": EMA, "ema_decay": 0.999, "use_ema": True, "ema_rate": "0.9999", "ema_step": COUNT},
    "no average": lambda: {"model": EMA, "ema": None, "ema_state": {}, "shadow": []},
    "arguments": lambda: {
        "model": EMA,
        "args": {"ema": True, "ema_path": "ema.pt"},
        "config": {"ema": {"decay": 0.9}},
    },
    "words": lambda: {
        "model": EMA,
        "schema": {"a": torch.ones(9)},
        "semantic": VAE,
        "remaining": {"b": torch.ones(9)},
    },
    "moments": lambda: {"model": EMA, "optimizer": optimizer(), "lr_schedulers": [{"last_epoch": 3}]},
    "random state": lambda: {
        "model": EMA,
        "rng_state": torch.ones(99, dtype=torch.uint8),
        "scaler": {"scale": 1.0},
    },
    "settings of an average": lambda: {"model": EMA, "ema": {"decay": 0.999, "num_updates": COUNT}},
    "AveragedModel": lambda: {"n_averaged": COUNT, **prefixed("module.", EMA)},
    "compiled AveragedModel": lambda: {**prefixed("module._orig_mod.", EMA), "n_averaged": COUNT},
    "counters in a bare state": lambda: {**EMA, "epoch": 3, "global_step": 9, "lr": 1e-4, "config": {"depth": 2}},
    "the model twice": lambda: {"model": EMA, "state_dict": prefixed("module.", EMA)},
    "another network": lambda: {"dit": EMA, "vae": VAE, "text": {"x": torch.ones(3)}},
    "a wrapper's tables": lambda: {
        "state_dict": {**prefixed("model.", EMA), "sqrt_recip": torch.full((9,), float("inf"))}
    },
    "distributed in part": lambda: {key.replace("blocks.1.", "blocks.1.module."): one for key, one in EMA.items()},
}


@pytest.mark.parametrize("form", HARMLESS)
@pytest.mark.parametrize("suffix", [".pth.tar", ".ckpt"])
def test_without_an_average_the_model_is_read(form: str, suffix: str, tmp_path: Path) -> None:
    assert same(read_checkpoint(saved(tmp_path, HARMLESS[form](), f"a{suffix}")).state, EMA)


def test_a_file_that_is_all_averaged_leaves_its_counter_out(tmp_path: Path) -> None:
    read = read_checkpoint(saved(tmp_path, HARMLESS["AveragedModel"]()))
    assert read.notes == ("left out, no weights of the network: n_averaged",)


@pytest.mark.parametrize(
    ("form", "named"), [("no average", "ema_state, shadow"), ("settings of an average", "ema"), ("numbers", None)]
)
def test_an_entry_of_an_average_without_weights_is_noted(form: str, named: str | None, tmp_path: Path) -> None:
    notes = read_checkpoint(saved(tmp_path, HARMLESS[form]())).notes
    assert notes == (() if named is None else (f"no averaged weights in {named}",))


def without(state: State, *keys: str) -> State:
    return {key: one for key, one in state.items() if key not in keys}


LOST = TRAINED[3]
# What is said, and what each choice then gives.
UNCLEAR: dict[str, tuple[Callable[[], dict[Any, Any]], str, dict[str, State]]] = {
    "several decays": (
        lambda: {"model": RAW, "ema_0.999": OTHER, "ema_0.9999": EMA},
        r"2 averaged sets of weights: ema_0\.999, ema_0\.9999; choose one: weights='ema_0\.999' \(--weights",
        {"ema_0.9999": EMA, "ema_0.999": OTHER, "model": RAW},
    ),
    "numbered": (
        lambda: {"net": RAW, "ema1": {"module": OTHER}, "ema2": {"module": EMA}},
        "ema1.module, ema2.module",
        {"ema2": EMA, "ema1.module": OTHER, "model": RAW},
    ),
    "by decay, one deeper": (
        lambda: {"model": RAW, "ema": {0.999: OTHER, 0.9999: EMA}},
        r"ema\.0\.999, ema\.0\.9999",
        {"ema.0.9999": EMA, "model": RAW},
    ),
    "names with a space": (
        lambda: {"model": RAW, "EMA 0.999": OTHER, "EMA 0.9999": EMA},
        r"\(--weights 'EMA 0\.999'\)",
        {"EMA 0.999": OTHER, "EMA 0.9999": EMA, "model": RAW},
    ),
    "in a list": (lambda: {"model": RAW, "emas": [EMA, OTHER]}, r"emas\.0, emas\.1", {"emas.0": EMA, "model": RAW}),
    "by lists": (
        lambda: {"model": RAW, "ema_params": [list(EMA.values()), list(OTHER.values())]},
        r"ema_params\.0, ema_params\.1",
        {"ema_params.1": OTHER, "model": RAW},
    ),
    "a name that does not tell": (
        lambda: {"model": RAW, "slow": EMA},
        "2 sets of weights of which none is named as the average: model, slow",
        {"slow": EMA, "model": RAW},
    ),
    "the best": (lambda: {"state_dict": RAW, "best_state": EMA}, "state_dict, best_state", {"best_state": EMA}),
    "neither is named": (lambda: {"one": RAW, "two": EMA}, "one, two", {"one": RAW, "two": EMA}),
    "part of the average": (
        lambda: {"model": RAW, "ema": without(EMA, LOST)},
        f"averaged weights in ema that lack 1 of the {len(EMA)} tensors of model, such as {LOST}; .*--weights",
        {"model": RAW},
    ),
    "another shape": (
        lambda: {"model": RAW, "ema": {**EMA, LOST: torch.ones(7)}},
        rf"has {LOST} as \(7,\) in ema and as .* in model",
        {"model": RAW},
    ),
    "another network's": (
        lambda: {"model": RAW, "ema": {"x.weight": torch.ones(3)}},
        f"averaged weights in ema that lack {len(TRAINED)} of",
        {"model": RAW},
    ),
    "a list that is too short": (
        lambda: {"model": RAW, "ema": {"shadow_params": list(EMA.values())[:-2]}},
        rf"ema\.shadow_params without names, {len(EMA) - 2} tensors whose number and shapes",
        {"model": RAW},
    ),
    "a list in another order": (
        lambda: {"model": RAW, "ema": {"shadow_params": list(EMA.values())[::-1]}},
        rf"ema\.shadow_params without names, {len(EMA)} tensors whose number and shapes",
        {"model": RAW},
    ),
    "a list without a model": (lambda: {"ema": list(EMA.values())}, "without names, .* tensors of a model", {}),
    "one long vector": (
        lambda: {"model": RAW, "ema_flat": torch.cat([one.flatten() for one in EMA.values()])},
        "ema_flat without names",
        {"model": RAW},
    ),
    "bytes": (lambda: {"model": RAW, "ema": b"\x80\x02"}, "has no tensors in ema", {"model": RAW}),
    "another file": (lambda: {"model": RAW, "ema": "runs/ema.pt"}, "has no tensors in ema", {"model": RAW}),
    "another file, one deeper": (
        lambda: {"model": RAW, "ema": {"decay": 0.9, "file": "ema.safetensors"}},
        r"has no tensors in ema\.file",
        {"model": RAW},
    ),
    "names alone": (lambda: {"model": RAW, "ema": dict.fromkeys(EMA)}, "has no tensors in ema", {"model": RAW}),
    "in the optimiser's state": (
        lambda: {"model": RAW, "optimizer": optimizer(swa_buffer=torch.ones(3))},
        r"averaged sets of weights: optimizer\.state\.0\.swa_buffer",
        {"model": RAW},
    ),
}


@pytest.mark.parametrize("form", UNCLEAR)
def test_what_is_unclear_is_refused_by_its_name(form: str, tmp_path: Path) -> None:
    content, told, choices = UNCLEAR[form]
    file = saved(tmp_path, content())
    with pytest.raises(ValueError, match=told) as caught:
        read_checkpoint(file)
    assert str(file) in str(caught.value)
    assert len(str(caught.value)) < 700
    for name, state in choices.items():  # the advice works
        assert same(read_checkpoint(file, name).state, state)


def test_an_entry_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    file = saved(tmp_path, {"model": RAW, "ema_0.999": OTHER, "ema_0.9999": EMA})
    with pytest.raises(ValueError, match=r"has no 'ema_0.99' weights, it has ema_0.999, ema_0.9999, model"):
        read_checkpoint(file, "ema_0.99")


def test_completed_tables_are_noted(tmp_path: Path) -> None:
    read = read_checkpoint(saved(tmp_path, FORMS["buffers are not averaged"]()))
    assert read.notes == (f"not averaged, so taken from model: {TABLE}",)


@pytest.mark.parametrize(
    ("own", "average"),
    [("model100000.pt", "ema_0.9999_100000.pt"), ("nnet.pth", "nnet_ema.pth"), ("net.pt", "ema.pt")],
)
def test_an_average_in_another_file_is_pointed_out(own: str, average: str, tmp_path: Path) -> None:
    saved(tmp_path, EMA, average)
    file = saved(tmp_path, RAW, own)
    with pytest.warns(UserWarning, match=rf"{own} was read, and {average} next to it may be its averaged weights"):
        assert same(read_checkpoint(file).state, RAW)


def test_files_that_are_no_average_of_it_are_not_pointed_out(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    file = saved(tmp_path, RAW, "model100000.pt")
    for name in ("ema_0.9999_200000.pt", "opt100000.pt", "schema.pt", "other_ema.pt"):
        saved(tmp_path, EMA, name)
    read_checkpoint(file)
    read_checkpoint(tmp_path / "ema_0.9999_200000.pt")
    assert not recwarn.list


@pytest.mark.parametrize(
    "name",
    ["ema", "EMA", "model_ema", "emaModel", "modelEMA", "G_ema", "ema1", "ema_0.9999", "averaged", "moving-average",
     "shadow_params", "polyak", "swa_model", "avg_model", "emanet", "netema"],
)  # fmt: skip
def test_names_of_averages(name: str) -> None:
    assert is_averaged(name)


@pytest.mark.parametrize(
    "name",
    ["schema", "semantic", "scheme", "remain", "exp_avg", "exp_avg_sq", "n_averaged", "model", "cinema", "demand"],
)
def test_names_of_other_things(name: str) -> None:
    assert not is_averaged(name)
