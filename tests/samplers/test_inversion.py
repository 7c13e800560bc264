"""Round trips through the noise: exact where claimed, of the right order elsewhere, refused where neither."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dinit.diffusion import PROCESSES, Process
from dinit.models.analytic import GaussianDenoiser, MixtureDenoiser
from dinit.samplers import SAMPLERS, Sampler
from dinit.samplers.guidance import apply_guidance
from dinit.samplers.guidance.cads import CADS
from dinit.samplers.guidance.cfg import CFG
from dinit.samplers.inversion.bdia import BDIADDIM, BDIAEDM
from dinit.samplers.inversion.edict import EDICT
from dinit.samplers.inversion.invert import EITHER_WAY, DDIMInverse, Reversible, ascend, invert
from dinit.samplers.ode.ddim import DDIM

F64 = torch.float64
EXACT = [EDICT(), EDICT(0.93, "eps"), BDIADDIM(), BDIAEDM()]
LABELS = torch.tensor([0, 1, 2, 0])
BOUND = {torch.float32: 1e-5, F64: 1e-10}

processes = pytest.mark.parametrize("process", [PROCESSES.create(name) for name in PROCESSES], ids=repr)
exact = pytest.mark.parametrize("sampler", EXACT, ids=repr)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)


def mixture(process: Process) -> MixtureDenoiser:
    means = 0.6 * torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    return MixtureDenoiser(process, means, torch.full_like(means, 0.05), None, torch.tensor([0, 0, 1, 1]))


def noise(dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(1), dtype=F64).to(dtype)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp(min=1))


@processes
@exact
@dtypes
def test_sample_invert_sample(sampler: Sampler, process: Process, dtype: torch.dtype) -> None:
    """Noise comes back, and so does the sample."""
    model = mixture(process)
    run = list(sampler.iterate(model, noise(dtype), 20, labels=LABELS, end="state"))
    start = invert(sampler, model, run[-1].x_s, 20, labels=LABELS, state=run[-1].state)
    again = sampler.sample(
        model, noise(dtype), 20, labels=LABELS, initial_state=start.x, state=start.state, end="state"
    )
    assert start.x.dtype == again.dtype == dtype
    assert relative(start.x, run[0].x_t) < BOUND[dtype]
    assert relative(again, run[-1].x_s) < BOUND[dtype]


@processes
@exact
@dtypes
@pytest.mark.parametrize("steps", [7, 60])
def test_image_comes_back(sampler: Sampler, process: Process, dtype: torch.dtype, steps: int) -> None:
    model = mixture(process)
    x = model.sample(LABELS, torch.Generator().manual_seed(2)).to(dtype)
    start = invert(sampler, model, x, steps, labels=LABELS)
    again = sampler.sample(model, x, steps, labels=LABELS, initial_state=start.x, state=start.state, end="state")
    assert relative(again, x) < BOUND[dtype]
    assert relative(DDIM().sample(model, x, steps, labels=LABELS, initial_state=start.x, end="state"), x) > 1e-3


@exact
@pytest.mark.parametrize("name", ["vp", "flow", "gvp", "vp-discrete"])
def test_exact_down_to_clean_data(sampler: Sampler, name: str) -> None:
    """From alpha = 0 (flow, gvp) to sigma = 0."""
    process = PROCESSES.create(name)
    model, grid = mixture(process), torch.linspace(1, 0, 21, dtype=F64)
    run = list(sampler.iterate(model, noise(), grid=grid, labels=LABELS, end="state"))
    start = invert(sampler, model, run[-1].x_s, grid=grid, labels=LABELS, state=run[-1].state)
    assert relative(start.x, run[0].x_t) < 1e-9


@exact
def test_exact_under_guidance_and_condition_noise(sampler: Sampler) -> None:
    """CADS draws another noise at every step: inversion must hear that of the same step."""
    model = apply_guidance(mixture(PROCESSES.create("vp")), [CFG(2.0), CADS(0.3, 0.9)])
    run = list(sampler.iterate(model, noise(), 20, labels=[0, 1, 0, 1], end="state", seed=5))
    start = invert(sampler, model, run[-1].x_s, 20, labels=[0, 1, 0, 1], state=run[-1].state, seed=5)
    assert relative(start.x, run[0].x_t) < 1e-9


@processes
@pytest.mark.parametrize("sampler", [DDIMInverse(), *(kind() for kind in EITHER_WAY), *EXACT[2:]], ids=repr)
def test_order_upwards(sampler: Sampler, process: Process) -> None:
    """The noise that a solver finds converges to the exact flow's, at the solver's order."""
    model = GaussianDenoiser(process, 0.3, 0.5, (1, 2, 2))
    x = model.flow(noise()[:, :, :2, :2] * process.prior_std(process.scales(0.95)), 0.95, 0.05)
    right = model.flow(x, 0.05, 0.95)
    errors = []
    for n in (64, 256):
        grid = torch.linspace(0.95, 0.05, n + 1, dtype=F64)
        errors.append(relative(invert(sampler, model, x, grid=grid).x, right))
    assert math.log(errors[0] / errors[1], 4) > sampler.claims().order - 0.35 or errors[1] < 1e-12


@pytest.mark.parametrize("name", ["vp", "edm", "flow"])
@pytest.mark.parametrize("sampler", [EDICT(), BDIADDIM(), BDIAEDM()], ids=repr)
def test_noise_of_images_is_right_at_any_number_of_steps(sampler: Sampler, name: str) -> None:
    """No parasitic mode grows: more steps come nearer to the exact flow's noise."""
    model = mixture(PROCESSES.create(name))
    x = model.sample(LABELS, torch.Generator().manual_seed(2))
    exact_noise = invert("rk4", model, x, 200, labels=LABELS, grid="log-snr").x
    few, many = (relative(invert(sampler, model, x, n, labels=LABELS).x, exact_noise) for n in (20, 300))
    assert many < 0.03
    assert few < 0.5


