"""What the golden suite reads of a file: other names, batches and settings are read; what a file lacks is named."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import Golden, NotCoveredError, case_of, compare
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dinit.diffusion import Process
from dinit.diffusion.continuous import EDM, GVP, VP
from dinit.diffusion.discrete import VPDiscrete
from dinit.models.analytic import MixtureDenoiser

FOLDER = Path(__file__).parents[1] / "golden" / "samplers"
F64 = torch.float64


def read(name: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        return file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def written(folder: Path, metadata: dict[str, str], tensors: dict[str, Tensor]) -> Golden:
    path = folder / "0f3a.safetensors"  # no name that tells anything
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
    return Golden(path)


def with_settings(metadata: dict[str, str], **changes: Any) -> dict[str, str]:
    """The metadata with other settings; None leaves one out. `full_config` is changed inside."""
    given = json.loads(metadata["kwargs"])
    for name, value in changes.items():
        inner = given["full_config"] if name in given.get("full_config", {}) else given
        inner[name] = value
    return {**metadata, "kwargs": json.dumps(given)}


def rows_of(key: str, tensor: Tensor, rows: list[int]) -> Tensor:
    """The samples `rows` of a tensor that holds a batch."""
    if not key.startswith(("in.", "out.")):
        return tensor
    by_step = key in ("in.noise", "out.trajectory", "out.pred_xstart", "out.pred_x0_per_call", "out.denoised")
    return tensor[:, rows] if by_step else tensor[rows]


ROWS = {"two of them": [2, 0], "in another order": [3, 1, 2, 0, 1]}
INDEPENDENT = (
    "gd_ddpm_25_learnedrange",
    "gd_ddim_linear_20_condscore",
    "dit_cfg3_ddim_20",
    "df_dpmpp_2m",
    "df_ddim_clip_reeps",
    "df_sde_dpm_2m",
    "az_ddpm_cosine",
    "edm_heun_10_rho5",
    "k_heun_karras12",
    "sde_pc_subvp_em",
    "sit_ode_vp_velocity_heun2",
    "fm_euler_vp",
)


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("name", INDEPENDENT)
def test_other_batches_under_another_name(name: str, rows: list[int], tmp_path: Path) -> None:
    metadata, tensors = read(name)
    metadata.pop("case", None)
    chosen = {key: rows_of(key, t, rows) for key, t in tensors.items()}
    assert compare(written(tmp_path, metadata, chosen)) < 1e-9


# --- the same kinds of run with other settings, from loops of their own ---


class Run:
    """A start, a mixture and what a file of a run holds besides them."""

    def __init__(self, process: Process, batch: int = 3) -> None:
        _, tensors = read("k_heun_karras12")
        self.prior = {key: t for key, t in tensors.items() if key.startswith("gmm.")}
        self.model = MixtureDenoiser(
            process, *(self.prior[f"gmm.{k}"] for k in ("means", "var", "weights", "comp_class"))
        )
        generator = torch.Generator().manual_seed(5)
        self.labels = torch.arange(batch) % (self.model.num_classes + 1)
        self.z = torch.randn(batch, *self.model.means.shape[1:], generator=generator, dtype=F64)
        self.cond = self.model.condition(self.labels, batch)

    def x0(self, x: Tensor, t: Tensor) -> Tensor:
        return self.model(x, t, self.cond).x0

    def tensors(self, states: list[Tensor], **more: Tensor) -> dict[str, Tensor]:
        named = {key.replace("__", "."): value for key, value in more.items()}
        ends = {"in.labels": self.labels, "out.trajectory": torch.stack(states), "out.final": states[-1].clone()}
        return {**self.prior, **ends, **named}


def ddim_of_800_timesteps() -> tuple[str, str, dict[str, Any], dict[str, Tensor]]:
    """guided-diffusion's, from every hundredth timestep of a cosine chain of 800."""
    run, timesteps = Run(VPDiscrete("cosine", 800)), list(range(0, 800, 100))
    alpha_bar = torch.cat([torch.ones(1, dtype=F64), run.model.process.alphas[timesteps] ** 2])
    states = [run.z]
    for i in range(len(timesteps), 0, -1):
        now, to = alpha_bar[i], alpha_bar[i - 1]
        x0 = run.x0(states[-1], torch.tensor((timesteps[i - 1] + 1) / 800, dtype=F64))
        eps = (states[-1] - now.sqrt() * x0) / (1 - now).sqrt()
        states.append(to.sqrt() * x0 + (1 - to).sqrt() * eps)
    settings = {"T": 800, "schedule": "cosine", "respacing": "ddim8", "eta": 0.0, "clip_denoised": False}
    more = {"sched__timestep_map": torch.tensor(timesteps), "sched__alphas_cumprod": alpha_bar[1:]}
    return (
        "openai/guided-diffusion",
        "SpacedDiffusion.ddim_sample_loop_progressive",
        settings,
        run.tensors(states, in__x_init=run.z, **more),
    )


