"""Blur: a convolution of each channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, conv_transpose2d

from dinit.arguments import shown
from dinit.inverse.operators.base import OPERATORS, LinearOperator, Shape, image_shape
from dinit.inverse.operators.kernels import (
    Padding,
    convolution_matrix,
    gaussian_taps,
    motion_kernel,
    padding_matrix,
    spectrum,
)
from dinit.inverse.operators.svd import SMALLEST, SVD, KroneckerSVD, TransformSVD, along, constant


@OPERATORS.register("blur")
@dataclass(frozen=True)
class Blur(LinearOperator):
    """Every channel convolved with a kernel; y has the shape of the image. Give one of std, length and kernel.

    Args:
        std: Of a Gaussian kernel, in pixels, above 0; it is cut at 4 standard deviations.
        length: Of a path of motion, in pixels, at least 1.
        angle: Of the path in degrees, counter-clockwise from the row; with a length only.
        kernel: Rows of numbers, or a tensor, of odd sides: the image of a single bright pixel.
        padding: What lies outside of the image: 'reflected', the image mirrored about its border pixels, or
            'circular', the opposite side.

    Raises:
        ValueError: Not exactly one of std, length and kernel, or one out of its range.
    """

    std: float | None = None
    length: float | None = None
    angle: float | None = None
    kernel: Sequence[Any] | Tensor | None = None
    padding: Padding = "reflected"

    def __post_init__(self) -> None:
        if sum(one is not None for one in (self.std, self.length, self.kernel)) != 1:
            raise ValueError("blur takes one of std (Gaussian), length (motion) and kernel")
        if self.std is not None and self.std <= 0:
            raise ValueError(f"std must be above 0, got {self.std}")
        if self.length is not None and self.length < 1:
            raise ValueError(f"length must be at least 1, got {self.length}")
        if self.angle is not None and self.length is None:
            raise ValueError("angle belongs to a path of motion: give its length, too")
        if self.kernel is not None:
            object.__setattr__(self, "kernel", _rows(self.kernel))

    def weights(self) -> Tensor:
        """The kernel, (2 r + 1, 2 s + 1) float64."""
        if self.std is not None:
            taps = gaussian_taps(self.std)
            return taps[:, None] * taps
        if self.length is not None:
            return motion_kernel(self.length, self.angle or 0.0)
        return torch.tensor(self.kernel, dtype=torch.float64)

    def output_shape(self, shape: Shape) -> Shape:
        return image_shape(self, shape)

    def apply(self, x: Tensor) -> Tensor:
        shape = image_shape(self, x.shape[1:])
        if self.padding == "circular":
            return self._filtered(x, conjugate=False)
        if self.std is not None:
            return self._gaussian(x, transposed=False)
        x = along(along(x, 2, self._padding(x, 0, shape[1])), 3, self._padding(x, 1, shape[2]))
        flipped = constant(self, "kernel", lambda: self.weights().flip(0, 1)[None, None], x.device, x.dtype)
        return conv2d(x.reshape(-1, 1, *x.shape[2:]), flipped).reshape(-1, *shape)

    def adjoint(self, y: Tensor, shape: Shape) -> Tensor:
        shape = image_shape(self, shape)
        if self.padding == "circular":
            return self._filtered(y, conjugate=True)
        if self.std is not None:
            return self._gaussian(y, transposed=True)
        flipped = constant(self, "kernel", lambda: self.weights().flip(0, 1)[None, None], y.device, y.dtype)
        wide = conv_transpose2d(y.reshape(-1, 1, *shape[1:]), flipped)
        wide = wide.reshape(-1, shape[0], *wide.shape[2:])
        return along(along(wide, 2, self._padding(y, 0, shape[1]).T), 3, self._padding(y, 1, shape[2]).T)

    def axis_factors(self, shape: Shape) -> tuple[Tensor | None, ...] | None:
        if self.std is None:
            return None
        taps = gaussian_taps(self.std)
        return (None, *(convolution_matrix(taps, size, self.padding) for size in shape[1:]))

    def decomposition(self, shape: Shape) -> SVD:
        if self.padding == "circular":
            return SpectrumSVD(spectrum(self.weights(), *shape[1:]), shape[0])
        if self.std is not None:
            return super().decomposition(shape)
        return KroneckerSVD([shape[0], SVD.of_matrix(self.matrix((1, *shape[1:])))])

    def _gaussian(self, x: Tensor, transposed: bool) -> Tensor:
        for axis in (2, 3):
            size = x.shape[axis]
            matrix = constant(self, ("side", size), lambda size=size: self._side(size), x.device, x.dtype)
            x = along(x, axis, matrix.T if transposed else matrix)
        return x

    def _side(self, size: int) -> Tensor:
        assert self.std is not None
        return convolution_matrix(gaussian_taps(self.std), size, self.padding)

    def _padding(self, x: Tensor, side: int, size: int) -> Tensor:
        return constant(
            self,
            ("padding", side, size),
            lambda: padding_matrix(self.weights().shape[side] // 2, size),
            x.device,
            x.dtype,
        )

    def _filtered(self, x: Tensor, conjugate: bool) -> Tensor:
        sides = (x.shape[-2], x.shape[-1])
        dtype = torch.complex128 if x.dtype == torch.float64 else torch.complex64
        response = constant(self, ("spectrum", *sides), lambda: spectrum(self.weights(), *sides), x.device, dtype)
        half = (response.conj_physical() if conjugate else response)[:, : sides[1] // 2 + 1]
        work = x if x.dtype == torch.float64 else x.float()
        return torch.fft.irfft2(torch.fft.rfft2(work) * half, s=sides).to(x.dtype)


class SpectrumSVD(TransformSVD):
    """Of a circular convolution. V is the Hartley transform, real and its own inverse, and U turns phases besides.

    Args:
        response: The transform of the kernel, (H, W) complex128.
        channels: C.
    """

    def __init__(self, response: Tensor, channels: int) -> None:
        self.shape = (channels, *response.shape)
        size = response.abs()
        self.phase = torch.where(size > SMALLEST * size.max(), response, torch.ones_like(response))
        self.phase = self.phase / self.phase.abs()
        values = size.expand(self.shape).flatten()
        super().__init__(values, torch.arange(len(values)), len(values))

    def analyse(self, x: Tensor) -> Tensor:
        return _hartley(x.reshape(-1, *self.shape)).flatten(1)

    def synthesise(self, coefficients: Tensor) -> Tensor:
        return self.analyse(coefficients)

    def analyse_measurement(self, y: Tensor) -> Tensor:
        turned = torch.fft.fft2(y.reshape(-1, *self.shape), norm="ortho") * self._phase(y).conj_physical()
        return (turned.real - turned.imag).flatten(1)

    def synthesise_measurement(self, coefficients: Tensor) -> Tensor:
        entries = _hartley(coefficients.reshape(-1, *self.shape))
        return torch.fft.ifft2(torch.fft.fft2(entries) * self._phase(entries)).real.flatten(1)

    def _phase(self, like: Tensor) -> Tensor:
        dtype = torch.complex128 if like.dtype == torch.float64 else torch.complex64
        return constant(self, "phase", lambda: self.phase, like.device, dtype)


def _hartley(x: Tensor) -> Tensor:
    waves = torch.fft.fft2(x, norm="ortho")
    return waves.real - waves.imag


def _rows(kernel: Sequence[Any] | Tensor) -> tuple[tuple[float, ...], ...]:
    """The kernel as plain numbers, which a record of the operator can hold."""
    try:
        given = torch.as_tensor(kernel, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"kernel must be rows of numbers of one length, got {shown(kernel)}") from error
    if given.ndim != 2 or not all(side % 2 for side in given.shape):
        raise ValueError(f"kernel must have rows and columns of odd number, got the shape {tuple(given.shape)}")
    if not bool(torch.isfinite(given).all()) or not bool(given.any()):
        raise ValueError("kernel must be of finite numbers that are not all 0")
    return tuple(tuple(row) for row in given.tolist())
