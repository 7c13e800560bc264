"""Posterior guidance: exact posteriors and closed forms of Gaussian data, at single times and under samplers."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from dinit.diffusion import PROCESSES, Condition, Denoised, Denoiser, Scales
from dinit.diffusion.continuous import EDM, VP, LinearFlow
from dinit.inverse import OPERATORS, POSTERIOR_SAMPLERS, Matrix, Measurement, PosteriorGuidance
from dinit.inverse.operators.base import LinearOperator, Operator
from dinit.models.gaussian_mixture import GaussianMixture
from dinit.samplers import SAMPLERS
from dinit.samplers.guidance.base import GUIDANCES, Guided, apply_guidance
from dinit.samplers.guidance.cfg import CFG

F64 = torch.float64
SHAPE, N, M = (3, 2, 2), 12, 5
PROCESSES_OF_TESTS = [VP(), EDM(), LinearFlow()]
POSTERIOR = [
    name
    for name in GUIDANCES
    if isinstance(GUIDANCES[name], type) and issubclass(GUIDANCES[name], PosteriorGuidance)
]


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def gaussian(seed: int = 0) -> GaussianMixture:
    """Data of one Gaussian, of every covariance."""
    factor = 0.4 * randn(seed, N, N)
    return GaussianMixture(
        torch.ones(1), 0.3 * randn(seed + 1, 1, N), (factor @ factor.T + 0.05 * torch.eye(N))[None], SHAPE
    )


def isotropic(variance: float, seed: int = 0) -> GaussianMixture:
    """N(m, variance I)."""
    return GaussianMixture(torch.ones(1), 0.3 * randn(seed, 1, N), variance * torch.eye(N, dtype=F64)[None], SHAPE)


def measured(noise_std: float, rows: int = 3, seed: int = 2, orthogonal: bool = False) -> Measurement:
    """By a random matrix, whose rows are of different lengths; or orthogonal to one another too."""
    matrix = randn(seed, M, N)
    if orthogonal:
        matrix = torch.linalg.qr(matrix.T)[0].T * torch.linspace(0.5, 2, M, dtype=F64)[:, None]
    return Measurement(Matrix(matrix), randn(seed + 1, rows, M), noise_std=noise_std)


def state(k: Scales, rows: int = 3, seed: int = 5) -> Tensor:
    return randn(seed, rows, *SHAPE) * (k.alpha**2 + k.sigma**2).sqrt()


def guided(name: str, measurement: Measurement, denoiser: Denoiser, **options: Any) -> Denoiser:
    return GUIDANCES.create({"name": name, "measurement": measurement, **options}).wrap(denoiser)


def predicted(denoiser: Denoiser, x_t: Tensor, t: Any, labels: Any = None) -> Tensor:
    return denoiser(x_t, t, denoiser.condition(labels, len(x_t))).x0


def ancestral_step(free: Denoiser, moved: Denoiser, steps: int) -> tuple[Tensor, Tensor, Scales, Scales]:
    """Both denoisers' states after a step of DDPM of 1/steps in time from t = 0.5, and the scales of its ends."""
    k, s = VP().scales(0.5), VP().scales(0.5 - 1 / steps)
    ends = [
        SAMPLERS.create("ddpm").sample(
            one, state(k), grid=torch.stack([k.time, s.time]), initial_state=state(k), end="state"
        )
        for one in (free, moved)
    ]
    return ends[0], ends[1], k, s


# --- exact posteriors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise_std", [0.0, 0.3])
@pytest.mark.parametrize("process", ["vp", "vp-discrete", "ve", "edm", "flow", "gvp"])
def test_full_mmps_is_the_posterior_mean_of_gaussian_data(process: str, noise_std: float) -> None:
    """At every time, and at alpha = 0, where no Jacobian is left, to the 1e-4 of the nearest time used there."""
    path, law, seen = PROCESSES.create(process), gaussian(), measured(noise_std)
    assert isinstance(seen.operator, Matrix)
    exact = law.posterior(seen.operator.A, seen.y, noise_std).denoiser(path)
    ours = guided("mmps", seen, law.denoiser(path), iterations=M)
    for t in (1e-3, 0.05, 0.3, 0.6, 0.9, 0.99, 0.9985, 1.0):
        k = path.scales(t)
        error = (predicted(ours, state(k), k) - predicted(exact, state(k), k)).abs().max()
        assert error < (5e-4 if float(k.alpha) == 0 else 1e-8), t


