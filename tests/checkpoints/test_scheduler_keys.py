"""Every key of every diffusers scheduler: the images of diffusers' own loop, or an error that names the key."""

from __future__ import annotations

import inspect
import random
import re
import warnings
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from fuzzing import edited
from torch import Tensor

from dinit.checkpoints.interop.schedule import read_scheduler
from dinit.checkpoints.interop.scheduler_config import SCHEDULERS, TREE, arguments, scheduler_of
from dinit.checkpoints.interop.scheduler_sampler import sampler_from_diffusers
from dinit.diffusion import BackboneDenoiser, Parameterization, Process
from dinit.diffusion.continuous import EDM
from dinit.diffusion.discrete import BetaChain
from dinit.models.analytic import MixtureDenoiser

STEPS = 6
FILE = "scheduler_config.json"
CLASSES = [name for name in SCHEDULERS if name != TREE]
WIDE_BETAS = (np.linspace(0.0005, 0.03, 1000) ** 1.05).tolist()
# Values other than the defaults; a switch is turned round.
OTHER: dict[str, tuple[Any, ...]] = {
    "algorithm_type": ("dpmsolver", "sde-dpmsolver", "sde-dpmsolver++", "noise_prediction"),
    "base_image_seq_len": (128,),
    "base_shift": (0.7,),
    "beta_end": (0.03,),
    "beta_schedule": ("scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp"),
    "beta_start": (0.0006,),
    "clip_sample_range": (0.7,),
    "corrector_order": (1,),
    "disable_corrector": ([1, 2],),
    "dynamic_thresholding_ratio": (0.8,),
    "final_sigmas_type": ("sigma_min",),
    "flow_shift": (3.0,),
    "interpolation_type": ("log_linear",),
    "lambda_min_clipped": (-5.1,),
    "max_image_seq_len": (2048,),
    "max_shift": (1.3,),
    "num_train_timesteps": (500,),
    "prediction_type": ("v_prediction", "sample", "flow_prediction"),
    "predictor_order": (3,),
    "rho": (3.0,),
    "sample_max_value": (1.6,),
    "shift": (3.0,),
    "shift_terminal": (0.1,),
    "sigma_data": (0.8,),
    "sigma_max": (30.0,),
    "sigma_min": (0.05,),
    "sigma_schedule": ("exponential",),
    "solver_order": (1, 3),
    "solver_type": ("heun", "bh1", "logrho"),
    "steps_offset": (1,),
    "time_shift_type": ("linear",),
    "timestep_spacing": ("linspace", "leading", "trailing"),
    "timestep_type": ("continuous",),
    "trained_betas": (WIDE_BETAS,),
    "variance_type": ("fixed_large", "fixed_small_log", "fixed_large_log", "learned", "learned_range"),
}
# Keys that act only together with others.
WITH: dict[str, dict[str, Any]] = {
    "clip_sample_range": {"clip_sample": True},
    "dynamic_thresholding_ratio": {"thresholding": True, "sample_max_value": 2.0},
    "flow_shift": {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
    "sample_max_value": {"thresholding": True},
    "use_flow_sigmas": {"prediction_type": "flow_prediction"},
    "rescale_betas_zero_snr": {"prediction_type": "v_prediction", "timestep_spacing": "trailing"},
}


def others(name: str) -> list[tuple[str, dict[str, Any]]]:
    """(key, config) for every key of the class, set to what is not its default."""
    found: list[tuple[str, dict[str, Any]]] = [("", {})]
    for key, default in arguments(name).items():
        values = OTHER.get(key, (not default,) if isinstance(default, bool) or default is None else ())
        if key in ("solver_p", "tau_func"):
            continue
        assert values, f"no other value for {key}"
        needed = {other: value for other, value in WITH.get(key, {}).items() if other in arguments(name)}
        found += [(key, {**needed, key: value}) for value in values if value != default]
    return found


def exact(process: Process) -> MixtureDenoiser:
    """Components that reach beyond [-1, 1], so that clipping acts."""
    generator = torch.Generator().manual_seed(3)
    means = torch.randn(4, 2, 4, 4, generator=generator) * 0.9
    return MixtureDenoiser(process, means, 0.02 + 0.1 * torch.rand(4, 2, 4, 4, generator=generator))


class Network:
    """A backbone: the exact output at the noise level of its time input, and a little more."""

    num_classes, in_channels, out_channels, null_class = 0, 2, 2, True

    def __init__(self, process: Process, parameterization: Parameterization) -> None:
        self.process, self.parameterization, self.exact = process, parameterization, exact(process)
        self.cond = self.exact.condition(None, 2)

    def embed(self, labels: Tensor) -> Tensor:
        return torch.zeros(len(labels), 1)

    def __call__(self, x: Tensor, label: Tensor, cond: Any = None) -> Tensor:
        label = label.double().flatten()[0]
        if isinstance(self.process, BetaChain):
            k = self.process.scales((label + 1) / self.process.num_steps)
        else:
            level = (4 * label).exp() if isinstance(self.process, EDM) else label / (1000 - label)
            k = self.process.scales(self.process.time_of_noise_level(level))
        scale = self.parameterization.input_scale(k)
        d = self.exact(x / scale, k, self.cond)
        return (self.parameterization.target(d.x0, d.eps, k) + 0.1 * torch.tanh(x)).to(x.dtype)


class Draws:
    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(7)

    def normal(self, stream: str, number: int, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype)


@torch.no_grad()
def theirs(scheduler: Any, network: Network, noise: Tensor) -> Tensor:
    """The loop of diffusers' pipelines: the network gets the timestep."""
    scheduler.set_timesteps(STEPS)
    options = {}
    if "generator" in inspect.signature(scheduler.step).parameters:
        options["generator"] = torch.Generator().manual_seed(7)
    x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        x_in = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(x_in, t), t, x, return_dict=False, **options)[0]
    return x


