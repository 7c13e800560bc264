"""Random faults in a training run and in the generation of a set, both in two processes: is the result the same?

Kinds: every process killed; one killed, the other ended as a launcher does; SIGTERM; the disk full (a small tmpfs
that is filled up, where this may mount one); a process that reads data killed. After each fault every file under
its final name is read. At the end all losses, all tensors of the last checkpoint and all files of the set are
compared, bit for bit, with those of a run that nothing happened to. Run from a checkout:

    python benchmarks/faults.py --train 50 --generate 20 --out benchmarks/results/faults.md

`--stops 100` is a stress test of the end of a run: a run of two processes is stopped at random moments, by SIGTERM
to one, SIGTERM to both, or Ctrl-C, with other processes keeping all cores busy; none may be left 30 s later.
"""

from __future__ import annotations

import argparse
import atexit
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "pipelines"))
import ranks

RECIPE = """\
name: faults
data: {name: glyphs, count: 25000}
backbone: {name: dit, patch_size: 8, hidden_size: 16, depth: 1, num_heads: 2}
optimizer: {lr: 3e-3}
schedule: {kind: cosine, warmup_steps: 5}
ema: {decay: 0.9}
training: {steps: 320, batch_size: 8, gradient_accumulation: 2, checkpoint_every: 3, log_every: 1, workers: 1}
sampling: {steps: 2}
tracker: null
"""
STEPS, IMAGES, GROUP = 320, 2000, 10
SIZE = "24m"  # of the disk that gets full
LATEST = float("inf")  # by time.monotonic
PATIENCE = 60.0  # seconds for the others to end once one has


def command(log: str, *arguments: str) -> None:
    """`dinit ...` in this process, its output to a file."""
    stream = open(log, "a", encoding="utf-8")  # noqa: SIM115  (for as long as the process lives)
    os.dup2(stream.fileno(), 1)
    os.dup2(stream.fileno(), 2)
    from dinit.cli import main

    main(arguments)


