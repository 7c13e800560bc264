"""Every guidance beyond cfg, cads and clip: neutral settings, closed forms on the mixture, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from cases_guided_diffusion import ExactClassifier
from golden import error
from torch import Tensor, nn

from dinit.diffusion import Condition, Denoised, Denoiser, RunContext, Scales, WrappedDenoiser
from dinit.diffusion.continuous import EDM, GVP, VP, LinearFlow
from dinit.diffusion.discrete import VPDiscrete
from dinit.inverse import PosteriorGuidance
from dinit.models.analytic import GaussianDenoiser, MixtureDenoiser
from dinit.samplers import NoiseSource
from dinit.samplers.guidance import GUIDANCES, Guidance, apply_guidance
from dinit.samplers.guidance.apg import APG
from dinit.samplers.guidance.autoguidance import Autoguidance
from dinit.samplers.guidance.cads import CADS
from dinit.samplers.guidance.cfg import CFG
from dinit.samplers.guidance.cfg_pp import CFGpp
from dinit.samplers.guidance.cfg_zero import CFGZeroStar
from dinit.samplers.guidance.classifier import Classifier
from dinit.samplers.guidance.clip import ClipX0
from dinit.samplers.guidance.compose import Compose
from dinit.samplers.guidance.discriminator import Discriminator
from dinit.samplers.guidance.negative import Negative
from dinit.samplers.guidance.noise_damped import NoiseDamped
from dinit.samplers.guidance.schedule import SCHEDULES, PowerCosine
from dinit.samplers.guidance.threshold import DynamicThreshold, percentile_of
from dinit.samplers.ode.ddim import DDIM
from dinit.samplers.ode.euler import Euler, Heun
from dinit.samplers.sde.ddpm import DDPM

NULL = 3


def mixture(process=None, seed: int = 3, spread: float = 0.05) -> MixtureDenoiser:
    """Three classes of two components, in (2, 2, 2)."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(6, 2, 2, 2, generator=generator, dtype=torch.float64)
    classes = torch.tensor([0, 0, 1, 1, 2, 2])
    weights = torch.tensor([1.0, 2.0, 1.5, 0.5, 1.0, 3.0])
    return MixtureDenoiser(process or VPDiscrete(), means, torch.full_like(means, spread), weights, classes)


def state(model: Denoiser, labels: list[int] | None = None) -> tuple[Tensor, Condition]:
    labels = [0, 1, 2, 0] if labels is None else labels
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(len(labels), 2, 2, 2, generator=generator, dtype=torch.float64)
    run = RunContext(noise_source=NoiseSource.from_seed(9, len(labels)))
    return x, model.condition(labels, len(labels)).in_run(run)


def one_class(model: MixtureDenoiser, label: int, x: Tensor, t: float) -> Denoised:
    return model(x, t, model.condition([label] * len(x), len(x)))


