"""Page of samplers: docs/samplers.md and its pictures, written from the registries and the classes' docstrings.

`python docs/make_samplers_page.py` writes it; `--text` leaves the pictures as they are. The formula of a sampler is
the paragraph `Formula: $...$` of its class's docstring.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import torch

from dinit.diffusion import PROCESSES
from dinit.registry import Registry
from dinit.samplers import GRIDS, SAMPLERS, Sampler, compare
from dinit.samplers.grids.default import default_grid
from dinit.samplers.guidance import GUIDANCES

DOCS = Path(__file__).parent
PAGE = DOCS / "samplers.md"
IMAGES = DOCS / "images"
MEASURED = DOCS.parent / "benchmarks" / "results" / "first_sampler.json"
PIPELINE, NFE, SEED = "digits-dico", 20, 1
PROCESS = PROCESSES.create({"name": "vp-discrete", "schedule": "cosine"})  # the pipeline's
_WHO = r"[A-Z][\w-]+(?:(?:, [A-Z][\w-]+)* (?:&|and) [A-Z][\w-]+| et al\.)?"
_WHERE = r"(?:, (?:Eq\.|Algorithm|Section|Sec\.|Appendix|Table) [\w.]*\w)?"
_CITATION = re.compile(rf"({_WHO} [12]\d{{3}}(?: \([^)]*\))?{_WHERE})")
_CODE = re.compile(r"k-diffusion|guided-diffusion|diffusers")
_ARXIV = re.compile(r"arXiv:(\d{4}\.\d{5})")
_FORMULA = re.compile(r"^Formula: \$([^$]+)\$\.?$", re.MULTILINE)
_SECTION = re.compile(r"^(Args|Attributes|Raises|Returns):$")
_OPTION = re.compile(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)

_HEAD = f"""# Samplers, grids, guidance, processes

All that is registered, written by `python docs/make_samplers_page.py` from the docstrings of the classes.
`dinit list samplers` is the short form. `dinit verify` measures every claim on this page against closed forms: the
order of each deterministic solver, the mean, spread and weights of each stochastic one, on every process.

```python
from dinit.samplers import SAMPLERS, compare

compare(denoiser, noise, labels, ["ddim", "heun", "dpmpp-2m"], nfe=20)  # a grid of pictures, and their tensors
print(SAMPLERS.create("dpmpp-2m").describe("vp", steps=8))  # the times, and the weights of every step
```

Notation: a step leads from $x_t$ to $x_s$, $s < t$, with $x_t = \\alpha_t x_0 + \\sigma_t \\varepsilon$; $x_0$,
$\\varepsilon$ and $v = dx/dt$ in a formula are the network's posterior means at $x_t$, $z$ is fresh noise;
$\\lambda = \\log(\\alpha / \\sigma)$ (half the log-SNR), $h = \\lambda_s - \\lambda_t$, $h'$ and $x_0'$ are those
of the step before. $y$ is a rescaled state and $u$ the variable that its slope is taken in: $x / \\alpha$ and
$\\sigma / \\alpha$, for `flow-*` and `flowturbo` $x / (\\alpha + \\sigma)$ and $\\sigma / (\\alpha + \\sigma)$,
unless the section names others. $P$ is a polynomial through the last predictions.

Order: of convergence to the probability-flow ODE's solution for deterministic solvers, of the distribution for
stochastic ones, with default options. NFE: network evaluations a step.

End: a run stops at the grid's last time with noise and returns the posterior mean there (`end="posterior-mean"`).
`end="clean"` takes the solver's own step from there to $t = 0$ instead, where the process has no noise, and
`end="state"` returns $x$ at the last time, with the noise that it has. `end` belongs to a call of a pipeline, to
`--end` on the command line, and to `Sampler.sample`; it is recorded and replayed.

Before a run, the sampler is tried on Gaussian data of standard deviation 0.3, whose exact result is known. A
warning names the sampler where its own error is above 15 % of that (from 18 times on), or where it diverges.

