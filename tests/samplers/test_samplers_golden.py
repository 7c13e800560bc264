"""Samplers, step by step, against recorded runs of their published implementations, in float64.

Every state of a trajectory is compared, not only the last. `--parity DIR` takes the files from DIR/samplers (or
DIR itself); the default is the subset in tests/golden. A file is either covered by a case below or listed as
belonging to a sampler that dinit does not have yet: an unlisted file fails.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from golden import CASES, TOLERANCES, Golden, LearnedRange, Levels, Pairs, covers, error
from score_sde_loop import ScoreSDE
from torch import Tensor

from dinit.diffusion import Denoised
from dinit.diffusion.continuous import EDM, GVP, VE, VP, LinearFlow, SubVP
from dinit.diffusion.discrete import VPDiscrete
from dinit.diffusion.process import Process
from dinit.samplers.grids.karras import Karras
from dinit.samplers.grids.log_snr import Exponential, LogSNR, Polyexponential
from dinit.samplers.grids.published import VPInSigma
from dinit.samplers.grids.respacing import Respaced
from dinit.samplers.grids.timesteps import Timesteps
from dinit.samplers.guidance.cfg import CFG
from dinit.samplers.guidance.clip import ClipX0
from dinit.samplers.multistep.dpmpp import DPMpp2M
from dinit.samplers.ode.ddim import DDIM
from dinit.samplers.ode.euler import Euler, Heun
from dinit.samplers.ode.flow import FlowEuler
from dinit.samplers.sde.ddpm import DDPM, ancestral_transition

# Published runs whose reference does something that dinit does not reproduce, and why.
NOT_COVERED = {
    "acc_problem_open": "a problem for measuring accuracy, not a run",
    "az_reab3_*": "its integral is scaled wrongly, which makes every order first order",
    "df_ddim_linspace": "diffusers steps to t - T // n, which is not the next level of this spacing",
    "df_euler_churn": "diffusers asks the network before the noise is raised, and not after",
    "df_sde_dpmpp_3m*": "a sign of its third-order term is wrong",
    "gmm_oracle": "tested in test_analytic",
}
TOLERANCES.update({"gd_ddim_cosine_*": 1e-9, "gd_ddpm_cosine*": 1e-9, "az_*": 1e-9})


# Cases of one family of solvers each, in files of their own beside this one.
for module in sorted(Path(__file__).parent.glob("cases_*.py")):
    importlib.import_module(module.stem)


def case_of(name: str) -> Callable[[Golden], Pairs] | None:
    """The case with the longest matching pattern; None where the longest is one of the not covered."""
    matching = [pattern for pattern in (*NOT_COVERED, *CASES) if fnmatch(name, pattern)]
    assert matching, f"golden file {name} is neither covered nor listed in NOT_COVERED"
    return CASES.get(max(matching, key=len))


def golden_files(folder: Path) -> list[Path]:
    inner = folder / "samplers"
    return sorted((inner if inner.is_dir() else folder).glob("*.safetensors"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden" in metafunc.fixturenames:
        files = golden_files(metafunc.config.getoption("--parity"))
        metafunc.parametrize("golden", [Golden(path) for path in files], ids=lambda golden: golden.name)


def test_golden(golden: Golden, record_property: Callable[[str, object], None]) -> None:
    case = case_of(golden.name)
    if case is None:
        pytest.skip(next(why for pattern, why in NOT_COVERED.items() if fnmatch(golden.name, pattern)))
    tolerance = max([1e-10, *(v for pattern, v in TOLERANCES.items() if fnmatch(golden.name, pattern))])
    worst = max(error(ours, theirs) for ours, theirs in case(golden))
    record_property("error", worst)
    assert worst <= tolerance


def test_the_shipped_files_cover_every_case() -> None:
    names = [path.stem for path in golden_files(Path(__file__).parents[1] / "golden")]
    assert {case_of(name) for name in names} >= set(CASES.values())


# --- guided-diffusion and DiT ------------------------------------------------------------------------------------


def chain(golden: Golden) -> VPDiscrete:
    given = golden.kwargs
    return VPDiscrete(given.get("schedule", "linear"), given.get("T", 1000))


def respaced(golden: Golden, process: Process) -> Tensor:
    grid = Respaced(golden.kwargs["respacing"])
    times = grid.times(process, grid.length or 0, process.t_min, 1.0)
    levels = (times.flip(0) * process.num_steps).round().long() - 1
    assert torch.equal(levels, golden["sched.timestep_map"])
    return times


@covers("gd_ddim_*")
def guided_diffusion_ddim(golden: Golden) -> Pairs:
    process, given = chain(golden), golden.kwargs
    clip = ClipX0() if given["clip_denoised"] else None
    ours = golden.run(DDIM(given["eta"]), process, respaced(golden, process), guidance=clip)
    return [(ours, golden["out.trajectory"])]


@covers("gd_ddpm_*")
def guided_diffusion_ddpm(golden: Golden) -> Pairs:
    process, given = chain(golden), golden.kwargs
    variance = {"FIXED_SMALL": "fixed-small", "FIXED_LARGE": "fixed-large", "LEARNED_RANGE": "learned-range"}
    variance["LEARNED"] = "learned"
    centre, width = (-4, 0.5) if given["model_var_type"] == "LEARNED" else (0, 1)
    label_scale = 1000 / given["T"] if given["rescale_timesteps"] else 1.0
    denoiser = LearnedRange(golden.mixture(process), label_scale, centre, width)
    clip = ClipX0() if given["clip_denoised"] else None
    sampler = DDPM(variance[given["model_var_type"]])
    return [(golden.run(sampler, denoiser, respaced(golden, process), guidance=clip), golden["out.trajectory"])]


@covers("dit_cfg3_dd?m_*")
def dit(golden: Golden) -> Pairs:
    process = chain(golden)
    denoiser = LearnedRange(golden.mixture(process))
    ancestral = "ddpm" in golden.name
    noise = golden["in.noise"][:, : len(golden["in.labels"])] if ancestral else None
    sampler = DDPM("learned-range") if ancestral else DDIM()
    guidance = CFG(golden.kwargs["cfg_scale"], channels=3)
    ours = golden.run(sampler, denoiser, respaced(golden, process), guidance=guidance, noise=noise)
    return [(ours, golden["out.trajectory"])]


@covers("gd_tables")
def guided_diffusion_tables(golden: Golden) -> Pairs:
    pairs = []
    for key, theirs in golden.under("sched.space_timesteps/").items():
        total, sections = key.split("/")
        grid = Respaced(sections)
        levels = grid.timesteps(int(total[1:]), grid.length or 0)
        pairs.append((torch.tensor(levels), theirs))
    for key, theirs in golden.under("sched.betas/").items():
        schedule, total = key.split("/")
        pairs.append((betas_of(VPDiscrete(schedule, int(total[1:]))), theirs))  # type: ignore[arg-type]
    for schedule in ("linear", "cosine"):
        for sections in ("25", "ddim10"):
            theirs = golden.under(f"sched.respaced/{schedule}/{sections}/")
            pairs += respaced_tables(VPDiscrete(schedule), sections, theirs)  # type: ignore[arg-type]
    return pairs


def betas_of(process: VPDiscrete) -> Tensor:
    alpha_bar = process.alphas**2
    return 1 - alpha_bar / torch.cat([torch.ones(1), alpha_bar[:-1]])


def respaced_tables(process: VPDiscrete, sections: str, theirs: dict[str, Tensor]) -> Pairs:
    """The posterior's coefficients, read off our step from (x_t, x0) = (0, 1) and (1, 0)."""
    grid = Respaced(sections)
    times = grid.times(process, grid.length or 0, process.t_min, 1.0)
    levels = process.scales(torch.cat([times, torch.zeros(1)])).unbind()
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    rows = []
    for t, s in itertools.pairwise(levels):
        coef1, std = ancestral_transition(Denoised(zero, one, t), t, s, "fixed-small")
        coef2, large = ancestral_transition(Denoised(one, zero, t), t, s, "fixed-large")
        rows.append(torch.stack([t.alpha**2, large**2, coef1, coef2, std**2]))
    names = ("alphas_cumprod", "betas", "posterior_mean_coef1", "posterior_mean_coef2", "posterior_variance")
    ours = torch.stack(rows).flip(0).T
    return [(row, theirs[name]) for row, name in zip(ours, names, strict=True)]


