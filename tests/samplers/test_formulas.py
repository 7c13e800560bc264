"""Formulas of the samplers' docstrings, written out, against the third step of a run of each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dinit.diffusion import VP, Denoised
from dinit.models import MixtureDenoiser
from dinit.samplers import SAMPLERS
from dinit.samplers.grids.times import Times

F64 = torch.float64
PROCESS = VP()
MEANS = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
DENOISER = MixtureDenoiser(PROCESS, MEANS, torch.full_like(MEANS, 0.05), None, torch.tensor([0, 0, 1, 1]))
CONDITION = DENOISER.condition([0], 1)
NODES, MASSES = np.polynomial.legendre.leggauss(100)


@dataclass(frozen=True)
class Point:
    """A time with its alpha and sigma."""

    time: float
    alpha: float = field(init=False)
    sigma: float = field(init=False)

    def __post_init__(self) -> None:
        k = PROCESS.scales(self.time)
        object.__setattr__(self, "alpha", float(k.alpha))
        object.__setattr__(self, "sigma", float(k.sigma))

    @property
    def u(self) -> float:
        return self.sigma / self.alpha

    @property
    def lam(self) -> float:
        return math.log(self.alpha / self.sigma)

    @property
    def total(self) -> float:
        return self.alpha + self.sigma

    @property
    def straight(self) -> float:
        return self.sigma / self.total


POINTS = r, q, t, s = [Point(time) for time in (0.9, 0.75, 0.55, 0.4)]  # the step from t to s, the third of a run
H = s.lam - t.lam


def of_lam(lam: float) -> Point:
    return Point(float(PROCESS.time_of(torch.tensor(2 * lam, dtype=F64))))


def of_u(u: float) -> Point:
    return of_lam(-math.log(u))


def net(x: Tensor, at: Point) -> Denoised:
    return DENOISER(x, at.time, CONDITION)


def z(draw: int) -> Tensor:
    """Draw of the run with this number, as `Drawn` gives it."""
    return torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(draw), dtype=F64)


class Drawn:
    def normal(self, stream: str, number: int, like: Tensor) -> Tensor:
        return z(number)


def run(name: str, options: dict[str, Any]) -> list[Tensor]:
    """States at the four points."""
    sampler = SAMPLERS.create({"name": name, **options})
    start = torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    grid = Times(tuple(point.time for point in POINTS))
    steps = list(
        sampler.iterate(DENOISER, start, labels=[0], steps=4, grid=grid, noise_source=Drawn(), end="state")
    )
    return [*(step.x_t for step in steps), steps[-1].x_s]


def integral(
    values: list[Tensor],
    places: list[float],
    low: float,
    high: float,
    weight: Callable[[float], float],
    along: Callable[[float], float] = lambda v: v,
) -> Tensor:
    """Integral of weight(v) P(along(v)) from low to high, P the polynomial through the values at the places."""
    total = torch.zeros_like(values[0])
    for node, mass in zip(NODES, MASSES, strict=True):
        v = low + (high - low) * (node + 1) / 2
        for i, (value, place) in enumerate(zip(values, places, strict=True)):
            others = [p for j, p in enumerate(places) if j != i]
            basis = math.prod((along(v) - p) / (place - p) for p in others)
            total = total + mass * (high - low) / 2 * weight(v) * basis * value
    return total


# --- formulas: the states at r, q and t to the state at s ---------------------------------------------------------

States = list[Tensor]


def ddim(x: Tensor, a: Point, b: Point) -> Tensor:
    d = net(x, a)
    return b.alpha * d.x0 + b.sigma * d.eps


def history(x: States, count: int, read: Callable[[Denoised], Tensor]) -> list[Tensor]:
    """The last outputs, the newest first."""
    return [read(net(state, at)) for state, at in zip((x[2], x[1], x[0]), (t, q, r), strict=True)][:count]


def noise_level(x: States, variable: str) -> Tensor:
    """x_s / alpha_s = x_t / alpha_t + the integral of eps du, with eps extrapolated in the variable."""
    eps = history(x, 3, lambda d: d.eps)
    places = [getattr(at, variable) for at in (t, q, r)]
    moved = integral(eps, places, t.u, s.u, lambda v: 1.0, lambda v: getattr(of_u(v), variable))
    return s.alpha * (x[2] / t.alpha + moved)


def data(x: States, count: int, eta: float = 0.0, noise: Tensor | float = 0.0) -> Tensor:
    """The integral of x0 in lambda on the reverse-time SDE with eta times its noise."""
    weight = lambda lam: (1 + eta) * math.exp(-(1 + eta) * (s.lam - lam))  # noqa: E731
    x0, lams = history(x, count, lambda d: d.x0), [t.lam, q.lam, r.lam][:count]
    linear = s.sigma / t.sigma * math.exp(-eta * H) * x[2] + s.sigma * math.sqrt(1 - math.exp(-2 * eta * H)) * noise
    return linear + s.alpha * integral(x0, lams, t.lam, s.lam, weight)


def dpmpp_2m_sde(x: States, eta: float, noise: Tensor | float = 0.0) -> Tensor:
    now, before = history(x, 2, lambda d: d.x0)
    linear = s.sigma / t.sigma * math.exp(-eta * H) * x[2] + s.sigma * math.sqrt(1 - math.exp(-2 * eta * H)) * noise
    gain = s.alpha * (1 - math.exp(-(1 + eta) * H))
    return linear + gain * (now + H / (2 * (t.lam - q.lam)) * (now - before))


def dpm_solver(x: Tensor, eps: Tensor, a: Point, b: Point) -> Tensor:
    return b.alpha / a.alpha * x - b.sigma * math.expm1(b.lam - a.lam) * eps


def dpm_solver_2(x: States) -> Tensor:
    m = of_lam(t.lam + H / 2)
    return dpm_solver(x[2], net(dpm_solver(x[2], net(x[2], t).eps, t, m), m).eps, t, s)


def dpm_solver_3(x: States) -> Tensor:
    third, two_thirds = of_lam(t.lam + H / 3), of_lam(t.lam + 2 * H / 3)
    phi = lambda h: math.expm1(h) / h - 1  # noqa: E731
    eps = net(x[2], t).eps
    first = net(dpm_solver(x[2], eps, t, third), third).eps - eps
    at_two = dpm_solver(x[2], eps, t, two_thirds) - 2 * two_thirds.sigma * phi(2 * H / 3) * first
    second = net(at_two, two_thirds).eps - eps
    return dpm_solver(x[2], eps, t, s) - 1.5 * s.sigma * phi(H) * second


def dpmpp_2s(x: States) -> Tensor:
    m = of_lam(t.lam + H / 2)
    first = lambda x0, b, h: b.sigma / t.sigma * x[2] - b.alpha * math.expm1(-h) * x0  # noqa: E731
    return first(net(first(net(x[2], t).x0, m, H / 2), m).x0, s, H)


def dpmpp_sde(x: States, eta: float) -> Tensor:
    def step(x0: Tensor, b: Point, noise: Tensor) -> Tensor:
        up = eta * b.sigma * math.sqrt(1 - math.exp(-2 * (b.lam - t.lam)))
        a = math.sqrt(b.sigma**2 - up**2) / t.sigma
        return a * x[2] + (b.alpha - a * t.alpha) * x0 + up * noise

    m = of_lam(t.lam + H / 2)
    return step(net(step(net(x[2], t).x0, m, z(4)), m).x0, s, z(5))


def pseudo(x: States) -> Tensor:
    eps = history(x, 3, lambda d: d.eps)
    mean = (23 * eps[0] - 16 * eps[1] + 5 * eps[2]) / 12  # the third step has the weights of order 3
    return s.alpha * (x[2] / t.alpha + (s.u - t.u) * mean)


def unipc(x: States) -> Tensor:
    """The second and the third step of order 2 in x0, corrected with B(h) solved exactly."""
    f_r = net(x[0], r).x0
    f_q, f_t = net(x[1], q).x0, net(x[2], t).x0
    exact = lambda a, b, start, values, lams: (  # noqa: E731
        b.sigma / a.sigma * start + b.sigma * integral(values, lams, a.lam, b.lam, math.exp)
    )
    at_q = exact(r, q, x[0], [f_q, f_r], [q.lam, r.lam])
    at_t = exact(q, t, at_q, [f_t, f_q, f_r], [t.lam, q.lam, r.lam])
    return exact(t, s, at_t, [f_t, f_q], [t.lam, q.lam])


def ddpm(x: States) -> Tensor:
    variance = t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2
    mean = t.alpha * s.sigma**2 / (s.alpha * t.sigma**2) * x[2] + s.alpha * variance / t.sigma**2 * net(x[2], t).x0
    return mean + s.sigma / t.sigma * math.sqrt(variance) * z(2)


def ddim_eta(x: States, eta: float) -> Tensor:
    d = net(x[2], t)
    std = eta * s.sigma / t.sigma * math.sqrt(t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2)
    return s.alpha * d.x0 + math.sqrt(s.sigma**2 - std**2) * d.eps + std * z(2)


def ancestral(x: States, eta: float) -> Tensor:
    up = min(s.u, eta * s.u * math.sqrt(1 - s.u**2 / t.u**2))
    down = math.sqrt(s.u**2 - up**2)
    return s.alpha * (x[2] / t.alpha + (down - t.u) * net(x[2], t).eps + up * z(2))


def euler_maruyama(x: States, eta: float) -> Tensor:
    f, g2 = float(PROCESS.drift(t.time)), float(PROCESS.diffusion_squared(t.time))
    drift = f * x[2] - (1 + eta**2) / 2 * g2 * net(x[2], t).score
    return x[2] + (s.time - t.time) * drift + eta * math.sqrt(g2 * (t.time - s.time)) * z(2)


def reverse_diffusion(x: States, noise: Tensor) -> Tensor:
    a = t.alpha / s.alpha
    b2 = t.sigma**2 - a**2 * s.sigma**2
    return (2 - a) * x[2] + b2 * net(x[2], t).score + math.sqrt(b2) * noise


def predictor_corrector(x: States) -> Tensor:
    at_s = reverse_diffusion(x, z(4))
    delta = 2 * (0.16 * s.sigma) ** 2
    return at_s + delta * net(at_s, s).score + math.sqrt(2 * delta) * z(5)


def er_sde(x: States) -> Tensor:
    log_phi = lambda v: math.log(v) + math.log(math.exp(v**0.3) + 10)  # noqa: E731
    slope = lambda v: 1 / v + 0.3 * v**-0.7 * math.exp(v**0.3) / (math.exp(v**0.3) + 10)  # noqa: E731
    weight = lambda v: math.exp(log_phi(s.u) - log_phi(v)) * slope(v)  # phi(u_s) phi' / phi^2  # noqa: E731
    ratio = math.exp(log_phi(s.u) - log_phi(t.u))
    x0 = history(x, 3, lambda d: d.x0)
    y = ratio * x[2] / t.alpha + integral(x0, [t.u, q.u, r.u], s.u, t.u, weight)
    return s.alpha * (y + math.sqrt(s.u**2 - (ratio * t.u) ** 2) * z(2))


def flow_sde(x: States) -> Tensor:
    b = lambda y, at: (d := net(y, at)).velocity - at.sigma * d.score  # w = sigma  # noqa: E731
    dt = s.time - t.time
    start = x[2] + math.sqrt(-2 * t.sigma * dt) * z(2)
    return start + dt / 2 * (b(start, t) + b(start + dt * b(start, t), s))


def runge_kutta(x: States, kind: str) -> Tensor:
    v = lambda y, time: net(y, Point(time)).velocity  # noqa: E731
    y, at, h = x[2], t.time, s.time - t.time
    first = v(y, at)
    if kind == "euler":
        return y + h * first
    if kind == "heun":
        return y + h / 2 * (first + v(y + h * first, s.time))
    if kind == "midpoint":
        return y + h * v(y + h / 2 * first, at + h / 2)
    if kind == "heun3":
        second = v(y + h / 3 * first, at + h / 3)
        return y + h * (first / 4 + 3 / 4 * v(y + 2 * h / 3 * second, at + 2 * h / 3))
    second = v(y + h / 2 * first, at + h / 2)
    third = v(y + h / 2 * second, at + h / 2)
    return y + h / 6 * (first + 2 * second + 2 * third + v(y + h * third, s.time))


def edm_heun(x: States) -> Tensor:
    eps = lambda y, at: net(y * at.alpha, at).eps  # noqa: E731
    y, h = x[2] / t.alpha, s.u - t.u
    return s.alpha * (y + h / 2 * (eps(y, t) + eps(y + h * eps(y, t), s)))


def edm_euler(x: States, churn: float) -> Tensor:
    raised = of_u((1 + churn / 3) * t.u)
    y = x[2] / t.alpha + math.sqrt(raised.u**2 - t.u**2) * z(2)
    return s.alpha * (y + (s.u - raised.u) * net(raised.alpha * y, raised).eps)


def dpm_2(x: States) -> Tensor:
    m = of_u(math.sqrt(t.u * s.u))
    y = x[2] / t.alpha
    at_m = y + (m.u - t.u) * net(x[2], t).eps
    return s.alpha * (y + (s.u - t.u) * net(m.alpha * at_m, m).eps)


def straight(x: Tensor, a: Point, b: Point, kind: str) -> Tensor:
    d = lambda y, at: (found := net(at.total * y, at)).eps - found.x0  # noqa: E731
    y, h = x / a.total, b.straight - a.straight
    if kind == "euler":
        return b.total * (y + h * d(y, a))
    if kind == "midpoint":
        middle = (a.straight + b.straight) / 2
        return b.total * (y + h * d(y + h / 2 * d(y, a), of_u(middle / (1 - middle))))
    return b.total * (y + h / 2 * (d(y, a) + d(y + h * d(y, a), b)))


def flowturbo(x: States) -> Tensor:
    """All three steps, as each starts with the slope that corrected the one before."""
    slope = lambda y, at: (found := net(at.total * y, at)).eps - found.x0  # noqa: E731
    y = x[0] / r.total
    old = slope(y, r)
    for a, b in ((r, q), (q, t), (t, s)):
        h = b.straight - a.straight
        new = slope(y + h * old, b)
        y, old = y + h / 2 * (old + new), new
    return s.total * y


def bdia(x: States, step: Callable[[Tensor, Point, Point], Tensor], gamma: float) -> Tensor:
    rho = lambda at: math.hypot(at.alpha, at.sigma)  # noqa: E731
    return step(x[2], t, s) + gamma * rho(s) / rho(q) * (x[1] - step(x[2], t, q))


def edict(x: States, mixing: float) -> Tensor:
    """All three steps, as y is not among the states."""
    one, two = x[0], x[0]
    for a, b in ((r, q), (q, t), (t, s)):
        keep, push = b.alpha / a.alpha, b.sigma - b.alpha / a.alpha * a.sigma
        one = keep * one + push * net(two, a).eps
        two = keep * two + push * net(one, a).eps
        one = mixing * one + (1 - mixing) * two
        two = mixing * two + (1 - mixing) * one
    return one


PLAIN = {"warm_up": "lower-order"}
FORMULAS: list[tuple[str, dict[str, Any], Callable[[States], Tensor]]] = [
    ("ab", {**PLAIN, "prediction": "eps"}, lambda x: noise_level(x, "u")),
    ("ancestral", {}, lambda x: ancestral(x, 1.0)),
    ("ancestral", {"eta": 0.5}, lambda x: ancestral(x, 0.5)),
    ("bdia-ddim", {"gamma": 0.7}, lambda x: bdia(x, ddim, 0.7)),
    ("bdia-edm", {"gamma": 0.7}, lambda x: bdia(x, lambda y, a, b: straight(y, a, b, "heun"), 0.7)),
    ("ddim", {}, lambda x: ddim(x[2], t, s)),
    ("ddim", {"eta": 0.5}, lambda x: ddim_eta(x, 0.5)),
    ("ddim-inverse", {}, lambda x: ddim(x[2], t, s)),
    ("ddpm", {}, ddpm),
    ("deis", PLAIN, lambda x: noise_level(x, "time")),
    ("deis", {**PLAIN, "variable": "rho"}, lambda x: noise_level(x, "u")),
    ("deis", {**PLAIN, "variable": "log-rho"}, lambda x: noise_level(x, "lam")),
    ("dpm-2", {}, dpm_2),
    ("dpm-solver-1", {}, lambda x: dpm_solver(x[2], net(x[2], t).eps, t, s)),
    ("dpm-solver-2", {}, dpm_solver_2),
    ("dpm-solver-3", {}, dpm_solver_3),
    ("dpmpp-2m", {}, lambda x: dpmpp_2m_sde(x, 0.0)),
    ("dpmpp-2m-sde", {"eta": 0.5}, lambda x: dpmpp_2m_sde(x, 0.5, z(2))),
    ("dpmpp-2s", {}, dpmpp_2s),
    ("dpmpp-3m", PLAIN, lambda x: data(x, 3)),
    ("dpmpp-3m-sde", {"eta": 0.5}, lambda x: data(x, 3, 0.5, z(2))),
    ("dpmpp-sde", {}, lambda x: dpmpp_sde(x, 1.0)),
    ("dpmpp-sde", {"eta": 0.5}, lambda x: dpmpp_sde(x, 0.5)),
    ("eab", PLAIN, lambda x: data(x, 3)),
    ("eab", {**PLAIN, "prediction": "eps"}, lambda x: noise_level(x, "lam")),
    ("edict", {"mixing": 0.93, "network": "eps"}, lambda x: edict(x, 0.93)),
    ("edm-euler", {"s_churn": 0.6}, lambda x: edm_euler(x, 0.6)),
    ("edm-heun", {}, edm_heun),
    ("er-sde", {}, er_sde),
    ("euler", {}, lambda x: runge_kutta(x, "euler")),
    ("euler-maruyama", {}, lambda x: euler_maruyama(x, 1.0)),
    ("euler-maruyama", {"eta": 0.5}, lambda x: euler_maruyama(x, 0.5)),
    ("flow-euler", {}, lambda x: straight(x[2], t, s, "euler")),
    ("flow-heun", {}, lambda x: straight(x[2], t, s, "heun")),
    ("flow-midpoint", {}, lambda x: straight(x[2], t, s, "midpoint")),
    ("flow-sde", {}, flow_sde),
    ("flowturbo", {}, flowturbo),
    ("heun", {}, lambda x: runge_kutta(x, "heun")),
    ("heun3", {}, lambda x: runge_kutta(x, "heun3")),
    ("ipndm", {}, pseudo),
    ("lms", {"order": 3}, lambda x: noise_level(x, "u")),
    ("midpoint", {}, lambda x: runge_kutta(x, "midpoint")),
    ("pndm", {}, pseudo),
    ("predictor-corrector", {"predictor": "reverse-diffusion"}, predictor_corrector),
    ("restart", {}, edm_heun),
    ("reverse-diffusion", {}, lambda x: reverse_diffusion(x, z(2))),
    ("rk4", {}, lambda x: runge_kutta(x, "rk4")),
    (
        "sa-solver",
        {"tau": 0.7, "predictor_order": 3, "corrector_order": 0},
        lambda x: data(x, 3, 0.49, z(2)),
    ),
    ("unipc", {"b": "exact"}, unipc),
]
# Their steps are those of other samplers on the list: by the error, or by the rules that they are given.
NOT_HERE = {"auto", "dpm-adaptive", "rk45", "unified"}


@pytest.mark.parametrize(("name", "options", "formula"), FORMULAS, ids=[f"{n}-{o}" for n, o, _ in FORMULAS])
def test_a_step_is_its_formula(name: str, options: dict[str, Any], formula: Callable[[States], Tensor]) -> None:
    states = run(name, options)
    assert float((states[3] - states[2]).abs().max()) > 0.01
    torch.testing.assert_close(formula(states[:3]), states[3], atol=1e-10, rtol=0)


def test_every_sampler_is_covered() -> None:
    assert {name for name, _, _ in FORMULAS} | NOT_HERE == set(SAMPLERS.names())
