"""Numbers of single operators: against SciPy, Pillow and closed forms; and what they refuse."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from operator_rows import some
from PIL import Image
from scipy import ndimage
from torch import Tensor, nn

from dinit.inverse import (
    OPERATORS,
    Blur,
    Codec,
    ColorRotation,
    Compose,
    Downscale,
    Hadamard,
    Jpeg,
    LinearOperator,
    Mask,
    Measurement,
    RandomProjection,
    Saturate,
    Stack,
)
from dinit.pipelines.call import from_spec, to_spec

COLOR = (3, 8, 12)


def close(one: Tensor, other: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("padding", "mode"), [("circular", "wrap"), ("reflected", "mirror")])
def test_blur_is_that_of_scipy(padding: Any, mode: Any) -> None:
    x, kernel = some(1, 3, 9, 12), some(5, 3, seed=1)
    for std in (0.4, 1.0, 3.0):
        expected = ndimage.gaussian_filter(x.numpy(), std, mode=mode, axes=(2, 3))
        close(Blur(std=std, padding=padding).apply(x), torch.from_numpy(expected))
    expected = ndimage.convolve(x.numpy(), kernel.numpy()[None, None], mode=mode)
    close(Blur(kernel=kernel, padding=padding).apply(x), torch.from_numpy(expected))


def test_motion() -> None:
    """A path of odd length along the row is a mean; it has sum 1, its length and its direction at every angle."""
    assert Blur(length=1.0).weights().tolist() == [[1.0]]
    row = Blur(length=5.0).weights()
    close(row[2, 1:4], row[2, 2].expand(3))
    assert row[torch.tensor([0, 1, 3, 4])].abs().max() == 0
    for length in (2.0, 5.0, 7.5):
        for angle in (-60.0, 0.0, 30.0, 45.0, 120.0):
            kernel = Blur(length=length, angle=angle).weights()
            places = torch.arange(len(kernel)).double() - len(kernel) // 2
            row, column = -places[:, None], places[None]
            assert kernel.sum() == pytest.approx(1)
            assert float((kernel * row).sum()) == pytest.approx(0, abs=1e-12)
            turn = math.radians(angle)
            across = (kernel * (column * math.sin(turn) - row * math.cos(turn)) ** 2).sum()
            along = (kernel * (column * math.cos(turn) + row * math.sin(turn)) ** 2).sum()
            # Of a line, 0 and (length - 1)^2 / 12; sharing a point between four pixels adds up to 1 / 4 each.
            assert across < 0.26
            assert abs(float(along) - (length - 1) ** 2 / 12) < 0.3 + (length - 1) / 8


def test_downscale_is_the_mean_of_blocks_and_that_of_pillow() -> None:
    x = some(2, 3, 12, 18)
    close(Downscale(3).apply(x), x.reshape(2, 3, 4, 3, 6, 3).mean((3, 5)))
    for factor in (2, 3, 6):
        found = Downscale(factor, "bicubic").apply(x)
        size = (18 // factor, 12 // factor)
        expected = [np.asarray(Image.fromarray(plane.float().numpy()).resize(size, Image.Resampling.BICUBIC))
                    for plane in x.flatten(0, 1)]  # fmt: skip
        close(found.flatten(0, 1).float(), torch.from_numpy(np.stack(expected)), 2e-6)


def test_mask_hides_what_it_is_given(tmp_path: Path) -> None:
    x = some(2, *COLOR)
    boxed = Mask(box=(1, 2, 4, 7))
    seen = boxed.apply(x)
    assert int((seen == 0).sum()) == 2 * 3 * 3 * 5
    assert seen[:, :, 1:4, 2:7].abs().max() == 0
    random = Mask(random=0.3, seed=1).known(COLOR)
    assert int((~random).sum()) == 3 * round(0.3 * 96)
    assert torch.equal(random, random[:1].expand(COLOR))
    assert torch.equal(random, Mask(random=0.3, seed=1).known(COLOR))
    assert not torch.equal(random, Mask(random=0.3, seed=2).known(COLOR))
    file = tmp_path / "mask.png"
    picture = np.zeros((8, 12), dtype=np.uint8)
    picture[1:4, 2:7] = 255
    Image.fromarray(picture).save(file)
    from_file = OPERATORS.create({"name": "mask", "image": file})
    assert isinstance(from_file, Mask)
    assert torch.equal(from_file.known(COLOR), boxed.known(COLOR))
    assert torch.equal(Mask(hidden=torch.from_numpy(picture) > 0).known(COLOR), boxed.known(COLOR))


def test_what_a_mask_hides_in_a_measurement_does_not_matter() -> None:
    x, mask = some(2, *COLOR), Mask(box=(1, 2, 4, 7))
    fitted = Measurement(mask, x + 0).fitted(x)
    assert torch.equal(fitted.y, mask.apply(x))
    assert fitted.residual(x).abs().max() == 0
    stacked = Stack(["grey", mask])
    noisy = stacked.apply(x) + 1.0
    known = mask.known(COLOR).flatten()
    cleaned = Measurement(stacked, noisy).fitted(x).y[:, 96:]
    assert torch.equal(cleaned, torch.where(known, noisy[:, 96:], 0.0))


def test_color() -> None:
    x = some(2, *COLOR)
    close(OPERATORS.create("grey")(x)[:, 0], 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2])
    close(ColorRotation().apply(x)[:, 0], x.sum(1) / 3**0.5)
    for size in (1, 3, 5):
        basis = ColorRotation.basis(size)
        close(basis @ basis.T, torch.eye(size, dtype=torch.float64))
        close(basis[1:] @ torch.ones(size, dtype=torch.float64), torch.zeros(size - 1, dtype=torch.float64))


@pytest.mark.parametrize("made", [RandomProjection(9), Hadamard(9)])
def test_projections_have_orthonormal_rows_of_their_seed(made: LinearOperator) -> None:
    matrix = made.matrix(COLOR)
    close(matrix @ matrix.T, torch.eye(9, dtype=torch.float64))
    other = type(made)(9, seed=1).matrix(COLOR)  # type: ignore[call-arg]
    assert (other - matrix).abs().max() > 0.01
    if isinstance(made, Hadamard):  # 288 = 9 blocks of 32
        assert set(matrix.abs().flatten().tolist()) == {0.0, matrix.abs().max().item()}
        assert matrix.abs().max().item() == pytest.approx(32**-0.5)


def test_compose_and_stack_are_their_parts() -> None:
    x = some(2, *COLOR)
    blur, small = Blur(std=0.8), Downscale(2)
    both = Compose([blur, small])
    close(both.apply(x), small(blur(x)))
    stacked = Stack([small, "grey"])
    y = stacked.apply(x)
    parts = stacked.split(y, COLOR)
    close(parts[0], small(x))
    close(parts[1], OPERATORS.create("grey")(x))
    bent = Compose([blur, "saturate"])
    assert bent.linear is False
    close(bent.apply(x), Saturate().apply(blur(x)))
    for made in (bent, Stack(["saturate"])):
        with pytest.raises(ValueError, match="not linear"):
            made.adjoint(x, COLOR)
        with pytest.raises(ValueError, match="needs a linear operator"):
            Measurement(made, made.apply(x)).linear("mmps")
    assert Measurement(both, both.apply(x)).linear("mmps") is both


def smooth_image(channels: int, height: int, width: int) -> Tensor:
    """An image of waves in [-1, 1] and a little noise."""
    rows, columns = torch.arange(height)[:, None] / height, torch.arange(width)[None] / width
    planes = [torch.sin(5 * rows + k) * torch.cos(4 * columns - k) for k in range(channels)]
    noise = 0.05 * some(channels, height, width)
    return (0.8 * torch.stack(planes) + noise).clamp(-1, 1)[None]


@pytest.mark.parametrize(("channels", "subsampling"), [(3, "4:4:4"), (3, "4:2:0"), (1, "4:2:0")])
@pytest.mark.parametrize("quality", [10, 50, 90])
def test_jpeg_is_that_of_a_file(channels: int, subsampling: Any, quality: int) -> None:
    """Up to what a file rounds as well: planes of whole numbers, by which some coefficients fall elsewhere."""
    x = smooth_image(channels, 40, 55)
    x = ((x + 1) * 127.5).round() / 127.5 - 1
    jpeg = Jpeg(quality, subsampling)
    off = (jpeg.apply(x) - jpeg.file(x)).abs().mean() * 127.5
    change = (jpeg.file(x) - x).abs().mean() * 127.5
    assert float(off) < (1.6 if channels == 3 else 0.8)
    assert float(off) < 0.33 * float(change)
    real = Jpeg(quality, subsampling, rounding="file")
    close(real.apply(x).float(), jpeg.file(x), 1e-6)


def test_jpeg_of_one_grey() -> None:
    """A closed form: its only coefficient is 8 times the grey over the table's first entry, 16 at quality 50."""
    steps = torch.linspace(-6, 6, 40, dtype=torch.float64)
    x = ((2 * steps + 128) / 127.5 - 1).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    rest = steps - steps.round()
    for rounding, kept in (("straight-through", 0 * rest), ("smooth", rest**3)):
        found = (Jpeg(50, rounding=rounding).apply(x) + 1) * 127.5  # type: ignore[arg-type]
        close(found[:, 0, 3, 3], 2 * (steps.round() + kept) + 128, 1e-10)
        close(found, found[:, :, :1, :1].expand_as(found), 1e-10)


