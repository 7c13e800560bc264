"""The likelihood of a measurement: what samplers that follow its gradient share."""

from __future__ import annotations

import torch
from torch import Tensor

from dinit.inverse.measurement import Measurement
from dinit.inverse.operators.base import LinearOperator
from dinit.samplers.guidance.gradient import gradient


def data_gradient(x0: Tensor, measurement: Measurement) -> Tensor:
    """The gradient of -||y - A(x0)||^2 / 2, (B, C, H, W), in images (B, C, H, W)."""
    operator = measurement.a
    if isinstance(operator, LinearOperator):
        return operator.adjoint(measurement.residual(x0), tuple(x0.shape[1:]))
    return gradient(lambda x: -(measurement.residual(x) ** 2).flatten(1).sum(1) / 2, x0)


def wide_data_gradient(x0: Tensor, measurement: Measurement, variance: float) -> Tensor:
    """The gradient of log N(y; A(x0), noise_std^2 + variance A A*), (B, C, H, W), in images (B, C, H, W).

    For an operator that is not linear, A A* is its `squared_norm`.
    """
    operator, shape = measurement.a, tuple(x0.shape[1:])
    if not isinstance(operator, LinearOperator):
        spread = measurement.noise_std**2 + variance * squared_norm(x0, measurement)
        return data_gradient(x0, measurement) / spread
    svd = operator.svd(shape)
    values = svd.values_on(x0)
    rest = svd.of_measurement(measurement.residual(x0)) * values / (measurement.noise_std**2 + variance * values**2)
    return svd.to_image(torch.nn.functional.pad(rest, (0, x0[0].numel() - len(values))), shape)


def squared_norm(x0: Tensor, measurement: Measurement, iterations: int = 20) -> Tensor:
    """The largest squared singular value of A, a tensor without dimensions on the device of the images.

    By power iteration from a fixed start, so that nothing is read back. Of an operator that is not linear it is
    taken for 1, as of one that changes no pixel by more than its own change.

    Args:
        x0: (B, C, H, W), for shape, dtype and device.
        measurement: With a row for each of x0.
        iterations: Of the power method; it comes from below, and 1.1 times its result is returned.
    """
    operator = measurement.a
    if not isinstance(operator, LinearOperator):
        return torch.ones((), dtype=x0.dtype, device=x0.device)
    shape = tuple(x0.shape[1:])
    count = x0[0].numel()
    ramp = torch.arange(1, count + 1, dtype=x0.dtype, device=x0.device)
    v = torch.frac(ramp * 0.6180339887498949).add(0.1).reshape(1, *shape)  # every frequency has a part in it
    size = v.square().sum().sqrt()
    for _ in range(iterations):
        v = operator.adjoint(operator.apply(v / size), shape)
        size = v.square().sum().sqrt()
    return 1.1 * size


def sum_squares(values: Tensor) -> Tensor:
    """||v||^2 of every row, (B,)."""
    return values.square().flatten(1).sum(1)