def euler_of_another_range() -> tuple[str, str, dict[str, Any], dict[str, Tensor]]:
    """k-diffusion's, on a Karras grid of rho 4 from 30 to 0.05."""
    run, count = Run(EDM(0.05, 30.0)), 9
    ends = [30.0**0.25, 0.05**0.25]
    sigmas = torch.linspace(*ends, count, dtype=F64) ** 4
    sigmas = torch.cat([sigmas, sigmas.new_zeros(1)])
    states = [run.z * 30]
    for now, to in itertools.pairwise(sigmas):
        x0 = run.x0(states[-1], now / 30)
        states.append(x0 + to / now * (states[-1] - x0))
    settings = {"sigmas": ["karras", {"n": count, "sigma_min": 0.05, "sigma_max": 30.0, "rho": 4.0}]}
    return (
        "crowsonkb/k-diffusion",
        "sample_euler",
        settings,
        run.tensors(states, in__x_init=states[0], sched__sigmas=sigmas),
    )


def velocity_of_another_path() -> tuple[str, str, dict[str, Any], dict[str, Tensor]]:
    """SiT's, by Euler's method on the trigonometric path in 6 steps; its time runs from noise."""
    run, grid = Run(GVP(), batch=2), torch.linspace(0, 1, 7, dtype=F64)
    states, half = [run.z], math.pi / 2
    for now, to in itertools.pairwise(grid):
        x0, (a, s) = run.x0(states[-1], 1 - now), (torch.sin(half * now), torch.cos(half * now))
        velocity = half * (s * x0 - a * (states[-1] - a * x0) / s)
        states.append(states[-1] + (to - now) * velocity)
    settings = {"path_type": "GVP", "prediction": "velocity", "sampling_method": "euler", "num_steps": 7}
    return "willisma/SiT", "Sampler.sample_ode", settings, run.tensors(states, in__x_init=run.z, sched__t_grid=grid)


def probability_flow_of_another_range() -> tuple[str, str, dict[str, Any], dict[str, Tensor]]:
    """score_sde's, by Euler's method with a step of 1/N on VP from 0.3 to 12."""
    run, n, low, high = Run(VP(0.3, 12.0)), 15, 0.3, 12.0
    times = torch.linspace(1, 1e-2, n, dtype=F64)
    log_alpha = -(times**2) * (high - low) / 4 - times * low / 2
    alpha, sigma = log_alpha.exp(), (1 - (2 * log_alpha).exp()).sqrt()
    states = [run.z]
    for t, a, s in zip(times, alpha, sigma, strict=True):
        score = (a * run.x0(states[-1], t) - states[-1]) / s**2
        beta = low + t * (high - low)
        states.append(states[-1] + (beta * states[-1] / 2 + beta * score / 2) / n)
    settings = {"sde": "vp", "N": n, "eps": 1e-2, "snr": 0.1, "n_steps": 1, "continuous": True, "denoise": True}
    settings |= {"probability_flow": True, "beta_min": low, "beta_max": high}
    tensors = run.tensors(states[1:], in__prior_noise=run.z, in__noise=torch.zeros(n, *run.z.shape, dtype=F64))
    levels = {"sched.t": times, "sched.alpha": alpha, "sched.sigma": sigma}
    function = "get_pc_sampler(predictor=euler_maruyama, corrector=none)"
    return "yang-song/score_sde_pytorch", function, settings, {**tensors, **levels}


MADE: tuple[Callable[[], tuple[str, str, dict[str, Any], dict[str, Tensor]]], ...] = (
    ddim_of_800_timesteps,
    euler_of_another_range,
    velocity_of_another_path,
    probability_flow_of_another_range,
)


@pytest.mark.parametrize("make", MADE, ids=lambda make: make.__name__)
def test_other_settings_from_loops_of_their_own(make: Callable, tmp_path: Path) -> None:
    reference, function, settings, tensors = make()
    metadata = {"reference": reference, "function": function, "kwargs": json.dumps(settings)}
    assert compare(written(tmp_path, metadata, tensors)) < 1e-9


