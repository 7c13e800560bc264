"""Every posterior method on the shipped pipelines: inpainting, super-resolution, deblurring, colourising.

python benchmarks/restoration.py runs what results/restoration.json lacks, and writes results/restoration.md.
--pipeline, --problem, --guidance and --method choose a part by the beginning of the name, and --again runs it
though it is there. The text of the page above its first table is kept.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

from restoration_runs import NOISE_STD, OPERATORS_OF, REFERENCES, STEPS, TRUTH, Entry, Task, measured, tasks

RESULTS = Path(__file__).parent / "results"
STORE, PAGE = RESULTS / "restoration.json", RESULTS / "restoration.md"
MARK = "## PSNR of the mean of samples"
COLUMNS = (
    ("PSNR", "psnr", ".2f"),
    ("of the mean", "mean_psnr", ".2f"),
    ("SSIM", "ssim", ".3f"),
    ("of the mean", "mean_ssim", ".3f"),
    ("class", "accuracy", ".2f"),
    ("distance", "distance", ".2f"),
    ("rank", "rank", ".2f"),
    ("largest", "largest", ".3g"),
    ("NFE", "nfe", ".0f"),
    ("VJPs", "vjp", ".0f"),
    ("seconds", "seconds", ".3f"),
)
HEAD = """# Restoration by the shipped pipelines

"""
Found = dict[str, tuple[Task, Entry]]


def load() -> Found:
    if not STORE.exists():
        return {}
    rows = [json.loads(line) for line in STORE.read_text(encoding="utf-8").splitlines() if line]
    pairs = [(Task(**row["task"]), Entry(**row["entry"])) for row in rows]
    return {task.key: (task, entry) for task, entry in pairs}


def save(found: Found, order: list[Task]) -> None:
    """Write the store, an entry a line, in the order of the table; entries of methods that are gone are dropped."""
    kept = [found[task.key] for task in order if task.key in found]
    lines = [json.dumps({"task": asdict(task), "entry": plain(entry)}) for task, entry in kept]
    STORE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def plain(entry: Entry) -> dict[str, Any]:
    """The entry without what does not apply, to five digits."""
    values = asdict(entry)
    others = {name: value for name in ("each", "error") if (value := values.pop(name))}
    return {key: float(f"{value:.5g}") for key, value in values.items() if not math.isnan(value)} | others


def chosen(task: Task, options: argparse.Namespace) -> bool:
    return all(
        getattr(task, name).startswith(getattr(options, name))
        for name in ("pipeline", "problem", "guidance", "method")
    )


def cost(task: Task) -> int:
    """Short ones first: an interrupted run has most of the table."""
    slow = ("tds", "mcmc", "dps under", "pigdm under", "tmpd under", "mmps", "stsl", "repaint", "daps")
    place = next((len(slow) - i for i, name in enumerate(slow) if task.method.startswith(name)), 0)
    return place + 100 * (task.pipeline != "digits-dico") + 10 * (task.guidance == "cfg")


def number(value: float, form: str) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.1e}" if abs(value) >= 1e4 else format(value, form)


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def leaders(here: dict[tuple[str, str], Entry], problem: str) -> set[str]:
    """The method with the best mean, and those that are less than two standard errors worse on the same images."""
    there = {
        method: entry
        for (method, of), entry in here.items()
        if of == problem and entry.each and not math.isnan(entry.mean_psnr)
    }
    if not there:
        return set()
    top = max(there, key=lambda method: there[method].mean_psnr)
    apart = {method: entry.worse_by(there[top]) for method, entry in there.items()}
    return {method for method, (worse, error) in apart.items() if worse <= 2 * error}


def overview(found: Found, pipeline: str, guidance: str) -> list[str]:
    """Methods by problems: PSNR of the mean, with the class's accuracy; bold is the best PSNR of each column."""
    here = {
        (task.method, task.problem): entry
        for task, entry in found.values()
        if task.pipeline == pipeline and (task.guidance == guidance or task.method in REFERENCES[:2])
    }
    problems = list(OPERATORS_OF[pipeline])
    methods = list(dict.fromkeys(method for method, _ in here if method != TRUTH))
    best = {problem: leaders(here, problem) for problem in problems}
    lines = [row([f"{pipeline}, guidance {guidance}", *problems]), "|" + "---|" * (len(problems) + 1)]
    for method in methods:
        cells = []
        for problem in problems:
            entry = here.get((method, problem), Entry())
            value = entry.psnr if math.isnan(entry.mean_psnr) else entry.mean_psnr
            text = f"{number(value, '.1f')}, {number(entry.accuracy, '.2f')}" if not math.isnan(value) else ""
            cells.append(f"**{text}**" if method in best[problem] else text)
        lines.append(row([method, *cells]))
    return lines


