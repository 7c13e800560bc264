"""`dinit encode`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from dinit.cli.checks import DTYPES, check_autoencoder, check_device, check_entry, check_word
from dinit.cli.console import console
from dinit.cli.options import Device, quiet

_RUN = "Execution"

Autoencoder = Annotated[
    str,
    typer.Argument(
        metavar="AUTOENCODER", help="AutoencoderKL: a folder, a pipeline's folder, or a Hub id.", show_default=False
    ),
]
Data = Annotated[
    str,
    typer.Option(
        metavar="NAME[:KEY=VALUE,…]", help="Images, such as folder:path=photos,size=256.", show_default=False
    ),
]
Out = Annotated[
    Path, typer.Option(help="Folder for the latents. An interrupted run in it is resumed.", show_default=False)
]
Flips = Annotated[bool, typer.Option("--flips", help="Also encode the mirrored images.")]
Store = Annotated[str, typer.Option(help="Data type of the stored latents: float32, float16 or bfloat16.")]
Measure = Annotated[
    int, typer.Option(min=0, help="Number of images on which the reconstruction is measured; 0 disables it.")
]
Dtype = Annotated[
    str, typer.Option(help="Data type of the autoencoder: float32, bfloat16 or float16.", rich_help_panel=_RUN)
]
ShardSize = Annotated[int, typer.Option(min=1, help="Images per file.", rich_help_panel=_RUN)]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per batch.", rich_help_panel=_RUN)]
Workers = Annotated[int, typer.Option(min=0, help="Number of processes that read images.", rich_help_panel=_RUN)]


def encode(
    autoencoder: Autoencoder,
    data: Data,
    out: Out,
    flips: Flips = False,
    store: Store = "float32",
    measure: Measure = 2048,
    shard_size: ShardSize = 2048,
    batch_size: BatchSize = 32,
    workers: Workers = 2,
    dtype: Dtype = "float32",
    device: Device = "auto",
) -> None:
    """Encode a data set to latents once, to train on them with `data: {name: latents, path: FOLDER}`.

    An interrupted run is resumed. With several processes: torchrun --nproc_per_node 8 -m dinit.cli encode ...

    Examples:
        dinit encode stabilityai/sd-vae-ft-ema --data folder:path=photos --out latents
    """
    check_entry("datasets", data)
    check_word("store", store, DTYPES)
    check_word("dtype", dtype, DTYPES)
    check_device(device)
    check_autoencoder(autoencoder)
    quiet()
    from dinit.data import DATASETS
    from dinit.pipelines.weights.encode import Options
    from dinit.pipelines.weights.encode import encode as run

    options = Options(flips, shard_size, batch_size, measure, store, dtype, workers)
    made = run(autoencoder, DATASETS.parse(data), out, options, device)
    if os.environ.get("RANK", "0") != "0":
        return  # the main process prints
    copies = ", and mirrored" if flips else ""
    quality = ""
    if made.psnr is not None:
        quality = f"; reconstruction of {made.measured}: PSNR {made.psnr:.2f} dB, SSIM {made.ssim:.4f}"
    files = f"{made.shards} {'shard' if made.shards == 1 else 'shards'}, {made.made} of them now"
    text = f"{made.images} images{copies} in {files}{quality} → {made.folder}"
    console.print(text, markup=False, highlight=False)