@covers("dit_beta_tables")
def dit_betas(golden: Golden) -> Pairs:
    theirs = golden.under("sched.betas/")
    linear, cosine = betas_of(VPDiscrete("linear")), betas_of(VPDiscrete("squared-cosine"))
    return [(linear, theirs["linear"]), (cosine, theirs["squaredcos_cap_v2"])]


# --- score_sde ---------------------------------------------------------------------------------------------------


@covers("sde_pc_vp_ancestral")
def score_sde_ancestral(golden: Golden) -> Pairs:
    """Run with labels of the discrete chain, this is DDPM on it."""
    n = golden.kwargs["N"]
    process = VPDiscrete("linear", n, beta_start=0.1 / n, beta_end=20 / n)
    times = torch.arange(n, 0, -1, dtype=torch.float64) / n
    ours = golden.run(DDPM("fixed-large"), process, times, initial_state=golden["in.prior_noise"])
    return [(ours[1:-1], golden["out.trajectory"][:-1]), (ours[-1], golden["out.final"])]


@covers("sde_pc_*")
def score_sde(golden: Golden) -> Pairs:
    given = golden.kwargs
    process = {"vp": VP(), "subvp": SubVP(), "ve": VE()}[given["sde"]]
    predictor, corrector = (
        golden.metadata["function"].split(f"{kind}=")[1].split(",")[0].rstrip(")").replace("_", "-")
        for kind in ("predictor", "corrector")
    )
    sampler = ScoreSDE(
        process,
        num_scales=given["N"],
        predictor=predictor.removesuffix("-sampling"),  # type: ignore[arg-type]
        corrector={"ald": "annealed"}.get(corrector, corrector),  # type: ignore[arg-type]
        snr=given["snr"],
        corrector_steps=given["n_steps"],
        denoise=given["denoise"],
        probability_flow=given["probability_flow"],
    )
    prior = golden["in.prior_noise"] * process.prior_std(process.scales(1.0))
    ours = golden.run(sampler, process, sampler.times(given["eps"]), initial_state=prior, end="state")
    # Their trajectory leaves out the start, and its last state is the noisy one even where the mean is returned.
    return [(ours[1:-1], golden["out.trajectory"][:-1]), (ours[-1], golden["out.final"])]


