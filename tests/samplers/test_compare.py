"""Samplers side by side, and a run as a table: the numbers behind the pictures."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dinit.diffusion import PROCESSES, Condition, Denoised
from dinit.diffusion.continuous import VP, LinearFlow
from dinit.models.analytic import MixtureDenoiser
from dinit.samplers import SAMPLERS, Comparison, compare
from dinit.samplers.multistep.dpmpp import DPMpp2M
from dinit.samplers.ode.ddim import DDIM
from dinit.samplers.ode.euler import Heun
from dinit.samplers.sde.predictor_corrector import PredictorCorrector

F64 = torch.float64
NOISE = torch.randn(4, 1, 3, 3, generator=torch.Generator().manual_seed(1))


def mixture(channels: int = 1) -> MixtureDenoiser:
    means = torch.randn(4, channels, 3, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    return MixtureDenoiser(VP(), means, torch.full_like(means, 0.05), None, torch.tensor([0, 0, 1, 1]))


# --- compare -----------------------------------------------------------------------------------------------------


def test_every_row_is_what_the_sampler_alone_gives() -> None:
    labels, names = [0, 1, 0, 1], ["ddim", "heun", "ddpm", "dpmpp-2m"]
    found = compare(mixture(), NOISE, labels, names, 6, grid="log-snr", seed=3)
    assert found.names == tuple(names)
    assert found.nfe == (6, 11, 6, 6)
    assert found.stochastic == (False, False, True, False)
    for name, images in zip(names, found.images, strict=True):
        alone = SAMPLERS.create(name).sample(mixture(), NOISE, 6, labels=labels, grid="log-snr", seed=3)
        assert torch.equal(images, alone)
        assert torch.equal(found[name], alone)


def test_a_budget_of_evaluations_is_never_exceeded_and_used_as_far_as_it_goes() -> None:
    for budget in (1, 2, 8, 9):
        found = compare(mixture(), NOISE, None, ["ddim", "heun", "rk4"], nfe=budget)
        assert found.nfe == (budget, (budget - 1) // 2 * 2 + 1, (budget - 1) // 4 * 4 + 1)


def test_labels_of_rows() -> None:
    found = compare(mixture(), NOISE, None, {"plain": DDIM(), "noisy": DDIM(1.0)}, 4)
    assert found.names == ("plain", "noisy")
    assert compare(mixture(), NOISE, None, [DDIM(), "ddim"], 4).names == ("DDIM(eta=0.0)", "ddim")
    assert repr(found) == "Comparison(plain: 4 NFE, noisy: 4 NFE)"
    with pytest.raises(ValueError, match="given twice"):
        compare(mixture(), NOISE, None, ["ddim", "ddim"], 4)
    with pytest.raises(KeyError, match="no sampler 'heun'"):
        found["heun"]


def test_distances_to_a_row_and_to_images() -> None:
    found = compare(mixture(), NOISE, None, ["ddim", "heun"], 6)
    expected = float((found.images[0] - found.images[1]).double().square().mean().sqrt())
    assert found.rms_to("heun") == {"ddim": pytest.approx(expected, abs=1e-12), "heun": 0.0}
    assert found.rms_to(found.images[1]) == found.rms_to("heun")


def read(found: Comparison) -> Tensor:
    picture = Image.open(io.BytesIO(found._repr_png_()))
    return torch.from_numpy(np.array(picture.convert("L"))).long()


def test_the_figure_shows_every_row() -> None:
    """A row's tiles hold its pixels: sample 0's corner, enlarged, beneath the row above by one pitch."""
    found = compare(mixture(), NOISE, None, ["ddim", "heun", "ddpm"], 6)
    pixels = read(found)
    scale, pitch = 16, 48 + 4
    left = pixels.shape[1] - 4 - (4 * (48 + 4) - 4)
    assert pixels.shape[0] == 3 * pitch + 4
    for row, images in enumerate(found.images):
        for b in range(4):
            tile = pixels[4 + row * pitch :, left + b * pitch :][:48, :48]
            expected = ((images[b, 0] + 1) * 127.5).round().clamp(0, 255)
            assert torch.equal(tile, expected.long().repeat_interleave(scale, 0).repeat_interleave(scale, 1))
    assert int((pixels[:, : left - 4] < 128).sum()) > 100, "rows have labels"


def test_latents_are_drawn_through_decode() -> None:
    noise = NOISE.expand(4, 4, 3, 3)
    with pytest.raises(ValueError, match="decode="):
        compare(mixture(4), noise, None, ["ddim"], 4).figure()
    found = compare(mixture(4), noise, None, ["ddim"], 4, decode=lambda latents: latents[:, :3])
    assert found.images[0].shape == (4, 4, 3, 3)
    assert found.figure().mode == "RGB"


@pytest.mark.parametrize("budget", [{}, {"steps": 4, "nfe": 4}, {"nfe": 0}])
def test_refused_budgets(budget: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"steps|nfe"):
        compare(mixture(), NOISE, None, ["ddim"], **budget)


@pytest.mark.parametrize("samplers", ["ddim", [], {}])
def test_refused_lists(samplers: object) -> None:
    with pytest.raises(ValueError, match="list of names"):
        compare(mixture(), NOISE, None, samplers, 4)  # pyright: ignore[reportArgumentType]


# --- describe ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("process", ["vp", "edm", "flow", "gvp"])
def test_ddim_has_the_weights_of_its_formula(process: str, eta: float) -> None:
    """x_s = r x_t + (alpha_s - r alpha_t) x0 + std z, r = sqrt(sigma_s² - std²) / sigma_t."""
    path = PROCESSES.create(process)
    *rows, last = DDIM(eta).describe(process, 7).rows
    for row, after in zip(rows, [*rows[1:], last], strict=True):
        t, s = path.scales(row.t), path.scales(after.t)
        forgotten = t.alpha / s.alpha * s.sigma
        std = float(eta * s.sigma / t.sigma * (t.sigma**2 - forgotten**2).sqrt())
        r = math.sqrt(max(float(s.sigma) ** 2 - std**2, 0.0)) / float(t.sigma)
        if r < 1e-7:  # eta = 1 from alpha = 0: the start is forgotten
            continue
        assert row.weights.state == pytest.approx(r, abs=1e-9)
        assert row.weights.x0 == pytest.approx((float(s.alpha) - r * float(t.alpha),), abs=1e-9)
        assert row.weights.noise == pytest.approx(std, abs=1e-9)
    assert last.weights.state == 0
    assert last.weights.x0 == (1.0,)


def test_second_order_multistep_weights() -> None:
    """DPM-Solver++(2M): the posterior mean extrapolated by r = h / (2 h_before). Lu et al. 2022, Algorithm 2."""
    rows = DPMpp2M().describe("vp", 6, "log-snr").rows
    path = PROCESSES.create("vp")
    for before, row, after in zip(rows, rows[1:], rows[2:], strict=False):
        s = path.scales(after.t)
        h, h_before = (after.log_snr - row.log_snr) / 2, (row.log_snr - before.log_snr) / 2
        gain, slope = float(s.alpha) * -math.expm1(-h), h / (2 * h_before)
        assert row.weights.state == pytest.approx(after.sigma / row.sigma, abs=1e-9)
        assert row.weights.x0 == pytest.approx((gain * (1 + slope), -gain * slope), abs=1e-9)


@pytest.mark.parametrize("name", SAMPLERS.names())
def test_weights_of_every_sampler_reproduce_its_run(name: str) -> None:
    """Played back over a network's answers without noise, the table gives the sampler's states."""
    sampler = SAMPLERS.create(name)
    rows = sampler.describe("vp", 5).rows
    assert [row.nfe for row in rows] == sorted(row.nfe for row in rows)
    if sampler.claims().cost_depends_on == "state":
        assert all(row.weights is None for row in rows)
        return
    answers: list[Tensor] = []

    class Listening(MixtureDenoiser):
        def __call__(self, x_t, t, cond):
            denoised = super().__call__(x_t, t, cond)
            answers.append(denoised.x0)
            return denoised

    inner = mixture()
    network = Listening(VP(), inner.means, inner.variances, None, inner.component_class)

    class Silence:
        def normal(self, stream: str, number: int, like: Tensor) -> Tensor:
            return torch.zeros_like(like)

    for row, step in zip(rows, sampler.iterate(network, NOISE.double(), 5, noise_source=Silence()), strict=True):
        assert row.weights is not None
        latest = answers[step.nfe - 1 :: -1][: len(row.weights.x0)]
        played = row.weights.state * step.x_t + sum(w * x0 for w, x0 in zip(row.weights.x0, latest, strict=True))
        assert torch.allclose(played, step.x_s, atol=1e-8)


def test_times_scales_and_evaluations() -> None:
    rows = Heun().describe(LinearFlow(), 4).rows
    assert [row.t for row in rows] == pytest.approx([1, 0.75, 0.5, 0.25])
    assert [row.sigma for row in rows] == pytest.approx([1, 0.75, 0.5, 0.25])
    assert [row.alpha for row in rows] == pytest.approx([0, 0.25, 0.5, 0.75])
    assert rows[0].log_snr == -math.inf
    assert rows[2].log_snr == pytest.approx(0, abs=1e-12)
    assert [row.nfe for row in rows] == [2, 4, 6, 7]


def test_a_solver_that_fits_itself_to_the_score_has_no_weights() -> None:
    rows = PredictorCorrector("ancestral", "langevin").describe("vp", 4).rows
    assert all(row.weights is None for row in rows)


def test_the_table() -> None:
    told = DDIM().describe("flow", 3)
    lines = str(told).splitlines()
    assert lines[0].startswith("DDIM(eta=0.0) on LinearFlow(")
    assert lines[0].endswith("3 steps, 3 NFE")
    assert " ".join(lines[1].split()) == "step t alpha sigma log-SNR NFE on x_t on x0, latest first noise"
    assert lines[2].split() == ["0", "1.0000", "0.0000", "1.0000", "-inf", "1", "0.6667", "+0.3333", "0.0000"]
    assert len({len(line) for line in lines[1:]}) == 1
    assert told._repr_html_().count("<tr>") == 4


class Zero(MixtureDenoiser):
    """A denoiser whose every posterior mean is 0, so that only noise is left of a step."""

    def __call__(self, x_t: Tensor, t: Any, cond: Condition) -> Denoised:
        return Denoised(x_t, torch.zeros_like(x_t), self.scales(t).like(x_t))


@pytest.mark.parametrize("name", [n for n in SAMPLERS if SAMPLERS.create(n).claims().draws_per_step > 1])
def test_noise_of_a_step_of_several_draws_is_their_standard_deviation(name: str) -> None:
    """Variances add up, not deviations."""
    sampler, x = SAMPLERS.create(name), torch.zeros(1, 1, 200, 200, dtype=F64)
    zeros = torch.zeros(1, 1, 200, 200)
    grid = torch.tensor([0.8, 0.5, 0.3], dtype=F64)
    rows = sampler.describe(VP(), grid=grid).rows
    step = next(iter(sampler.iterate(Zero(VP(), zeros, zeros), x, grid=grid, initial_state=x)))
    assert rows[0].weights is not None
    assert float(step.x_s.std()) == pytest.approx(rows[0].weights.noise, rel=0.02)
