"""S4D: a linear state-space model a channel, with a diagonal state matrix. Gu et al. 2022, arXiv:2206.11893."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinit.devices import without_autocast

# Range of the step sizes at the start: memories of about ten to about a thousand positions.
_DT_MIN, _DT_MAX = 1e-3, 1e-1


class S4D(nn.Module):
    """Diagonal state-space model of every channel: h' = A h + B u, y = 2 Re(C h) + D u, with B = 1.

    The input is held constant (ZOH) over steps of dt.

    As a recurrence along the sequence, with h complex of size state_size / 2 (the conjugate half is the 2 Re):

        h_l = exp(dt A) h_{l-1} + (exp(dt A) - 1) / A u_l,    y_l = 2 Re(C . h_l) + D u_l.

    It is run as the convolution with the kernel K_l = 2 Re sum_n C_n (exp(dt A_n) - 1) / A_n exp(dt A_n l), by
    FFT. A starts as in S4D-Lin: -1/2 + i pi n. state_size: even, ValueError if not. The step sizes dt, A, C are
    the channel's own; Re A is kept negative and dt positive as exponentials of parameters.

    bidirectional: a second such model (dt, A and C of its own) runs from the last position to the first, and the
    two are added; D u is added once.
    """

    def __init__(self, channels: int, state_size: int = 64, bidirectional: bool = False) -> None:
        super().__init__()
        if state_size < 2 or state_size % 2:
            raise ValueError(f"state_size must be even and at least 2 (conjugate pairs), got {state_size}")
        directions, pairs = 2 if bidirectional else 1, state_size // 2
        span = math.log(_DT_MAX) - math.log(_DT_MIN)
        self.log_dt = nn.Parameter(torch.rand(directions, channels) * span + math.log(_DT_MIN))
        self.log_decay = nn.Parameter(torch.full((directions, channels, pairs), math.log(0.5)))  # log(-Re A)
        frequency = math.pi * torch.arange(pairs, dtype=torch.float32)
        self.frequency = nn.Parameter(frequency.repeat(directions, channels, 1))  # Im A
        # Real and imaginary parts in the last dimension: complex parameters neither cast nor save everywhere.
        self.C = nn.Parameter(torch.randn(directions, channels, pairs, 2) * math.sqrt(0.5))
        self.D = nn.Parameter(torch.randn(channels))
        self._kept: _Kept | None = None  # of the last call in inference

    def forward(self, u: Tensor) -> Tensor:
        """u (B, channels, L) -> (B, channels, L), in u's dtype; computed in float32 at least."""
        length = u.shape[-1]
        dtype = torch.promote_types(u.dtype, torch.float32)
        with without_autocast(u.device):
            signal = u.to(dtype)
            spectrum = torch.fft.rfft(signal, n=2 * length)
            filtered = self._spectrum(length, dtype)
            spectrum = spectrum * filtered if torch.is_grad_enabled() else spectrum.mul_(filtered)
            y = torch.fft.irfft(spectrum, n=2 * length)[..., :length]
            return torch.addcmul(y, signal, self.D.to(dtype)[:, None]).to(u.dtype)

    def _spectrum(self, length: int, dtype: torch.dtype) -> Tensor:
        """Spectrum of the kernel of all directions, (channels, length + 1) complex.

        In inference on a CPU it is kept until a parameter changes. The parameters are compared by their numbers,
        which costs little there and sees every change; on other devices that would wait for the device.
        """
        learned = (self.log_dt, self.log_decay, self.frequency, self.C)
        plain = all(type(x) is nn.Parameter and x.is_cpu for x in learned)
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or not plain:
            return self._new_spectrum(length, dtype)
        kept = self._kept
        if kept is not None and kept.fits(length, dtype, learned):
            return kept.spectrum
        spectrum = self._new_spectrum(length, dtype)
        self._kept = _Kept(length, dtype, tuple(x.detach().clone() for x in learned), spectrum)
        return spectrum

    def _new_spectrum(self, length: int, dtype: torch.dtype) -> Tensor:
        kernel = self.kernel(length, dtype)
        # On a circle of 2 L positions, of which u fills half, nothing wraps around.
        circle = F.pad(kernel[0], (0, length))
        if len(kernel) == 2:  # the backward kernel at positions 0, -1, -2, ...
            circle = circle + F.pad(kernel[1].flip(-1), (length, 0)).roll(1, -1)
        return torch.fft.rfft(circle)

    def kernel(self, length: int, dtype: torch.dtype) -> Tensor:
        """K_0 .. K_{length-1} of each direction: (directions, channels, length).

        A Vandermonde product. With l = a S + b and S about sqrt(length), exp(dt A l) is a product of two, so
        that the sum over n is a matrix product of S x pairs and pairs x S, in memory that grows with S only.
        """
        dt = self.log_dt.to(dtype).exp()[..., None]
        rate, angle = -self.log_decay.to(dtype).exp() * dt, self.frequency.to(dtype) * dt  # dt A
        step = torch.complex(rate, angle)
        # (exp(dt A) - 1) / A; as a sinh, which keeps the digits that exp - 1 loses at small dt.
        held = (step / 2).exp() * (step / 2).sinh() / (step / 2) * dt
        weight = 2 * torch.complex(*self.C.to(dtype).unbind(-1)) * held  # (directions, channels, pairs)
        side = math.ceil(math.sqrt(length))
        index = torch.arange(side, device=step.device)
        # The real part of coarse.mT @ fine, in real numbers: PyTorch's complex exp is many times slower on a CPU.
        fine, coarse = _powers(rate, angle, index), _powers(rate, angle, index * side)
        real, imag = weight.real[..., None], weight.imag[..., None]
        coarse = [real * coarse[0] - imag * coarse[1], -(real * coarse[1] + imag * coarse[0])]
        product = torch.cat(coarse, dim=-2).mT @ torch.cat(fine, dim=-2)
        return product.flatten(-2)[..., :length]


def _powers(rate: Tensor, angle: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of exp((rate + i angle) index), with an axis more, the index's."""
    size, turn = torch.exp(rate[..., None] * index), angle[..., None] * index
    return size * turn.cos(), size * turn.sin()


@dataclass(frozen=True)
class _Kept:
    """A spectrum and what it was computed from."""

    length: int
    dtype: torch.dtype
    learned: tuple[Tensor, ...]
    spectrum: Tensor

    def fits(self, length: int, dtype: torch.dtype, learned: tuple[Tensor, ...]) -> bool:
        """Whether it is the spectrum of these."""
        pairs = zip(self.learned, learned, strict=True)
        return (length, dtype) == (self.length, self.dtype) and all(
            a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs
        )