@pytest.mark.filterwarnings("ignore:Interval")
@pytest.mark.parametrize("process", PROCESSES_OF_TESTS, ids=repr)
def test_full_mmps_under_every_sampler_is_the_exact_denoisers_run(process: Any) -> None:
    """The same noise gives the same images to 1e-6, whatever the solver, deterministic or not."""
    small, shape = gaussian(), (1, 2, 2)
    law = GaussianMixture(torch.ones(1), small.means[:, :4], small.covariances[:, :4, :4], shape)
    matrix, y = randn(7, 2, 4), randn(8, 2, 2)
    exact = law.posterior(matrix, y, 0.1).denoiser(process)
    ours = guided("mmps", Measurement(Matrix(matrix), y, noise_std=0.1), law.denoiser(process), iterations=2)
    grid = process.time_of_noise_level(torch.tensor([30.0, 3.0, 0.5, 0.1], dtype=F64))
    for name in SAMPLERS:
        sampler = SAMPLERS.create(name)
        if sampler.claims().cost_depends_on == "state" or sampler.own_grid is not None:
            continue  # their times depend on what they see
        try:
            runs = [sampler.sample(one, randn(9, 2, *shape), grid=grid) for one in (exact, ours)]
        except ValueError:
            continue  # a sampler of another process
        assert torch.allclose(runs[0], runs[1], atol=1e-6), name


def test_few_iterations_are_as_near_as_minimal_residuals() -> None:
    """Of MMPS: each product reduces the error of the measurement's system, and the last one ends it."""
    law, seen, k = gaussian(), measured(0.05), VP().scales(0.6)
    exact = predicted(law.posterior(seen.a.matrix(SHAPE), seen.y, 0.05).denoiser(VP()), state(k), k)  # type: ignore[attr-defined]
    errors = [
        float((predicted(guided("mmps", seen, law.denoiser(VP()), iterations=i), state(k), k) - exact).norm())
        for i in range(1, M + 1)
    ]
    assert errors[-1] < 1e-9 < errors[-2] < errors[0]


# --- closed forms on N(m, v I) -----------------------------------------------------------------------------------


class ClosedForm(Denoiser):
    """E[x0 | x_t] of N(m, v I) with a method's correction as dense matrices."""

    num_classes = 0

    def __init__(self, name: str, law: GaussianMixture, seen: Measurement, process: Any, **options: Any) -> None:
        self.name, self.seen, self.process, self.options = name, seen, process, options
        self.m, self.v, self.t_min = law.means[0], float(law.covariances[0, 0, 0]), process.t_min

    def embed(self, labels: Tensor) -> Tensor:
        return torch.zeros(len(labels), 1, dtype=F64)

    def __call__(self, x_t: Tensor, t: Any, cond: Condition) -> Denoised:
        k = self.scales(t)
        a, s, v = float(k.alpha), float(k.sigma), self.v
        variance = v * s**2 / (a**2 * v + s**2)  # of x0 given x_t
        x0 = self.m + a * v / (a**2 * v + s**2) * (x_t.flatten(1) - a * self.m)
        matrix, noise = self.seen.operator.A, self.seen.noise_std  # type: ignore[union-attr]
        change = self.change(matrix, self.seen.y - x0 @ matrix.T, noise, variance, a, s, cond.run.steps or 1000)
        return Denoised(x_t, (x0 + change).reshape(x_t.shape), k)

    def change(self, A: Tensor, r: Tensor, noise: float, variance: float, a: float, s: float, steps: int) -> Tensor:
        eye = torch.eye(len(A), dtype=F64)
        u, values, vh = torch.linalg.svd(A, full_matrices=False)
        if self.name in ("mmps", "pigdm", "tmpd"):  # Bayes; of tmpd as A A* is diagonal
            return r @ torch.linalg.inv(variance * A @ A.T + noise**2 * eye).T @ A * variance
        if self.name == "diffpir":
            return r @ torch.linalg.inv(A @ A.T + self.options["lam"] * noise**2 * (a / s) ** 2 * eye).T @ A
        if self.name == "ddnm":
            return r @ torch.linalg.pinv(A).T
        if self.name == "ddnm+":
            share = torch.tensor([min(1.0, s * float(one) / (a * noise)) for one in values], dtype=F64)
            return r @ u @ torch.diag(share / values) @ vh
        trace = self.options.get("eta", 0.0) * N * variance
        length = (r.square().sum(1, keepdim=True) + trace).sqrt()  # dps, stsl
        time = self.process.time_of_noise_level(torch.tensor(s / a, dtype=F64))
        slope = float(self.process.diffusion_squared(time))
        return self.options["zeta"] * steps * variance / slope * (r @ A) / length