Pictures: `{PIPELINE}`, all classes from the same noise (seed {SEED}), at most {NFE} evaluations (more where the
label gives more), no guidance, on the sampler's default grid, which is even in $t$ unless its section names
another. Deterministic solvers approach one solution and draw the same digits; stochastic ones draw others.
"""


def reference(entry: Any) -> str:
    """The citations of an entry's docstring, its module's where it has none; else the program it follows."""
    texts = [inspect.getdoc(entry) or "", inspect.getdoc(inspect.getmodule(entry)) or ""]
    for text in texts:
        flat = " ".join(text.split())
        if found := list(dict.fromkeys(_CITATION.findall(flat))):
            papers = [one for one in found if not any(one != other and other.startswith(one) for other in found)]
            return "; ".join(papers[:3])
    programs = _CODE.findall(" ".join(texts))
    return programs[0] if programs else "—"


def kind(sampler: Sampler) -> str:
    return "stochastic" if sampler.stochastic else "deterministic"


def cost(sampler: Sampler) -> str:
    """Network evaluations a step; '≥' where the sampler decides by what it finds."""
    claims = sampler.claims()
    return f"≥ {claims.nfe_per_step}" if claims.cost_depends_on == "state" else str(claims.nfe_per_step)


def formula(entry: type) -> str:
    """The LaTeX of the paragraph `Formula: $...$` in a class's own docstring, on one line, without the dollars.

    Raises:
        ValueError: the docstring has no such paragraph.
    """
    own = inspect.cleandoc(vars(entry).get("__doc__") or "")
    found = _FORMULA.search(own)
    if found is None:
        raise ValueError(f"the docstring of {entry.__name__} has no paragraph 'Formula: $...$' after its summary")
    return " ".join(found[1].split())


def paragraphs(entry: type) -> list[str]:
    """The text of a docstring as the page has it: no formula, no errors, the options as a list at the end.

    Options that a base class explains are in the list too.
    """
    text, options = [], {}
    for one in inspect.getmro(entry):
        for block in _FORMULA.sub("", inspect.cleandoc(vars(one).get("__doc__") or "")).split("\n\n"):
            heading, _, rest = block.strip("\n").partition("\n")
            section = _SECTION.match(heading)
            if section is None and one is entry:
                text.append(block.strip("\n"))
            elif section is not None and section[1] in ("Args", "Attributes"):
                options |= {name: what for name, what in _OPTION.findall(rest) if name not in options}
    known = {field.name for field in dataclasses.fields(entry)} if dataclasses.is_dataclass(entry) else options
    shown = [f"- `{name}`{default(entry, name)}: {what}" for name, what in options.items() if name in known]
    return [_as_markdown(block) for block in (*text, "\n".join(shown).replace("\n        ", "\n  ")) if block]


def default(entry: type, option: str) -> str:
    """The default of a dataclass's option, in brackets; '' where there is none or it is an object."""
    fields = {field.name: field for field in dataclasses.fields(entry)} if dataclasses.is_dataclass(entry) else {}
    value = fields[option].default if option in fields else dataclasses.MISSING
    return f" (`{value!r}`)" if value is None or isinstance(value, bool | int | float | str) else ""


def _as_markdown(text: str) -> str:
    """Asterisks are products, not emphasis, and arXiv's numbers are links; indented text is code, as it is."""
    if text.startswith("    "):
        return text
    return _ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", text.replace("*", r"\*"))


def sampler_section(name: str) -> str:
    sampler = SAMPLERS.create(name)
    facts = (
        f"{kind(sampler)}, order {sampler.claims().order}, {cost(sampler)} NFE a step. {reference(SAMPLERS[name])}"
    )
    if special := SAMPLERS.special_case_of(name):
        facts += f". At its defaults it equals [`{special}`](#{special})"
    parts = [f"### {name}", f"```math\n{formula(SAMPLERS[name])}\n```", f"*{facts}*", *paragraphs(SAMPLERS[name])]
    grid = sampler.grid_for(PROCESS)
    if grid != default_grid(PROCESS):
        parts.append(f"Its default grid, on this process as in the picture, is `{grid.registry_name}`.")  # type: ignore[attr-defined]
    return "\n\n".join([*parts, f"![digits drawn by {name}](images/{name}.png)"])


def sampler_table() -> str:
    rows = ["| sampler | order | NFE a step | kind | reference |", "|---|---|---|---|---|"]
    for name in SAMPLERS:
        one = SAMPLERS.create(name)
        cells = f"[`{name}`](#{name})", str(one.claims().order), cost(one), kind(one), reference(SAMPLERS[name])
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def registry_table(registry: Registry[Any]) -> str:
    rows = [f"| {registry.kind} | what it is | reference |", "|---|---|---|"]
    for name in registry:
        summary = registry.summary(name).replace("|", r"\|").replace("*", r"\*")
        rows.append(f"| `{name}` | {summary} | {reference(registry[name])} |")
    return "\n".join(rows)


def registry_details(registry: Registry[Any]) -> list[str]:
    """Text and options of the entries that have more than a summary."""
    parts = []
    for name in registry:
        _, *more = paragraphs(registry[name])
        if more:
            parts += [f"**`{name}`**", *more]
    return parts