class Counting(WrappedDenoiser):
    """A denoiser that remembers how large each batch was."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        self.sizes: list[int] = []

    def __call__(self, x_t: Tensor, t: Scales | Tensor | float, cond: Condition) -> Denoised:
        self.sizes.append(len(x_t))
        return self.inner(x_t, t, cond)


NEUTRAL = [
    *(CFG(1.0, schedule=name) for name in ("linear", "cosine", "log-snr", "power-cosine")),
    Classifier(0.0),
    Discriminator(0.0),
    Autoguidance(1.0),
    CFGpp(0.6, low=1e6, high=2e6),
    APG(1.0),
    APG(4.0, low=1e6, high=2e6),
    CFGZeroStar(1.0),
    NoiseDamped(1.0),
    Negative(1.0, 2),
    Negative(3.0, 2, low=1e6, high=2e6),
    Compose(()),
    Compose((), how="mixture"),
    DynamicThreshold(limit=math.inf),
    ClipX0(low=-math.inf, high=math.inf),
    *(GUIDANCES.create(name) for name in GUIDANCES if issubclass(GUIDANCES[name], PosteriorGuidance)),
]


@pytest.mark.parametrize("guidance", NEUTRAL, ids=str)
def test_neutral_setting_is_the_conditional_model(guidance: Guidance) -> None:
    model = Counting(mixture())
    x, cond = state(model)
    guided = guidance.wrap(model)(x, 0.5, cond)
    assert model.sizes == [4], "a neutral guidance asks once, for one batch"
    plain = model(x, 0.5, cond)
    assert torch.equal(guided.x0, plain.x0)
    assert torch.equal(guided.eps, plain.eps)


def test_every_registered_guidance_has_a_neutral_setting_here() -> None:
    assert {type(guidance) for guidance in NEUTRAL} >= {GUIDANCES[name] for name in GUIDANCES} - {CADS}


def test_summaries_are_one_line() -> None:
    for name in GUIDANCES:
        assert 20 < len(GUIDANCES.summary(name)) < 116
        assert GUIDANCES.summary(name).endswith(".")


@pytest.mark.parametrize("t", [0.05, 0.5, 0.98])
@pytest.mark.parametrize(
    ("guidance", "same_as"),
    [
        (APG(2.5, eta=1.0), CFG(2.5)),
        (NoiseDamped(2.5), CFG(2.5)),
        (Negative(2.5, 1), Compose((1,), (-1.5,), 2.5, "product")),
        (Compose((0, 1), (0.0, 0.0), 2.5), CFG(2.5)),
        (CFG(2.5, schedule={"name": "linear", "first": 1.0, "last": 1.0}), CFG(2.5)),
        (ClipX0(0.4), ClipX0(low=-0.4, high=0.4)),
        (DynamicThreshold(0.5, 0.4, 0.4), ClipX0(0.4)),
    ],
    ids=str,
)
def test_one_guidance_is_another(guidance: Guidance, same_as: Guidance, t: float) -> None:
    model = mixture()
    x, cond = state(model)
    assert error(guidance.wrap(model)(x, t, cond).x0, same_as.wrap(model)(x, t, cond).x0) < 1e-12


# --- schedules of the scale --------------------------------------------------------------------------------------


def test_schedules_at_their_ends_and_between() -> None:
    process = VP()
    clean, half, noisy = (process.scales(t) for t in (0.0, 0.5, 1.0))
    for name in ("linear", "cosine"):
        weights = [float(SCHEDULES.create(name).weight(k)) for k in (clean, half, noisy)]
        assert weights == pytest.approx([1.0, 0.5, 0.0], abs=1e-15)
        swapped = SCHEDULES.create(name, first=0.8, last=0.2)
        assert float(swapped.weight(noisy)) == pytest.approx(0.8)
        assert float(swapped.weight(clean)) == pytest.approx(0.2)
    assert float(SCHEDULES.create("cosine").weight(process.scales(0.25))) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert float(SCHEDULES.create("linear").weight(process.scales(0.25))) == pytest.approx(0.75)
    ramp = SCHEDULES.create("log-snr", low=-4.0, high=2.0)
    for log_snr, weight in [(-9.0, 0.0), (-4.0, 0.0), (-1.0, 0.5), (2.0, 1.0), (5.0, 1.0)]:
        k = process.scales(process.time_of(torch.tensor(log_snr)))
        assert float(ramp.weight(k)) == pytest.approx(weight, abs=1e-9)
    assert float(ramp.weight(GVP().scales(1.0))) == 0.0


def test_power_cosine_of_diffit() -> None:
    """1 + (s - 1) (1 - cos(pi (1 - n / 1000)^4)) / 2 at the chain's level n."""
    process = VPDiscrete()
    model = mixture(process)
    x, cond = state(model)
    guided = CFG(4.4, schedule="power-cosine").wrap(model)
    for n in (0, 17, 250, 600, 999):
        t = (n + 1) / 1000
        scale = 1 + 3.4 * (1 - math.cos(math.pi * (1 - n / 1000) ** 4)) / 2
        assert float(process.noise_label(process.scales(t))) == pytest.approx(n)
        assert error(guided(x, t, cond).x0, CFG(scale).wrap(model)(x, t, cond).x0) < 1e-10


@pytest.mark.parametrize("schedule", ["linear", "cosine", "log-snr", PowerCosine(2.0)])
def test_scheduled_scale_with_a_time_per_sample(schedule) -> None:
    model = mixture()
    x, cond = state(model)
    times = torch.tensor([0.1, 0.4, 0.5, 0.9], dtype=torch.float64)
    guided = CFG(3.0, schedule=schedule).wrap(model)
    together = guided(x, times, cond).x0
    for i, t in enumerate(times):
        assert error(together[i : i + 1], guided(x, float(t), cond).x0[i : i + 1]) < 1e-12


# --- gradients ---------------------------------------------------------------------------------------------------


def bayes(model: MixtureDenoiser) -> Callable[[Tensor, Tensor], Tensor]:
    return ExactClassifier(model)


