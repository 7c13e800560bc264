"""Singular value decompositions of operators: one contract for dense ones and for those by quick transforms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from dinit.devices import upload

SMALLEST = 1e-10  # of the largest singular value; what is smaller counts as 0
# The same for methods that divide a noisy y by singular values: as in the published code of DDRM for blurs, whose
# largest is 1.
SMALLEST_INVERTED = 0.03


def constant(
    owner: object,
    name: str | tuple[object, ...],
    make: Callable[[], Tensor],
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """A tensor that an object is made of: made once, and copied once to each device and dtype.

    Args:
        owner: Keeps it. Nothing that it depends on changes.
        name: Which of the owner's tensors.
        make: Of the tensor, on the CPU.
        device: Where it is needed.
        dtype: In which precision; None is that of `make`.

    Returns:
        The tensor, usable in inference mode and outside.
    """
    kept: dict[object, Tensor] = vars(owner).setdefault("_constants", {})
    found = kept.get((name, device, dtype))
    if found is None:
        with torch.inference_mode(False), torch.no_grad():
            made = kept[name] if name in kept else kept.setdefault(name, make())
            found = kept[name, device, dtype] = upload(made, device, dtype)
    return found


class SVD(ABC):
    """A = U S V^T with orthonormal columns. Its methods are differentiable, on the device of what they are given.

    Attributes:
        values: Singular values in decreasing order, up to rounding, (r,) float64 on the CPU, r = rank of A.
        pixels: n = C H W.
    """

    values: Tensor
    pixels: int

    @staticmethod
    def of_matrix(matrix: Tensor) -> DenseSVD:
        """The decomposition of an (m, n) matrix; singular values below 1e-10 of the largest count as 0."""
        u, values, vh = torch.linalg.svd(matrix.double().cpu(), full_matrices=True)
        rank = int((values > SMALLEST * values.max()).sum())
        return DenseSVD(values[:rank], u[:, :rank].contiguous(), vh.T.contiguous())

    @abstractmethod
    def of_image(self, x: Tensor) -> Tensor:
        """V^T x: coefficients of a batch of images, (B, n). The first r belong to `values`, the rest to 0."""

    @abstractmethod
    def to_image(self, coefficients: Tensor, shape: Sequence[int]) -> Tensor:
        """V c: the images of coefficients.

        Args:
            coefficients: (B, n).
            shape: Of one image, (C, H, W).

        Returns:
            (B, C, H, W).
        """

    @abstractmethod
    def of_measurement(self, y: Tensor) -> Tensor:
        """U^T y: coefficients of a batch of measurements, (B, r)."""

    @abstractmethod
    def to_measurement(self, coefficients: Tensor, shape: Sequence[int]) -> Tensor:
        """U c: the measurements of coefficients.

        Args:
            coefficients: (B, r).
            shape: Of one measurement.

        Returns:
            (B, *shape).
        """

    def values_on(self, like: Tensor) -> Tensor:
        """The singular values (r,), without a wait for the device.

        Args:
            like: A tensor of the device and the dtype.
        """
        return constant(self, "values", lambda: self.values, like.device, like.dtype)

    def rank(self, rtol: float = 0.0) -> int:
        """How many singular values are above this share of the largest."""
        return int((self.values > rtol * self.values.max()).sum()) if len(self.values) else 0

    def pseudo_inverse(self, coefficients: Tensor, rtol: float = 0.0) -> Tensor:
        """S+ c: from coefficients of measurements to those of images, 0 in the null space.

        Args:
            coefficients: (B, r).
            rtol: Singular values up to this share of the largest count as 0, as in `torch.linalg.pinv`.

        Returns:
            (B, n).
        """
        rank = self.rank(rtol)
        return pad(coefficients[:, :rank] / self.values_on(coefficients)[:rank], (0, self.pixels - rank))


@dataclass(frozen=True, eq=False)
class DenseSVD(SVD):
    """A = U S V^T with matrices as factors.

    Args:
        values: Singular values in decreasing order, (r,) float64 on the CPU.
        u: (m, r).
        v: (n, n); its first r columns belong to `values`, the rest span the null space.
    """

    values: Tensor
    u: Tensor
    v: Tensor
    pixels: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pixels", len(self.v))

    def of_image(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ constant(self, "v", lambda: self.v, x.device, x.dtype)

    def to_image(self, coefficients: Tensor, shape: Sequence[int]) -> Tensor:
        v = constant(self, "v", lambda: self.v, coefficients.device, coefficients.dtype)
        return (coefficients @ v.T).reshape(-1, *shape)

    def of_measurement(self, y: Tensor) -> Tensor:
        return y.flatten(1) @ constant(self, "u", lambda: self.u, y.device, y.dtype)

    def to_measurement(self, coefficients: Tensor, shape: Sequence[int]) -> Tensor:
        u = constant(self, "u", lambda: self.u, coefficients.device, coefficients.dtype)
        return (coefficients @ u.T).reshape(-1, *shape)


class TransformSVD(SVD):
    """A decomposition by two orthogonal transforms, of the image and of the measurement, and a choice of entries.

    Args:
        values: Singular values of the entries of the measurement's transform, (g,) in any order, 0 among them.
        places: Which entry of the image's transform each belongs to, (g,) whole numbers below n.
        pixels: n.
    """

    def __init__(self, values: Tensor, places: Tensor, pixels: int) -> None:
        # Equal values, such as those of the two waves of a frequency, stay in their places whatever their rounding.
        steps = (values / values.max() * 1e9).round()
        order = torch.argsort(steps, descending=True, stable=True)
        seen = order[values[order] > SMALLEST * values.max()]
        self.values, self.pixels = values[seen].double(), pixels
        unseen = torch.ones(pixels, dtype=torch.bool)
        unseen[places[seen]] = False
        # Where each entry of a gathered tensor comes from. A dropped entry of the measurement comes from the 0 that
        # is appended.
        image = torch.cat([places[seen], torch.nonzero(unseen)[:, 0]])
        spread = torch.full((len(values),), len(seen))
        spread[seen] = torch.arange(len(seen))
        self._sources = {"image": image, "back": torch.argsort(image), "measurement": seen, "spread": spread}

    @abstractmethod
    def analyse(self, x: Tensor) -> Tensor:
        """The transform of images (B, ...): (B, n)."""

    @abstractmethod
    def synthesise(self, coefficients: Tensor) -> Tensor:
        """The inverse of `analyse`, flat: (B, n)."""

    def analyse_measurement(self, y: Tensor) -> Tensor:
        """The transform of measurements (B, ...): (B, g). By default none."""
        return y.flatten(1)

    def synthesise_measurement(self, coefficients: Tensor) -> Tensor:
        """The adjoint of `analyse_measurement`, flat: (B, m)."""
        return coefficients

    def of_image(self, x: Tensor) -> Tensor:
        return self._gathered(self.analyse(x), "image")

    def to_image(self, coefficients: Tensor, shape: Sequence[int]) -> Tensor:
        return self.synthesise(self._gathered(coefficients, "back")).reshape(-1, *shape)

    def of_measurement(self, y: Tensor) -> Tensor:
        return self._gathered(self.analyse_measurement(y), "measurement")

    def to_measurement(self, coefficients: Tensor, shape: Sequence[int]) -> Tensor:
        return self.synthesise_measurement(self._gathered(pad(coefficients, (0, 1)), "spread")).reshape(-1, *shape)

    def _gathered(self, entries: Tensor, which: str) -> Tensor:
        sources = self._sources[which]
        return entries[:, constant(self, which, lambda: sources, entries.device)]


class KroneckerSVD(TransformSVD):
    """Of an operator that is a product of matrices along the axes of the image.

    Args:
        factors: The decomposition for each axis, or its length where nothing is done along it.
    """

    def __init__(self, factors: Sequence[DenseSVD | int]) -> None:
        self.factors = tuple(factors)
        values, places = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.long)
        for factor in self.factors:
            own = torch.ones(factor, dtype=torch.float64) if isinstance(factor, int) else factor.values
            values = values[..., None] * own
            places = places[..., None] * _pixels(factor) + torch.arange(len(own))
        pixels = torch.Size(map(_pixels, self.factors)).numel()
        super().__init__(values.flatten(), places.flatten(), pixels)

    def analyse(self, x: Tensor) -> Tensor:
        return self._along(x, [_pixels(one) for one in self.factors], "v", transposed=True)

    def synthesise(self, coefficients: Tensor) -> Tensor:
        return self._along(coefficients, [_pixels(one) for one in self.factors], "v", transposed=False)

    def analyse_measurement(self, y: Tensor) -> Tensor:
        sizes = [one if isinstance(one, int) else len(one.u) for one in self.factors]
        return self._along(y, sizes, "u", transposed=True)

    def synthesise_measurement(self, coefficients: Tensor) -> Tensor:
        sizes = [one if isinstance(one, int) else len(one.values) for one in self.factors]
        return self._along(coefficients, sizes, "u", transposed=False)

    def _along(self, entries: Tensor, sizes: Sequence[int], which: str, transposed: bool) -> Tensor:
        entries = entries.reshape(-1, *sizes)
        for axis, factor in enumerate(self.factors, 1):
            if not isinstance(factor, int):
                matrix = constant(
                    factor, which, lambda factor=factor: getattr(factor, which), entries.device, entries.dtype
                )
                entries = along(entries, axis, matrix.T if transposed else matrix)
        return entries.flatten(1)


def along(x: Tensor, axis: int, matrix: Tensor) -> Tensor:
    """The product with a matrix along one axis.

    Args:
        x: (B, ...).
        axis: Of x, with as many entries as the matrix has columns.
        matrix: (m, n).

    Returns:
        x with m entries along the axis.
    """
    return (x.movedim(axis, -1) @ matrix.T).movedim(-1, axis)


def _pixels(factor: DenseSVD | int) -> int:
    return factor if isinstance(factor, int) else factor.pixels
