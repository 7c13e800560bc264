"""Memory of training and of generation: the estimates of dry runs, and what processes take more than their own.

python benchmarks/memory.py > benchmarks/results/memory.md
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

RECIPE = """\
name: memory
data: digits
backbone: {name: dit, patch_size: 2, num_heads: 4}
training: {steps: 4, checkpoint_every: 1000, sample_every: 0, log_every: 1}
sampling: {steps: 2}
tracker: null
"""
SIZES = ((384, 6, 64), (768, 4, 8), (256, 6, 256))
PROBE = """
import sys
from dinit.pipelines.train import train
from dinit.training import parse_recipe
from dinit.training.build import make_data
from dinit.training.run.memory import estimate_memory

def held(key):
    (line,) = [line for line in open("/proc/self/status") if line.startswith(key)]
    return 1024 * int(line.split()[1])

def sized(width, depth, batch):
    size = f"backbone.hidden_size={width}", f"backbone.depth={depth}", f"training.batch_size={batch}"
    return parse_recipe(sys.argv[2], size)

train(sized(16, 1, 4), sys.argv[1] + "/small", progress=False)  # every module is imported
program, recipe = held("VmRSS"), sized(*sys.argv[3:])
train(recipe, sys.argv[1] + "/large", progress=False)
print(program, estimate_memory(recipe, make_data(recipe)).total, held("VmHWM") - program)
"""
DIT = {"name": "dit", "image_size": 32, "in_channels": 3, "num_classes": 10, "patch_size": 2, "num_heads": 6}
WIDE = {**DIT, "image_size": 16, "hidden_size": 512, "num_heads": 8, "depth": 12}
UNET = {"name": "unet", "image_size": 32, "in_channels": 3, "num_classes": 10, "channels": 64}
LATENT = {"name": "dit", "image_size": 16, "in_channels": 4, "num_classes": 10, "patch_size": 2, "num_heads": 6}
CALLS: tuple[tuple[str, Mapping[str, Any], bool, int, float | None], ...] = (
    ("DiT, width 384, depth 4", {**DIT, "hidden_size": 384, "depth": 4}, False, 32, None),
    ("the same", {**DIT, "hidden_size": 384, "depth": 4}, False, 16, 2.0),
    (
        "DiT, width 512, depth 12",
        {**DIT, "image_size": 16, "hidden_size": 512, "num_heads": 8, "depth": 12},
        False,
        8,
        None,
    ),
    ("U-Net, 64 channels", UNET, False, 16, None),
    ("the same", UNET, False, 16, 2.0),
    ("DiT on latents, 128×128 pixels", {**LATENT, "hidden_size": 192, "depth": 4}, True, 16, None),
    ("the same", {**LATENT, "hidden_size": 192, "depth": 4}, True, 8, 2.0),
)
MAKE = """
import json, sys
from dinit.models import BACKBONES
from dinit.pipelines import Pipeline

folder, options, width = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
vae = None
if width:
    from diffusers import AutoencoderKL
    widths = (32, width, width, width)
    vae = AutoencoderKL(3, 3, ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4, widths, 2, latent_channels=4)
network = BACKBONES[options.pop("name")](**options)
Pipeline(network, {"name": "vp"}, {"name": "epsilon"}, vae=vae).save_pretrained(folder)
"""


def measure(*size: int) -> tuple[int, int, int]:
    """MiB of the program itself, of the estimate, and of the peak beyond the program, in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", PROBE, folder, RECIPE, *map(str, size)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    program, estimated, peak = (int(number) >> 20 for number in out.split()[-3:])
    return program, estimated, peak


def measure_call(options: Mapping[str, Any], latent: bool, batch: int, scale: float | None) -> tuple[int, int, int]:
    """The same of `dinit generate`: one batch in three steps, with its contact sheet."""
    dit = options["name"] == "dit"
    small = {"depth": 1, "hidden_size": 24} if dit else {"blocks_per_level": 1, "channels": 32}
    small |= {"image_size": 4} if latent else {}
    with tempfile.TemporaryDirectory() as folder:
        for name, kind, width in (("small", {**options, **small}, 32), ("large", options, 64)):
            command = [sys.executable, "-c", MAKE, f"{folder}/{name}", json.dumps(kind), str(latent * width)]
            subprocess.run(command, capture_output=True, check=True)
        call = ["--sampler", "ddim", "--steps", "3", "--guidance", "none" if scale is None else str(scale)]
        wanted = [*call, "--labels", ",".join("1" * batch), "--out", f"{folder}/a.png"]
        program = generate(f"{folder}/small", *call, "--labels", "1", "--out", f"{folder}/b.png")[1]
        text, _ = generate(f"{folder}/large", *wanted, "--dry-run")
        peak = generate(f"{folder}/large", *wanted)[1] - program
    number, unit = re.findall(r"memory: about ([\d.]+) (MiB|GiB)", text)[0]
    return program, round(float(number) * (1024 if unit == "GiB" else 1)), peak


def generate(*arguments: str) -> tuple[str, int]:
    """What a command prints, and the most MiB that its process took."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "dinit", "generate", *arguments], stdout=out, stderr=errors
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        errors.seek(0)
        if process.returncode:
            raise RuntimeError(errors.read().decode())
        return out.read(), used.ru_maxrss >> 10


def main() -> None:
    """Print both tables."""
    print("# Memory on a CPU: estimates of dry runs, and peaks\n")
    print(
        "`python benchmarks/memory.py`, Linux, in fp32, in MiB; all but the program itself is beyond the program.\n"
    )
    print("## Training\n")
    print("The estimate of `dinit train --dry-run` and the peak of a run with a checkpoint and its export.")
    print("A DiT on 8×8 images with AdamW.\n")
    print("| width | depth | batch | program | estimate | peak | estimate / peak |")
    print("|---|---|---|---|---|---|---|")
    for size in SIZES:
        program, estimated, peak = measure(*size)
        print(
            f"| {' | '.join(map(str, size))} | {program} | {estimated} | {peak} | {estimated / peak:.2f} |",
            flush=True,
        )
    print("\n## Generation\n")
    print("The estimate of `dinit generate --dry-run` and the peak of the command: one batch, DDIM in three steps,")
    print("a contact sheet. The U-Net's peak with CFG differs from run to run (174, 189 and 209 MiB in three).")
    print("The program: the command with a network of next to nothing, one image.\n")
    print("| network | batch | guidance | program | estimate | peak | estimate / peak |")
    print("|---|---|---|---|---|---|---|")
    for what, options, latent, batch, scale in CALLS:
        program, estimated, peak = measure_call(options, latent, batch, scale)
        guided = "none" if scale is None else f"CFG {scale:g}"
        ratio = f"{estimated / peak:.2f}"
        print(f"| {what} | {batch} | {guided} | {program} | {estimated} | {peak} | {ratio} |", flush=True)


if __name__ == "__main__":
    main()