# --- EDM and k-diffusion -----------------------------------------------------------------------------------------


@covers("edm_heun_*")
def edm(golden: Golden) -> Pairs:
    given = {"num_steps": 18, "rho": 7, "sigma_min": 0.002, "sigma_max": 80, **golden.kwargs}
    process = EDM(given["sigma_min"], given["sigma_max"])
    times = Karras(given["rho"]).times(process, given["num_steps"], process.t_min, 1.0)
    ours = golden.run(Heun(), process, times, initial_state=golden["in.latents"] * process.sigma_max)
    return [(times * process.sigma_max, golden["sched.t_steps"][:-1]), (ours, golden["out.trajectory"])]


@covers("k_euler_karras12", "k_heun_*", "k_dpmpp_2m_*")
def k_diffusion(golden: Golden) -> Pairs:
    process = EDM(0.01, 80.0)
    solver = {"euler": Euler(), "heun": Heun(), "dpmpp": DPMpp2M()}[golden.name.split("_")[1]]
    kind, given = golden.kwargs["sigmas"]
    theirs = golden["sched.sigmas"][:-1]
    grids = {"karras": Karras(), "exponential": LogSNR()}
    if kind in grids:
        times = grids[kind].times(process, given["n"], process.t_min, 1.0)
    else:
        times = theirs / process.sigma_max
    ours = golden.run(solver, process, times)
    return [(times * process.sigma_max, theirs), (ours, golden["out.trajectory"])]


@covers("k_schedules_wrappers")
def k_schedules(golden: Golden) -> Pairs:
    grids = {"karras": Karras(), "karras_rho5": Karras(5.0), "exponential": Exponential()}
    grids |= {"polyexponential_rho1.3": Polyexponential(1.3), "vp": VPInSigma()}
    pairs = []
    for name, grid in grids.items():
        for count, theirs in golden.under(f"sched.{name}/n").items():
            process = EDM(float(theirs[-2]), float(theirs[0]))
            times = grid.times(process, int(count), process.t_min, 1.0)
            pairs.append((times * process.sigma_max, theirs[:-1]))
    assert pairs
    return pairs


# --- diffusers ---------------------------------------------------------------------------------------------------


def diffusers_process(golden: Golden) -> VPDiscrete:
    given = golden.kwargs["full_config"]
    schedule = {"squaredcos_cap_v2": "squared-cosine"}.get(given["beta_schedule"], given["beta_schedule"])
    ends = {} if schedule == "squared-cosine" else {k: given[k] for k in ("beta_start", "beta_end")}
    zero = given.get("rescale_betas_zero_snr", False)
    return VPDiscrete(schedule.replace("_", "-"), **ends, zero_terminal_snr=zero)


