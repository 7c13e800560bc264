"""Errors of the solvers of benchmarks/solvers.py as tables and plots."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

SEARCHED = "searched"
NAMESAKES: dict[str, tuple[str, ...]] = {
    "dpmpp-2m": ("diffusers DPMSolverMultistep 2M", "diffusers EDMDPMSolverMultistep 2M", "k-diffusion dpmpp_2m",
                 "k-diffusion dpmpp_2m_sde"),
    "dpmpp-2m heun": ("k-diffusion dpmpp_2m_sde heun", "diffusers DPMSolverMultistep 2M heun",
                      "diffusers EDMDPMSolverMultistep 2M heun"),
    **{f"dpmpp-3m{plain}": ("diffusers DPMSolverMultistep 3M", "diffusers EDMDPMSolverMultistep 3M")
       for plain in ("", " plain")},
    "dpmpp-3m to the end plain": ("k-diffusion dpmpp_3m_sde",),
    "dpmpp-2s": ("k-diffusion dpmpp_2s", "k-diffusion dpmpp_sde"),
    "dpm-2": ("k-diffusion dpm_2", "diffusers KDPM2Discrete"),
    "unipc": ("diffusers UniPC 2",),
    "unipc 2 plain": ("diffusers UniPC 2",),
    **{f"unipc 3{plain}": ("diffusers UniPC 3",) for plain in ("", " plain")},
    **{f"deis log-rho{plain}": ("diffusers DEIS 3",) for plain in ("", " plain")},
    "euler": ("diffusers FlowMatchEulerDiscrete",),
    "edm-euler": ("diffusers EulerDiscrete", "diffusers EDMEuler", "k-diffusion euler", "azula Euler"),
    "ddim": ("diffusers DDIM",),
    "edm-heun": ("diffusers HeunDiscrete", "k-diffusion heun", "azula Heun"),
    "flow-heun": ("diffusers FlowMatchHeunDiscrete",),
    "lms": ("diffusers LMSDiscrete", "k-diffusion lms 4"),
    "lms 4 plain": ("diffusers LMSDiscrete", "k-diffusion lms 4"),
    **{f"lms {k}{plain}": (f"k-diffusion lms {k}",) for k in (2, 3) for plain in ("", " plain")},
    "pndm": ("diffusers PNDM",),
    **{
        f"{ours} {k} {p}{plain}": (f"azula {theirs} {k}",)
        for ours, p, theirs in (
            ("ab", "eps", "zAB"), ("ab", "velocity", "vAB"), ("eab", "eps", "zEAB"), ("eab", "x0", "xEAB"),
        )
        for k in (2, 3, 4)
        for plain in ("", " plain")
    },
}  # fmt: skip


@dataclass(frozen=True, order=True)
class Score:
    """Errors over samples: RMS, median, maximum; and the grid."""

    rms: float
    median: float
    maximum: float
    grid: str = ""

    @classmethod
    def of(cls, end: Tensor, exact: Tensor, grid: str) -> Score:
        each = (end - exact).double().square().flatten(1).mean(1).sqrt()
        return cls(float(each.square().mean().sqrt()), float(each.median()), float(each.max()), grid)


@dataclass
class Errors:
    """best: by solver and NFE, on its best grid. same: by (solver, namesake) and NFE, the solver on the namesake's
    best grid. peers: which solvers are peers'."""

    best: dict[str, dict[int, Score]] = field(default_factory=dict)
    same: dict[tuple[str, str], dict[int, Score]] = field(default_factory=dict)
    peers: set[str] = field(default_factory=set)

    def enter(self, name: str, nfe: int, score: Score) -> bool:
        """Whether it is this solver's best so far."""
        of = self.best.setdefault(name, {})
        better = math.isfinite(score.rms) and (nfe not in of or score < of[nfe])
        if better:
            of[nfe] = score
        return better

    @property
    def nfes(self) -> list[int]:
        return sorted({nfe for of in self.best.values() for nfe in of})

    def ours(self, name: str) -> bool:
        return name not in self.peers and name != SEARCHED

    def theirs(self, name: str) -> bool:
        return name in self.peers

    def first(self, nfe: int, which: Callable[[str], bool]) -> tuple[Score, str]:
        return min((of[nfe], name) for name, of in self.best.items() if nfe in of and which(name))


def header(title: str, nfes: Sequence[int]) -> list[str]:
    return [f"| {title} | " + " | ".join(map(str, nfes)) + " |", "|---|" + "---|" * len(nfes)]


