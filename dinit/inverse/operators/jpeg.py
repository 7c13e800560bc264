"""JPEG: the image after compression, differentiable, or through a file."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from dinit.inverse.operators.base import OPERATORS, Operator, Shape, image_shape
from dinit.inverse.operators.svd import constant


@OPERATORS.register("jpeg")
@dataclass(frozen=True)
class Jpeg(Operator):
    """The image after JPEG compression; y has the shape of the image. For images in [-1, 1] of 1 or 3 channels.

    Args:
        quality: 1 to 95, as Pillow has it; its tables of quantisation are those of a file.
        subsampling: '4:2:0' halves the height and the width of the chroma, '4:4:4' does not.
        rounding: How coefficients are rounded. 'straight-through' rounds, with the derivative of the identity;
            'smooth' is round(c) + (c - round(c))^3, with its own derivative (Shin and Song 2017, JPEG-resistant
            adversarial images); 'file' writes and reads a file on the CPU, with the derivative of
            'straight-through'.

    Raises:
        ValueError: quality out of its range; from what takes images, others than of 1 or 3 channels.
    """

    quality: int = 50
    subsampling: Literal["4:2:0", "4:4:4"] = "4:2:0"
    rounding: Literal["straight-through", "smooth", "file"] = "straight-through"

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 95:
            raise ValueError(f"quality must be 1 to 95, got {self.quality}")

    def output_shape(self, shape: Shape) -> Shape:
        shape = image_shape(self, shape)
        if shape[0] not in (1, 3):
            raise ValueError(f"jpeg measures images of 1 or 3 channels; these have {shape[0]}")
        return shape

    def apply(self, x: Tensor) -> Tensor:
        self.check(tuple(x.shape[1:]))
        work = x if x.dtype == torch.float64 else x.float()
        coded = self._coded(work)
        if self.rounding == "file":
            coded = coded + (self.file(work.detach()).to(coded) - coded).detach()
        return coded.to(x.dtype)

    def file(self, x: Tensor) -> Tensor:
        """The images through a file each.

        Args:
            x: (B, C, H, W) in [-1, 1].

        Returns:
            (B, C, H, W) float32 on the CPU, multiples of 1 / 127.5 from -1.
        """
        from PIL import Image
        from torchvision.transforms.functional import pil_to_tensor, to_pil_image

        coded = []
        for image in ((x + 1) * 127.5).round().clamp(0, 255).byte().cpu():
            with Image.open(io.BytesIO(self._written(to_pil_image(image)))) as file:
                coded.append(pil_to_tensor(file).float() / 127.5 - 1)
        return torch.stack(coded)

    def _written(self, image: object) -> bytes:
        from PIL import Image

        assert isinstance(image, Image.Image)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=self.quality, subsampling=self.subsampling)
        return file.getvalue()

    def _coded(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        halved = self.subsampling == "4:2:0" and x.shape[1] == 3
        block = 16 if halved else 8
        x = pad((x + 1) * 127.5, (0, -width % block, 0, -height % block), mode="replicate")
        if x.shape[1] == 1:
            x = self._quantised(x - 128, 0) + 128
        else:
            colors = constant(self, "colors", _luma_and_chroma, x.device, x.dtype)
            planes = torch.einsum("ij,bjhw->bihw", colors, x)
            luma, chroma = planes[:, :1] - 128, planes[:, 1:]
            luma, chroma = self._quantised(luma, 0), avg_pool2d(chroma, 2) if halved else chroma
            chroma = self._quantised(chroma, 1)
            chroma = interpolate(chroma, scale_factor=2.0, mode="bilinear") if halved else chroma
            back = constant(self, "back", lambda: torch.linalg.inv(_luma_and_chroma()), x.device, x.dtype)
            x = torch.einsum("ij,bjhw->bihw", back, torch.cat([luma + 128, chroma], dim=1))
        return x[:, :, :height, :width].clamp(0, 255) / 127.5 - 1

    def _quantised(self, planes: Tensor, which: int) -> Tensor:
        """Blocks of 8 x 8 in the cosine basis, rounded to multiples of the table."""
        cosine = constant(self, "cosine", _cosine, planes.device, planes.dtype)
        table = constant(self, "tables", self._tables, planes.device, planes.dtype)[which]
        rows, columns = planes.shape[2] // 8, planes.shape[3] // 8
        blocks = planes.reshape(*planes.shape[:2], rows, 8, columns, 8).transpose(3, 4)
        steps = cosine @ blocks @ cosine.T / table
        steps = self._rounded(steps) * table
        return (cosine.T @ steps @ cosine).transpose(3, 4).reshape(planes.shape)

    def _rounded(self, steps: Tensor) -> Tensor:
        nearest = steps.round()
        if self.rounding == "smooth":
            return nearest.detach() + (steps - nearest.detach()) ** 3
        return steps + (nearest - steps).detach()

    def _tables(self) -> Tensor:
        """Of luma and chroma, (2, 8, 8), read from a file."""
        from PIL import Image, JpegImagePlugin

        written = self._written(Image.new("RGB", (16, 16)))
        with Image.open(io.BytesIO(written)) as file:
            assert isinstance(file, JpegImagePlugin.JpegImageFile)
            tables = [file.quantization[which] for which in (0, 1)]
        return torch.tensor(tables, dtype=torch.float64).reshape(2, 8, 8)


def _luma_and_chroma() -> Tensor:
    """RGB to Y, Cb and Cr without their offset, of JFIF: (3, 3)."""
    red, green, blue = 0.299, 0.587, 0.114
    luma = torch.tensor([red, green, blue], dtype=torch.float64)
    away = torch.eye(3, dtype=torch.float64)
    return torch.stack([luma, (away[2] - luma) / (2 - 2 * blue), (away[0] - luma) / (2 - 2 * red)])


def _cosine() -> Tensor:
    """The orthonormal discrete cosine transform, (8, 8): a row for each frequency."""
    frequency, place = torch.arange(8, dtype=torch.float64)[:, None], torch.arange(8, dtype=torch.float64)
    rows = torch.cos(math.pi * frequency * (2 * place + 1) / 16) / 2
    rows[0] /= math.sqrt(2)
    return rows
