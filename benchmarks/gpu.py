"""The whole measurement on a GPU, in one command of at most 8 minutes: correctness first, then speed.

It writes a table after every row, so that a run that is cut short leaves what it found; a part that fails is a row
with its error. Figures are medians over rounds, each waited for.
Run: python benchmarks/gpu.py [--minutes 8] [--only PART ...] [--out FILE]     on any machine: --smoke
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import re
import threading
import time
import traceback
import warnings
from pathlib import Path

import torch
from gpu_checks import jobs as checks
from gpu_checks import one_line
from gpu_common import Job, Row, Setting, forget
from gpu_speed import jobs as speed

import dinit
import dinit.models

RESULTS = Path(__file__).parent / "results"
PARTS = {"checks": checks, "speed": speed}
MARKS = {True: "yes", False: "**no**", None: ""}
GRACE = 60.0  # seconds after the deadline, for the job that runs; then the process ends


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on the CPU where there is no GPU")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", nargs="+", default=None, metavar="PART", help="checks, speed, or words of a job")
    parser.add_argument("--out", type=Path, help="Markdown file; default benchmarks/results/gpu_DEVICE.md")
    args = parser.parse_args()
    if args.device.type == "cuda" and not torch.cuda.is_available():
        if not args.smoke:
            parser.error("torch sees no CUDA device; --smoke runs every part on the CPU")
        args.device = torch.device("cpu")
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*synchroniz.*|.*is inexact.*")
    started = time.monotonic()
    setting = Setting(args.device, args.smoke, 2 if args.smoke else args.rounds, started + 60 * args.minutes)
    chosen = [(part, job) for part, jobs in PARTS.items() for job in jobs(setting) if _wanted(part, job, args.only)]
    out = args.out or RESULTS / f"gpu_{_slug(_name(setting.device))}.md"
    page = Page(setting, out, started)
    # A compiler or a kernel that never returns must not take what was found with it.
    watchdog = threading.Timer(60 * args.minutes + GRACE, page.give_up)
    watchdog.daemon = True
    watchdog.start()
    for part, job in chosen:
        page.begin(part, job)
        if not setting.smoke and setting.left < job.seconds:
            page.add(Row(job.what, f"left out: {setting.left:.0f} s were left"))
            continue
        try:
            for row in job.run(setting):
                page.add(row)
        except Exception as error:  # the other jobs are still of interest
            traceback.print_exc()
            page.add(Row(job.what, one_line(error), False))
        if setting.cuda:
            torch.cuda.set_sync_debug_mode("default")
        forget(setting)
    watchdog.cancel()
    page.end()
    print(f"{out}: {page.failed} of {page.judged} checks and targets not met")


def _wanted(part: str, job: Job, only: list[str] | None) -> bool:
    return only is None or any(word == part or word in job.what for word in only)


class Page:
    """The table, written after every row.

    Args:
        setting: Of the run.
        out: The file.
        started: In the seconds of time.monotonic().
    """

    def __init__(self, setting: Setting, out: Path, started: float) -> None:
        self.setting, self.out, self.started = setting, out, started
        self.rows: dict[str, list[Row]] = {}
        self.part, self.job, self.ended = "", "", ""
        self.judged = self.failed = 0

    def begin(self, part: str, job: Job) -> None:
        self.part, self.job = part, job.what
        print(f"{time.monotonic() - self.started:6.1f} s  {job.what}", flush=True)

    def add(self, row: Row) -> None:
        """A row of the present part."""
        self.rows.setdefault(self.part, []).append(row)
        self.judged += row.met is not None
        self.failed += row.met is False
        print(f"          {row.what}: {row.figure} {MARKS[row.met]}", flush=True)
        self.write()

    def end(self) -> None:
        self.ended = f"It took {time.monotonic() - self.started:.0f} s."
        self.write()

    def give_up(self) -> None:
        """The last resort, from another thread: what was found is written, and the process ends."""
        self.ended = f"**Ended in the middle of '{self.job}', which did not return in time.**"
        self.write()
        print(self.ended, flush=True)
        os._exit(3)

    def write(self) -> None:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(self.text(), encoding="utf-8")

    def text(self) -> str:
        lines = [f"# dinit on {_name(self.setting.device)}", "", *_versions(self.setting), ""]
        if self.setting.smoke:
            lines += ["**A smoke run: tiny networks, few rounds; its figures mean nothing.**", ""]
        lines += [f"{self.judged - self.failed} of {self.judged} checks and targets are met. {self.ended}", ""]
        for part, rows in self.rows.items():
            lines += [f"## {part.capitalize()}", "", "| what | found | wanted | met |", "|---|---|---|---|"]
            lines += [f"| {row.what} | {row.figure} | {row.target} | {MARKS[row.met]} |" for row in rows]
            lines += [""]
        return "\n".join(lines)


def _versions(setting: Setting) -> list[str]:
    parts = [f"dinit {dinit.__version__}", f"torch {torch.__version__}", f"Python {platform.python_version()}"]
    try:
        import triton  # pyright: ignore[reportMissingImports]

        parts.append(f"triton {triton.__version__}")
    except ImportError:
        parts.append("no triton")
    import diffusers

    parts.append(f"diffusers {diffusers.__version__}")
    if setting.cuda:
        device = torch.cuda.get_device_properties(setting.device)
        parts += [
            f"CUDA {torch.version.cuda}",
            f"compute capability {device.major}.{device.minor}",
            f"{device.total_memory / 2**30:.0f} GiB",
        ]
    how = f"`python benchmarks/gpu.py{' --smoke' if setting.smoke else ''}`; medians of {setting.rounds} rounds, "
    return [", ".join(parts) + ".", "", how + "with the fastest and the slowest in brackets."]


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


if __name__ == "__main__":
    main()
