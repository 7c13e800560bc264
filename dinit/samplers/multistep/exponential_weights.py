"""Weights of exponential and multistep solvers: exact integrals of an extrapolated prediction.

Between two times the probability-flow ODE is an integral of a prediction F of the network,

    x_s / rho_s = x_t / rho_t + integral of F du from u_t to u_s,

with F, rho and u from the table in ode_variables.py. This is exact: only F is approximated, by a polynomial
through its past values. The variable of the polynomial is the solver's second choice: u itself ('own': plain
Adams-Bashforth), half the log-SNR ('log-snr': exponential integrators), or t (DEIS's tAB). Lu et al. 2022
(DPM-Solver, DPM-Solver++) for eps and x0; Zhang & Chen 2023 (DEIS) for t.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor

from dinit.diffusion import Process, Scales
from dinit.samplers.multistep.ode_variables import (
    ANGLE,
    LOG_SNR,
    NOISE_LEVEL,
    SIGNAL_LEVEL,
    STRAIGHT,
    TIME,
    ODEVariable,
    TimeVariable,
)

Result = TypeVar("Result")
Prediction = Literal["eps", "x0", "v", "velocity", "path-velocity"]
Variable = Literal["own", "log-snr", "t"]
Variant = Literal["exact", "midpoint", "bh1", "taylor", "pseudo"]

ODE_VARIABLES: dict[Prediction, ODEVariable] = {
    "eps": NOISE_LEVEL,
    "x0": SIGNAL_LEVEL,
    "v": ANGLE,
    "velocity": STRAIGHT,
    "path-velocity": TIME,
}
"""The change of variables in which each prediction is the slope of the ODE."""

ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""Weights of past slopes, the newest first, for equal steps."""

NODES = 48
"""Gauss-Legendre nodes of the integrals: exact to rounding for steps over 20 in half the log-SNR."""


def choice(owner: str, **options: tuple[object, object]) -> None:
    """Check that each option has one of the values of its Literal.

    Args:
        owner: Begins the message.
        **options: Option name to (value, Literal).

    Raises:
        ValueError: A value is not among them.
    """
    for name, (value, kind) in options.items():
        if value not in get_args(kind):
            raise ValueError(
                f"{owner}: {name} must be one of {', '.join(map(repr, get_args(kind)))}; got {value!r}"
            )


def check_order(owner: str, order: int) -> None:
    """Check the order of a multistep method.

    Args:
        owner: Begins the message.
        order: Evaluations extrapolated.

    Raises:
        ValueError: The order is not 1, 2, 3 or 4.
    """
    if isinstance(order, bool) or order not in (1, 2, 3, 4):
        raise ValueError(f"{owner}: order must be 1, 2, 3 or 4; got {order!r}")