OPTIONS: dict[str, dict[str, Any]] = {
    "mmps": {"iterations": M},
    "pigdm": {"data_std": 0.7**0.5},
    "tmpd": {},
    "ddnm": {},
    "ddnm+": {},
    "diffpir": {"lam": 2.0},
    "dps": {"zeta": 0.3},
    "stsl": {"zeta": 0.3, "eta": 0.5},
}


def test_every_method_has_a_closed_form() -> None:
    assert sorted(OPTIONS) == sorted(POSTERIOR)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("process", PROCESSES_OF_TESTS, ids=repr)
def test_closed_form_at_single_times(name: str, process: Any) -> None:
    """Of random operators, near both ends of the path too, with one time and with one time a sample."""
    for seed in range(3):
        law, seen = isotropic(0.7, seed), measured(0.2, seed=seed, orthogonal=name == "tmpd")
        ours = guided(name, seen, law.denoiser(process), **OPTIONS[name])
        expected = ClosedForm(name, law, seen, process, **OPTIONS[name])
        for t in (1e-3, 0.2, 0.7, 0.99):
            k = process.scales(t)
            want = predicted(expected, state(k), k)
            assert torch.allclose(predicted(ours, state(k), k), want, rtol=1e-8, atol=1e-9)
            assert torch.allclose(predicted(ours, state(k), torch.full((3,), t, dtype=F64)), want, atol=1e-9)


@pytest.mark.parametrize("sampler", ["dpmpp-2m", "ddpm"])
@pytest.mark.parametrize("name", OPTIONS)
def test_closed_form_under_samplers(name: str, sampler: str) -> None:
    """A deterministic and a stochastic one, on every process."""
    law, seen = isotropic(0.7), measured(0.2, orthogonal=name == "tmpd")
    for process in PROCESSES_OF_TESTS:
        grid = process.time_of_noise_level(torch.tensor([20.0, 5.0, 1.0, 0.3, 0.05], dtype=F64))
        ours, expected = (
            SAMPLERS.create(sampler).sample(one, randn(6, 3, *SHAPE), grid=grid, seed=[1, 2, 3])
            for one in (
                guided(name, seen, law.denoiser(process), **OPTIONS[name]),
                ClosedForm(name, law, seen, process, **OPTIONS[name]),
            )
        )
        assert torch.allclose(ours, expected, atol=1e-8)


@pytest.mark.parametrize("name", ["mmps", "pigdm", "tmpd", "ddnm", "ddnm+", "diffpir"])
def test_without_noise_the_measurement_is_met(name: str) -> None:
    """sigma_y = 0: A x0 = y of the prediction at any time, and of the end of a run."""
    law, seen = isotropic(0.7), measured(0.0, orthogonal=name == "tmpd")
    denoiser = guided(name, seen, law.denoiser(LinearFlow()), **OPTIONS[name])
    for t in (1e-3, 0.5, 0.99):
        residual = seen.residual(predicted(denoiser, state(LinearFlow().scales(t)), t))
        assert residual.abs().max() < 1e-9
    end = SAMPLERS.create("ddpm").sample(denoiser, randn(6, 3, *SHAPE), 6)
    assert seen.residual(end).abs().max() < 1e-9