@pytest.mark.parametrize("t", [0.02, 0.3, 0.7, 1.0])
@torch.no_grad()
def test_unconditional_score_and_exact_classifier_are_the_conditional_score(t: float) -> None:
    model = mixture()
    x, cond = state(model)
    guided = Classifier(1.0, bayes(model), unconditional=True).wrap(model)(x, t, cond)
    assert error(guided.score, model(x, t, cond).score) < 1e-9
    assert not torch.allclose(guided.x0, model(x, t, cond.null()).x0, atol=1e-3)


def test_classifier_on_the_conditional_model_is_cfg_of_one_scale_more() -> None:
    model = mixture()
    x, cond = state(model)
    guided = Classifier(1.5, bayes(model)).wrap(model)(x, 0.4, cond)
    assert error(guided.x0, CFG(2.5).wrap(model)(x, 0.4, cond).x0) < 1e-9


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_classifier_with_parameters_in_every_grad_mode(mode) -> None:
    """A sampler runs without gradients; the classifier's parameters get none of this one's."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 3)).double()
    model = mixture()
    for guidance in (
        Classifier(2.0, lambda x, label: network(x) * label[:, None] / 1000),
        Discriminator(2.0, lambda x, k, labels: network(x * k.alpha).gather(1, labels[:, None])[:, 0]),
    ):
        with mode():
            x, cond = state(model)
            inside = guidance.wrap(model)(x, 0.4, cond).x0
        x, cond = state(model)
        assert error(inside.clone(), guidance.wrap(model)(x, 0.4, cond).x0) < 1e-12
    assert all(p.grad is None for p in network.parameters())


def test_guided_score_can_be_differentiated() -> None:
    """A likelihood needs the divergence of the guided field, classifier and all."""
    model = mixture()
    x, cond = state(model)
    direction = torch.randn_like(x)

    def along(x: Tensor) -> Tensor:
        return (Classifier(1.5, bayes(model)).wrap(model)(x, 0.4, cond).x0 * direction).sum()

    (slope,) = torch.autograd.grad(along(x.requires_grad_()), x)
    step = 1e-5 * direction
    with torch.no_grad():
        numeric = (along(x + step) - along(x - step)) / 2e-5
    assert float((slope * direction).sum()) == pytest.approx(float(numeric), rel=1e-6)


def test_classifier_leaves_null_rows_and_takes_a_label_where_there_is_none() -> None:
    model = mixture()
    x, cond = state(model, [0, NULL, 2, NULL])
    plain, guided = model(x, 0.4, cond), Classifier(2.0, bayes(model)).wrap(model)(x, 0.4, cond)
    assert torch.equal(guided.x0[[1, 3]], plain.x0[[1, 3]])
    assert (guided.x0[[0, 2]] - plain.x0[[0, 2]]).abs().amax((1, 2, 3)).min() > 1e-6
    toward = Classifier(1.0, bayes(model), label=1).wrap(model)(x, 0.4, cond)
    assert error(toward.x0[[1, 3]], one_class(model, 1, x, 0.4).x0[[1, 3]]) < 1e-9


def test_mean_form_is_the_score_form_to_first_order_in_the_step() -> None:
    model = mixture()
    x, _ = state(model)
    gaps = []
    for width in (0.02, 0.01):
        grid = torch.tensor([0.5, 0.5 - width], dtype=torch.float64)
        ends = []
        for form in ("score", "mean"):
            guided = Classifier(3.0, bayes(model), form).wrap(model)
            ends.append(DDPM().sample(guided, x, grid=grid, initial_state=x, labels=[0, 1, 2, 0], end="state"))
        gaps.append(float((ends[0] - ends[1]).abs().max()))
    assert gaps[0] / gaps[1] > 3, "the difference is of second order"


def test_mean_form_is_refused_by_samplers_without_a_mean() -> None:
    model = mixture()
    guided = apply_guidance(model, [Classifier(1.0, bayes(model), "mean"), CFG(1.5), ClipX0()])
    for sampler in (DDIM(), Heun()):
        with pytest.raises(ValueError, match=r"mean_gradient.*ddpm"):
            sampler.iterate(guided, torch.randn(1, 2, 2, 2), 5, labels=[0])


def test_discriminator_corrects_a_wrong_gaussian() -> None:
    """With the exact log-ratio of two Gaussians the model's score becomes that of the data."""
    for process in (VP(), EDM(), LinearFlow()):
        model = GaussianDenoiser(process, 0.3, 0.5, (1, 2, 2))
        data = GaussianDenoiser(process, -0.2, 0.8, (1, 2, 2))
        x = torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        cond = model.condition([0] * 5, 5)

        def logit(x: Tensor, t: Scales, labels: Tensor, data=data, model=model) -> Tensor:
            assert labels.tolist() == [0] * 5
            return data.log_prob(x, t) - model.log_prob(x, t)

        for t in (0.1, 0.6):
            guided = Discriminator(1.0, logit).wrap(model)(x, t, cond)
            assert error(guided.x0, data(x, t, cond).x0) < 1e-10
            half = Discriminator(0.5, logit).wrap(model)(x, t, cond)
            assert error(half.score, (model(x, t, cond).score + data(x, t, cond).score) / 2) < 1e-10