@dataclass(frozen=True)
class ExponentialForm:
    """The prediction that a step extrapolates, and the variable that it extrapolates it in.

    Attributes:
        ode: The change of variables; `ode.slope` is F, `ode.scale` rho and `ode.value` u.
        along: The variable of the polynomial through past values of F.
    """

    ode: ODEVariable
    along: TimeVariable

    def place(self, k: Scales) -> float:
        """The value of the polynomial's variable at a single time."""
        return self.along.at(k)

    def between(self, process: Process, t: Scales, s: Scales, fraction: float) -> Scales:
        """The time at which the polynomial's variable has gone `fraction` of the way from t to s."""
        if fraction == 1:
            return s

        def of_all(starts: Scales, ends: Scales) -> list[Scales]:
            return process.scales(self.along.between(process, starts, ends, fraction)).unbind()

        return self._paired(t, s, ("between", fraction), of_all)

    def interpolate(self, process: Process, t: Scales, s: Scales, fractions: Tensor) -> Tensor:
        """u where the polynomial's variable has gone fractions (n,) of the way from t to s: (..., n)."""
        start, end = self.along.value(t)[..., None], self.along.value(s)[..., None]
        at = start + fractions * (end - start)
        if self.along is self.ode:
            return at
        if self.along.half_log_snr is None:
            return self.ode.value(process.scales(at))
        return self.ode.at_half_log_snr(process, self.along.half_log_snr(at))

    def moments(self, process: Process, t: Scales, s: Scales) -> Sequence[float]:
        """∫ tau^k du over the step for k = 1 to 4, where tau runs from 0 to 1 in the polynomial's variable.

        By parts, (u_s - u_t) - k ∫ tau^(k-1) (u - u_t) dtau, which needs no derivative of the path.
        """

        def of_all(starts: Scales, ends: Scales) -> list[list[float]]:
            fractions, mass = gauss_legendre(NODES)
            k = torch.arange(1, 5, dtype=torch.float64)
            u_t, u_s = self.ode.value(starts)[:, None], self.ode.value(ends)[:, None]
            way = self.interpolate(process, starts, ends, fractions) - u_t
            return (u_s - u_t - way @ (mass[:, None] * fractions[:, None] ** (k - 1)) * k).tolist()

        return self._paired(t, s, "moments", of_all)

    def _paired(
        self, t: Scales, s: Scales, key: object, of_all: Callable[[Scales, Scales], Sequence[Result]]
    ) -> Result:
        """of_all for t and s, computed for all steps of the run at once but those of infinite length."""

        def where_finite(starts: Scales, ends: Scales) -> list[Any]:
            finite = self.along.value(starts).isfinite() & self.along.value(ends).isfinite()
            found = iter(of_all(starts.map(lambda v: v[finite]), ends.map(lambda v: v[finite])))
            return [next(found) if known else None for known in finite.tolist()]

        return t.paired(s, (self, key), where_finite)


@cache
def exponential_form(prediction: Prediction, variable: Variable) -> ExponentialForm:
    """The form of a prediction that is extrapolated in a variable; 'own' is the prediction's own u."""
    ode = ODE_VARIABLES[prediction]
    return ExponentialForm(ode, {"own": ode, "log-snr": LOG_SNR, "t": TIME}[variable])


DDIM_FORM = ExponentialForm(SIGNAL_LEVEL, SIGNAL_LEVEL)
"""The form of DDIM's step on the posterior mean, whose weights are `ddim_weights`."""


def form_at(
    prediction: Prediction, variable: Variable, t: Scales, s: Scales, nodes: Sequence[Scales]
) -> ExponentialForm | None:
    """The form in which a step from t to s is finite; None where only DDIM's step is, the limit of order 1.

    At alpha = 0 half the log-SNR and sigma / alpha are infinite: there the posterior mean, smooth in alpha / sigma,
    takes the place of eps. At sigma_s = 0 the exponential forms have DDIM's step as their limit.
    """
    pure = 0 in [k.floats.alpha for k in (t, *nodes)]
    clean = s.floats.sigma == 0
    if prediction == "eps" and (t.floats.alpha == 0 or (pure and variable != "t")):
        prediction = "x0"
    if clean and (prediction == "x0" or (prediction == "eps" and variable == "log-snr")):
        return None
    if variable == "log-snr" and (pure or clean):
        variable = "own"
    return exponential_form(prediction, variable)