_BEGIN = """
Begin with `{best}`: one evaluation a step, on every process, and {ratio} times the error of the best sampler of
each column below (geometric mean). `ddim` and `euler` are the simplest. `heun` and `edm-heun` take two
evaluations a step, and here that does not pay. After the sampler, change the number of steps and the guidance.

The error is the root mean square distance of the images, with values in [-1, 1], to those of 400 steps of UniPC
from the same noise. A cell has the errors of {names}, with CFG of scale 1.5, default options and default grids,
on ten images each (`python benchmarks/first_sampler.py`). Bold is the smallest error of all deterministic
samplers of a fixed cost. Stochastic samplers draw other images and are not in the table. On VP and flow the rest
of about 0.01 at 50 evaluations comes from the grid, at whose last time the run returns the posterior mean.
"""
_SHOWN = (
    "unipc",
    "dpmpp-2m",
    "dpmpp-3m",
    "ipndm",
    "pndm",
    "deis",
    "flowturbo",
    "ddim",
    "euler",
    "heun",
    "edm-heun",
)

_SEARCH = """
Measured by `benchmarks/solvers.py`. A schedule searched for one network and one number of evaluations (the stars)
is more accurate than any fixed solver: the predictions, orders, correctors, times and weights of its steps are
fitted to that network's own long runs, and hold for other noises and labels.

<!-- not run: the search takes minutes; tests/samplers has a smaller one -->
```python
import torch
from dinit import Pipeline
from dinit.samplers.search.solver import SolverSearch

pipe = Pipeline.from_pretrained("digits-dit")
labels = torch.arange(100) % 10
noise = torch.randn(100, 1, 8, 8, generator=torch.Generator().manual_seed(0))
search = SolverSearch(cache="schedules")  # minutes, once
found = search.find(pipe.denoiser(labels.tolist()), 6, noise, key="digits-dit")
images = pipe([3, 1, 4], sampler=found.sampler, grid=found.grid).images  # 6 evaluations
```
"""


def begin() -> str:
    """The table of measured errors, and the sampler that is nearest to the best of every column."""
    found = json.loads(MEASURED.read_text(encoding="utf-8"))
    nfes = ("5", "10", "20", "50")
    columns = {
        (nfe, name): {one: errors[nfe] for one, errors in run["errors"].items() if nfe in errors}
        for nfe in nfes
        for name, run in found.items()
    }
    everywhere = set.intersection(*(set(column) for column in columns.values()))
    ratios = {
        one: math.exp(
            sum(math.log(column[one] / min(column.values())) for column in columns.values()) / len(columns)
        )
        for one in everywhere
    }
    best = min(ratios, key=lambda one: ratios[one])
    names = ", ".join(f"`{name}` ({run['process']})" for name, run in found.items())
    rows = ["| begin with | " + " | ".join(f"{nfe} NFE" for nfe in nfes) + " |", "|---" * 5 + "|"]
    for one in dict.fromkeys((best, *_SHOWN)):
        cells = []
        for nfe in nfes:
            values = [(columns[nfe, name].get(one, math.nan), min(columns[nfe, name].values())) for name in found]
            cells.append(
                " · ".join(f"**{value:.2g}**" if value == least else f"{value:.2g}" for value, least in values)
            )
        rows.append(f"| [`{one}`](#{one}) | {' | '.join(cells)} |")
    lead = _BEGIN.format(best=best, ratio=f"{ratios[best]:.1f}", names=names)
    return "\n".join([lead.strip(), "", *rows])


def page() -> str:
    sections = [
        "## Begin with this sampler",
        begin(),
        "## Samplers",
        sampler_table(),
        *map(sampler_section, SAMPLERS),
    ]
    plots = sorted((DOCS.parent / "benchmarks" / "results").glob("solvers*.png"))
    if plots:
        shown = [f"![error against NFE](../benchmarks/results/{plot.name})" for plot in plots]
        sections += ["## Accuracy at few steps", _SEARCH.strip(), *shown]
    for title, registry in (("Time grids", GRIDS), ("Guidance", GUIDANCES), ("Processes", PROCESSES)):
        sections += [f"## {title}", registry_table(registry), *registry_details(registry)]
    return "\n\n".join([_HEAD.rstrip(), *sections]) + "\n"


def draw() -> None:
    """One picture a sampler: ten digits in a row."""
    from dinit import Pipeline

    pipe = Pipeline.from_pretrained(PIPELINE)
    noise = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(SEED))
    IMAGES.mkdir(exist_ok=True)
    for name in SAMPLERS:
        found = compare(pipe.denoiser(), noise, list(range(10)), [name], nfe=NFE, seed=SEED)
        found.figure().save(IMAGES / f"{name}.png", optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", action="store_true", help="leave the pictures as they are")
    if not parser.parse_args().text:
        draw()
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE.name}: {len(SAMPLERS)} samplers\n")


if __name__ == "__main__":
    main()