def outcome(name: str, config: dict[str, Any], given: dict[str, Any] | None = None) -> str:
    """ "same", "refused: ...", or by how much it differs. given: in place of the config, what dinit gets."""
    try:
        scheduler = scheduler_of({"_class_name": name, **(config if given is None else given)}, FILE)
        sampler = sampler_from_diffusers(scheduler)
        process, parameterization = read_scheduler(scheduler)
        network = Network(process, parameterization)
        denoiser = BackboneDenoiser(network, process, parameterization)
        noise = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(1))
        found = sampler.sample(denoiser, noise, STEPS, noise_source=Draws())
    except ValueError as error:
        return f"refused: {error}"
    expected = theirs(getattr(diffusers, name)(**config), network, noise)
    apart = float((found - expected).abs().max() / expected.abs().max())
    # Both are float32 from noise levels up to 20000; a last digit of the network's output changes 1.7e-4 of it.
    return "same" if apart < 4e-4 else f"apart by {apart:.2g}"


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", CLASSES)
def test_every_key_acts_as_in_diffusers_or_is_refused(name: str) -> None:
    """Some of a class's keys, by a seed; all of them were tried when this was written."""
    cases = others(name)
    for key, config in random.Random(name).sample(cases, min(3 if "KDPM2" in name else 6, len(cases))):
        found = outcome(name, config)
        named = key in found or "first step" in found or "more image than noise" in found
        assert found == "same" or (found.startswith("refused") and named), (key, config, found)


FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
        ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}),
        ("UniPCMultistepScheduler", {"use_exponential_sigmas": True}),
        ("DPMSolverMultistepScheduler", FLOW),
        ("DEISMultistepScheduler", FLOW),
    ],
)
def test_networks_get_the_timesteps_that_diffusers_rounds(name: str, config: dict[str, Any]) -> None:
    assert outcome(name, config) == "same"


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("DDPMScheduler", {"variance_type": "fixed_large_log"}, "variance_type = 'fixed_large_log' does not work"),
        ("DDPMScheduler", {"variance_type": "learned"}, "variance_type='learned' is not covered"),
        ("DDPMScheduler", {"variance_type": "larned"}, "variance_type = 'larned' is not usable"),
        ("DDPMScheduler", {"steps_offset": 700}, "steps_offset = 700 does not work"),
        ("DDIMScheduler", {"beta_schedule": "laplace"}, "beta_schedule = 'laplace' does not work"),
        ("DDIMScheduler", {"beta_start": 0.05}, "beta_start = 0.05 is above beta_end = 0.02"),
        (
            "DDIMScheduler",
            {"trained_betas": [0.1, 0.2]},
            "trained_betas has 2 entries, num_train_timesteps is 1000",
        ),
        ("DDIMScheduler", {"timestep_spacing": "Leading"}, "timestep_spacing = 'Leading' is not usable"),
        ("DDIMScheduler", {"sample_max_value": 0.5}, "sample_max_value = 0.5 is not usable"),
        ("PNDMScheduler", {"prediction_type": "sample"}, "prediction_type = 'sample' does not work"),
        ("UniPCMultistepScheduler", {"lower_order_final": False}, "lower_order_final = False does not work"),
        ("UniPCMultistepScheduler", {"shift_terminal": 0.1}, "shift_terminal = 0.1 does not work"),
        ("UniPCMultistepScheduler", {"solver_type": "bh3"}, "solver_type = 'bh3' is not usable"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver"}, "algorithm_type = 'dpmsolver' does not"),
        ("UniPCMultistepScheduler", {"use_dynamic_shifting": True}, "use_dynamic_shifting = True does not"),
        ("DPMSolverMultistepScheduler", {"use_lu_lambda": True}, "use_lu_lambda = True is no setting"),
        (
            "EulerDiscreteScheduler",
            {"use_karras_sigmas": True, "use_beta_sigmas": True},
            "use_karras_sigmas = True or",
        ),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous"}, "timestep_type = 'continuous' is not covered"),
        ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}, "invert_sigmas = True is not covered"),
        ("EDMEulerScheduler", {"sigma_schedule": "linear"}, "sigma_schedule = 'linear' is not usable"),
        # Keys of other classes that would change what the network means.
        ("PNDMScheduler", {"rescale_betas_zero_snr": True}, "PNDMScheduler has no rescale_betas_zero_snr"),
        ("DDIMScheduler", {"use_flow_sigmas": True}, "DDIMScheduler has no use_flow_sigmas"),
        ("DDIMScheduler", {"shift": 3.0}, "DDIMScheduler has no shift"),
        ("FlowMatchEulerDiscreteScheduler", {"prediction_type": "v_prediction"}, "has no prediction_type"),
        (
            "DDPMScheduler",
            {"predict_epsilon": False, "prediction_type": "epsilon"},
            "predict_epsilon = false means",
        ),
        ("DDPMScheduler", {"clip_samples": False}, "clip_samples = False is no setting of DDPMScheduler"),
        ("DDPMScheduler", {"mean_type": "x0"}, "mean_type = 'x0' is no setting of DDPMScheduler"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(name: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        sampler_from_diffusers(scheduler_of({"_class_name": name, **config}, FILE))


NUMBERS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("DDIMScheduler", {"num_train_timesteps": 1000.0}, {"num_train_timesteps": 1000}),
    ("DDIMScheduler", {"num_train_timesteps": "500"}, {"num_train_timesteps": 500}),
    ("DDIMScheduler", {"beta_end": "0.03"}, {"beta_end": 0.03}),
    ("DDIMScheduler", {"clip_sample": "false"}, {"clip_sample": False}),
    ("DDIMScheduler", {"clip_sample": 0, "thresholding": 1}, {"clip_sample": False, "thresholding": True}),
    ("DDIMScheduler", {"clip_sample": None}, {"clip_sample": False}),
    ("DDIMScheduler", {"steps_offset": "1"}, {"steps_offset": 1}),
    ("DDPMScheduler", {"predict_epsilon": False}, {"prediction_type": "sample"}),
    ("DDPMScheduler", {"predict_epsilon": True, "tensor_format": "pt", "timestep_values": None}, {}),
    ("DDPMScheduler", {"trained_betas": [str(beta) for beta in WIDE_BETAS]}, {"trained_betas": WIDE_BETAS}),
    ("DDPMScheduler", {"_diffusers_version": "0.1.1", "use_karras_sigmas": False, "shift": 1.0}, {}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3.0}, {"solver_order": 3}),
    ("DPMSolverMultistepScheduler", {"lambda_min_clipped": "-inf"}, {}),
    ("EDMEulerScheduler", {"sigma_max": "40", "rho": 5}, {"sigma_max": 40.0, "rho": 5.0}),
]


