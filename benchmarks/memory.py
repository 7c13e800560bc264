"""Memory of a training run: the estimate of a dry run, and what a process takes more than its own.

python benchmarks/memory.py > benchmarks/results/memory.md
"""

from __future__ import annotations

import subprocess
import sys
import tempfile

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


def measure(*size: int) -> tuple[int, int, int]:
    """MiB of the program itself, of the estimate, and of the peak beyond the program, in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", PROBE, folder, RECIPE, *map(str, size)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    program, estimated, peak = (int(number) >> 20 for number in out.split()[-3:])
    return program, estimated, peak


def main() -> None:
    """Print the table."""
    print("# Memory of training on a CPU\n")
    print(
        "The estimate of `dinit train --dry-run` and the peak of a run with a checkpoint and its export, beyond the"
    )
    print(
        "program itself, in MiB (`python benchmarks/memory.py`, Linux). A DiT on 8×8 images, in fp32 with AdamW.\n"
    )
    print("| width | depth | batch | program | estimate | peak | estimate / peak |")
    print("|---|---|---|---|---|---|---|")
    for size in SIZES:
        program, estimated, peak = measure(*size)
        print(f"| {' | '.join(map(str, size))} | {program} | {estimated} | {peak} | {estimated / peak:.2f} |")


if __name__ == "__main__":
    main()