def test_gradients() -> None:
    """By finite differences of the smooth rounding; of the identity by the others."""
    x = smooth_image(3, 16, 16) * 0.7
    direction = some(*x.shape, seed=1)
    leaf = x.clone().requires_grad_()
    for made in (Jpeg(50, rounding="smooth"), Jpeg(30, "4:4:4", "smooth"), Saturate(1.5)):
        weights = some(*x.shape, seed=2)
        found = (torch.autograd.grad((made(leaf) * weights).sum(), leaf)[0] * direction).sum()
        h = 1e-6
        ends = [(made(x + sign * h * direction) * weights).sum() for sign in (1, -1)]
        assert float(found) == pytest.approx(float(ends[0] - ends[1]) / (2 * h), rel=2e-4)
    for rounding in ("straight-through", "file"):
        made = Jpeg(95, "4:4:4", rounding)
        assert torch.autograd.grad(made(leaf).sum(), leaf)[0].mean().item() == pytest.approx(1, abs=0.05)


def test_codec() -> None:
    encoder = nn.Conv2d(3, 2, 2, stride=2).double()
    x = some(2, *COLOR).clamp(-1, 1).requires_grad_()
    made = Codec(encoder.forward)
    assert made.output_shape(COLOR) == (2, 4, 6)
    close(made(x), encoder(x))
    rounded = Codec(lambda x: x, bits=8)(x)
    close(rounded.detach(), ((x.detach() + 1) * 127.5).round() / 127.5 - 1)
    assert torch.equal(torch.autograd.grad(rounded.sum(), x)[0], torch.ones_like(x))
    assert Codec(encoder, output=(2, 4, 6)).output_shape((1, 1, 1)) == (2, 4, 6)
    with pytest.raises(ValueError, match=r"must return a tensor \(B, ...\)"):
        Codec(lambda x: x.sum())(x)


