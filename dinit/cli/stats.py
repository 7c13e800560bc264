"""`dinit stats`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dinit.cli.checks import check_device, check_entry, check_images
from dinit.cli.console import console
from dinit.cli.options import Device, Overwrite, torch_device

What = Annotated[
    str,
    typer.Argument(
        metavar="FOLDER|PACK|DATA",
        help="Real images: a folder of pictures, a .npz, or a data set such as glyphs:count=10000.",
        show_default=False,
    ),
]
Out = Annotated[Path, typer.Option("--out", help="File to write, .npz.")]
ProtocolName = Annotated[
    str | None,
    typer.Option(
        "--protocol",
        help="Protocol: digits, glyphs, torch-fidelity, adm or clean. Default: that of the data's features.",
    ),
]
Features = Annotated[
    str | None, typer.Option(metavar="NAME[:KEY=VALUE,…]", help="Feature extractor. Default: the protocol's.")
]


def stats(
    what: What,
    out: Out = Path("stats.npz"),
    protocol: ProtocolName = None,
    features: Features = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Write the feature statistics of real images to a file, for `dinit evaluate --reference`.

    Examples:
        dinit stats glyphs:count=10000 --out glyphs.npz
    """
    check_images(what)
    check_entry("features", features)
    check_device(device)
    from dinit.targets import check_target

    check_target(out, overwrite, ("npz",))
    from dinit.evaluation.features.base import EXTRACTORS
    from dinit.pipelines.statistics import write_reference

    spec = None if features is None else EXTRACTORS.parse(features)
    cuda = torch_device(device).startswith("cuda")
    meta = write_reference(what, out, protocol=protocol, features=spec, cuda=cuda)
    console.print(
        f"{meta['count']:,} images of {meta['dataset']} ({meta['fingerprint'][:16]}), protocol {meta['protocol']}, "
        f"features {meta['features']} ({meta['weights']}) → {out} ({meta['content'][:16]})"
    )
    console.print(f"two halves of it are at FID {meta['halves_fid']:.4g}")