def test_adaptive_steps_of_pigdm() -> None:
    """After an ancestral step x_s / alpha_s has moved by alpha J^T A+ (y - A x0), to first order in the step."""
    law, seen = isotropic(0.7), measured(0.0)
    denoiser = law.denoiser(VP())
    free, moved, k, s = ancestral_step(denoiser, guided("pigdm", seen, denoiser, adaptive=True, steps=4000), 4000)
    r = seen.residual(predicted(denoiser, state(k), k))
    jacobian = k.alpha * 0.7 / (k.alpha**2 * 0.7 + k.sigma**2)
    published = s.alpha * k.alpha * jacobian * seen.a.pseudo_inverse(r, SHAPE)  # type: ignore[attr-defined]
    assert torch.allclose(moved - free, published, rtol=5e-3)


def test_row_sums_of_tmpd_that_are_no_variances() -> None:
    """Of two nearly opposite pixels, one measured with a factor of 3, the other's row sum is negative: no part."""
    cov = torch.eye(N, dtype=F64)
    cov[0, 1] = cov[1, 0] = -0.99
    law = GaussianMixture(torch.ones(1), torch.zeros(1, N), cov[None], SHAPE)
    matrix = torch.zeros(2, N, dtype=F64)
    matrix[0, 0], matrix[1, 1] = 1.0, 3.0
    x, k, changes = torch.zeros(1, *SHAPE, dtype=F64), VP().scales(0.9), []
    for y in ([[0.5, 2.0]], [[-7.0, 2.0]]):
        seen = Measurement(Matrix(matrix), torch.tensor(y, dtype=F64))
        changes.append(predicted(guided("tmpd", seen, law.denoiser(VP()), line_search=False), x, k))
    assert torch.equal(*changes)
    variance = 9 - 2.97  # the row sum of the other one, at a time without information
    assert float(changes[0].flatten()[1]) == pytest.approx(3 * 2 / variance, rel=1e-2)


@pytest.mark.parametrize(("name", "correlation"), [("pigdm", 0.95), ("tmpd", -0.95)])
def test_a_line_search_stops_where_the_measurement_is_nearest(name: str, correlation: float) -> None:
    """Of two pixels that go together, or against each other, whose variance the methods take for too small."""
    cov = torch.eye(N, dtype=F64)
    cov[:2, :2] = torch.tensor([[4.0, 4 * correlation], [4 * correlation, 4.0]])
    law = GaussianMixture(torch.ones(1), torch.zeros(1, N), cov[None], SHAPE)
    y = torch.tensor([[1.0, 1.0], [1.0, -1.0], [0.5, 3.0]], dtype=F64)
    seen = Measurement(Matrix(torch.eye(2, N, dtype=F64)), y)
    x, k, changes = torch.zeros(3, *SHAPE, dtype=F64), VP().scales(0.9), {}
    prior = predicted(law.denoiser(VP()), x, k)
    for search in (False, True):
        change = predicted(guided(name, seen, law.denoiser(VP()), line_search=search), x, k) - prior
        changes[search] = seen.a.apply(change)
    before, far = seen.residual(prior), changes[False]
    share = (before * far).sum(1, keepdim=True) / far.square().sum(1, keepdim=True)
    beyond = (before - far).norm(dim=1, keepdim=True) > before.norm(dim=1, keepdim=True)
    assert 0 < int(beyond.sum()) < 3  # some overshoot
    assert torch.allclose(changes[True], torch.where(beyond, share.clamp(min=0), 1.0) * far, atol=1e-9)
    assert bool(((before - changes[True]).norm(dim=1) <= before.norm(dim=1)).all())


