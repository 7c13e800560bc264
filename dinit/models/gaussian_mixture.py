"""Gaussian mixtures with full covariances: posteriors under linear measurements, samples and denoisers, exact."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from dinit.devices import upload
from dinit.diffusion import Condition, Denoised, Denoiser, Process, Scales

# The log-weight of a component outside the class: below any likelihood ratio that a state far from the class can
# reach at a low noise level, and unlike -inf it stays finite under the condition noise of CADS.
_ABSENT = -1e9


class SupportsMatrix(Protocol):
    """A linear operator with its dense matrix on flattened images."""

    def matrix(self, shape: tuple[int, ...], /) -> Tensor:
        """(m, n) for images of a shape of n numbers."""
        ...


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """The law sum_k w_k N(mu_k, S_k) of images, in float64. Covariances may be singular.

    The posteriors of a batch of measurements have weights and means of their own and share their covariances: then
    B mixtures stand in one object.

    Args:
        weights: w, (K,) or (B, K), at least 0; they are divided by their sum.
        means: mu, (K, n) or (B, K, n).
        covariances: S, (K, n, n), symmetric and positive semidefinite.
        shape: Of one image, n numbers; None is (n,).

    Raises:
        ValueError: Shapes that do not fit, or matrices that are no covariances.
    """

    weights: Tensor
    means: Tensor
    covariances: Tensor
    shape: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        weights, means, covariances = (one.double() for one in (self.weights, self.means, self.covariances))
        if means.ndim not in (2, 3) or weights.shape != means.shape[:-1]:
            raise ValueError(
                "weights (K,) and means (K, n), or (B, K) and (B, K, n), are wanted; got "
                f"{tuple(weights.shape)} and {tuple(means.shape)}"
            )
        components, n = means.shape[-2:]
        shape = (n,) if self.shape is None else tuple(self.shape)
        if covariances.shape != (components, n, n) or math.prod(shape) != n:
            raise ValueError(
                f"covariances ({components}, {n}, {n}) and a shape of {n} numbers are wanted; got "
                f"{tuple(covariances.shape)} and {shape}"
            )
        if not bool((weights >= 0).all() and (weights.sum(-1) > 0).all()):
            raise ValueError("weights must be at least 0, with a positive sum")
        if not torch.allclose(covariances, covariances.mT, rtol=1e-6, atol=1e-9):
            raise ValueError("covariances must be symmetric")
        object.__setattr__(self, "weights", weights / weights.sum(-1, keepdim=True))
        object.__setattr__(self, "means", means)
        object.__setattr__(self, "covariances", (covariances + covariances.mT) / 2)
        object.__setattr__(self, "shape", shape)

    @classmethod
    def low_rank(
        cls,
        weights: Tensor,
        means: Tensor,
        diagonal: Tensor,
        factors: Tensor | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> GaussianMixture:
        """The mixture with covariances diag(d_k) + F_k F_k^T.

        Args:
            weights: (K,).
            means: (K, n).
            diagonal: d, (K, n), at least 0.
            factors: F, (K, n, r); None is r = 0.
            shape: Of one image; None is (n,).
        """
        covariances = torch.diag_embed(diagonal.double())
        if factors is not None:
            covariances = covariances + factors.double() @ factors.double().mT
        return cls(weights, means, covariances, shape)

    @cached_property
    def eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (K, n), 0 where they are rounding error, and eigenvectors (K, n, n) in columns.

        Raises:
            ValueError: A covariance with a negative eigenvalue.
        """
        values, vectors = torch.linalg.eigh(self.covariances)
        if bool((values < -1e-6 * values.abs().max()).any()):
            raise ValueError(
                f"covariances must be positive semidefinite; an eigenvalue is {float(values.min()):.3g}"
            )
        return torch.where(values > _rounding(values), values, torch.zeros_like(values)), vectors

    @cached_property
    def mean(self) -> Tensor:
        """The mean of all components, (n,) or (B, n)."""
        return (self.weights[..., None] * self.means).sum(-2)

    @cached_property
    def covariance(self) -> Tensor:
        """The covariance of all components, (n, n) or (B, n, n)."""
        apart = self.means - self.mean[..., None, :]
        return torch.einsum("...k,kij->...ij", self.weights, self.covariances) + torch.einsum(
            "...k,...ki,...kj->...ij", self.weights, apart, apart
        )

    def row(self, index: int) -> GaussianMixture:
        """One of B mixtures.

        Args:
            index: Its number.
        """
        if self.weights.ndim == 1:
            return self
        one = GaussianMixture(self.weights[index], self.means[index], self.covariances, self.shape)
        if "eigen" in self.__dict__:
            one.__dict__["eigen"] = self.eigen
        return one

    def posterior(self, A: Tensor | SupportsMatrix, y: Tensor, noise_std: float) -> GaussianMixture:
        """The law of x given y = A x + noise_std n, with n standard normal.

        With G = A S A^T + noise_std^2 I and K = S A^T G^-1 a component has the mean mu + K (y - A mu), the
        covariance (I - K A) S (I - K A)^T + noise_std^2 K K^T and a weight in proportion to w N(y; A mu, G). Where
        G is singular, these are the limits for a noise that tends to 0.

        Args:
            A: (m, n), or a linear operator.
            y: (m,), or a batch (B, ...) of m numbers each. One row gives one mixture, more give one a row.
            noise_std: At least 0, in the units of y.

        Raises:
            ValueError: Shapes that do not fit, or a negative noise_std.
        """
        assert self.shape is not None, "filled in __post_init__"
        matrix = (A if isinstance(A, Tensor) else A.matrix(self.shape)).double()
        rows = y.double().flatten(1) if y.ndim > 1 else y.double()[None]
        if matrix.ndim != 2 or matrix.shape != (rows.shape[1], self.means.shape[-1]):
            raise ValueError(
                f"A must be ({rows.shape[1]}, {self.means.shape[-1]}) for these y and images, "
                f"got {tuple(matrix.shape)}"
            )
        if noise_std < 0:
            raise ValueError(f"noise_std is a standard deviation, at least 0, got {noise_std}")
        cross = self.covariances @ matrix.T  # S A^T, (K, n, m)
        signal, basis = torch.linalg.eigh(matrix @ cross)
        smallest = _rounding(signal)
        total = torch.where(signal > smallest, signal, torch.zeros_like(signal)) + noise_std**2  # of G, (K, m)
        inverse = torch.where(total > 0, 1 / total, torch.zeros_like(total))
        gain = (cross @ basis) * inverse[:, None] @ basis.mT  # K, (K, n, m)
        means = self.means.expand(len(rows), -1, -1) if self.means.ndim == 2 else self.means
        residual = rows[:, None] - means @ matrix.T  # (B, K, m)
        # For the weights the variances that are 0 are small and the same for all components: a component without
        # y in its support has no weight, and of two with it the one of fewer dimensions has all.
        spread = torch.where(total > 0, total, smallest)
        squares = torch.einsum("bkm,kmi->bki", residual, basis) ** 2 / spread
        log_weights = self.weights.log() - (squares + spread.log()).sum(-1) / 2
        kept = torch.eye(matrix.shape[1], dtype=torch.float64) - gain @ matrix
        covariances = kept @ self.covariances @ kept.mT + noise_std**2 * gain @ gain.mT
        found = torch.softmax(log_weights, -1), means + torch.einsum("knm,bkm->bkn", gain, residual)
        weights, means = (one[0] if len(one) == 1 else one for one in found)
        return GaussianMixture(weights, means, covariances, self.shape)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Exact draws.

        Args:
            count: Their number, for each of B mixtures.
            generator: Of the draws.

        Returns:
            (count, *shape) float64, or (B, count, *shape).
        """
        values, vectors = self.eigen
        weights = self.weights.reshape(-1, self.weights.shape[-1])
        means = self.means.reshape(-1, *self.means.shape[-2:])
        component = torch.multinomial(weights, count, replacement=True, generator=generator)
        noise = torch.randn(*component.shape, means.shape[-1], dtype=torch.float64, generator=generator)
        draws = torch.empty_like(noise)
        for k, (scale, basis) in enumerate(zip(values.sqrt(), vectors, strict=True)):
            here = component == k
            draws[here] = means[:, None, k].expand_as(draws)[here] + (noise[here] * scale) @ basis.T
        assert self.shape is not None, "filled in __post_init__"
        return draws.reshape(*self.weights.shape[:-1], count, *self.shape)

    def log_joint(self, x: Tensor) -> Tensor:
        """log w_k N(x; mu_k, S_k).

        Args:
            x: (N, ...). With B mixtures N is a multiple of B, and every block of B rows belongs to all of them.

        Returns:
            (N, K), without the directions in which a covariance is singular.
        """
        points = x.double().flatten(1)
        values, vectors = self.eigen
        means, weights = self.means, self.weights
        if weights.ndim == 2:
            means, weights = _rows(means, len(points)), _rows(weights, len(points))
        pull = torch.einsum("nki,kij->nkj", points[:, None] - means, vectors)
        return weights.log() + _log_normal(pull, values)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density at x (N, ...), (N,) in nats, within the support where covariances are singular."""
        return self.log_joint(x).logsumexp(-1)

    def responsibilities(self, x: Tensor) -> Tensor:
        """p(k | x) of every component, (N, K), for x (N, ...). Those of a posterior are the prior's."""
        return self.log_joint(x).softmax(-1)

    def denoiser(
        self, process: Process, component_class: Tensor | None = None, t_max: float = 1.0
    ) -> GaussianMixtureDenoiser:
        """The exact E[x0 | x_t]; of a posterior it is E[x0 | x_t, y].

        Args:
            process: Of the noise.
            component_class: The class of each component, (K,) int64; None is one class.
            t_max: Largest time.
        """
        return GaussianMixtureDenoiser(self, process, component_class, t_max)