@pytest.mark.parametrize(
    "guidance", [Classifier(1.0, unconditional=True), Discriminator(2.0), APG(), Negative(3.0)]
)
def test_interval_with_a_time_per_sample(guidance: Guidance) -> None:
    model = mixture()
    if isinstance(guidance, Classifier):
        guidance = replace(guidance, classifier=lambda x, label: x.flatten(1)[:, :3] ** 2)
    if isinstance(guidance, Discriminator):
        guidance = replace(guidance, discriminator=lambda x, k, labels: (x**3).flatten(1).sum(1))
    guidance = replace(guidance, low=-1.0, high=1.5)
    x, cond = state(model)
    times = torch.tensor([0.1, 0.3, 0.25, 0.9], dtype=torch.float64)
    inside = [-1.0 <= float(model.process.log_snr(t)) <= 1.5 for t in times]
    assert len(set(inside)) == 2
    together, plain = guidance.wrap(model)(x, times, cond).x0, model(x, times, cond).x0
    for i, t in enumerate(times):
        assert error(together[i : i + 1], guidance.wrap(model)(x, float(t), cond).x0[i : i + 1]) < 1e-12
        assert torch.allclose(together[i], plain[i], atol=1e-9) != inside[i]


@pytest.mark.parametrize("process", [LinearFlow(), GVP()], ids=str)
def test_gradients_where_no_signal_is_left(process) -> None:
    model = mixture(process)
    x, cond = state(model)
    guidance = Discriminator(1.0, lambda x, k, labels: x.flatten(1).sum(1))
    assert guidance.wrap(model)(x, 1.0, cond).x0.isfinite().all()
    image = Euler().sample(guidance.wrap(model), x, 5, labels=[0, 1, 2, 0])
    assert image.isfinite().all()


# --- a second model ----------------------------------------------------------------------------------------------


def test_autoguidance_extrapolates_from_the_weak_model_with_the_same_labels() -> None:
    model, weak = mixture(), mixture(spread=0.4)
    x, cond = state(model, [0, 1, 2, NULL])
    guided = Autoguidance(2.5, weak).wrap(model)(x, 0.4, cond).x0
    strong, weak_prediction = model(x, 0.4, cond).x0, weak(x, 0.4, weak.condition([0, 1, 2, NULL], 4)).x0
    assert error(guided, weak_prediction + 2.5 * (strong - weak_prediction)) < 1e-13
    # Inside CFG each half keeps its own labels.
    nested = apply_guidance(model, [Autoguidance(2.5, weak), CFG(2.0)])(x, 0.4, cond).x0
    free = Autoguidance(2.5, weak).wrap(model)(x, 0.4, cond.null()).x0
    assert error(nested, free + 2.0 * (guided - free)) < 1e-12


def test_noise_damped_starts_from_the_base() -> None:
    model, base = mixture(), mixture(spread=0.4)
    x, cond = state(model)
    given, free, start = model(x, 0.4, cond), model(x, 0.4, cond.null()), base(x, 0.4, base.condition(None, 4))
    guided = NoiseDamped(2.0, base).wrap(model)
    assert error(guided(x, 0.4, cond).x0, start.x0 + 2.0 * (given.x0 - free.x0)) < 1e-13
    late = NoiseDamped(2.0, base, max_log_snr=-1.0).wrap(model)
    assert float(model.process.log_snr(0.2)) > -1
    assert error(late(x, 0.2, cond).x0, CFG(2.0).wrap(model)(x, 0.2, cond).x0) < 1e-13
    times = torch.tensor([0.9, 0.2, 0.9, 0.2], dtype=torch.float64)
    together = late(x, times, cond).x0
    for i, t in enumerate(times):
        assert error(together[i : i + 1], late(x, float(t), cond).x0[i : i + 1]) < 1e-12


