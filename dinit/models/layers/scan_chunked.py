"""The selective scan in PyTorch: about 2 sqrt(L) steps, each on one position of every chunk of the sequence.

All chunks advance together from a zero state, which gives the term that each adds to the state; these terms are
carried from chunk to chunk; then all chunks advance again from their initial states. The backward pass does the
same from the other end. Decays are at most 1 and only multiplied, never divided by, so nothing overflows.

Decays are computed twice rather than kept, which is faster than reading them from memory; the forward pass needs
sqrt(L) states and not L. They are powers of 2: on a CPU exp2 takes a third of the time of exp, and where the
result underflows a thirtieth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Grads = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Chunks:
    """Inputs of a scan in chunks: position s of every chunk is at index s, and channels are last.

    delta, driven (delta * u): (steps, B, chunks, channels). B, C: (steps, B, chunks, N). rates: A.T / log(2).
    """

    length: int
    delta: Tensor
    driven: Tensor
    B: Tensor
    C: Tensor
    rates: Tensor

    @classmethod
    def of(cls, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Chunks:
        delta_cut = cut(delta)  # ends in zeros, which leave the state as it is
        rates = (A.t() / math.log(2)).contiguous()
        return cls(u.shape[-1], delta_cut, delta_cut * cut(u), cut(B), cut(C), rates)

    def empty_state(self) -> Tensor:
        """Uninitialised state, (B, chunks, N, channels)."""
        return self.delta.new_empty(*self.delta.shape[1:3], *self.rates.shape)

    def decay(self, s: int, out: Tensor) -> Tensor:
        """exp(delta A) at position s, written to `out`."""
        return torch.mul(self.delta[s][..., None, :], self.rates, out=out).exp2_()

    def total_decay(self) -> Tensor:
        """Decay over whole chunks, (B, chunks, N, channels)."""
        return torch.exp2(self.delta.sum(0)[..., None, :] * self.rates)

    def drive(self, s: int, state: Tensor) -> Tensor:
        """Adds delta B u of position s to the state, in place."""
        return state.addcmul_(self.driven[s][..., None, :], self.B[s][..., None])


def cut(x: Tensor) -> Tensor:
    """(B, F, L) -> (steps, B, chunks, F), filled up with zeros; about as many steps as chunks."""
    length = x.shape[-1]
    steps = math.isqrt(max(length - 1, 0)) + 1
    chunks = max(1, math.ceil(length / steps))
    padded = F.pad(x, (0, steps * chunks - length))
    return padded.unflatten(-1, (chunks, steps)).permute(3, 0, 2, 1).contiguous()


def join(x: Tensor, length: int) -> Tensor:
    """(steps, B, chunks, F) -> (B, F, L), the inverse of cut()."""
    return x.permute(1, 3, 2, 0).flatten(2)[..., :length]


def carry(decay: Tensor, added: Tensor, reverse: bool = False) -> Tensor:
    """Initial state of each chunk, from every chunk's decay and added term; all (B, chunks, N, channels).

    reverse: chunks follow each other from the last to the first.
    """
    starts = torch.zeros_like(added)
    for j in range(1, added.shape[1]):
        previous, k = (-j, -j - 1) if reverse else (j - 1, j)
        starts[:, k] = torch.addcmul(added[:, previous], decay[:, previous], starts[:, previous])
    return starts


def chunk_starts(x: Chunks) -> Tensor:
    """The state in which each chunk starts, (B, chunks, N, channels)."""
    h, a = x.empty_state().zero_(), x.empty_state()
    for s in range(len(x.delta)):
        x.drive(s, h.mul_(x.decay(s, out=a)))
    return carry(x.total_decay(), h)


def scan_forward(x: Chunks, starts: Tensor) -> Tensor:
    """y without the D term, (B, channels, L)."""
    h, a = starts.clone(), x.empty_state()
    y = torch.empty_like(x.delta)
    for s in range(len(y)):
        x.drive(s, h.mul_(x.decay(s, out=a)))
        y[s] = torch.matmul(x.C[s][..., None, :], h).squeeze(-2)
    return join(y, x.length)


def scan_backward(grad_y: Tensor, u: Tensor, A: Tensor, x: Chunks) -> Grads:
    """Gradients for u, delta, A, B, C. With a_t = exp(delta_t A) and g_t the gradient for h_t,

    g_t = C_t grad_y_t + a_{t+1} g_{t+1}.
    """
    grad_y = cut(grad_y)
    kept = _kept_states(x, chunk_starts(x))
    g, a = _chunk_ends(grad_y, x), x.empty_state()
    grad_A = torch.zeros_like(a)
    grad_driven, grad_delta = torch.empty_like(x.delta), torch.empty_like(x.delta)
    grad_B, grad_C = torch.empty_like(x.B), torch.empty_like(x.C)
    for s in reversed(range(len(grad_y))):
        # h_t is what was kept of h_{t-1} plus the drive.
        driven_y = (x.driven[s] * grad_y[s]).sum(-1, keepdim=True)
        grad_C[s] = _times(kept[s], grad_y[s]) + x.B[s] * driven_y
        g.addcmul_(grad_y[s][..., None, :], x.C[s][..., None])
        grad_driven[s] = torch.matmul(x.B[s][..., None, :], g).squeeze(-2)
        grad_B[s] = _times(g, x.driven[s])
        exponent = kept[s].mul_(g)  # the gradient for delta_t A: d a_t = a_t d(delta_t A)
        grad_A.addcmul_(exponent, x.delta[s][..., None, :])
        g.mul_(x.decay(s, out=a))
        grad_delta[s] = exponent.mul_(A.t()).sum(-2)
    grad_delta += grad_driven * cut(u)
    grad_u = grad_driven.mul_(x.delta)
    wide = (join(grad, x.length) for grad in (grad_u, grad_delta, grad_B, grad_C))
    for_u, for_delta, for_B, for_C = wide
    return for_u, for_delta, grad_A.sum((0, 1)).t(), for_B, for_C


def _times(state: Tensor, vector: Tensor) -> Tensor:
    """(B, chunks, N, channels) times (B, chunks, channels) -> (B, chunks, N).

    As a row times a matrix: a matrix times a column, the same numbers, is ten times slower on a CPU.
    """
    return torch.matmul(vector[..., None, :], state.transpose(-1, -2)).squeeze(-2)


def _kept_states(x: Chunks, starts: Tensor) -> Tensor:
    """exp(delta_t A) h_{t-1} at every position, (steps, B, chunks, N, channels)."""
    h, a = starts.clone(), x.empty_state()
    kept = h.new_empty(len(x.delta), *h.shape)
    for s in range(len(kept)):
        torch.mul(h, x.decay(s, out=a), out=kept[s])
        torch.addcmul(kept[s], x.driven[s][..., None, :], x.B[s][..., None], out=h)
    return kept


def _chunk_ends(grad_y: Tensor, x: Chunks) -> Tensor:
    """Gradient at the last position of every chunk from the chunks after it, (B, chunks, N, channels)."""
    g, a = x.empty_state().zero_(), x.empty_state()
    for s in reversed(range(len(grad_y))):
        g.addcmul_(grad_y[s][..., None, :], x.C[s][..., None]).mul_(x.decay(s, out=a))
    return carry(x.total_decay(), g, reverse=True)
