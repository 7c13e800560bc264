"""Noise processes: the Gaussian path x_t = alpha_t x0 + sigma_t eps."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from dinit.devices import upload
from dinit.registry import Registry

Result = TypeVar("Result")

PROCESSES: Registry[type[Process]] = Registry("process", "dinit.diffusion")


class ScalarScales(NamedTuple):
    """Scales of one time as Python numbers: the factors of a step, and the choices of its kernels.

    Arithmetic on them costs a fiftieth of that on 0-dimensional tensors, with the same float64 results.

    Attributes:
        time: In [0, 1].
        alpha: Factor on the data.
        sigma: Standard deviation of the noise.
        log_snr: log (alpha / sigma)^2.
        d_alpha: d alpha / dt.
        d_sigma: d sigma / dt; may be infinite at t = 0.
    """

    time: float
    alpha: float
    sigma: float
    log_snr: float
    d_alpha: float
    d_sigma: float


@dataclass(frozen=True)
class Scales:
    """Scales of the path at one time (0-dimensional tensors) or at one time a sample ((B,) tensors).

    While sampling they are float64 on the CPU: arithmetic with an image tensor then costs no transfer and no
    host-device synchronisation, because 0-dimensional CPU tensors enter a kernel as plain numbers.

    Args:
        time: In [0, 1].
        alpha: Factor on the data.
        sigma: Standard deviation of the noise.
        d_alpha: d alpha / dt.
        d_sigma: d sigma / dt; may be infinite at t = 0.
    """

    time: Tensor
    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor

    @property
    def log_snr(self) -> Tensor:
        """log (alpha / sigma)^2, +inf where sigma is 0 and -inf where alpha is 0."""
        return 2 * (self.alpha.log() - self.sigma.log())

    @property
    def noise_level(self) -> Tensor:
        """sigma / alpha, in units of the data; inf where alpha is 0."""
        return self.sigma / self.alpha

    @cached_property
    def floats(self) -> ScalarScales:
        """The scales of a single time, read back once: the driver does it for a whole run before its loop."""
        return ScalarScales(*torch.stack(_fields_of_floats(self)).tolist())

    @property
    def factors(self) -> Scales | ScalarScales:
        """What multiplies an image: `floats` for a single time on the CPU, which is quicker; else the tensors."""
        return self.floats if self.single else self

    @property
    def single(self) -> bool:
        """Whether this is a single time on the CPU, whose numbers wait for no device."""
        return "floats" in self.__dict__ or (self.time.ndim == 0 and self.time.is_cpu)

    def numbers(
        self,
        key: object,
        function: Callable[[Scales], Sequence[Tensor]],
        kind: Callable[[Sequence[float]], Result] = tuple,
    ) -> Result:
        """Functions of a single time as Python numbers, computed once for all times of the run together.

        Args:
            key: Identifies the function: its result is kept under it, with the scales.
            function: From the scales of times to tensors of their shape.
            kind: What the numbers of one time become.

        Returns:
            As many numbers as the function gives tensors, as `kind` makes them.
        """
        together, index = self._together
        rows = together.rows.get(key)
        if rows is None:
            numbers = zip(*(v.tolist() for v in function(together.scales)), strict=True)
            rows = together.rows[key] = [*map(kind, numbers)]
        return rows[index]

    def pairs(
        self, other: Scales, key: object, function: Callable[[Scales, Scales], Sequence[Result]]
    ) -> tuple[Sequence[Result], int]:
        """A function of two single times, computed once for all pairs of their runs' times as far apart.

        Args:
            other: The second time.
            key: Identifies the function: its results are kept under it, with the scales.
            function: From the scales of N first and N second times to N results.

        Returns:
            The results for all pairs, and the place of this pair among them.
        """
        (mine, i), (theirs, j) = self._together, other._together
        place, first = (key, id(theirs), j - i), max(0, i - j)
        known = mine.rows.get(place)
        if known is None:
            count = min(len(mine.scales.time) - first, len(theirs.scales.time) - first - j + i)
            starts = mine.scales.map(lambda v: v[first : first + count])
            ends = theirs.scales.map(lambda v: v[first + j - i : first + j - i + count])
            # theirs is kept, as its id is in the key
            known = mine.rows[place] = (theirs, function(starts, ends))
        return known[1], i - first

    def aligned(
        self, others: Sequence[Scales], key: object, function: Callable[[int, int], Sequence[Result]]
    ) -> tuple[Sequence[Result], int]:
        """A function of this time and others, computed at once for all steps whose times stand alike in the run.

        Args:
            others: The other times.
            key: Identifies the function: its results are kept under it, with the scales.
            function: From the first and one past the last place of this time, relative to its own, to the results.

        Returns:
            The results for all steps, and the place of this one among them.
        """
        mine, i = self._together
        places = [k._together for k in others]
        name = (key, *((id(theirs), j - i) for theirs, j in places))
        known = mine.rows.get(name)
        if known is None:
            low = -min(i, *(j for _, j in places))
            high = min(len(mine.scales.time) - i, *(len(theirs.scales.time) - j for theirs, j in places))
            known = mine.rows[name] = ([theirs for theirs, _ in places], function(low, high), i + low)
        return known[1], i - known[2]

    def nearby(self, low: int, high: int, key: object, number: Callable[[ScalarScales], float]) -> Any:
        """A number of each time of the run from `low` to `high` (not included) of them from this one: (N,) float64.

        Args:
            low: Of the first, at most 0.
            high: Of the last, and one more.
            key: Identifies the number: it is kept under it, with the scales.
            number: From the scales of a time as numbers.
        """
        together, i = self._together
        if key not in together.rows:
            together.rows[key] = np.array([*map(number, together.floats)])
        return together.rows[key][i + low : i + high]

    @cached_property
    def _together(self) -> tuple[_Together, int]:
        """The times that this one was made with, and its place among them: it alone, but for `unbind`."""
        return _Together(self.map(lambda v: v.reshape(1)), {}), 0

    def like(self, x: Tensor) -> Scales:
        """The scales in a form that broadcasts against x (B, ...): (B,) becomes (B, 1, ...) in x's dtype."""
        if self.single or self.time.ndim == 0:
            return self
        return Scales(*expand_all([getattr(self, f.name) for f in dataclasses.fields(self)], x))

    def map(self, function: Any) -> Scales:
        """The same scales with `function` applied to every tensor."""
        return Scales(*map(function, (self.time, self.alpha, self.sigma, self.d_alpha, self.d_sigma)))

    @staticmethod
    def stack(points: Sequence[Scales]) -> Scales:
        """The scales of several times at once, (N,) tensors.

        Args:
            points: N single times; consecutive times of one run need no copy.
        """
        (together, first), count = points[0]._together, len(points)
        if all(k._together[0] is together and k._together[1] == i for i, k in enumerate(points, first)):
            return together.scales.map(lambda v: v[first : first + count])
        columns = zip(*((k.time, k.alpha, k.sigma, k.d_alpha, k.d_sigma) for k in points), strict=True)
        return Scales(*(torch.stack(column) for column in columns))

    def unbind(self) -> list[Scales]:
        """The scales of each time in turn, from scales of a (N,) tensor of times."""
        together = _Together(self, {})
        if self.time.ndim > 1 or not self.time.is_cpu:
            rows = zip(self.time, self.alpha, self.sigma, self.d_alpha, self.d_sigma, strict=True)
            return [Scales(*row) for row in rows]
        found = []
        for index, floats in enumerate(together.floats):
            one = object.__new__(Scales)  # without its tensors, which few look at: `__getattr__` makes them
            one.__dict__.update(_together=(together, index), floats=floats)
            found.append(one)
        return found

    def __getattr__(self, name: str) -> Any:
        if name not in _FIELDS or "_together" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        together, index = self.__dict__["_together"]
        self.__dict__[name] = found = getattr(together.scales, name)[index]
        return found