def diffusers_times(golden: Golden, process: Process) -> Tensor:
    given = golden.kwargs
    spacing = given["full_config"]["timestep_spacing"]
    grid = Timesteps(spacing, given["full_config"].get("steps_offset", 0) if spacing == "leading" else 0)
    times = grid.times(process, given["num_inference_steps"], process.t_min, 1.0)
    assert torch.equal((times * 1000 - 1).round(), golden["sched.timesteps"])
    return times


@covers("df_ddim_*")
def diffusers_ddim(golden: Golden) -> Pairs:
    process, config = diffusers_process(golden), golden.kwargs["full_config"]
    times = diffusers_times(golden, process)
    end = "posterior-mean"
    if not config["set_alpha_to_one"]:  # the last step then goes to the cleanest level
        times, end = torch.cat([times, times.new_tensor([process.t_min])]), "state"
    sampler = DDIM(golden.kwargs["step_kwargs"].get("eta", 0.0))
    clip = ClipX0() if config["clip_sample"] else None
    return [(golden.run(sampler, process, times, guidance=clip, end=end), golden["out.trajectory"])]


@covers("df_ddpm_*")
def diffusers_ddpm(golden: Golden) -> Pairs:
    process, config = diffusers_process(golden), golden.kwargs["full_config"]
    sampler = DDPM(config["variance_type"].replace("_", "-"))
    ours, theirs = golden.run(sampler, process, diffusers_times(golden, process)), golden["out.trajectory"]
    if config["timestep_spacing"] == "trailing":
        # diffusers takes the last step to clean data from a level above 0, and adds noise to the sample.
        return [(ours[:-1], theirs[:-1]), (ours[-1], golden["out.pred_x0_per_call"][-1])]
    return [(ours, theirs)]


@covers("df_dpmpp_1m", "df_dpmpp_2m*")
def diffusers_dpmpp(golden: Golden) -> Pairs:
    process, config = diffusers_process(golden), golden.kwargs["full_config"]
    times = process.time_of_noise_level(golden["sched.model_sigma"] / golden["sched.model_alpha"])
    order = 1 if golden.name.endswith("1m") else 2
    sampler = DPMpp2M(config["solver_type"], order)
    if config["final_sigmas_type"] == "zero":
        return [(golden.run(sampler, process, times), golden["out.trajectory"])]
    # Here they end at a level above 0, by a step of first order.
    assert config["euler_at_final"]
    last = process.time_of_noise_level(golden["sched.sigmas"][-1:])
    ours = golden.run(sampler, process, times, end="state")
    tail = golden.run(DPMpp2M(order=1), process, torch.cat([times[-1:], last]), initial_state=ours[-1], end="state")
    return [(torch.cat([ours, tail[1:]]), golden["out.trajectory"])]


@covers("df_edm_euler", "df_edm_dpmpp2m")
def diffusers_edm(golden: Golden) -> Pairs:
    process = EDM(0.002, 80.0)
    times = Karras().times(process, golden.kwargs["num_inference_steps"], process.t_min, 1.0)
    sampler = Euler() if golden.name.endswith("euler") else DPMpp2M()
    ours = golden.run(sampler, process, times)
    return [(times * 80, golden["sched.sigmas"][:-1]), (ours, golden["out.trajectory"])]


@covers("df_flow_euler_*")
def diffusers_flow(golden: Golden) -> Pairs:
    times = LinearFlow().time_of_noise_level(golden["sched.model_sigma"] / golden["sched.model_alpha"])
    theirs = golden["out.trajectory"]
    return [(golden.run(sampler, LinearFlow(), times), theirs) for sampler in (FlowEuler(), Euler(), DDIM())]


@covers("df_tables")
def diffusers_tables(golden: Golden) -> Pairs:
    """Betas, and the levels of the spacings that DDIM uses (the multistep classes have other tables)."""
    schedules = {"linear": "linear", "scaled_linear": "scaled-linear", "cosine": "squared-cosine"}
    pairs = []
    for name, schedule in schedules.items():
        betas = golden[f"sched.betas/{name}"]
        ends = {} if name == "cosine" else {"beta_start": float(betas[0]), "beta_end": float(betas[-1])}
        pairs.append((betas_of(VPDiscrete(schedule, **ends)), betas))  # type: ignore[arg-type]
        for spacing in ("leading", "trailing", "linspace"):
            for zero in (False, True):
                process = VPDiscrete(schedule, **ends, zero_terminal_snr=zero)  # type: ignore[arg-type]
                runs = golden.under(f"sched.DDIM/{name}/{spacing}/none/" + "zerosnr/" * zero + "n")
                for count in (10, 15):
                    times = Timesteps(spacing).times(process, count, process.t_min, 1.0)  # type: ignore[arg-type]
                    pairs.append(((1000 * times - 1).round(), runs[f"{count}/timesteps"].double()))
                    pairs.append((process.scales(times).alpha ** 2, runs[f"{count}/alphas_cumprod_at_t"]))
    return pairs


