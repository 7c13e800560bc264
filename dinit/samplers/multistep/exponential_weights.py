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
from typing import Any, Literal, get_args

import numpy as np
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
        found, place = self.all_between(process, t, s, fraction)
        return found[place]

    def all_between(self, process: Process, t: Scales, s: Scales, fraction: float) -> tuple[Sequence[Scales], int]:
        """`between` of all steps of the run, None for one of infinite length, and the place of this step."""

        def of_all(starts: Scales, ends: Scales) -> list[Scales]:
            return process.scales(self.along.between(process, starts, ends, fraction)).unbind()

        return self._pairs(t, s, ("between", fraction), of_all)

    def interpolate(self, process: Process, t: Scales, s: Scales, fractions: Tensor) -> Tensor:
        """u where the polynomial's variable has gone fractions (n,) of the way from t to s: (..., n)."""
        start, end = self.along.value(t)[..., None], self.along.value(s)[..., None]
        at = start + fractions * (end - start)
        if self.along is self.ode:
            return at
        if self.along.half_log_snr is None:
            return self.ode.value(process.scales(at))
        return self.ode.at_half_log_snr(process, self.along.half_log_snr(at))

    def numbers(self, k: Scales) -> tuple[float, float, float]:
        """The polynomial's variable, u and rho at a single time."""
        return self.along.at(k), self.ode.at(k), self.ode.scale_at(k)

    def numbers_nearby(self, k: Scales, low: int, high: int) -> tuple[Any, Any, Any]:
        """`numbers` of the times of the run from `low` to `high` of them from k, an array each."""
        along, ode = self.along, self.ode
        return (
            k.nearby(low, high, (along, "at"), along.number),
            k.nearby(low, high, (ode, "at"), ode.number),
            k.nearby(low, high, (ode, "scale"), ode.scale_number),
        )

    def moments(self, process: Process, t: Scales, s: Scales) -> Sequence[float]:
        """∫ tau^k du over the step for k = 1 to 4, where tau runs from 0 to 1 in the polynomial's variable.

        By parts, (u_s - u_t) - k ∫ tau^(k-1) (u - u_t) dtau, which needs no derivative of the path.
        """
        found, place = self.all_moments(process, t, s)
        return found[place]

    def all_moments(self, process: Process, t: Scales, s: Scales) -> tuple[Sequence[Any], int]:
        """`moments` of all steps of the run, None for one of infinite length, and the place of this step."""

        def of_all(starts: Scales, ends: Scales) -> list[list[float]]:
            fractions, mass = gauss_legendre(NODES)
            k = torch.arange(1, 5, dtype=torch.float64)
            u_t, u_s = self.ode.value(starts)[:, None], self.ode.value(ends)[:, None]
            way = self.interpolate(process, starts, ends, fractions) - u_t
            return (u_s - u_t - way @ (mass[:, None] * fractions[:, None] ** (k - 1)) * k).tolist()

        return self._pairs(t, s, "moments", of_all)

    def _pairs(
        self, t: Scales, s: Scales, key: object, of_all: Callable[[Scales, Scales], Sequence[Any]]
    ) -> tuple[Sequence[Any], int]:
        """of_all for t and s, computed for all steps of the run at once but those of infinite length."""

        def where_finite(starts: Scales, ends: Scales) -> list[Any]:
            finite = self.along.value(starts).isfinite() & self.along.value(ends).isfinite()
            found = iter(of_all(starts.map(lambda v: v[finite]), ends.map(lambda v: v[finite])))
            return [next(found) if known else None for known in finite.tolist()]

        return t.pairs(s, (self, key), where_finite)


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
    count = 1 if variant == "pseudo" or form.along is form.ode else len(nodes)
    of_powers = form.moments(process, t, s)[: count - 1] if count > 1 else ()
    return _weights(form, [form.numbers(k) for k in (t, s, *nodes)], of_powers, variant, differences)