_FIELDS = tuple(f.name for f in dataclasses.fields(Scales))


@dataclass(frozen=True, eq=False)
class _Together:
    """Times of one run: their scales, (N,), and what was computed of all of them, a row each."""

    scales: Scales
    rows: dict[object, Any]

    @cached_property
    def floats(self) -> list[ScalarScales]:
        """The numbers of each time."""
        return [*map(ScalarScales._make, zip(*(v.tolist() for v in _fields_of_floats(self.scales)), strict=True))]


def _fields_of_floats(k: Scales) -> tuple[Tensor, ...]:
    return k.time, k.alpha, k.sigma, k.log_snr, k.d_alpha, k.d_sigma


class Process(ABC):
    """A noise process, read continuously in t. Subclasses are frozen dataclasses of plain numbers and names.

    All methods take a float64 tensor of times in [0, 1] of any shape (a float is accepted) and return float64
    tensors of that shape. alpha falls and sigma rises with t, so the log-SNR falls strictly.
    """

    registry_name: ClassVar[str]  # of a registered class

    @abstractmethod
    def scales(self, t: Tensor | float) -> Scales:
        """alpha, sigma and their time derivatives at t. Derivatives may be infinite at t = 0 (VP: sigma ~ √t)."""

    @abstractmethod
    def time_of(self, log_snr: Tensor) -> Tensor:
        """The time at which the log-SNR has the given value: the inverse of `log_snr`."""

    def log_snr(self, t: Tensor | float) -> Tensor:
        """log (alpha_t / sigma_t)^2 at t."""
        return self.scales(t).log_snr

    def time_of_noise_level(self, noise_level: Tensor) -> Tensor:
        """The time at which sigma / alpha has the value noise_level."""
        return self.time_of(-2 * as_time(noise_level).log())

    def drift(self, t: Tensor | float) -> Tensor:
        """f(t) of the forward SDE dx = f(t) x dt + g(t) dw, which is d log(alpha_t) / dt. Kingma et al. 2021."""
        k = self.scales(t)
        return k.d_alpha / k.alpha

    def diffusion_squared(self, t: Tensor | float) -> Tensor:
        """g(t)^2 of the forward SDE: d(sigma_t^2)/dt - 2 f(t) sigma_t^2. Kingma et al. 2021."""
        return diffusion_squared(self.scales(t))

    def prior_std(self, k: Scales) -> Tensor:
        """Standard deviation of the noise that a trajectory starts from at the scales k."""
        return k.sigma

    def noise_label(self, k: Scales) -> Tensor:
        """The time input of this process's networks at the scales k, by the convention of the publication."""
        return 1000 * k.time

    @cached_property
    def ends(self) -> tuple[ScalarScales, ScalarScales]:
        """The scales at t = 0 and at t = 1."""
        return self.scales(0.0).floats, self.scales(1.0).floats

    @property
    def t_min(self) -> float:
        """The smallest time at which networks of this process are trained and evaluated."""
        return 1e-3

    @property
    def num_steps(self) -> int:
        """The number of timesteps that timestep spacings (leading, trailing, ...) refer to."""
        return 1000

    def to_config(self) -> dict[str, Any]:
        """A mapping of plain values that `PROCESSES.create` turns back into this process."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {"name": self.registry_name, **fields}


def as_time(t: Tensor | float) -> Tensor:
    """t as a float64 tensor, on the device it is on."""
    return torch.as_tensor(t, dtype=torch.float64) if not isinstance(t, Tensor) else t.double()


def expand(values: Tensor, x: Tensor) -> Tensor:
    """values (B,), one a sample, as (B, 1, ...) on x's device and in its dtype, to broadcast against x (B, ...)."""
    return expand_all([values], x)[0]


def expand_all(values: Sequence[Tensor], x: Tensor) -> list[Tensor]:
    """Each of the (B,) values as `expand` gives it, by one copy where they are on another device than x."""
    if values[0].device != x.device:
        values = upload(torch.stack(list(values)), x.device, x.dtype).unbind()
    return [v.to(x.dtype).reshape(-1, *(1,) * (x.ndim - 1)) for v in values]


@overload
def diffusion_squared(k: ScalarScales) -> float: ...
@overload
def diffusion_squared(k: Scales) -> Tensor: ...
def diffusion_squared(k: Any) -> Any:
    """g^2 of the forward SDE at the scales k: 2 sigma sigma' - 2 (alpha' / alpha) sigma^2."""
    return 2 * k.sigma * (k.d_sigma - k.d_alpha / k.alpha * k.sigma)


def positive(owner: str, **values: float) -> None:
    """Raise a ValueError unless every value is a positive number."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{owner}: {name} must be positive, got {value}")