def details(found: Found, pipeline: str, problem: str) -> list[str]:
    lines = [
        f"### {pipeline}, {problem} (`{OPERATORS_OF[pipeline][problem]}`)",
        "",
        row(["method", "guidance", *(name for name, _, _ in COLUMNS)]),
        "|" + "---|" * (len(COLUMNS) + 2),
    ]
    for task, entry in found.values():
        if (task.pipeline, task.problem) == (pipeline, problem):
            guidance = "" if task.method in REFERENCES[:2] else task.guidance
            cells = [number(getattr(entry, name), form) for _, name, form in COLUMNS]
            lines.append(row([task.method, guidance, *([f"refused: {entry.error}"] if entry.error else cells)]))
    return [*lines, ""]


def write(found: Found, order: list[Task]) -> None:
    """Write the page below MARK; the reading above it is kept."""
    before = PAGE.read_text(encoding="utf-8").partition(MARK)[0] if PAGE.exists() else HEAD
    one = order[0]
    sorted_ = {task.key: found[task.key] for task in order if task.key in found}
    steps = ", ".join(f"{name} {count}" for name, count in STEPS.items())
    lines = [
        MARK,
        "",
        "In decibels, and the share of samples whose class is read as given. `measurement` is y itself, enlarged "
        "where it is smaller (bicubic); `no measurement` samples the class alone. Bold: the best of the column, "
        "and what is less than two standard errors of the difference worse on the same images.",
    ]
    for pipeline in OPERATORS_OF:
        for guidance in ("none", "cfg"):
            lines += ["", *overview(sorted_, pipeline, guidance)]
    lines += [
        "",
        "## All figures",
        "",
        f"`python benchmarks/restoration.py --truths {one.truths} --samples {one.samples}`: {one.truths} images of "
        f"the test split, whose class is given, {one.samples} samples of each, noise {NOISE_STD:g}; the pipeline's "
        f"own sampler and steps, but for {steps} steps and for rows with `under`. Guidance `cfg` is the pipeline's "
        "own scale, `none` the conditional network alone. `class`: share of samples read as the class that is "
        "given, by the shipped classifier. `distance`: root mean square of A(x) - y over the noise, median over "
        "samples; samples of p(x | y) are near 1. `rank`: of the truth among samples and itself by distance from "
        f"the mean of the others, mean over images; for samples of p(x | y) {(one.samples + 2) / 2:g}, and "
        f"{one.samples + 1} where the truth is always the farthest. `largest`: absolute value; data are in [-1, "
        "1]. NFE and VJPs: evaluations of the network and backward passes through it for an image, counted; with "
        "CFG both conditions count. Seconds of one core for an image.",
        "",
    ]
    for pipeline, problems in OPERATORS_OF.items():
        for problem in problems:
            if any((task.pipeline, task.problem) == (pipeline, problem) for task, _ in sorted_.values()):
                lines += details(sorted_, pipeline, problem)
    PAGE.write_text(before + "\n".join(lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("pipeline", "problem", "guidance", "method"):
        parser.add_argument(f"--{name}", default="", help=f"{name}s that begin so (default all)")
    parser.add_argument("--truths", type=int, default=16)
    parser.add_argument("--samples", type=int, default=3, help="of each truth")
    parser.add_argument("--again", action="store_true", help="run the chosen part though it was run before")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    order = tasks(options.truths, options.samples)
    found = load()
    todo = [
        task
        for task in order
        if chosen(task, options) and (options.again or task.key not in found or found[task.key][0] != task)
    ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, context) as pool:
        running = {pool.submit(measured, task): task for task in sorted(todo, key=cost)}
        for done, future in enumerate(as_completed(running), start=1):
            task = running[future]
            found[task.key] = (task, future.result())
            save(found, order)
            write(found, order)
            print(f"{done} of {len(todo)}: {task.key}", flush=True)
    write(found, order)


if __name__ == "__main__":
    main()