# --- contract ----------------------------------------------------------------------------------------------------


class Square(Operator):
    """x^2, which is not linear."""

    registry_name = "square of a test"

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    def apply(self, x: Tensor) -> Tensor:
        return x**2


@pytest.mark.parametrize("name", POSTERIOR)
def test_without_a_measurement_it_is_neutral(name: str) -> None:
    denoiser = gaussian().denoiser(VP())
    assert GUIDANCES.create(name).wrap(denoiser) is denoiser


@pytest.mark.parametrize("name", POSTERIOR)
def test_no_image_depends_on_its_batch(name: str) -> None:
    """Rows in another order, and one row alone with its part of the measurement."""
    law, seen, k = gaussian(), measured(0.2), EDM().scales(0.5)
    x, order = state(k), torch.tensor([2, 0, 1])
    whole = predicted(guided(name, seen, law.denoiser(EDM())), x, k)
    turned = Measurement(seen.operator, seen.y[order], noise_std=0.2)
    assert torch.allclose(
        predicted(guided(name, turned, law.denoiser(EDM())), x[order], k), whole[order], atol=1e-12
    )
    guidance = GUIDANCES.create({"name": name, "measurement": seen}).rows(slice(1, 2))
    assert torch.allclose(predicted(guidance.wrap(law.denoiser(EDM())), x[1:2], k), whole[1:2], atol=1e-12)


@pytest.mark.parametrize("name", POSTERIOR)
def test_one_row_of_y_is_that_of_all_images_and_dtypes_stay(name: str) -> None:
    law, one, k = gaussian(), measured(0.2, rows=1), VP().scales(0.4)
    copied = Measurement(one.operator, one.y.expand(3, -1), noise_std=0.2)
    denoiser = law.denoiser(VP())
    with torch.inference_mode():
        found = [predicted(guided(name, m, denoiser), state(k), k) for m in (one, copied)]
        single = predicted(guided(name, one, denoiser), state(k).float(), k)
    assert torch.equal(*found)
    assert not found[0].requires_grad
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), found[0], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", POSTERIOR)
def test_inside_cfg_and_outside_it(name: str) -> None:
    """Inside: the prediction of each class is guided by its own rows of y. Outside: CFG's prediction is."""
    law, seen, k = gaussian(), measured(0.2), VP().scales(0.4)
    two = GaussianMixture(
        torch.ones(2), torch.cat([law.means, -law.means]), law.covariances.expand(2, -1, -1), SHAPE
    )
    denoiser = two.denoiser(VP(), component_class=torch.tensor([0, 1]))
    guidance, labels = GUIDANCES.create({"name": name, "measurement": seen}), [0, 1, 0]
    inside = apply_guidance(denoiser, [guidance, CFG(2.0)])
    given, null = (predicted(guidance.wrap(denoiser), state(k), k, one) for one in (labels, [2, 2, 2]))
    assert torch.allclose(predicted(inside, state(k), k, labels), null + 2 * (given - null), atol=1e-10)
    outside = apply_guidance(denoiser, [CFG(2.0), guidance])
    assert predicted(outside, state(k), k, labels).isfinite().all()


def test_a_guided_prediction_can_be_differentiated() -> None:
    """MMPS around MMPS: of two measurements that one after the other give, the posterior is that of both."""
    law, k = gaussian(), VP().scales(0.4)
    first, second = measured(0.2), measured(0.3, seed=20)
    both = law.posterior(first.a.matrix(SHAPE), first.y[:1], 0.2)  # type: ignore[attr-defined]
    both = both.posterior(second.a.matrix(SHAPE), second.y[:1], 0.3)  # type: ignore[attr-defined]
    inner = guided("mmps", first.rows(slice(0, 1)), law.denoiser(VP()), iterations=M)
    nested = guided("mmps", second.rows(slice(0, 1)), inner, iterations=M)
    x = state(k, rows=1)
    assert torch.allclose(predicted(nested, x, k), predicted(both.denoiser(VP()), x, k), atol=1e-8)