# --- a setting that is not the run's is noticed ---


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gd_ddim_linear_20_eta05", {"eta": 0.4}),
        ("gd_ddim_linear_20_eta05", {"respacing": "21"}),
        ("gd_ddim_linear_20_eta05", {"schedule": "cosine"}),
        ("gd_ddim_linear_20_clip", {"clip_denoised": False}),
        ("gd_ddpm_25_learnedrange", {"model_var_type": "FIXED_SMALL"}),
        ("gd_ddim_linear_20_condscore", {"cond_fn": "1.4*(score(x|y)-score(x)), model unconditional"}),
        ("dit_cfg3_ddim_20", {"cfg_scale": 3.9}),
        ("df_dpmpp_2m", {"solver_order": 1}),
        ("df_dpmpp_2m", {"beta_end": 0.03}),
        ("df_dpmpp_2m_heun", {"solver_type": "midpoint"}),
        ("df_ddim_trailing", {"timestep_spacing": "leading"}),
        ("df_dpmpp_2m_zerosnr_trailing_v", {"rescale_betas_zero_snr": False}),
        ("edm_heun_10_rho5", {"rho": 7}),
        ("edm_heun_10_rho5", {"sigma_max": 41}),
        ("k_lms_order3_vp12", {"order": 4}),
        ("k_dpmpp_2m_karras12", {"sigmas": ["karras", {"n": 12, "sigma_min": 0.01, "sigma_max": 70.0}]}),
        ("sde_pc_subvp_em", {"beta_max": 19.0}),
        ("sit_ode_vp_velocity_heun2", {"sampling_method": "euler"}),
        ("sit_ode_gvp_velocity_heun2", {"path_type": "Linear"}),
        ("fm_euler_vp", {"scheduler": "CosineScheduler"}),
        ("az_vab3_decay", {"order": 2}),
    ],
)
def test_a_setting_that_is_not_the_runs_is_noticed(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    metadata, tensors = read(name)
    with pytest.raises((AssertionError, ValueError)):
        compare(written(tmp_path, with_settings(metadata, **changes), tensors))


# --- what a file lacks, and what nobody reads ---


def without(mapping: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in mapping.items() if k != key}


@pytest.mark.parametrize(
    ("name", "part", "key", "named"),
    [
        ("k_heun_karras12", "tensors", "in.x_init", "'in.x_init'"),
        ("k_heun_karras12", "tensors", "out.trajectory", "'out.trajectory'"),
        ("df_dpmpp_2m", "tensors", "sched.sigmas", "'sched.sigmas'"),
        ("edm_heun_18", "tensors", "gmm.means", "'gmm.means'"),
        ("sde_pc_subvp_em", "tensors", "in.prior_noise", "'in.prior_noise'"),
        ("gd_ddpm_25_fixedsmall", "metadata", "function", "'function'"),
        ("gd_ddpm_25_fixedsmall", "metadata", "reference", "'reference'"),
        ("gd_ddpm_25_fixedsmall", "metadata", "kwargs", "'kwargs'"),
        ("gd_ddpm_25_fixedsmall", "settings", "model_var_type", "'model_var_type'"),
        ("sit_ode_vp_velocity_heun2", "settings", "path_type", "'path_type'"),
    ],
)
def test_what_a_file_lacks_is_named(name: str, part: str, key: str, named: str, tmp_path: Path) -> None:
    metadata, tensors = read(name)
    if part == "tensors":
        tensors = without(tensors, key)
    elif part == "metadata":
        metadata = without(metadata, key)
    else:
        metadata["kwargs"] = json.dumps(without(json.loads(metadata["kwargs"]), key))
    with pytest.raises(ValueError, match=rf"0f3a\.safetensors: its .* have no {named}; there are: "):
        compare(written(tmp_path, metadata, tensors))


def test_damaged_files_and_numbers_are_named(tmp_path: Path) -> None:
    metadata, tensors = read("k_heun_karras12")
    broken = {**tensors, "out.trajectory": tensors["out.trajectory"].clone()}
    broken["out.trajectory"][3, 0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match=r"0f3a\.safetensors: 'out\.trajectory' holds a NaN"):
        compare(written(tmp_path, metadata, broken))
    with pytest.raises(ValueError, match=r"out\.final is not the last state of out\.trajectory"):
        compare(written(tmp_path, metadata, {**tensors, "out.final": tensors["out.final"] + 1e-6}))
    with pytest.raises(ValueError, match="its kwargs are no JSON"):
        compare(written(tmp_path, {**metadata, "kwargs": "{'n': 12"}, tensors))
    golden = written(tmp_path, metadata, tensors)
    golden.path.write_bytes(golden.path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"0f3a\.safetensors is damaged"):
        compare(golden)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("k_heun_karras12", {"function": "sample_heunpp2"}, "no case reads this function of crowsonkb/k-diffusion"),
        ("k_heun_karras12", {"reference": "somebody/else"}, "no case reads this function of somebody/else"),
        ("df_dpmpp_2m", {"function": "TCDScheduler"}, "no case reads this function of huggingface/diffusers"),
    ],
)
def test_a_function_that_no_case_reads(name: str, change: dict[str, str], reason: str, tmp_path: Path) -> None:
    metadata, tensors = read(name)
    golden = written(tmp_path, {**metadata, **change}, tensors)
    with pytest.raises(NotCoveredError, match=reason):
        case_of(golden)
    assert golden.description.startswith(f"{golden.metadata['reference']}: {golden.metadata['function']} {{")
    assert "0f3a" not in golden.description


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("gd_ddim_linear_20_condscore", {"cond_fn": "grad of a network"}, "a cond_fn that no case reads"),
        ("sit_ode_vp_velocity_heun2", {"path_type": "Cubic"}, "dinit has no path 'Cubic' of this program; it has"),
        ("df_dpmpp_2m", {"beta_schedule": "sigmoid"}, "dinit has no beta schedule 'sigmoid'"),
        ("fm_euler_vp", {"method": "explicit_adams"}, "dinit has no solver 'explicit_adams'"),
    ],
)
def test_a_setting_that_dinit_does_not_have(name: str, changes: dict, reason: str, tmp_path: Path) -> None:
    metadata, tensors = read(name)
    with pytest.raises(NotCoveredError, match=reason):
        compare(written(tmp_path, with_settings(metadata, **changes), tensors))