# --- cfg++, apg, cfg-zero* ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_cfgpp_renoises_with_the_unconditional_eps(eta: float) -> None:
    model = mixture()
    x, cond = state(model)
    grid = torch.tensor([0.8, 0.5], dtype=torch.float64)
    t, s = model.process.scales(grid).unbind()
    ours = DDIM(eta).sample(
        CFGpp(0.6).wrap(model),
        x,
        grid=grid,
        initial_state=x,
        labels=[0, 1, 2, 0],
        end="state",
        noise_source=cond.run.noise_source,
    )
    given, free = model(x, t, cond), model(x, t, cond.null())
    x0 = free.x0 + 0.6 * (given.x0 - free.x0)
    std = eta * s.sigma / t.sigma * (t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2).sqrt()
    assert cond.run.noise_source is not None
    noise = cond.run.noise_source.normal("step", 0, x)
    assert error(ours, s.alpha * x0 + (s.sigma**2 - std**2).sqrt() * free.eps + std * noise) < 1e-12


def test_cfgpp_step_is_a_cfg_step_of_a_scale_that_depends_on_the_step() -> None:
    """scale alpha_s / (alpha_s - alpha_t sigma_s / sigma_t), from equating the two steps."""
    model = mixture()
    x, _ = state(model)
    grid = torch.tensor([0.6, 0.45], dtype=torch.float64)
    t, s = model.process.scales(grid).unbind()
    scale = 0.4 * float(s.alpha / (s.alpha - t.alpha * s.sigma / t.sigma))
    ends = [
        DDIM().sample(g.wrap(model), x, grid=grid, initial_state=x, labels=[0, 1, 2, 0], end="state")
        for g in (CFGpp(0.4), CFG(scale))
    ]
    assert error(*ends) < 1e-12


def test_cfgpp_is_refused_where_it_would_go_unheard() -> None:
    model = mixture()
    for nest in ([CFGpp()], [CFGpp(), CFG(1.5)], [CADS(), CFGpp(), ClipX0()]):
        guided = apply_guidance(model, nest)
        assert DDIM().sample(guided, torch.randn(1, 2, 2, 2), 5, labels=[0]).isfinite().all()
        for denoiser in (guided, guided.given([0])):
            with pytest.raises(ValueError, match=r"renoise_eps.*ddim"):
                Heun().iterate(denoiser, torch.randn(1, 2, 2, 2), 5)


def test_cfgpp_with_a_time_per_sample() -> None:
    model = mixture()
    x, cond = state(model)
    guided = CFGpp(0.6, low=-1.0, high=1.5).wrap(model)
    times = torch.tensor([0.1, 0.3, 0.25, 0.9], dtype=torch.float64)
    together = guided(x, times, cond)
    for i, t in enumerate(times):
        alone = guided(x, float(t), cond)
        assert error(together.x0[i : i + 1], alone.x0[i : i + 1]) < 1e-12
        assert error(together.eps[i : i + 1], alone.eps[i : i + 1]) < 1e-10


def test_old_option_names_still_read() -> None:
    assert GUIDANCES.create({"name": "noise-damped", "until": -1.0}) == NoiseDamped(max_log_snr=-1.0)
    assert SCHEDULES.create({"name": "power-cosine", "levels": 50}) == PowerCosine(num_steps=50)


def test_apg_update_by_its_parts() -> None:
    model = mixture()
    x, cond = state(model)
    given, free = model(x, 0.6, cond).x0, model(x, 0.6, cond.null()).x0
    dot = lambda a, b: (a * b).flatten(1).sum(1)  # noqa: E731
    bare = APG(3.0).wrap(model)(x, 0.6, cond).x0 - given
    assert dot(bare, given).abs().max() < 1e-12, "nothing along the conditional prediction is left"
    kept = APG(3.0, eta=0.25).wrap(model)(x, 0.6, cond).x0 - given
    assert error(dot(kept, given), 0.25 * 2.0 * dot(given - free, given)) < 1e-12
    short = APG(3.0, eta=1.0, radius=0.1).wrap(model)(x, 0.6, cond).x0 - given
    assert error(short.flatten(1).norm(dim=1), torch.full((4,), 0.2, dtype=torch.float64)) < 1e-12