# --- SiT and flow_matching ---------------------------------------------------------------------------------------

PATHS = {"Linear": LinearFlow(), "GVP": GVP(), "VP": VP()}


@covers("sit_ode_*_euler", "sit_ode_*_heun2", "sit_cfg3_ode_euler")
def sit(golden: Golden) -> Pairs:
    given = golden.kwargs
    sampler = Euler() if given["sampling_method"] == "euler" else Heun()
    guidance = CFG(given["cfg_scale"], channels=3) if "cfg_scale" in given else None
    times = 1 - golden["sched.t_grid"]
    ours = golden.run(sampler, PATHS[given["path_type"]], times, guidance=guidance, end="state")
    return [(ours, golden["out.trajectory"])]


@covers("sit_path_tables")
def sit_paths(golden: Golden) -> Pairs:
    pairs = []
    for name, process in PATHS.items():
        k = process.scales(1 - golden["sched.t"])
        theirs = golden.under(f"sched.{name}/")
        pairs += [(k.alpha, theirs["alpha"]), (k.sigma, theirs["sigma"])]
        # Their time runs the other way.
        pairs += [(-k.d_alpha, theirs["d_alpha"]), (-k.d_sigma, theirs["d_sigma"])]
        pairs += [(-process.drift(k.time), theirs["d_alpha_over_alpha"])]
    return pairs


@covers("fm_euler_*")
def flow_matching(golden: Golden) -> Pairs:
    given = golden.kwargs
    process = {"CondOTScheduler": LinearFlow(), "VPScheduler": VP()}[given["scheduler"]]
    count = round(1 / given["step_size"])
    times = torch.linspace(1, 0, count + 1, dtype=torch.float64)
    ours = golden.run(Euler(), process, times, end="state")
    every = count // (len(given["time_grid"]) - 1)
    return [(ours[::every], golden["out.trajectory"])]


@covers("fm_path_tables")
def flow_matching_paths(golden: Golden) -> Pairs:
    pairs = []
    for name, process in {"CondOT": LinearFlow(), "Cosine": GVP(), "VP": VP()}.items():
        k = process.scales(1 - golden["sched.t"])
        theirs = golden.under(f"sched.{name}/")
        pairs += [(k.alpha, theirs["alpha_t"]), (k.sigma, theirs["sigma_t"])]
        pairs += [(-k.d_alpha, theirs["d_alpha_t"]), (-k.d_sigma, theirs["d_sigma_t"])]
        back = process.time_of(2 * (k.alpha / k.sigma).log())
        pairs.append((1 - back, theirs["snr_inverse_of_alpha_over_sigma"]))
    return pairs


# --- azula -------------------------------------------------------------------------------------------------------


@covers("az_euler_vp", "az_ddpm_*", "az_cfg_ddim_*")
def azula(golden: Golden) -> Pairs:
    process = Levels(golden["sched.t"], golden["sched.alpha"], golden["sched.sigma"])
    sampler = DDPM() if "ddpm" in golden.name else DDIM()
    guidance = CFG(1 + golden.kwargs["guidance"]) if golden.kwargs["guidance"] else None
    if guidance:  # their guided model has no null class among its labels: they wrap round
        golden.tensors["in.labels"] = golden["in.labels"] % golden.mixture(process).num_classes
    ours = golden.run(sampler, process, golden["sched.t"], guidance=guidance, end="state")
    return [(ours, golden["out.trajectory"])]


@covers("az_heun_rectified")
def azula_heun(golden: Golden) -> Pairs:
    """Their Heun steps x / alpha in sigma / alpha, which is ours on EDM's process."""
    alpha, sigma = golden["sched.alpha"], golden["sched.sigma"]
    level = sigma / alpha
    process = EDM(1e-6, float(level[0]))
    ours = golden.run(Heun(), process, level / level[0], initial_state=golden["in.x_init"] / alpha[0], end="state")
    return [(ours * alpha.reshape(-1, 1, 1, 1, 1), golden["out.trajectory"])]
