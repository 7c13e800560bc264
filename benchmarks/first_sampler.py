"""Which sampler to begin with: error of the deterministic samplers at 5 to 50 evaluations, on shipped pipelines.

`python benchmarks/first_sampler.py` writes results/first_sampler.json, from which docs/make_samplers_page.py makes
the table "Begin with this sampler". Each sampler has its default options and its default grid on the pipeline's
process; the guidance is CFG of scale 1.5, the pipelines' own. The error is the root mean square distance of the
images, whose values are in [-1, 1], to those of 400 steps of UniPC from the same noise.
"""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import torch

from dinit import Pipeline
from dinit.samplers import SAMPLERS, compare
from dinit.samplers.guidance import CFG

PIPELINES = {"digits-dico": "vp-discrete", "digits-dit": "flow", "digits-unet": "edm"}
NFES = (5, 10, 20, 50)
IMAGES, SCALE, REFERENCE_STEPS = 10, 1.5, 400
OUT = Path(__file__).parent / "results" / "first_sampler.json"


def candidates() -> list[str]:
    """Deterministic samplers of a fixed cost that are not special cases of another one."""
    found = []
    for name in SAMPLERS:
        sampler = SAMPLERS.create(name)
        fixed = sampler.claims().cost_depends_on != "state" and sampler.own_grid is None
        if fixed and not sampler.stochastic and SAMPLERS.special_case_of(name) is None:
            found.append(name)
    return found


def errors(name: str) -> dict[str, dict[str, float]]:
    """Error by sampler and number of evaluations; samplers that do not run on the process are left out."""
    pipe = Pipeline.from_pretrained(name)
    labels = list(range(IMAGES))
    denoiser = CFG(SCALE).wrap(pipe.denoiser(labels=labels))
    noise = torch.randn(IMAGES, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    exact = compare(denoiser, noise, None, ["unipc"], steps=REFERENCE_STEPS).images[0]
    check = compare(denoiser, noise, None, ["dpmpp-2m"], steps=REFERENCE_STEPS).rms_to(exact)["dpmpp-2m"]
    print(f"{name}: UniPC and DPM-Solver++(2M), {REFERENCE_STEPS} steps each, differ by {check:.4f}", flush=True)
    found: dict[str, dict[str, float]] = {}
    for sampler in candidates():
        for nfe in NFES:
            try:
                run = compare(denoiser, noise, None, [sampler], nfe=nfe)
            except (ValueError, TypeError) as error:
                print(f"  {sampler} at {nfe}: {str(error)[:100]}")
                continue
            error = run.rms_to(exact)[sampler]
            if run.nfe[0] <= nfe and math.isfinite(error):
                found.setdefault(sampler, {})[str(nfe)] = float(f"{error:.3g}")
        print(f"  {sampler}: {found.get(sampler)}", flush=True)
    return found


def main() -> None:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    warnings.simplefilter("ignore")
    found = {name: {"process": process, "errors": errors(name)} for name, process in PIPELINES.items()}
    OUT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