@pytest.mark.parametrize(("name", "given", "meant"), NUMBERS)
def test_values_of_another_type_are_read(name: str, given: dict[str, Any], meant: dict[str, Any]) -> None:
    assert outcome(name, meant, given) == "same"


WRONG: list[tuple[str, Any]] = [
    ("num_train_timesteps", 1000.5),
    ("num_train_timesteps", "a thousand"),
    ("num_train_timesteps", None),
    ("num_train_timesteps", True),
    ("num_train_timesteps", [1000]),
    ("num_train_timesteps", float("nan")),
    ("num_train_timesteps", -1000),
    ("beta_start", float("nan")),
    ("beta_end", float("inf")),
    ("beta_end", None),
    ("beta_end", [0.02]),
    ("beta_end", 20),
    ("beta_schedule", None),
    ("beta_schedule", 3),
    ("clip_sample", "perhaps"),
    ("clip_sample", 2),
    ("clip_sample_range", 0),
    ("trained_betas", "linear"),
    ("trained_betas", [0.1, None]),
    ("steps_offset", -1),
    ("prediction_type", ["epsilon"]),
    ("dynamic_thresholding_ratio", 1.5),
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_values_without_a_meaning_are_refused(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{FILE}: {key}.* is not usable: ") as caught:
        scheduler_of({"_class_name": "DDIMScheduler", key: value}, FILE)
    assert len(str(caught.value)) < 400


def test_keys_of_another_class_without_effect_are_said() -> None:
    given = {"_class_name": "DPMSolverMultistepScheduler", "clip_sample": True, "skip_prk_steps": True}
    with pytest.warns(UserWarning, match="DPMSolverMultistepScheduler has no clip_sample = True, skip_prk_steps"):
        scheduler_of(given, FILE)
    with warnings.catch_warnings():  # the defaults of their class, as from_config keeps them
        warnings.simplefilter("error")
        scheduler_of({**given, "clip_sample": False, "skip_prk_steps": False, "set_alpha_to_one": False}, FILE)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, f"{FILE} has no _class_name"),
        ({"_class_name": 3}, "_class_name = 3 is no scheduler"),
        ({"_class_name": "UNet2DModel"}, "'UNet2DModel' is no scheduler"),
        ({"_class_name": "LCMScheduler"}, "a LCMScheduler does not show what the network was trained on"),
        ({"_class_name": "DDIMSchedulerr"}, "DDIMSchedulerr' is no scheduler"),
        ({"_class_name": "DDImScheduler"}, "did you mean 'DDIMScheduler'"),
    ],
)
def test_classes_that_are_none(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        scheduler_of(config, FILE)


def first_call(name: str, steps: int, options: dict[str, Any] | None = None, **config: Any) -> None:
    scheduler = scheduler_of({"_class_name": name, **config}, FILE)
    sampler, (process, _) = sampler_from_diffusers(scheduler, options), read_scheduler(scheduler)
    sampler.iterate(exact(process), torch.zeros(1, 2, 4, 4), steps)


COSINE = {"beta_schedule": "squaredcos_cap_v2"}
OFF: list[tuple[str, int, dict[str, Any]]] = [
    ("HeunDiscreteScheduler", 10, COSINE),
    ("HeunDiscreteScheduler", 50, COSINE),
    ("HeunDiscreteScheduler", 20, {**COSINE, "timestep_spacing": "trailing"}),
    ("HeunDiscreteScheduler", 20, {**COSINE, "prediction_type": "v_prediction"}),
    ("HeunDiscreteScheduler", 2, {}),
    ("KDPM2DiscreteScheduler", 10, COSINE),
    ("KDPM2AncestralDiscreteScheduler", 20, COSINE),
    ("PNDMScheduler", 50, {**COSINE, "timestep_spacing": "linspace"}),
]


@pytest.mark.parametrize(("name", "steps", "config"), OFF)
def test_a_first_step_that_goes_astray_is_refused(name: str, steps: int, config: dict[str, Any]) -> None:
    """And the advice works: with the setting that it names, or as many steps, the run starts."""
    with pytest.raises(ValueError, match=r"its first step leaves Gaussian data with .* times its spread") as caught:
        first_call(name, steps, **config)
    if setting := re.search(r"Make it with (\w+)='(\w+)'", str(caught.value)):
        first_call(name, steps, **{**config, setting[1]: setting[2]})
    else:
        more = re.search(r"Take (\d+) steps", str(caught.value))
        assert more is not None
        first_call(name, int(more[1]), **config)


@pytest.mark.parametrize(
    ("name", "steps", "config"),
    [
        *((name, 5, {}) for name in CLASSES if name != "PNDMScheduler"),
        ("PNDMScheduler", 10, {}),
        ("HeunDiscreteScheduler", 20, {**COSINE, "timestep_spacing": "leading"}),
        ("EulerDiscreteScheduler", 5, COSINE),
        ("DPMSolverMultistepScheduler", 5, COSINE),
        ("DDIMScheduler", 2, COSINE),
        ("KDPM2DiscreteScheduler", 100, COSINE),
    ],
)
def test_sound_first_steps_pass_without_a_word(name: str, steps: int, config: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        first_call(name, steps, **config)


def test_a_first_step_somewhat_off_is_said() -> None:
    with pytest.warns(UserWarning, match=r"with 1\.3\d times its spread.*timestep_spacing='leading'"):
        first_call("HeunDiscreteScheduler", 100, **COSINE)
    with pytest.warns(UserWarning, match="Leave out its options"):
        first_call("EulerDiscreteScheduler", 10, {"s_churn": 2.0}, timestep_spacing="leading")


FUZZED: list[tuple[str, dict[str, Any]]] = [
    ("DDPMScheduler", {"trained_betas": None, "variance_type": "fixed_small", "clip_sample": True}),
    ("DDIMScheduler", {"num_train_timesteps": 1000, "thresholding": False, "steps_offset": 0}),
    ("DPMSolverMultistepScheduler", {"solver_order": 2, "use_karras_sigmas": False, "solver_type": "midpoint"}),
    ("EulerDiscreteScheduler", {"beta_schedule": "scaled_linear", "beta_end": 0.012, "sigma_max": None}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "num_train_timesteps": 1000}),
    ("EDMEulerScheduler", {"sigma_data": 0.5, "rho": 7.0, "sigma_max": 80.0}),
]


@pytest.mark.filterwarnings("ignore")
def test_edited_configs_give_the_right_images_or_a_short_error() -> None:
    """60 edits, ten of each class: the images are those of diffusers with what the edited config says."""
    right = 0
    for number, (name, settings) in enumerate(FUZZED):
        whole = {"_class_name": name, "_diffusers_version": "0.30.0", **settings}
        for what, config in edited(number, whole, 10):
            found = fuzzed_outcome(name, config)
            assert found == "same" or (found.startswith("refused") and len(found) < 1500), (name, what, found)
            right += found == "same"
    assert 10 <= right <= 50


def fuzzed_outcome(name: str, config: dict[str, Any]) -> str:
    try:
        scheduler = scheduler_of(config, FILE)
    except ValueError as error:
        return f"refused: {error}"
    meant = {key: scheduler.config[key] for key in arguments(name) if key in config and key in scheduler.config}
    lost = [key for key in config if key in arguments(name) and key not in meant]
    assert not lost
    for key, value in meant.items():  # the value that was written, in its own type
        written = config[key]
        same = value == written or (isinstance(written, str) and float(written) == value)
        assert same or not (value or written), key
    return outcome(name, meant, config)