@pytest.mark.parametrize(
    "text",
    [
        "identity",
        "mask:box=[1,2,4,7]",
        "mask:random=0.4,seed=3",
        "downscale:factor=2,kind=bicubic",
        "blur:std=0.7,padding=circular",
        "blur:length=4.5,angle=-30",
        "blur:kernel=[[0.0,0.5,0.5]]",
        "grey",
        "color-rotation:channels=[0,2]",
        "random-projection:rows=7,seed=1",
        "hadamard:rows=7",
        "compose:operators=['blur:std=1','downscale:factor=2']",
        "stack:operators=[grey,{name: mask, box: [0,0,4,4]}]",
        "jpeg:quality=20,subsampling=4:4:4,rounding=smooth",
        "saturate:gain=3",
    ],
)
def test_replay(text: str) -> None:
    """From the command line, to plain values, and back."""
    made = OPERATORS.create(text)
    spec = to_spec(made)
    again = OPERATORS.create(from_spec(spec))
    assert to_spec(again) == spec
    assert type(again) is type(made)
    x = some(2, *COLOR)
    assert torch.equal(again(x), made(x))
    if "mask" not in text:  # it may hold a tensor, which has no such equality
        assert again == made
        assert hash(again) == hash(made)


WRONG: list[tuple[dict[str, Any], tuple[int, ...] | None, str]] = [
    ({"name": "mask"}, None, "one of image"),
    ({"name": "mask", "box": [0, 0, 1, 1], "random": 0.5}, None, "one of image"),
    ({"name": "mask", "box": [0, 0, 1]}, None, "top, left, bottom and right"),
    ({"name": "mask", "box": [4, 0, 4, 1]}, None, "top, left, bottom and right"),
    ({"name": "mask", "box": [-1, 0, 4, 1]}, None, "top, left, bottom and right"),
    ({"name": "mask", "box": [0, 0, 9, 1]}, COLOR, "does not fit in 8 x 12"),
    ({"name": "mask", "box": [0, 0, 8, 12]}, COLOR, "hides every pixel"),
    ({"name": "mask", "random": 1.0}, None, "share of hidden pixels"),
    ({"name": "mask", "box": [0, 0, 1, 1], "seed": 1}, None, "seed belongs to"),
    ({"name": "mask", "hidden": torch.zeros(4)}, None, r"\(H, W\) or \(C, H, W\)"),
    ({"name": "mask", "hidden": torch.zeros(8, 11)}, COLOR, "give one of their height and width"),
    ({"name": "mask", "hidden": torch.zeros(2, 8, 12)}, COLOR, "give one of their height and width"),
    ({"name": "mask", "image": "/nowhere/mask.png"}, None, "there is no picture /nowhere/mask.png"),
    ({"name": "mask", "box": [0, 0, 1, 1]}, (8, 12), r"images \(C, H, W\)"),
    ({"name": "downscale", "factor": 0}, None, "at least 1"),
    ({"name": "downscale", "factor": 3}, COLOR, "3 divides, got 8"),
    ({"name": "downscale", "factor": 2, "kind": "nearest"}, None, "'area' or 'bicubic'"),
    ({"name": "blur"}, None, "one of std"),
    ({"name": "blur", "std": 1.0, "length": 3.0}, None, "one of std"),
    ({"name": "blur", "std": 0.0}, None, "above 0"),
    ({"name": "blur", "length": 0.5}, None, "at least 1"),
    ({"name": "blur", "std": 1.0, "angle": 3.0}, None, "give its length"),
    ({"name": "blur", "kernel": [[1.0, 2.0]]}, None, "odd number"),
    ({"name": "blur", "kernel": [[1.0], [2.0, 3.0], [1.0]]}, None, "rows of numbers of one length"),
    ({"name": "blur", "kernel": [[0.0]]}, None, "not all 0"),
    ({"name": "blur", "std": 1.0, "padding": "zeros"}, None, "'circular' or 'reflected'"),
    ({"name": "blur", "std": 1.0}, (8, 12), r"images \(C, H, W\)"),
    ({"name": "grey"}, (1, 8, 8), "3 channels"),
    ({"name": "grey", "weights": [1.0, 2.0]}, None, "three numbers"),
    ({"name": "color-rotation", "channels": [3]}, COLOR, "0 to 2"),
    ({"name": "color-rotation", "channels": [0, 0]}, None, "different whole numbers"),
    ({"name": "color-rotation", "channels": []}, None, "different whole numbers"),
    ({"name": "random-projection", "rows": 0}, None, "at least 1"),
    ({"name": "random-projection", "rows": 300}, COLOR, "300 orthonormal rows"),
    ({"name": "random-projection", "rows": 2**14}, (3, 256, 256), "use hadamard"),
    ({"name": "hadamard", "rows": 300}, COLOR, "300 orthonormal rows"),
    ({"name": "hadamard", "rows": 3}, (1, 3, 3), "even count"),
    ({"name": "matrix", "A": torch.zeros(3)}, None, "A must be a matrix"),
    ({"name": "matrix", "A": torch.zeros(3, 5)}, COLOR, "A has 5 columns"),
    ({"name": "compose", "operators": []}, None, "at least one"),
    ({"name": "compose", "operators": ["blurr"]}, None, "unknown operator 'blurr'; did you mean 'blur'"),
    ({"name": "stack", "operators": "grey"}, None, "list"),
    ({"name": "compose", "operators": ["hadamard:rows=4", "grey"]}, COLOR, r"images \(C, H, W\)"),
    ({"name": "jpeg", "quality": 0}, None, "1 to 95"),
    ({"name": "jpeg"}, (2, 8, 8), "1 or 3 channels"),
    ({"name": "saturate", "gain": 0.0}, None, "gain must not be 0"),
    ({"name": "saturate", "low": 1.0}, None, "above low"),
    ({"name": "codec", "function": torch.sin, "bits": 0}, None, "1 to 16"),
    ({"name": "codec", "function": 3}, None, "a function"),
]