def test_apg_momentum_lives_in_the_run() -> None:
    """The same object, run twice and interleaved, gives the same; the second evaluation remembers the first."""
    model = mixture()
    x, cond = state(model)
    guided = APG(3.0, eta=1.0, momentum=-0.5).wrap(model)
    difference = lambda t: model(x, t, cond).x0 - model(x, t, cond.null()).x0  # noqa: E731
    guided(x, 0.8, cond)
    second = guided(x, 0.6, cond.at_step(1)).x0
    assert error(second, model(x, 0.6, cond).x0 + 2.0 * (difference(0.6) - 0.5 * difference(0.8))) < 1e-12
    noise = torch.randn(2, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    expected = DDIM().sample(guided, noise, 6, labels=[0, 1])
    pair = zip(*(DDIM().iterate(guided, noise, 6, labels=labels) for labels in ([0, 1], [2, 2])), strict=True)
    assert torch.equal([one.x_s for one, _ in pair][-1], expected)
    assert not torch.equal(DDIM().sample(APG(3.0, eta=1.0).wrap(model), noise, 6, labels=[0, 1]), expected)


def test_threads_share_a_guided_denoiser() -> None:
    """Momentum and CADS's table belong to a run: eight runs at once give what each gives alone."""
    guided = apply_guidance(mixture(), [CADS(0.1, 0.9, on="label"), APG(3.0, momentum=-0.5)])
    noise = torch.randn(2, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    run = lambda seed: DDIM().sample(guided, noise, 6, labels=[0, seed % 3], seed=seed)  # noqa: E731
    alone = [run(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, range(8)))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
    assert not torch.equal(alone[0], alone[3])


def test_cfg_zero_fits_the_unconditional_velocity() -> None:
    for process in (LinearFlow(), VP(), EDM()):
        model = mixture(process)
        x, cond = state(model)
        given, free = model(x, 0.6, cond).velocity, model(x, 0.6, cond.null()).velocity
        s = (given * free).flatten(1).sum(1) / (free**2).flatten(1).sum(1)
        s = s.reshape(-1, 1, 1, 1)
        assert ((given - s * free) * free).flatten(1).sum(1).abs().max() < 1e-9 * float((free**2).sum())
        guided = CFGZeroStar(2.5).wrap(model)(x, 0.6, cond).velocity
        assert error(guided, 2.5 * given - 1.5 * s * free) < 1e-11


def test_cfg_zero_stands_still_at_first_and_never_at_last() -> None:
    model = mixture(LinearFlow())
    x, _ = state(model)
    guided = CFGZeroStar(2.0, zero_steps=2).wrap(model)
    for sampler in (Euler(), Heun(), DDIM()):
        steps = list(sampler.iterate(guided, x, 6, labels=[0, 1, 2, 0]))
        assert error(steps[1].x_s, x) < 1e-12
        assert not torch.allclose(steps[2].x_s, x, atol=1e-3)
    only = DDIM().sample(guided, x, 1, labels=[0, 1, 2, 0])
    assert error(only, CFGZeroStar(2.0).wrap(model)(x, 1.0, model.condition([0, 1, 2, 0], 4)).x0) < 1e-12


# --- classes -----------------------------------------------------------------------------------------------------


def test_negative_class_stands_in_for_the_null_class() -> None:
    model = Counting(mixture())
    x, cond = state(model, [0, 1, 2, NULL])
    guided = Negative(2.5, 1).wrap(model)(x, 0.5, cond).x0
    assert model.sizes == [8]
    given, bad = model(x, 0.5, cond).x0, one_class(model.inner, 1, x, 0.5).x0  # type: ignore[arg-type]
    expected = bad + 2.5 * (given - bad)
    assert error(guided[:3], expected[:3]) < 1e-13
    assert error(guided[3], given[3]) < 1e-13  # from a batch of 8, and one of 4
    assert error(guided[1:2], given[1:2]) < 1e-13, "a class is not driven away from itself"


def test_negative_and_mixture_need_no_null_class() -> None:
    model = mixture()
    model.null_class = False
    x, cond = state(model)
    for guidance in (
        Negative(2.0, 1),
        Compose((1,), how="mixture"),
        Discriminator(1.0, lambda x, k, y: x.sum((1, 2, 3))),
    ):
        assert guidance.wrap(model)(x, 0.5, cond).x0.isfinite().all()


def test_product_has_the_score_of_the_product_density() -> None:
    """grad log of p(x) prod_i (p(x | class_i) / p(x))^w_i, by its definition."""
    model = mixture()
    x, cond = state(model, [0, 1, 2, 1])
    x = x.requires_grad_()
    terms = [(1.5, cond), (0.7, model.condition([2] * 4, 4)), (-0.3, model.condition([0] * 4, 4))]
    free = model.log_prob(x, 0.4)
    density = free + sum(w * (model.log_prob(x, 0.4, c) - free) for w, c in terms)
    (expected,) = torch.autograd.grad(density.sum(), x)
    counting = Counting(model)
    guided = Compose((2, 0), (0.7, -0.3), 1.5).wrap(counting)(x, 0.4, cond)
    assert counting.sizes == [16]
    assert error(guided.score, expected) < 1e-9


def test_mixture_averages_the_scores() -> None:
    model = mixture()
    x, cond = state(model, [0, 1, 2, NULL])
    guided = Compose((2, 0), (2.0, 1.0), 1.0, "mixture").wrap(model)(x, 0.4, cond).score
    own, two, zero = model(x, 0.4, cond).score, *(one_class(model, y, x, 0.4).score for y in (2, 0))
    assert error(guided[:3], ((own + 2 * two + zero) / 4)[:3]) < 1e-12
    assert error(guided[3:], own[3:]) < 1e-12


# --- ranges ------------------------------------------------------------------------------------------------------


def test_percentile_is_that_of_torch() -> None:
    x = torch.randn(3, 2, 5, 7, dtype=torch.float64)
    for p in (0.001, 0.25, 0.5, 0.995, 1.0):
        assert error(percentile_of(x, p).flatten(), torch.quantile(x.flatten(1), p, dim=1)) < 1e-12


def test_dynamic_threshold_by_its_formula() -> None:
    model = mixture()
    x, cond = state(model)
    x0 = 3 * model(x, 0.4, cond).x0
    tripled = apply_guidance(Tripled(model), DynamicThreshold(0.8, 0.5))(x, 0.4, cond).x0
    for row, ours in zip(x0, tripled, strict=True):
        s = max(0.5, float(torch.quantile(row.abs().flatten(), 0.8)))
        assert error(ours, row.clamp(-s, s) / s * 0.5) < 1e-12
        assert float(ours.abs().max()) <= 0.5 + 1e-12


class Tripled(Counting):
    def __call__(self, x_t: Tensor, t: Scales | Tensor | float, cond: Condition) -> Denoised:
        d = super().__call__(x_t, t, cond)
        return replace(d, x0=3 * d.x0)


def test_clip_to_pixels_from_zero_to_one() -> None:
    model = mixture()
    x, cond = state(model)
    plain, clipped = model(x, 0.5, cond).x0, ClipX0(low=0.0, high=1.0).wrap(model)(x, 0.5, cond).x0
    assert torch.equal(clipped, plain.clamp(0.0, 1.0))
    assert float(clipped.min()) == 0.0 > float(plain.min())


# --- nesting, refusals -------------------------------------------------------------------------------------------


def stocked(name: str, model: Denoiser) -> Guidance:
    """The guidance by name, with a second model where it needs one."""
    extra = {
        "classifier": {"classifier": lambda x, label: x.flatten(1)[:, :3]},
        "discriminator": {"discriminator": lambda x, k, labels: x.flatten(1).sum(1) * (1 + labels)},
        "autoguidance": {"weak": mixture(model.process, spread=0.4)},
        "noise-damped": {"base": mixture(model.process, spread=0.4)},
        "apg": {"momentum": -0.5},
        "cfg-zero*": {"zero_steps": 1},
    }
    return GUIDANCES.create({"name": name, **extra.get(name, {})})


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("process", [VPDiscrete(), LinearFlow(), EDM()], ids=lambda p: type(p).__name__)
def test_all_nest_in_both_orders(process, backwards: bool) -> None:
    model = mixture(process)
    names = GUIDANCES.names()[:: -1 if backwards else 1]
    guided = apply_guidance(model, [stocked(name, model) for name in names])
    noise = torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(2))
    together = DDIM(0.5).sample(guided, noise, 4, labels=[0, 2, NULL])
    assert together.isfinite().all()
    for i, label in enumerate([0, 2, NULL]):  # no sample touches another
        draws = NoiseSource.from_seed(0, 1, start=i)
        alone = DDIM(0.5).sample(guided, noise[i : i + 1], 4, labels=[label], noise_source=draws)
        assert torch.allclose(alone, together[i : i + 1], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["cfg", "apg", "cfg++", "cfg-zero*", "noise-damped"])
def test_models_without_a_null_class_or_classes_are_refused(name: str) -> None:
    model = mixture()
    model.null_class = False
    with pytest.raises(ValueError, match="null class"):
        GUIDANCES.create(name).wrap(model)
    model.num_classes = 0
    with pytest.raises(ValueError, match="unconditional"):
        GUIDANCES.create(name).wrap(model)


def without_null(model: MixtureDenoiser) -> MixtureDenoiser:
    model.null_class = False
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Classifier().wrap(mixture()), "needs a classifier"),
        (lambda: Discriminator().wrap(mixture()), "needs a discriminator"),
        (lambda: Autoguidance().wrap(mixture()), "needs a weaker model"),
        (lambda: Autoguidance(2.0, mixture(VP())).wrap(mixture(EDM())), "one noise process"),
        (lambda: Autoguidance(2.0, without_null(mixture())).wrap(mixture()), "same classes"),
        (lambda: NoiseDamped(2.0, mixture(VP())).wrap(mixture()), "one noise process"),
        (lambda: Autoguidance(2.0, "weak"), "must be a Denoiser"),  # type: ignore[arg-type]
        (lambda: NoiseDamped(2.0, "base"), "must be a Denoiser"),  # type: ignore[arg-type]
        (lambda: Classifier(1.0, "net"), "classifier must be a function or None, got 'net'"),  # type: ignore[arg-type]
        (lambda: Discriminator(1.0, "net"), "discriminator must be a function or None"),  # type: ignore[arg-type]
        (lambda: Classifier(form="both"), "'score' or 'mean'"),  # type: ignore[arg-type]
        (lambda: Classifier(label=-1), "label must be a class"),
        (lambda: Classifier(-1.0), "scale must be >= 0"),
        (lambda: CFGpp(math.nan), "scale must be a number, got nan"),
        (lambda: APG(radius=0.0), "radius"),
        (lambda: APG(momentum=1.0), "momentum"),
        (lambda: APG(eta=math.nan), "eta"),
        (lambda: CFGZeroStar(zero_steps=-1), "zero_steps"),
        (lambda: Negative(label=3).wrap(mixture()), "class 3 is not one of this model's 3"),
        (lambda: Compose((7,)).wrap(mixture()), "class 7"),
        (lambda: Compose((1,), (1.0, 2.0)), "one weight for each"),
        (lambda: Compose((1,), (-1.0,), how="mixture"), "not all 0"),
        (lambda: Compose((1,), how="sum"), "'product' or 'mixture'"),  # type: ignore[arg-type]
        (lambda: Compose((1,)).wrap(without_null(mixture())), "how = 'mixture'"),
        (lambda: DynamicThreshold(0.0), "percentile"),
        (lambda: DynamicThreshold(limit=2.0, largest=1.0), "limit <= largest"),
        (lambda: ClipX0(low=1.0, high=0.0), "low < high"),
        (lambda: CFG(2.0, schedule="lineal"), "did you mean 'linear'"),
        (lambda: CFG(2.0, schedule={"name": "linear", "first": 2.0}), r"\[0, 1\]"),
        (lambda: CFG(2.0, schedule=3), "schedule must be a ScaleSchedule, a text or a mapping, got 3"),  # type: ignore[arg-type]
        (lambda: CFG(2.0, schedule={"name": "log-snr", "low": 3.0, "high": 1.0}), "low < high"),
        (lambda: CFG(2.0, schedule={"name": "power-cosine", "power": 0.0}), "power > 0"),
    ],
)
def test_refusals(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_labels_are_asked_for_where_a_condition_carries_none() -> None:
    model = mixture()
    x, cond = state(model)
    guided = Classifier(1.0, bayes(model)).wrap(model)
    with pytest.raises(ValueError, match="has none"):
        guided(x, 0.5, replace(cond, labels=None))


@pytest.mark.parametrize(
    "text",
    [
        "cfg:scale=2,schedule=cosine",
        "cfg:scale=2,schedule={name: power-cosine, power: 2}",
        "apg:scale=4,eta=0.1,radius=2.5,momentum=-0.5",
        "cfg-zero*:scale=2,zero_steps=1",
        "cfg++:scale=0.5",
        "negative:label=2,scale=2",
        "compose:classes=[1,2],weights=[1.0,-0.5]",
        "dynamic-threshold:percentile=0.9,largest=1.2",
        "clip-x0:low=0,high=1",
    ],
)
def test_spec_of_the_command_line_and_back(text: str) -> None:
    from dinit.pipelines.call import make_guidance, to_spec
    from dinit.specs import parse_spec

    (made,) = make_guidance(parse_spec(text))
    assert make_guidance([to_spec(made)]) == (made,)
    hash(replace(made, schedule="cosine") if isinstance(made, CFG) else made)
    assert made.wrap(mixture()) is not None