def all_weights(
    form: ExponentialForm,
    process: Process,
    t: Scales,
    s: Scales,
    nodes: Sequence[Scales],
    variant: Variant = "exact",
    differences: Sequence[float] = (),
) -> tuple[Sequence[tuple[float, list[float]]], int]:
    """`weights` of all steps of the run whose nodes stand alike, the same numbers, computed at once.

    Args:
        form: F, rho, u and the variable of the polynomial.
        process: The noise process.
        t: Start of one of the steps.
        s: Its end.
        nodes: Where F is known, the newest first.
        variant: As of `weights`.
        differences: As of `weights`.

    Returns:
        The weights of consecutive steps, without a meaning where a step is infinite in this form; and the place of
        this step among them.
    """
    count = 1 if variant == "pseudo" or form.along is form.ode else len(nodes)
    times = (t, s, *nodes)

    def of_all(low: int, high: int) -> list[tuple[float, list[float]]]:
        of_powers: Any = ()
        if count > 1:
            rows, place = form.all_moments(process, t, s)
            unknown = [math.nan] * (count - 1)  # infinite steps, which take another form
            known = [unknown if row is None else row[: count - 1] for row in rows[place + low : place + high]]
            of_powers = np.array(known).T
        with np.errstate(all="ignore"):
            gain, found = _weights(
                form, [form.numbers_nearby(k, low, high) for k in times], of_powers, variant, differences
            )
        return [*zip(gain.tolist(), np.stack(found, axis=-1).tolist(), strict=True)]

    return t.aligned((s, *nodes), (form, variant, tuple(differences)), of_all)


def _weights(
    form: ExponentialForm,
    times: Sequence[tuple[Any, Any, Any]],
    of_powers: Sequence[Any],
    variant: Variant,
    differences: Sequence[float],
) -> tuple[Any, list[Any]]:
    """`weights` from plain numbers of one step, or from arrays of many.

    Args:
        form: As of `weights`.
        times: `ExponentialForm.numbers` of t, s and the nodes.
        of_powers: ∫ tau^k du for k from 1, where u is not the polynomial's variable.
        variant: As of `weights`.
        differences: As of `weights`.
    """
    (start, u_t, rho_t), (end, u_s, rho_s), *nodes = times
    count, whole = len(nodes), u_s - u_t
    if variant == "pseudo":
        return rho_s / rho_t, [rho_s * whole * part for part in ADAMS_BASHFORTH[count - 1]]
    moments = [whole, *of_powers] if form.along is not form.ode else [whole / (k + 1) for k in range(count)]
    if count == 2 and variant in ("midpoint", "taylor"):
        moments[1] = moments[0] / 2
    if count == 2 and variant == "bh1" and form.along is LOG_SNR:
        moments[1] = (u_s if form.ode is SIGNAL_LEVEL else -u_s) * (end - start) / 2
    if variant == "taylor":
        moments = [m / math.factorial(k) if k > 1 else m for k, m in enumerate(moments)]
    places = [(place - start) / (end - start) for place, _, _ in nodes]
    solved = _through(places, moments)
    for term, factor in enumerate(differences[: count - 1], start=1):
        # Newton's form: the term of the n-th difference is what the n-th node more adds to the integral.
        with_it, without = (_through(places[:n], moments) for n in (term + 1, term))
        for k, w in enumerate(with_it):
            solved[k] = solved[k] + (factor - 1) * (w - (without[k] if k < term else 0.0))
    return rho_s / rho_t, [rho_s * w for w in solved]


def _through(places: Sequence[Any], moments: Sequence[Any]) -> list[Any]:
    """Weights of the values at the places in the integral of the polynomial through them, from powers' moments.

    Solves sum_j places[j]^k w_j = moments[k] in plain numbers, as tensors this small cost more to make. Björck &
    Pereyra 1970.
    """
    x, w = places, list(moments[: len(places)])
    last = len(x) - 1
    for k in range(last):
        for i in range(last, k, -1):
            w[i] = w[i] - x[k] * w[i - 1]
    for k in range(last - 1, -1, -1):
        for i in range(k + 1, last + 1):
            w[i] = w[i] / (x[i] - x[i - k - 1])
        for i in range(k, last):
            w[i] = w[i] - w[i + 1]
    return w


def ddim_weights(t: Scales, s: Scales) -> tuple[float, list[float]]:
    """(gain, [w]) of DDIM's step on the posterior mean. Song et al. 2021 (DDIM)."""
    k, l = t.floats, s.floats
    return l.sigma / k.sigma, [l.alpha - k.alpha / k.sigma * l.sigma]


@cache
def gauss_legendre(count: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1], (count,) float64. Golub & Welsch 1969: eigenvalues of the Jacobi matrix."""
    k = torch.arange(1, count, dtype=torch.float64)
    off = k / (4 * k**2 - 1).sqrt()
    roots, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return (roots + 1) / 2, vectors[0] ** 2
