"""The stand-in for a GPU itself: what it must catch it catches, and what a GPU takes it takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from held import Held, meta_with_numbers, to_meta
from meta import META, MixedDevicesError, ReadBackError, WaitError, meta_device, tensors_in
from torch import Tensor

import dinit

READ_BACKS = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.sum() > 0),
    "float": lambda x: float(x.sum()),
    "int": lambda x: int(x.sum()),
    "index": lambda x: list(range(99))[x.sum().long()],
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "numpy": lambda x: x.numpy(),
    "to a name": lambda x: x.to("cpu"),
    "to a device": lambda x: x.to(device=torch.device("cpu"), dtype=torch.float64),
    "to another's": lambda x: x.to(torch.ones(2)),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "mask": lambda x: x[x > 0],
    "equal": lambda x: torch.equal(x, x),
    "if": lambda x: 1 if (x > 0).any() else 2,
    "mask to write to": lambda x: x.__setitem__(x > 0, x[0, :1]),
    "repeats": lambda x: x.repeat_interleave(x[0].long(), dim=0),
    "copy": lambda x: torch.zeros(x.shape).copy_(x),
    "close": lambda x: torch.allclose(x, x),
}
MIXED = {
    "sum": lambda x, left: x + left,
    "product": lambda x, left: x @ left.T,
    "in place": lambda x, left: left.add_(x),
    "cat": lambda x, left: torch.cat([x, left]),
    "embedding": lambda x, left: torch.nn.functional.embedding(left.long(), x),
    "backward": lambda x, left: (torch.ones(4, 4, requires_grad=True, device=META) * x).backward(left),
}


@pytest.mark.parametrize("name", READ_BACKS)
def test_read_backs(name: str) -> None:
    """Each is recorded, and ends the test."""
    with meta_device() as watch:
        with pytest.raises(ReadBackError):
            READ_BACKS[name](torch.ones(4, 4, device=META))
        assert len(watch.read_backs) == 1
        READ_BACKS[name](torch.ones(2)) if name in ("cpu", "tolist", "nonzero") else None
        assert len(watch.read_backs) == 1


@pytest.mark.parametrize("name", READ_BACKS)
def test_read_backs_with_numbers(name: str) -> None:
    """Each is recorded, and gives what the host would."""
    expected = READ_BACKS[name](torch.ones(2, 2))
    with meta_with_numbers() as watch:
        found = READ_BACKS[name](to_meta(torch.ones(2, 2)))
    assert watch.read_backs
    plain = [one.numbers if isinstance(one, Held) else one for one in tensors_in(found)]
    assert str(plain or found) == str(tensors_in(expected) or expected)


@pytest.mark.parametrize("name", MIXED)
def test_mixed_devices(name: str) -> None:
    """Also where PyTorch's own kernels for meta tensors look at shapes alone."""
    with meta_with_numbers(), pytest.raises((MixedDevicesError, RuntimeError)):
        MIXED[name](to_meta(torch.ones(4, 4)), torch.ones(4, 4))
    with meta_device(), pytest.raises((MixedDevicesError, RuntimeError)) as error:
        MIXED[name](torch.ones(4, 4, device=META), torch.ones(4, 4))
    assert name == "backward" or isinstance(error.value, MixedDevicesError)


def test_what_a_gpu_takes() -> None:
    """Scalars of a schedule, uploads, autocast."""
    with meta_device() as watch, torch.autocast("meta", enabled=False):
        x: Tensor = torch.ones(4, 4, device=META)
        x = x * torch.tensor(2.0) + torch.ones(4).to(META)
        x = torch.where(x > 0, x, torch.tensor(0.0)).to(torch.float64)
        x[0] = torch.tensor([1.0, 2.0], device=META).repeat(2)
        assert not torch.is_autocast_enabled("meta")
        assert x.is_meta
        assert watch.read_backs == []


WAITS = {
    "to": lambda x: torch.ones(4).to(META),
    "to another's": lambda x: torch.ones(4).to(x),
    "copy": lambda x: x.copy_(torch.ones(4, 4)),
    "tensor": lambda x: torch.tensor([1.0, 2.0], device=META),
    "new_tensor": lambda x: x.new_tensor([1.0]),
    "where": lambda x: torch.where(x > 0, x, torch.tensor(0.0)),
}


@pytest.mark.parametrize("name", WAITS)
def test_uploads_that_wait(name: str) -> None:
    with meta_device() as watch:
        WAITS[name](torch.ones(4, 4, device=META))
        assert len(watch.waits) == 1
    with meta_device(refuse_waits=True), pytest.raises(WaitError):
        WAITS[name](torch.ones(4, 4, device=META))


def test_uploads_that_do_not_wait() -> None:
    with meta_device(refuse_waits=True) as watch:
        x = torch.ones(4).to(META, non_blocking=True).to(torch.float64) * torch.tensor(2.0)
        x.copy_(torch.ones(4), non_blocking=True)
        torch.where(x > 0, x, 0.0) + torch.full((4,), 2.0, device=META) - x.new_zeros(4)
        assert watch.waits == []
        assert watch.operations >= 5


def test_uploads_are_from_pinned_memory() -> None:
    """From other memory the driver may wait for the work before, which `meta` cannot show: upload pins it first."""
    places = [
        path for path in Path(dinit.__file__).parent.rglob("*.py") if "non_blocking" in path.read_text("utf-8")
    ]
    assert [path.name for path in places] == ["devices.py"]