class MixtureOfClasses(Denoiser):
    """A denoiser of a mixture each of whose components belongs to one class.

    The null label stands for the whole mixture. A condition is embedded as component log-weights, (B, K).

    Args:
        process: Of the noise.
        components: K.
        weights: (K,), positive; they are divided by their sum.
        component_class: (K,) int64 in 0 .. num_classes - 1; None is one class.
        t_max: Largest time.

    Raises:
        ValueError: Shapes that do not fit, or a class without a component.
    """

    def __init__(
        self,
        process: Process,
        components: int,
        weights: Tensor,
        component_class: Tensor | None = None,
        t_max: float = 1.0,
    ) -> None:
        if component_class is None:
            component_class = torch.zeros(components, dtype=torch.int64)
        if weights.shape != (components,) or component_class.shape != (components,):
            raise ValueError(f"weights and component_class need one entry for each of {components} components")
        self.process, self.t_min, self.t_max = process, process.t_min, t_max
        self.weights = weights / weights.sum()
        self.component_class = component_class
        self.num_classes = int(component_class.max()) + 1
        missing = set(range(self.num_classes)) - set(component_class.tolist())
        if missing:
            raise ValueError(f"classes {sorted(missing)} have no component")

    def embed(self, labels: Tensor) -> Tensor:
        classes = upload(self.component_class, labels.device)
        log_weights = upload(self.weights, labels.device).log().clamp_min(_ABSENT).expand(len(labels), -1)
        member = (classes == labels[:, None]) | (labels[:, None] == self.num_classes)
        return torch.where(member, log_weights, torch.full_like(log_weights, _ABSENT))