@pytest.mark.parametrize(("spec", "shape", "message"), WRONG, ids=lambda value: None)
def test_wrong_options_and_images(spec: dict[str, Any], shape: tuple[int, ...] | None, message: str) -> None:
    """Options are refused when the operator is made; images by everything that takes them."""
    if shape is None:
        with pytest.raises(ValueError, match=message):
            OPERATORS.create(spec)
        return
    made = OPERATORS.create(spec)
    with pytest.raises(ValueError, match=message):
        made.check(shape)
    with pytest.raises(ValueError, match=message):
        made.apply(torch.zeros(1).expand(1, *shape))
    if isinstance(made, LinearOperator):
        with pytest.raises(ValueError, match=message):
            made.svd(shape)
        with pytest.raises(ValueError, match=message):
            made.adjoint(torch.zeros(1).expand(1, *shape), shape)
        with pytest.raises(ValueError, match=message):
            made.matrix(shape)


def test_a_decomposition_that_is_too_large_is_refused() -> None:
    for made, shape in ((Blur(length=3.0), (1, 128, 128)), (Stack(["grey"]), (3, 128, 128))):
        with pytest.raises(ValueError, match="no quick decomposition"):
            made.svd(shape)


@pytest.mark.parametrize(
    "spec",
    ["identity", "mask:random=0.5", "downscale:factor=4", "downscale:factor=4,kind=bicubic", "blur:std=2",
     "blur:length=9,padding=circular", "grey", "color-rotation", "hadamard:rows=1000"],
)  # fmt: skip
def test_large_images_have_a_quick_decomposition(spec: str) -> None:
    made = OPERATORS.create(spec)
    assert isinstance(made, LinearOperator)
    x = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shape = (3, 128, 128)
    svd, y = made.svd(shape), made.apply(x)
    close(svd.to_measurement(svd.of_image(x)[:, : len(svd.values)] * svd.values, y.shape[1:]), y, 1e-10)