@pytest.mark.parametrize("name", ["vp", "flow"])
def test_fixed_point_iteration_inverts_ddim(name: str) -> None:
    process = PROCESSES.create(name)
    model, errors = mixture(process), []
    x = model.sample(LABELS, torch.Generator().manual_seed(2))
    for iterations in (0, 3, 60):
        start = invert(DDIMInverse(iterations), model, x, 30, labels=LABELS)
        assert start.nfe == 29 * max(1, iterations)
        errors.append(relative(DDIM().sample(model, x, 30, labels=LABELS, initial_state=start.x, end="state"), x))
    assert errors[0] > 1e-2
    assert errors[1] < 0.3 * errors[0]
    assert errors[2] < 1e-9


def test_plain_edict_equals_ddim_where_the_states_agree() -> None:
    """With one step and mixing 1, x is DDIM's x_s, whatever the network's form."""
    model, grid = mixture(PROCESSES.create("vp")), torch.tensor([0.7, 0.5], dtype=F64)
    ddim = DDIM().sample(model, noise(), grid=grid, initial_state=noise(), end="state")
    for network in ("v", "eps"):
        sampler = EDICT(1.0, network)  # type: ignore[arg-type]
        assert relative(sampler.sample(model, noise(), grid=grid, initial_state=noise(), end="state"), ddim) < 1e-14


def test_bdia_is_ddim_for_small_gamma_and_counts_evaluations() -> None:
    model = mixture(PROCESSES.create("vp"))
    ddim = DDIM().sample(model, noise(), 10)
    assert relative(BDIADDIM(gamma=1e-9).sample(model, noise(), 10), ddim) < 1e-7
    assert [step.nfe for step in BDIADDIM().iterate(model, noise(), 4)] == [1, 2, 3, 4]
    assert [step.nfe for step in BDIAEDM().iterate(model, noise(), 4)] == [2, 5, 8, 9]


@pytest.mark.parametrize("sampler", [BDIADDIM(0.7), BDIAEDM(0.7)], ids=repr)
def test_damped_bdia_is_exact_over_few_steps(sampler: Sampler) -> None:
    model = mixture(PROCESSES.create("flow"))
    run = list(sampler.iterate(model, noise(), 10, labels=LABELS, end="state"))
    start = invert(sampler, model, run[-1].x_s, 10, labels=LABELS, state=run[-1].state)
    assert relative(start.x, run[0].x_t) < 1e-10


def test_bdia_by_hand() -> None:
    """Two steps of the formula with gamma, written out."""
    process, gamma = PROCESSES.create("vp"), 0.7
    model = GaussianDenoiser(process, 0.3, 0.5, (1, 3, 3))
    grid = torch.tensor([0.9, 0.6, 0.4], dtype=F64)
    r, t, s = process.scales(grid).unbind()
    cond = model.condition(None, 4)

    def ddim(x: Tensor, a, b) -> Tensor:
        eps = model(x, a, cond).eps
        return b.alpha * (x - a.sigma * eps) / a.alpha + b.sigma * eps

    x_t = ddim(noise(), r, t)
    by_hand = gamma * (noise() - ddim(x_t, t, r)) + ddim(x_t, t, s)
    found = BDIADDIM(gamma).sample(model, noise(), grid=grid, initial_state=noise(), end="state")
    assert relative(found, by_hand) < 1e-14


def test_what_cannot_go_up_is_refused_before_the_network() -> None:
    class Silent(GaussianDenoiser):
        def __call__(self, *args):
            raise AssertionError("asked")

    model = Silent(PROCESSES.create("flow"), 0.0, 1.0, (1, 3, 3))
    for name in SAMPLERS:
        sampler = SAMPLERS.create(name)
        if not isinstance(sampler, (Reversible, DDIM, *EITHER_WAY)):
            with pytest.raises(ValueError, match=r"cannot run from data to noise.*bdia-ddim.*edict"):
                invert(sampler, model, noise(), 5)
    with pytest.raises(ValueError, match="adds noise"):
        invert(DDIM(eta=0.5), model, noise(), 5)
    ends = torch.tensor([1.0, 0.0], dtype=F64)
    for sampler in (EDICT(), DDIMInverse(iterations=2)):
        with pytest.raises(ValueError, match="put a time between"):
            invert(sampler, model, noise(), grid=ends)


@pytest.mark.parametrize(
    "make",
    [lambda: EDICT(0.0), lambda: EDICT(1.1), lambda: EDICT(network="x0"), lambda: BDIADDIM(0.0),  # type: ignore[arg-type]
     lambda: BDIAEDM(1.5), lambda: DDIMInverse(-1)],
)  # fmt: skip
def test_options_are_checked(make) -> None:
    with pytest.raises(ValueError, match="must be"):
        make()


def test_ascend_tells_every_step() -> None:
    steps = list(ascend(DDIMInverse(), mixture(PROCESSES.create("vp")), noise(), 6, labels=LABELS))
    assert [step.index for step in steps] == list(range(5))
    times = [step.t for step in steps]
    assert times == sorted(times)
    assert [step.nfe for step in steps] == [1, 2, 3, 4, 5]