@pytest.mark.parametrize("name", ["dps", "stsl"])
def test_gradients_of_any_differentiable_operator(name: str) -> None:
    """x^2, of a mixture, whose covariance depends on x_t: against finite differences of the loss."""
    law, k = gaussian(), VP().scales(0.4)
    means = torch.cat([law.means, law.means + 1.0])
    mixture = GaussianMixture(torch.ones(2), means, law.covariances.expand(2, -1, -1), SHAPE)
    denoiser, eta, h = mixture.denoiser(VP()), 0.5 if name == "stsl" else 0.0, 1e-5
    seen, x = Measurement(Square(), randn(4, 3, *SHAPE), noise_std=0.1), state(k)
    signs = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0)).double().sign()

    def loss(at: Tensor) -> Tensor:
        x0, near = predicted(denoiser, at, k), predicted(denoiser, at + 0.1 * k.sigma * signs, k)
        trace = k.sigma / (0.1 * k.alpha) * (signs * (near - x0)).flatten(1).sum(1)
        return ((seen.y - x0**2).flatten(1).square().sum(1) + eta * trace).sqrt()

    options = {"eta": eta, "steps": 50} if name == "stsl" else {"steps": 50}
    found = predicted(guided(name, seen, denoiser, **options), x, k) - predicted(denoiser, x, k)
    steps = h * torch.eye(N, dtype=F64).reshape(N, *SHAPE)
    slope = torch.stack([(loss(x + one) - loss(x - one)) / (2 * h) for one in steps], dim=1).reshape(x.shape)
    gain = 50 * k.sigma**2 / (k.alpha * VP().diffusion_squared(0.4))
    assert torch.allclose(found, -gain * slope, rtol=1e-5, atol=1e-6)


def test_dps_under_ancestral_steps_is_the_published_step() -> None:
    """x_s - x_s without guidance = -zeta d|y - A x0| / dx_t for a step of 1/N in time, to first order in it."""
    law, seen = isotropic(0.7), measured(0.2)
    denoiser = law.denoiser(VP())
    free, moved, k, _ = ancestral_step(denoiser, guided("dps", seen, denoiser, steps=4000), 4000)
    r = seen.residual(predicted(denoiser, state(k), k))
    gain = k.alpha * 0.7 / (k.alpha**2 * 0.7 + k.sigma**2)
    published = gain * (r @ seen.operator.A).reshape(3, *SHAPE) / r.norm(dim=1).reshape(3, 1, 1, 1)  # type: ignore[union-attr]
    assert torch.allclose(moved - free, published, rtol=5e-3)


@pytest.mark.parametrize("method", ["dps", "red-diff"])
def test_a_run_that_diverges_warns_at_its_end(method: str) -> None:
    """Once, by guidance within CFG and by a posterior sampler; a healthy one does not."""
    law, seen = isotropic(0.7), measured(0.2)

    def run(step: float) -> list[str]:
        denoiser: Denoiser = law.denoiser(VP())
        if method == "dps":
            sampler, guidance = SAMPLERS.create("ddpm"), {"name": "dps", "measurement": seen, "zeta": step}
            denoiser = apply_guidance(denoiser, [guidance, "clip-x0:low=-1e9,high=1e9"])
        else:
            spec = {"name": method, "measurement": seen, "lr": step}
            sampler = POSTERIOR_SAMPLERS.create(spec)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sampler.sample(denoiser, randn(6, 3, *SHAPE), 8)
        return [str(one.message) for one in caught if "diverged" in str(one.message)]

    (message,) = run(1e3)
    assert message.startswith(f"method {method!r} diverged in 3 of 3 images: values up to ")
    assert run(0.05) == []