def weights(
    form: ExponentialForm,
    process: Process,
    t: Scales,
    s: Scales,
    nodes: Sequence[Scales],
    variant: Variant = "exact",
    differences: Sequence[float] = (),
) -> tuple[float, list[float]]:
    """Weights of a step, (gain, w): x_s = gain x_t + sum_j w_j F_j, exact for polynomials F through the nodes.

    Args:
        form: F, rho, u and the variable of the polynomial.
        process: The noise process.
        t: Start of the step.
        s: End of the step.
        nodes: Where F is known, the newest first.
        variant: What stands in place of the exact integral of the polynomial's powers. 'midpoint': with two nodes,
            the line at the middle of the step (DPM-Solver-2, DPM-Solver++(2M), UniPC's B2). 'bh1': the same with
            UniPC's B1. 'taylor': 'midpoint', and with three nodes half of the quadratic term, as in the published
            DPM-Solver++(3M), which is of order 2 as it weighs half the second derivative as if it were all of it.
            'pseudo': Adams-Bashforth's fractions of the whole integral, whatever the steps (PNDM).
        differences: Factors on the terms of Newton's form of the polynomial, from the first divided difference on;
            1 where none is given.

    Returns:
        The factor rho_s / rho_t on x_t, and one weight for each node.
    """
    place = form.along.number
    start, end = place(t.floats), place(s.floats)
    rho_t, rho_s = form.ode.scale_at(t), form.ode.scale_at(s)
    if variant == "pseudo":
        (whole,) = _moments(form, process, t, s, 1)
        return rho_s / rho_t, [rho_s * whole * part for part in ADAMS_BASHFORTH[len(nodes) - 1]]
    moments = _moments(form, process, t, s, len(nodes))
    if len(nodes) == 2 and variant in ("midpoint", "taylor"):
        moments[1] = moments[0] / 2
    if len(nodes) == 2 and variant == "bh1" and form.along is LOG_SNR:
        h = s.floats.log_snr / 2 - t.floats.log_snr / 2
        u_s = form.ode.at(s)
        moments[1] = (u_s if form.ode is SIGNAL_LEVEL else -u_s) * h / 2
    if variant == "taylor":
        moments = [m / math.factorial(k) if k > 1 else m for k, m in enumerate(moments)]
    places = [(place(k.floats) - start) / (end - start) for k in nodes]
    solved = _through(places, moments)
    for count, factor in enumerate(differences[: len(nodes) - 1], start=1):
        # Newton's form: the term of the count-th difference is what the count-th node more adds to the integral.
        with_it, without = (_through(places[:n], moments) for n in (count + 1, count))
        for k, w in enumerate(with_it):
            solved[k] += (factor - 1) * (w - (without[k] if k < count else 0.0))
    return rho_s / rho_t, [rho_s * w for w in solved]


def _through(places: Sequence[float], moments: Sequence[float]) -> list[float]:
    """Weights of the values at the places in the integral of the polynomial through them, from powers' moments.

    Solves sum_j places[j]^k w_j = moments[k] in plain numbers, as tensors this small cost more to make. Björck &
    Pereyra 1970.
    """
    x, w = places, list(moments[: len(places)])
    last = len(x) - 1
    for k in range(last):
        for i in range(last, k, -1):
            w[i] -= x[k] * w[i - 1]
    for k in range(last - 1, -1, -1):
        for i in range(k + 1, last + 1):
            w[i] /= x[i] - x[i - k - 1]
        for i in range(k, last):
            w[i] -= w[i + 1]
    return w


def ddim_weights(t: Scales, s: Scales) -> tuple[float, list[float]]:
    """(gain, [w]) of DDIM's step on the posterior mean. Song et al. 2021 (DDIM)."""
    k, l = t.floats, s.floats
    return l.sigma / k.sigma, [l.alpha - k.alpha / k.sigma * l.sigma]


def _moments(form: ExponentialForm, process: Process, t: Scales, s: Scales, count: int) -> list[float]:
    """∫ tau^k du over the step for k < count, where tau runs from 0 to 1 in the polynomial's variable."""
    length = form.ode.at(s) - form.ode.at(t)
    if count == 1 or form.along is form.ode:  # u is the polynomial's variable itself
        return [length / (k + 1) for k in range(count)]
    return [length, *form.moments(process, t, s)[: count - 1]]


@cache
def gauss_legendre(count: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1], (count,) float64. Golub & Welsch 1969: eigenvalues of the Jacobi matrix."""
    k = torch.arange(1, count, dtype=torch.float64)
    off = k / (4 * k**2 - 1).sqrt()
    roots, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return (roots + 1) / 2, vectors[0] ** 2