def everything(errors: Errors) -> list[str]:
    """RMS of all, the best first at 10 evaluations; the best of each number in bold."""
    nfes = errors.nfes
    least = {nfe: errors.first(nfe, lambda name: name != SEARCHED)[0].rms for nfe in nfes}
    rows = header("solver", nfes)
    for name, of in sorted(errors.best.items(), key=lambda item: item[1][10].rms if 10 in item[1] else math.inf):
        cells = [f"{of[nfe].rms:.3g}" if nfe in of else "" for nfe in nfes]
        bold = [nfe in of and of[nfe].rms == least[nfe] for nfe in nfes]
        shown = (f"**{c}**" if b else c for c, b in zip(cells, bold, strict=True))
        rows.append(f"| {name} | " + " | ".join(shown) + " |")
    return rows


def head_to_head(errors: Errors) -> list[str]:
    """The best fixed solver, the best peer and the searched schedule at each number of evaluations."""
    rows = ["| NFE | solver, grid | RMS | median | maximum | / best peer |", "|---|---|---|---|---|---|"]
    for nfe in errors.nfes:
        peer, other = errors.first(nfe, errors.theirs)
        entries = [errors.first(nfe, errors.ours), (peer, other)]
        if nfe in errors.best.get(SEARCHED, {}):
            entries.append((errors.best[SEARCHED][nfe], SEARCHED))
        for score, name in entries:
            figures = " | ".join(f"{v:.3g}" for v in (score.rms, score.median, score.maximum))
            rows.append(f"| {nfe} | {name}, {score.grid} | {figures} | {score.rms / peer.rms:.2f} |")
    return rows


def ratio(mine: Score | None, theirs: Score | None) -> str:
    return f"{mine.rms / theirs.rms:.2f}" if mine and theirs else ""


def namesakes(errors: Errors) -> list[str]:
    """RMS of a solver of dinit over its namesake's: each on its best grid; both on the peer's."""
    nfes = errors.nfes
    rows = header("solver, namesake", nfes)
    for name, other in ((name, other) for name, others in NAMESAKES.items() for other in others):
        if name in errors.best and other in errors.best:
            mine, theirs, same = errors.best[name], errors.best[other], errors.same.get((name, other), {})
            pairs = ((ratio(mine.get(n), theirs.get(n)), ratio(same.get(n), theirs.get(n))) for n in nfes)
            rows.append(f"| {name}, {other} | " + " | ".join(" · ".join(filter(None, p)) for p in pairs) + " |")
    return rows


def targets(every: dict[str, Errors]) -> list[str]:
    """Best fixed solver over best peer, and searched over best peer, for every problem."""
    nfes = sorted({nfe for errors in every.values() for nfe in errors.nfes})
    rows = header("problem: / best peer", nfes)
    for title, errors in every.items():
        peer = {n: errors.first(n, errors.theirs)[0] for n in errors.nfes}
        mine = {n: errors.first(n, errors.ours)[0] for n in errors.nfes}
        for name, of in (("best fixed", mine), (SEARCHED, errors.best.get(SEARCHED, {}))):
            if of:
                rows.append(
                    f"| {title}: {name} | " + " | ".join(ratio(of.get(n), peer.get(n)) for n in nfes) + " |"
                )
    return rows


def plot(title: str, errors: Errors, file: Path) -> None:
    """Error against NFE: the six best of dinit, the six best peers, and what was searched."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    nfes = errors.nfes

    def rank(name: str) -> float:
        of = errors.best[name]
        return sum(math.log(score.rms) for score in of.values()) if len(of) == len(nfes) else math.inf

    mine = sorted(filter(errors.ours, errors.best), key=rank)[:6]
    theirs = sorted(filter(errors.theirs, errors.best), key=rank)[:6]
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for names, style in ((mine, "o-"), (theirs, "x--"), ([SEARCHED] if SEARCHED in errors.best else [], "k*")):
        for name in names:
            of = errors.best[name]
            axes.loglog(list(of), [s.rms for s in of.values()], style, label=name, lw=1.2)
    axes.set(title=title, xlabel="network evaluations", ylabel="RMS error")
    axes.set_xticks(nfes, [str(n) for n in nfes])
    axes.minorticks_off()
    axes.legend(fontsize=7)
    figure.savefig(file, dpi=75)
    pyplot.close(figure)


def section(title: str, errors: Errors, picture: str) -> list[str]:
    rows = [f"## {title}", "", f"![{title}]({picture})", "", *head_to_head(errors), ""]
    rows += ["RMS over that of the peer's solver of the same name: each on its best grid · both on the peer's.", ""]
    return [*rows, *namesakes(errors), "", "RMS of all, each on its best grid:", "", *everything(errors), ""]