class Counted(Guided):
    """A denoiser that counts its evaluations."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner, inner)
        self.calls = 0

    def __call__(self, x_t: Tensor, t: Any, cond: Condition) -> Denoised:
        self.calls += 1
        return self.inner(x_t, t, cond)


@pytest.mark.parametrize("name", POSTERIOR)
def test_refused_before_the_network(name: str) -> None:
    denoiser = Counted(gaussian().denoiser(VP()))
    x = randn(0, 3, *SHAPE)
    wrong = [
        Measurement(Matrix(randn(0, M, N - 1)), randn(1, 3, M)),
        Measurement(Matrix(randn(0, M, N)), randn(1, 3, M + 1)),
        Measurement(Matrix(randn(0, M, N)), randn(1, 2, M)),
    ]
    for seen, part in zip(wrong, ("columns", "must have the shape", "2 rows for 3"), strict=True):
        with pytest.raises(ValueError, match=part):
            predicted(guided(name, seen, denoiser), x, 0.5)
    guidance = GUIDANCES.create({"name": name, "measurement": Measurement(Square(), x)})
    assert isinstance(guidance, PosteriorGuidance)
    if guidance.linear_only:
        with pytest.raises(ValueError, match="needs a linear operator"):
            guidance.wrap(denoiser)
    assert denoiser.calls == 0


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ({"name": "mmps", "iterations": 0}, "iterations"),
        ({"name": "dps", "zeta": -1.0}, "zeta"),
        ({"name": "dps", "steps": 0}, "steps"),
        ({"name": "stsl", "eta": -1.0}, "eta"),
        ({"name": "stsl", "steps": 0}, "steps"),
        ({"name": "pigdm", "data_std": 0.0}, "data_std"),
        ({"name": "pigdm", "steps": 0}, "steps"),
        ({"name": "diffpir", "lam": 0.0}, "lam"),
    ],
    ids=str,
)
def test_bad_options(spec: dict[str, Any], part: str) -> None:
    with pytest.raises(ValueError, match=part):
        GUIDANCES.create(spec)


@pytest.mark.parametrize("name", POSTERIOR)
@pytest.mark.parametrize(
    "spec",
    [
        {"name": "mask", "random": 0.5},
        {"name": "downscale", "factor": 2},
        {"name": "blur", "std": 0.7},
        {"name": "grey"},
        {"name": "random-projection", "rows": 7},
    ],
    ids=lambda spec: spec["name"],
)
def test_operators_are_their_matrices(spec: dict[str, Any], name: str) -> None:
    """By quick transforms or in dense form, a prediction is the same; of a mask with any values in its hole."""
    shape = (3, 4, 4)
    operator = OPERATORS.create(spec)
    assert isinstance(operator, LinearOperator)
    dense, n = Matrix(operator.matrix(shape)), 48
    factor = 0.3 * randn(0, n, n)
    covariance = factor @ factor.T + 0.05 * torch.eye(n)
    law = GaussianMixture(torch.ones(1), 0.3 * randn(1, 1, n), covariance[None], shape)
    y, x, k = operator.apply(randn(2, 2, *shape)), randn(3, 2, *shape), VP().scales(0.4)
    seen = Measurement(operator, y + (9.0 if spec["name"] == "mask" else 0.0) * hole(operator, y), noise_std=0.1)
    found = predicted(guided(name, seen, law.denoiser(VP())), x, k)
    expected = guided(name, Measurement(dense, y.flatten(1), noise_std=0.1), law.denoiser(VP()))
    assert torch.allclose(found, predicted(expected, x, k), atol=1e-8)


def hole(operator: Operator, y: Tensor) -> Tensor:
    """1 where nothing is measured."""
    return torch.ones_like(y) - operator.clean(torch.ones_like(y), tuple(y.shape[1:]))


def test_operators_by_name() -> None:
    seen = Measurement(OPERATORS.create({"name": "matrix", "A": randn(0, M, N)}), randn(1, 3, M), noise_std=0.1)
    assert guided("ddnm+", seen, gaussian().denoiser(VP())) is not None
    assert GUIDANCES.create("ddnm-plus") == GUIDANCES.create("DDNM+") != GUIDANCES.create("ddnm")