class GaussianMixtureDenoiser(MixtureOfClasses):
    """Exact denoiser of a mixture with full covariances. Its Jacobian is alpha / sigma^2 Cov[x0 | x_t].

    Args:
        mixture: Of x0. Of B mixtures the rows of x_t belong to one each; x_t may have a multiple of B rows, as
            where conditions are evaluated together.
        process: Of the noise.
        component_class: (K,) int64 in 0 .. num_classes - 1; None is one class.
        t_max: Largest time.

    Raises:
        ValueError: A component_class of another length, or a class without a component.
    """

    def __init__(
        self,
        mixture: GaussianMixture,
        process: Process,
        component_class: Tensor | None = None,
        t_max: float = 1.0,
    ) -> None:
        several = mixture.weights.ndim == 2
        components, n = mixture.means.shape[-2:]
        weights = torch.ones(components, dtype=torch.float64) if several else mixture.weights
        super().__init__(process, components, weights, component_class, t_max)
        self.mixture = mixture
        values, vectors = mixture.eigen
        self._values = values
        self._into = vectors.permute(1, 0, 2).reshape(n, components * n).contiguous()  # x -> all V_k^T x
        self._out = vectors.mT.reshape(components * n, n).contiguous()
        self._means = mixture.means
        self._turned_means = torch.einsum("...ki,kij->...kj", mixture.means, vectors)
        self._row_weights = mixture.weights.log().clamp_min(_ABSENT) if several else None

    def __call__(self, x_t: Tensor, t: Scales | Tensor | float, cond: Condition) -> Denoised:
        k = self.scales(t)
        kx = k.like(x_t)
        gain, pull, log_r = self._components(x_t, kx, cond)
        r = log_r.softmax(-1)
        means, out = (upload(one, x_t.device, x_t.dtype) for one in (self._means, self._out))
        of_rows = self._row_weights is not None
        centre = torch.einsum("bk,bkn->bn", r, _rows(means, len(x_t))) if of_rows else r @ means
        x0 = centre + (r[..., None] * gain * pull).flatten(1) @ out
        return Denoised(x_t, x0.reshape(x_t.shape), kx)

    def log_prob(self, x_t: Tensor, t: Scales | Tensor | float, cond: Condition | None = None) -> Tensor:
        """Log-density log p_t(x_t | cond).

        Args:
            x_t: (B, *shape).
            t: Time, or its scales.
            cond: None is the whole mixture.

        Returns:
            (B,) in nats.
        """
        cond = cond or self.condition(None, len(x_t), x_t.device)
        log_r = self._components(x_t, self.scales(t).like(x_t), cond)[2]
        return log_r.logsumexp(-1) - self._log_weights(x_t, cond).logsumexp(-1)

    def _log_weights(self, x_t: Tensor, cond: Condition) -> Tensor:
        log_weights = cond.embedding.to(x_t)
        if self._row_weights is None:
            return log_weights
        return log_weights + _rows(upload(self._row_weights, x_t.device, x_t.dtype), len(x_t))

    def _components(self, x_t: Tensor, k: Scales, cond: Condition) -> tuple[Tensor, Tensor, Tensor]:
        """Of every component: alpha l / (alpha^2 l + sigma^2), (K, n) or (B, K, n), on the eigenvalues l; x_t less
        alpha mu in the eigenvectors, (B, K, n); and the logarithm of weight times density, (B, K)."""
        values, turned = (upload(one, x_t.device, x_t.dtype) for one in (self._values, self._turned_means))
        turned = turned if self._row_weights is None else _rows(turned, len(x_t))
        alpha, sigma = (one if k.time.ndim == 0 else one.reshape(-1, 1, 1) for one in (k.alpha, k.sigma))
        into = upload(self._into, x_t.device, x_t.dtype)
        pull = (x_t.flatten(1) @ into).unflatten(1, values.shape) - alpha * turned
        total = alpha**2 * values + sigma**2
        gain = alpha * values / torch.where(total > 0, total, torch.ones_like(total))
        return gain, pull, _log_normal(pull, total) + self._log_weights(x_t, cond)


def _log_normal(pull: Tensor, variances: Tensor) -> Tensor:
    """Sum over the last axis of the log-density of independent normal numbers; variances of 0 do not count."""
    some = variances > 0
    safe = torch.where(some, variances, torch.ones_like(variances))
    terms = pull**2 / safe + safe.log() + math.log(2 * math.pi)
    return -torch.where(some, terms, torch.zeros_like(terms)).sum(-1) / 2


def _rounding(eigenvalues: Tensor) -> Tensor:
    """Below it, an eigenvalue of any of these matrices (K, n, n) is rounding error."""
    return eigenvalues.shape[-1] * torch.finfo(eigenvalues.dtype).eps * eigenvalues.abs().max()


def _rows(values: Tensor, count: int) -> Tensor:
    """Values of B mixtures, (B, K, ...), for a batch of a multiple of B images."""
    if count % len(values):
        raise ValueError(f"{len(values)} mixtures, a row each, do not fit a batch of {count}")
    return values.repeat(count // len(values), *(1,) * (values.ndim - 1))
