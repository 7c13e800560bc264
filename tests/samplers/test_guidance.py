"""Guidance: neutral settings, nesting, published formulas, refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cases_guided_diffusion import Logits
from golden import Golden, Levels, error
from torch import Tensor

from dinit.diffusion import Condition, Denoised, RunContext, Scales, WrappedDenoiser
from dinit.diffusion.continuous import VP, LinearFlow
from dinit.diffusion.discrete import VPDiscrete
from dinit.models.analytic import MixtureDenoiser
from dinit.samplers import NoiseSource, RecordedNoise
from dinit.samplers.guidance import GUIDANCES, apply_guidance
from dinit.samplers.guidance.base import where_rows
from dinit.samplers.guidance.cads import CADS, anneal, noised
from dinit.samplers.guidance.cfg import CFG, extrapolate, restore_spread
from dinit.samplers.guidance.clip import ClipX0
from dinit.samplers.ode.ddim import DDIM

FOLDER = Path(__file__).parents[1] / "golden" / "samplers"


def golden(name: str) -> Golden:
    return Golden(FOLDER / f"{name}.safetensors")


class Recorder(WrappedDenoiser):
    """A mixture that learned a variance and remembers what it was asked."""

    learns_variance = True

    def __init__(self, process=None) -> None:
        generator = torch.Generator().manual_seed(3)
        means = torch.randn(6, 2, 2, 2, generator=generator, dtype=torch.float64)
        classes = torch.tensor([0, 0, 1, 1, 2, 2])
        self.mixture = MixtureDenoiser(process or VP(), means, torch.full_like(means, 0.05), None, classes)
        super().__init__(self.mixture)
        self.asked: list[tuple[Tensor, Condition]] = []

    def __call__(self, x_t: Tensor, t: Scales | Tensor | float, cond: Condition) -> Denoised:
        self.asked.append((x_t, cond))
        rows = torch.arange(len(x_t), dtype=torch.float64).reshape(-1, 1, 1, 1).expand_as(x_t)
        return replace(self.inner(x_t, t, cond), variance_fraction=rows)

    def state(self, batch: int = 4) -> tuple[Tensor, Condition]:
        generator = torch.Generator().manual_seed(4)
        x = torch.randn(batch, 2, 2, 2, generator=generator, dtype=torch.float64)
        cond = self.condition(torch.arange(batch) % 3, batch)
        return x, cond.in_run(RunContext(noise_source=NoiseSource.from_seed(9, batch)))


NEUTRAL = [
    CFG(1.0),
    CFG(1.0, rescale=0.7, channels=1),
    CFG(3.0, low=1e6, high=2e6),
    CADS(tau1=1.0, tau2=1.0),
    CADS(tau1=0.9, tau2=0.95),
    ClipX0(math.inf),
]


@pytest.mark.parametrize("guidance", NEUTRAL, ids=str)
def test_neutral_setting_is_the_conditional_model(guidance) -> None:
    model = Recorder()
    x, cond = model.state()
    plain = model(x, 0.5, cond)
    guided = guidance.wrap(model)(x, 0.5, cond)
    assert torch.equal(guided.x0, plain.x0)
    assert len(model.asked[-1][0]) == len(x), "a neutral guidance asks for no second half"


def test_cfg_is_one_forward_and_extrapolates() -> None:
    model = Recorder()
    x, cond = model.state()
    given, free = model(x, 0.5, cond), model(x, 0.5, cond.null())
    model.asked.clear()
    guided = CFG(2.5).wrap(model)(x, 0.5, cond)
    assert [len(x) for x, _ in model.asked] == [8]
    assert error(guided.x0, free.x0 + 2.5 * (given.x0 - free.x0)) < 1e-14
    # eps, velocity and v are guided alike, since all of them are affine in x0.
    for name in ("eps", "velocity", "score"):
        a, b, c = (getattr(d, name) for d in (given, free, guided))
        assert error(c, b + 2.5 * (a - b)) < 1e-12
    assert torch.equal(guided.variance_fraction, given.variance_fraction)
    assert error(CFG(0.0).wrap(model)(x, 0.5, cond).x0, free.x0) < 1e-14


def test_cfg_of_a_mixture_sharpens_the_score() -> None:
    """The guided score is score(x) + scale times the gradient of log p(class | x), by its definition."""
    model = Recorder()
    x, cond = model.state()
    x = x.requires_grad_()
    posterior = model.mixture.log_prob(x, 0.4, cond) - model.mixture.log_prob(x, 0.4, cond.null())
    (gradient,) = torch.autograd.grad(posterior.sum(), x)
    guided = CFG(3.0).wrap(model)(x, 0.4, cond).score
    assert error(guided, model(x, 0.4, cond.null()).score + 3.0 * gradient) < 1e-10


def test_cfg_channels_leave_the_others_conditional() -> None:
    model = Recorder()
    x, cond = model.state()
    given, full = model(x, 0.5, cond).x0, CFG(4.0).wrap(model)(x, 0.5, cond).x0
    part = CFG(4.0, channels=1).wrap(model)(x, 0.5, cond).x0
    assert torch.equal(part[:, :1], full[:, :1])
    assert error(part[:, 1:], given[:, 1:]) < 1e-14  # from a batch of 8, and one of 4


def test_cfg_interval_in_log_snr() -> None:
    model = Recorder()
    x, cond = model.state()
    guided = CFG(2.0, low=-1.0, high=1.5).wrap(model)
    for t in (0.1, 0.3, 0.4, 0.5, 0.9):
        model.asked.clear()
        x0 = guided(x, t, cond).x0
        inside = -1.0 <= float(model.process.log_snr(t)) <= 1.5
        assert len(model.asked[0][0]) == (8 if inside else 4)
        assert torch.equal(x0, model(x, t, cond).x0) != inside


def test_cfg_with_a_time_per_sample() -> None:
    model = Recorder()
    x, cond = model.state()
    times = torch.tensor([0.1, 0.4, 0.5, 0.9], dtype=torch.float64)
    guidance = CFG(2.0, low=-1.0, high=1.5, rescale=0.5)
    together = guidance.wrap(model)(x, times, cond).x0
    for i, t in enumerate(times):
        row = replace(cond, embedding=cond.embedding[i : i + 1], is_null=cond.is_null[i : i + 1])
        assert error(together[i : i + 1], guidance.wrap(model)(x[i : i + 1], float(t), row).x0) < 1e-13


@pytest.mark.parametrize("ends", [{"low": -2.0}, {"high": 1.5}, {"low": -2.0, "high": 1.5}], ids=str)
@pytest.mark.parametrize("name", ["cfg", "apg", "negative"])
def test_one_end_of_an_interval_is_enough_with_a_time_per_sample(name: str, ends: dict[str, float]) -> None:
    options = {"label": 0} if name == "negative" else {}
    model = Recorder()
    x, cond = model.state()[0], model.condition([1, 2, 1, 2], 4)
    times = torch.tensor([0.1, 0.4, 0.5, 0.9], dtype=torch.float64)
    guided = GUIDANCES.create(name, scale=2.0, **options, **ends).wrap(model)
    log_snr = model.process.log_snr(times)
    inside = (log_snr >= ends.get("low", -math.inf)) & (log_snr <= ends.get("high", math.inf))
    assert 0 < int(inside.sum()) < 4
    same = (guided(x, times, cond).x0 - model(x, times, cond).x0).abs().amax((1, 2, 3)) < 1e-13
    assert same.tolist() == (~inside).tolist()


def test_rows_outside_keep_all_that_an_inner_guidance_gave() -> None:
    x, k = torch.zeros(4, 1, 2, 2, dtype=torch.float64), VP().scales(0.5)
    mask = torch.tensor([True, False, False, True])
    fields = ("x0", "renoise_eps", "mean_gradient")
    one, other = (
        Denoised(x, x + first, k, renoise_eps=x + first + 1, mean_gradient=x + first + 2) for first in (10, 20)
    )
    chosen = where_rows(mask, one, other)
    for name in fields:
        expected = torch.stack([getattr(one if inside else other, name)[i] for i, inside in enumerate(mask)])
        assert torch.equal(getattr(chosen, name), expected), name


def test_rescale_restores_the_standard_deviation() -> None:
    model = Recorder()
    x, cond = model.state()
    given = model(x, 0.6, cond).x0
    spread = lambda v: v.flatten(1).std(dim=1)  # noqa: E731
    full = CFG(6.0, rescale=1.0).wrap(model)(x, 0.6, cond).x0
    assert error(spread(full), spread(given)) < 1e-13
    none, half = (CFG(6.0, rescale=phi).wrap(model)(x, 0.6, cond).x0 for phi in (0.0, 0.5))
    assert error(half, (none + full) / 2) < 1e-13


def test_published_combination_of_dit() -> None:
    g = golden("dit_cfg3_combine")
    out, n = g["in.model_output"], len(g["in.x"]) // 2
    scale = g.kwargs["cfg_scale"]
    assert error(extrapolate(out[:n], out[n:], scale, channels=3), g["out.final"][:n]) < 1e-13


def test_published_guiders_of_diffusers() -> None:
    g = golden("df_guiders")
    given, free, scale = g["in.pred_cond"], g["in.pred_uncond"], g.kwargs["guidance_scale"]
    guided = extrapolate(given, free, scale)
    assert error(guided, g["out.cfg"]) < 1e-13
    assert error(extrapolate(given, free, 1 + scale), g["out.cfg_original_formulation"]) < 1e-13
    assert error(restore_spread(guided, given, g.kwargs["guidance_rescale"]), g["out.cfg_rescaled"]) < 1e-13


# --- CADS --------------------------------------------------------------------------------------------------------


def test_published_annealing_and_noising() -> None:
    g = golden("cads_linear")
    assert error(anneal(g["sched.t"], 0.6, 0.9), g["sched.gamma/tau1=0.6,tau2=0.9"]) < 1e-14
    assert error(anneal(g["sched.t"], 0.0, 1.0), g["sched.gamma/tau1=0.0,tau2=1.0"]) < 1e-14
    y, z = g["in.y"], g["in.y_noise"]
    for gamma in (0.0, 0.25, 0.8, 1.0):
        theirs = g.under(f"out.noised/gamma={gamma}/")
        scale, psi = g.kwargs["noise_scale"], g.kwargs["psi"]
        at = torch.tensor(gamma, dtype=torch.float64)
        assert error(noised(y, z, at, scale, 0.0), theirs["norescale"]) < 1e-14
        assert error(noised(y, z, at, scale, psi), theirs["rescale_per_sample"]) < 1e-14
        # Theirs takes the statistics over the batch; as one row that is ours.
        for mixing, name in ((psi, "rescale"), (1.0, "rescale_psi1")):
            one = noised(y.reshape(1, -1), z.reshape(1, -1), at, scale, mixing)
            assert error(one.reshape_as(y), theirs[name]) < 1e-14


def test_published_run_with_cads() -> None:
    """Their condition is annealed in the fraction of the steps, so the levels are put at those times."""
    g = golden("cads_linear")
    given = g.kwargs
    chain = VPDiscrete()
    k = chain.scales((g["sched.timestep_map"].flip(0).double() + 1) / chain.num_steps)
    process = Levels(g["sched.cads_t"], k.alpha, k.sigma)
    model = CADS(given["tau1"], given["tau2"], given["noise_scale"], given["psi"]).wrap(
        Logits(g.mixture(process), g["in.cond_logits"])
    )
    steps = list(
        DDIM().iterate(
            model,
            torch.empty(0),
            grid=g["sched.cads_t"],
            labels=[0, 0, 0, 0],
            initial_state=g["in.x_init"],
            noise_source=RecordedNoise(cads=g["in.cond_noise"]),
        )
    )
    ours = torch.stack([steps[0].x_t, *(step.x_s for step in steps)])
    assert error(ours, g["out.trajectory"]) < 1e-10


@pytest.mark.parametrize("cads_outside", [False, True])
def test_cads_nests_both_ways_and_spares_null_rows(cads_outside: bool) -> None:
    model = Recorder()
    x, cond = model.state(4)
    cond = replace(cond, is_null=torch.tensor([False, False, False, True]))
    cads, cfg = CADS(tau1=0.1, tau2=0.95), CFG(2.0)
    apply_guidance(model, [cfg, cads] if cads_outside else [cads, cfg])(x, 0.7, cond)
    (_, asked), *rest = model.asked
    assert not rest
    assert asked.batch == 8
    assert torch.equal(asked.embedding[4:], cond.null_embedding.expand(4, -1)), "null rows are not noised"
    gamma = anneal(torch.tensor(0.7, dtype=torch.float64), 0.1, 0.95)
    noise = NoiseSource.from_seed(9, 4).normal("cads", cond.run.step, cond.embedding)
    expected = noised(cond.embedding, noise, gamma, cads.scale, cads.mixing)
    assert error(asked.embedding[:3], expected[:3]) < 1e-14
    assert torch.equal(asked.embedding[3], cond.embedding[3])
    assert not torch.equal(asked.embedding[:3], cond.embedding[:3])


def test_cads_on_labels_weighs_the_table_by_a_noised_one_hot() -> None:
    """At each time; rows of the null class and of clean times as they were. The embeddings here are no one-hots."""
    model, x = Recorder(), torch.zeros(5, 2, 2, 2, dtype=torch.float64)
    labels = torch.tensor([1, 0, 1, model.num_classes, 0])
    cond = model.condition(labels, 5).in_run(RunContext(step=3, noise_source=NoiseSource.from_seed(9, 5)))
    classes = torch.arange(model.num_classes)
    one_hot = (labels[:, None] == classes).to(cond.embedding)
    z = NoiseSource.from_seed(9, 5).normal("cads", 3, one_hot)
    times = torch.tensor([0.2, 0.7, 0.9, 0.7, 0.99], dtype=torch.float64)
    gamma = anneal(times, 0.3, 0.9)[:, None]
    cads = CADS(0.3, 0.9, scale=0.4, mixing=0.6, on="label")
    apply_guidance(model, cads)(x, times, cond)
    expected = noised(one_hot, z, gamma, 0.4, 0.6) @ model.embed(classes)
    expected[3] = cond.embedding[3]
    seen = model.asked[-1][1].embedding
    assert torch.allclose(seen, expected, rtol=1e-10, atol=1e-6)
    assert torch.allclose(seen[0], cond.embedding[0])
    doubled = apply_guidance(model, [cads, CFG(2.0)])(x, times, cond)  # inside CFG, its rows are twice as many
    assert torch.allclose(model.asked[-1][1].embedding[:5], expected, rtol=1e-10, atol=1e-6)
    assert doubled.x0.isfinite().all()


def test_cads_on_labels_refusals() -> None:
    model = Recorder()
    with pytest.raises(ValueError, match="did you mean 'label'"):
        CADS(on="labels")  # type: ignore[arg-type]
    unconditional = Recorder()
    unconditional.num_classes = 0
    with pytest.raises(ValueError, match="needs a network with classes"):
        CADS(on="label").wrap(unconditional)
    run = RunContext(noise_source=NoiseSource.from_seed(0, 1))
    cond = replace(model.condition([0], 1), run=run, labels=None)
    with pytest.raises(ValueError, match="needs the labels of a batch"):
        CADS(0.1, 0.9, on="label").wrap(model)(torch.zeros(1, 1, 2, 2), 0.7, cond)


def test_cads_depends_on_the_seed_and_not_on_the_batch() -> None:
    model = apply_guidance(Recorder(), [CFG(2.0), CADS(0.3, 0.9)])
    noise = torch.randn(4, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    labels = [0, 1, 2, 0]

    def run(rows: slice, seed: int) -> Tensor:
        n = len(labels[rows])
        draws = NoiseSource.from_seed(seed, n, start=rows.start or 0)
        return DDIM(1.0).sample(model, noise[rows], 8, labels=labels[rows], noise_source=draws)

    together = run(slice(0, 4), 5)
    assert torch.allclose(together, torch.cat([run(slice(0, 1), 5), run(slice(1, 4), 5)]), atol=1e-5)
    assert not torch.allclose(together, run(slice(0, 4), 6), atol=1e-2)


def test_cads_without_noise_or_spread_is_finite() -> None:
    zero = torch.zeros((), dtype=torch.float64)
    y = torch.randn(3, 5, dtype=torch.float64)
    assert noised(y, y, zero, 0.0, 1.0).isfinite().all()
    assert noised(y[:, :1], y[:, :1], zero, 0.3, 1.0).isfinite().all()
    x, cond = (model := Recorder()).state()
    times = torch.tensor([0.2, 0.7, 0.8, 0.99], dtype=torch.float64)
    x0 = CADS(0.5, 0.9).wrap(model)(x, times, cond).x0
    assert error(x0[:1], model(x, times, cond).x0[:1]) < 1e-14


# --- clip, refusals ----------------------------------------------------------------------------------------------


def test_clip_rederives_eps() -> None:
    model = Recorder()
    x, cond = model.state()
    d = ClipX0(0.3).wrap(model)(x, 0.5, cond)
    assert d.x0.abs().max() == 0.3
    assert error(d.scales.alpha * d.x0 + d.scales.sigma * d.eps, x) < 1e-14


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CFG(-0.5), "scale must be >= 0"),
        (lambda: CFG(math.nan), "scale must be a number, got nan"),
        (lambda: CFG(math.inf), "scale must be a finite number, got inf"),
        (lambda: CFG(2.0, low=1.0, high=1.0), "low < high"),
        (lambda: CFG(2.0, rescale=1.5), "rescale"),
        (lambda: CFG(2.0, channels=0), "channels"),
        (lambda: CADS(tau1=0.9, tau2=0.5), "tau1 <= tau2"),
        (lambda: CADS(scale=-1.0), "noise scale"),
        (lambda: CADS(mixing=2.0), "mixing"),
        (lambda: ClipX0(0.0), "limit"),
        (lambda: apply_guidance(Recorder(), "cgf"), "did you mean 'cfg'"),
    ],
)
def test_refusals(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_guidance_of_an_unconditional_model_is_refused() -> None:
    model = Recorder()
    model.num_classes = 0
    with pytest.raises(ValueError, match="unconditional"):
        CFG(2.0).wrap(model)


def test_cads_without_a_noise_source_is_refused() -> None:
    model = Recorder(LinearFlow())
    x, cond = model.state()
    with pytest.raises(ValueError, match=r"cond\.run\.noise_source"):
        CADS().wrap(model)(x, 0.99, cond.in_run(RunContext()))