def test_lists_of_numbers_need_no_brackets_on_a_command_line() -> None:
    assert OPERATORS.parse("mask:box=2,2,6,6") == {"name": "mask", "box": [2, 2, 6, 6]}
    assert OPERATORS.parse("mask:box = 2, 2, 6, 6") == OPERATORS.parse("mask:box=[2,2,6,6]")
    assert OPERATORS.parse("grey:weights=.5,-1,+2.") == {"name": "grey", "weights": [0.5, -1, 2.0]}
    assert OPERATORS.parse("mask:box=[1,2],seed=3") == {"name": "mask", "box": [1, 2], "seed": 3}
    for text in ("mask:box=2,x", "mask:box=2,,3", "mask:box=2,3,", "blur:std=1,2", "mask:random=0.5,3", "mask:2,2"):
        with pytest.raises(ValueError, match="options read KEY=VALUE"):
            OPERATORS.parse(text)


def test_saturate() -> None:
    x = torch.tensor([-0.9, -0.2, 0.0, 0.3, 0.6]).reshape(1, 1, 1, 5)
    assert torch.equal(Saturate().apply(x).flatten(), torch.tensor([-1.0, -0.4, 0.0, 0.6, 1.0]))
    found = Saturate(-3.0, low=-0.5, high=2.0).apply(x).flatten()
    close(found, torch.tensor([2.0, 0.6, 0.0, -0.5, -0.5]), 1e-6)