class Job:
    """A command in two processes that is started as often as need be."""

    def __init__(self, folder: Path, log: Path, arguments: list[str], progress: Callable[[], int]) -> None:
        self.folder, self.log, self.arguments, self.progress = folder, log, arguments, progress
        self.children: list[BaseProcess] = []
        self.starts, self.codes = 0, Counter[int | None]()
        atexit.register(lambda: ranks.kill(self.children))

    def start(self) -> None:
        self.children = ranks.start(2, command, str(self.log), *self.arguments)
        self.starts += 1

    @property
    def running(self) -> bool:
        return all(child.is_alive() for child in self.children)

    def tell(self, number: int, which: list[int]) -> None:
        for k in which:
            with suppress(ProcessLookupError):  # it may end at this moment
                if self.children[k].is_alive():
                    os.kill(self.children[k].pid or 0, number)

    def end(self) -> None:
        """Waits as torchrun does: when one has ended with an error the others get SIGTERM, and SIGKILL later."""
        while any(child.is_alive() for child in self.children):
            if any(child.exitcode for child in self.children):
                self.tell(signal.SIGTERM, [0, 1])
                deadline = time.monotonic() + PATIENCE
                while any(child.is_alive() for child in self.children) and time.monotonic() < deadline:
                    time.sleep(0.02)
                ranks.kill(self.children)
            time.sleep(0.01)
        self.codes.update(child.exitcode for child in self.children)

    def finish(self) -> None:
        """Waits for a run without faults. SystemExit where it fails."""
        self.end()
        if set(self.codes) != {0}:
            raise SystemExit(self.log.read_text()[-2000:])


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A tmpfs of its own at `folder`; False where this may not mount one."""
    folder.mkdir(parents=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], capture_output=True)
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], check=False)


def fill(disk: Path, chance: random.Random) -> Path:
    """Takes all room of a disk but for a random bit that part of a checkpoint fits into."""
    ballast = disk / "ballast"
    left = shutil.disk_usage(disk).free - chance.randint(0, 60_000)
    with suppress(OSError), open(ballast, "wb", buffering=0) as stream:  # full is full
        for start in range(0, left, 1 << 16):
            stream.write(b"\0" * min(1 << 16, left - start))
    return ballast


def workers_of(child: BaseProcess) -> list[int]:
    """Processes that a rank started: its readers of data."""
    listed = Path(f"/proc/{child.pid}/task/{child.pid}/children")
    return [int(pid) for pid in listed.read_text().split()] if listed.exists() else []


def strike(job: Job, kind: str, disk: Path, chance: random.Random) -> bool:
    """One fault. Whether it hit a running job. Returns when all is over and the job may be started again."""
    if kind == "a process that reads data killed":
        victims = workers_of(job.children[chance.randint(0, 1)])
        if victims:
            os.kill(chance.choice(victims), signal.SIGKILL)
        return bool(victims) and job.running
    hit = job.running
    if kind == "disk full":
        ballast = fill(disk, chance)
        while job.running:
            time.sleep(0.02)
        job.end()
        ballast.unlink()
    else:
        number = signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL
        job.tell(number, [chance.randint(0, 1)] if kind == "one process killed" else [0, 1])
        job.end()
    return hit


def torment(
    job: Job, kinds: list[str], count: int, reach: int, disk: Path, check: Callable[[], int], chance: random.Random
) -> tuple[Counter[str], int]:
    """`count` faults that hit, then the run to its end. Returns how many of each kind, and unreadable files."""
    hits, damaged, plan = Counter[str](), 0, [kinds[k % len(kinds)] for k in range(count)]
    chance.shuffle(plan)
    job.start()
    misses = 0  # starts that ended by themselves before they were hit
    while plan and time.monotonic() < LATEST:
        target = job.progress() + chance.randint(1, reach)
        while job.running and job.progress() < target:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        if strike(job, plan[-1], disk, chance):
            kind = plan.pop()
            hits[kind] += 1
            misses = 0
            print(f"{sum(hits.values())}: {kind}, at {job.progress()}", flush=True)
        elif not job.running:
            misses += 1
            if misses == 4:
                raise SystemExit(
                    f"{job.log} has the reason why the run ended by itself:\n{job.log.read_text()[-2000:]}"
                )
        if not job.running:
            job.end()
            damaged += check()
            job.start()
    job.end()
    return hits, damaged + check()


def losses(folder: Path) -> list[float]:
    from dinit.training.run.log import read_losses

    path = folder / "losses.jsonl"
    return [loss for _, loss in read_losses(path)] if path.exists() else []


def unreadable_run(folder: Path) -> int:
    """How many checkpoints and finished files of a run cannot be read."""
    from dinit.training.run.checkpoint import list_checkpoints, load_checkpoint

    bad = 0
    for path in list_checkpoints(folder / "checkpoints"):
        try:
            load_checkpoint(path)
        except ValueError:
            bad += 1
    return bad


def unreadable_set(folder: Path) -> int:
    """How many pictures of a set cannot be read."""
    from PIL import Image

    bad = 0
    for path in folder.rglob("0*.png"):
        try:
            with Image.open(path) as picture:
                picture.load()
        except (OSError, SyntaxError):
            bad += 1
    return bad


def training(place: Path, count: int, seed: int) -> list[str]:
    """Rows of the table for the training run."""
    from safetensors.torch import load_file

    from dinit.training.run.checkpoint import list_checkpoints

    recipe = place / "recipe.yaml"
    recipe.write_text(RECIPE)
    whole = place / "whole"
    calm = Job(whole, place / "whole.log", ["train", str(recipe), "--out", str(whole)], lambda: 0)
    calm.start()
    with small_disk(place / "disk") as mounted:
        folder = place / "disk" / "run"
        job = Job(
            folder,
            place / "train.log",
            ["train", str(recipe), "--out", str(folder)],
            lambda: len(losses(folder)),
        )
        kinds = ["all processes killed", "one process killed", "SIGTERM", "a process that reads data killed"]
        kinds += ["disk full"] if mounted else []
        hits, damaged = torment(
            job, kinds, count, 4, place / "disk", lambda: unreadable_run(folder), random.Random(seed)
        )
        calm.finish()
        same_losses = losses(folder) == losses(whole) and len(losses(whole)) == STEPS
        last = [list_checkpoints(run / "checkpoints")[-1] for run in (folder, whole)]
        same = True
        for name in ("raw", "ema", "optimizer", "random"):
            ours, theirs = (load_file(path / f"{name}.safetensors") for path in last)
            same &= ours.keys() == theirs.keys() and all(ours[key].equal(theirs[key]) for key in ours)
        left = len(list(folder.rglob(".dinit-*")))
    result = {"losses": same_losses, "last checkpoint": bool(same)}
    return rows(f"training, {STEPS} steps", hits, job, damaged, left, result)


def generation(place: Path, count: int, seed: int) -> list[str]:
    """Rows of the table for the set."""

    def make_set(folder: Path) -> list[str]:
        call = ["generate", "digits-dit", "--num-images", str(IMAGES), "--steps", "4", "--group", str(GROUP)]
        return [*call, "--batch-size", str(GROUP), "--out", str(folder)]

    def content(folder: Path) -> dict[str, bytes]:
        paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}

    whole = place / "whole-set"
    calm = Job(whole, place / "whole-set.log", make_set(whole), lambda: 0)
    calm.start()
    calm.finish()
    with small_disk(place / "disk-set") as mounted:
        folder = place / "disk-set" / "set"
        job = Job(folder, place / "set.log", make_set(folder), lambda: sum(1 for _ in folder.rglob("0*.png")))
        kinds = ["all processes killed", "one process killed", "SIGTERM", *(["disk full"] if mounted else [])]
        hits, damaged = torment(
            job, kinds, count, 120, place / "disk-set", lambda: unreadable_set(folder), random.Random(seed)
        )
        ours, theirs = content(folder), content(whole)
        complete = json.loads(theirs["manifest.json"])["complete"] and len(theirs) == IMAGES + 2
        left = len(list(folder.rglob(".dinit-*")))
    return rows(f"a set of {IMAGES} images", hits, job, damaged, left, {"all files": complete and ours == theirs})


def rows(what: str, hits: Counter[str], job: Job, damaged: int, left: int, same: dict[str, bool]) -> list[str]:
    listed = "; ".join(f"{count} × {kind}" for kind, count in sorted(hits.items()))
    result = "; ".join(
        f"{name} {'the same, bit for bit' if yes else '**different**'}" for name, yes in same.items()
    )
    return [f"| {what} | {sum(hits.values())}: {listed} | {job.starts} | {damaged} | {left} | {result} |"]


STOP_RECIPE = RECIPE.replace("workers: 1", "workers: 0").replace("name: faults", "name: stops")
STOP_LIMIT = 30.0  # seconds from a stop to the end of both processes


def burn() -> None:
    """Keeps one core busy."""
    os.nice(5)
    while True:
        pass


def stops(place: Path, count: int, seed: int) -> list[str]:
    """Rows of the table for a run that is stopped `count` times under load."""
    recipe, folder, chance = place / "stops.yaml", place / "stops", random.Random(seed)
    recipe.write_text(STOP_RECIPE)
    arguments = ["train", str(recipe), "--out", str(folder), "training.steps=100000"]
    job = Job(folder, place / "stops.log", arguments, lambda: len(losses(folder)))
    busy = [
        multiprocessing.get_context("fork").Process(target=burn, daemon=True) for _ in range(os.cpu_count() or 1)
    ]
    for one in busy:
        one.start()
    kinds, hits, left, longest = ("SIGTERM to one", "SIGTERM to both", "Ctrl-C"), Counter[str](), 0, 0.0
    for k in range(count):
        kind, before = kinds[k % len(kinds)], job.progress()
        job.start()
        while job.running and job.progress() == before:
            time.sleep(0.01)
        if job.progress() == before:
            raise SystemExit(
                f"{job.log} has the reason why the run ended by itself:\n{job.log.read_text()[-2000:]}"
            )
        time.sleep(chance.uniform(0, 0.5))
        began = time.monotonic()
        which = [chance.randint(0, 1)] if kind == "SIGTERM to one" else [0, 1]
        hits[kind] += job.running
        job.tell(signal.SIGINT if kind == "Ctrl-C" else signal.SIGTERM, which)
        while any(child.is_alive() for child in job.children) and time.monotonic() - began < STOP_LIMIT:
            time.sleep(0.01)
        longest = max(longest, time.monotonic() - began)
        left += sum(child.is_alive() for child in job.children)
        job.codes.update(child.exitcode for child in job.children)
        ranks.kill(job.children)
        print(
            f"{k + 1}: {kind} at step {job.progress()}, {left} processes left so far, {longest:.1f} s at most",
            flush=True,
        )
    ranks.kill(busy)
    listed = "; ".join(f"{number} × {kind}" for kind, number in sorted(hits.items()))
    result = f"{left} processes left {STOP_LIMIT:.0f} s after a stop; at most {longest:.1f} s to the end"
    return [
        f"| stops of a training run under load | {sum(hits.values())}: {listed} | {job.starts} | - | - | {result} |"
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=50, help="faults in the training run")
    parser.add_argument("--generate", type=int, default=20, help="faults in the making of the set")
    parser.add_argument("--stops", type=int, default=0, help="stops under load, of a training run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/faults.md"))
    parser.add_argument("--minutes", type=float, default=120.0, help="after which no new fault is struck")
    given = parser.parse_args()
    global LATEST
    LATEST = time.monotonic() + 60 * given.minutes
    lines: list[str] = []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        place, began = Path(folder), time.monotonic()
        if given.generate:
            lines += generation(place, given.generate, given.seed)
        if given.train:
            lines += training(place, given.train, given.seed)
        if given.stops:
            lines += stops(place, given.stops, given.seed)
        minutes = (time.monotonic() - began) / 60
    head = "| what, in two gloo processes | faults that hit | starts | unreadable files | left over | result |"
    text = "\n".join(["# Faults", "", head, "|---|---|---|---|---|---|", *lines, ""])
    call = f"python benchmarks/faults.py --train {given.train} --generate {given.generate} "
    call += f"--stops {given.stops} --seed {given.seed}"
    text += f"\n`{call}`, {minutes:.0f} minutes.\n"
    print(text)
    given.out.write_text(text)


if __name__ == "__main__":
    main()
