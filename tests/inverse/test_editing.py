"""Editing methods on exact denoisers, where the edit of one Gaussian into another is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dinit.diffusion import PROCESSES, Condition, Denoised, Denoiser
from dinit.inverse import EDITING_METHODS, EditingStep
from dinit.inverse.editing.inversions import pivots
from dinit.models import MixtureDenoiser
from dinit.samplers import LogSNR, NoiseSource
from dinit.samplers.guidance import CFG
from dinit.samplers.points import sampling_points

GENERATOR = torch.Generator().manual_seed(0)
MEANS = torch.randn(2, 1, 2, 2, generator=GENERATOR, dtype=torch.float64)
VARIANCE = torch.tensor([0.3, 0.1, 0.2, 0.25], dtype=torch.float64).reshape(1, 1, 2, 2)
IMAGES = MEANS[0] + VARIANCE.sqrt() * torch.randn(4, 1, 2, 2, generator=GENERATOR, dtype=torch.float64)
SOURCE, TARGET = [0] * 4, [1] * 4
SHORT: dict[str, dict[str, Any]] = {"null-embedding": {"iterations": 3}, "condition-embedding": {"iterations": 3}}


def two_classes(process: str = "vp") -> MixtureDenoiser:
    """Two Gaussians of the same covariance, a class each."""
    return MixtureDenoiser(
        PROCESSES.create(process), MEANS, VARIANCE.repeat(2, 1, 1, 1), None, torch.tensor([0, 1])
    )


class Bent(Denoiser):
    """A network, so to say: a smooth function of the image, the time and a class's embedding."""

    num_classes, null_class, t_min = 2, True, 0.0

    def __init__(self, process: str = "vp") -> None:
        self.process = PROCESSES.create(process)
        self.table = torch.randn(3, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def embed(self, labels: Tensor) -> Tensor:
        return self.table[labels]

    def __call__(self, x_t: Tensor, t: Any, cond: Condition) -> Denoised:
        k = self.scales(t)
        push = cond.embedding.to(x_t).reshape(-1, 1, 2, 2)
        return Denoised(x_t, 0.6 * torch.tanh(0.8 * k.alpha * x_t + push) + 0.2 * push * torch.cos(x_t), k)


def edited(name: str, denoiser: Denoiser, steps: int, **options: Any) -> Any:
    made = EDITING_METHODS.create({"name": name, **SHORT.get(name, {})})
    return made.edit(denoiser, IMAGES, SOURCE, TARGET, steps, **options)


# The largest deviation from the image that optimal transport moves to: what was measured at 60 steps on the worst
# of the three processes, times 1.3. The others are no maps of the ODE: one adds noise, two fit and guide.
TRANSPORT = {"ddim": 0.2, "edict": 0.06, "bdia": 0.15, "direct": 0.08, "spdinv": 0.08, "infedit": 1e-12}


@pytest.mark.parametrize("process", ["vp", "edm", "flow"])
@pytest.mark.parametrize("name", TRANSPORT)
def test_between_gaussians_of_one_covariance_an_edit_is_the_optimal_transport(name: str, process: str) -> None:
    found = edited(name, two_classes(process), 60)
    deviation = float((found.x - (IMAGES + MEANS[1] - MEANS[0])).abs().max())
    assert deviation < TRANSPORT[name]


@pytest.mark.parametrize("name", ["ddim", "edict", "direct"])
def test_the_deviation_falls_with_the_steps(name: str) -> None:
    few, many = (
        float((edited(name, two_classes("flow"), steps).x - (IMAGES + MEANS[1] - MEANS[0])).abs().max())
        for steps in (30, 120)
    )
    assert many < few / 2.5


@pytest.mark.parametrize("process", ["vp", "flow"])
@pytest.mark.parametrize(("name", "bound"), [("edict", 1e-11), ("bdia", 1e-9), ("direct", 0.0), ("infedit", 0.0)])
def test_exact_methods_make_the_image_again(name: str, bound: float, process: str) -> None:
    found = edited(name, Bent(process), 20)
    assert float((found.reconstruction - IMAGES).abs().max()) <= bound
    assert float((found.x - IMAGES).abs().max()) > 0.05, "and they edit it"


@pytest.mark.parametrize("process", ["vp", "edm", "flow"])
@pytest.mark.parametrize("name", ["null-embedding", "condition-embedding"])
def test_fitted_methods_with_nothing_fitted_are_the_transport_of_ddim(name: str, process: str) -> None:
    """Where the class alone guides, as CFG does at a scale of 1."""
    idle = {"null-embedding": {"scale": 1 + 1e-9, "lr": 1e-12}, "condition-embedding": {"keep": 0.0}}[name]
    found = EDITING_METHODS.create(name, iterations=1, **idle).edit(
        two_classes(process), IMAGES, SOURCE, TARGET, 60
    )
    assert float((found.x - (IMAGES + MEANS[1] - MEANS[0])).abs().max()) < TRANSPORT["ddim"]


@pytest.mark.parametrize("name", ["null-embedding", "condition-embedding", "spdinv"])
def test_fitting_lowers_the_error_of_the_reconstruction(name: str) -> None:
    """Against the same method with next to nothing fitted."""
    made = EDITING_METHODS.create(name)
    idle = replace(made, lr=1e-9, iterations=1)
    fitted, plain = (
        float((one.edit(Bent(), IMAGES, SOURCE, TARGET, 15).reconstruction - IMAGES).abs().mean())
        for one in (made, idle)
    )
    assert fitted < 0.6 * plain


def test_the_direct_method_without_a_share_edits_as_ddim() -> None:
    with_none = EDITING_METHODS.create("direct", to_target=0.0).edit(Bent(), IMAGES, SOURCE, TARGET, 12)
    assert torch.allclose(with_none.x, edited("ddim", Bent(), 12).x, rtol=0, atol=1e-12)


def test_a_change_of_embedding_that_is_not_kept_edits_as_ddim() -> None:
    forgotten = EDITING_METHODS.create("condition-embedding", keep=0.0, iterations=2)
    found = forgotten.edit(Bent(), IMAGES, SOURCE, TARGET, 12)
    assert torch.allclose(found.x, edited("ddim", Bent(), 12).x, rtol=0, atol=1e-12)


def test_the_null_embedding_is_fitted_and_then_guides_the_target() -> None:
    """With one iteration of no size it is CFG's DDIM on both branches."""
    made = EDITING_METHODS.create("null-embedding", iterations=1, lr=1e-12)
    found = made.edit(Bent(), IMAGES, SOURCE, TARGET, 12)
    guided = edited("ddim", Bent(), 12, guidance=CFG(2.0))
    assert torch.allclose(found.x, guided.x, rtol=0, atol=1e-9)
    assert torch.allclose(found.reconstruction, guided.reconstruction, rtol=0, atol=1e-9)


def test_sdedit_adds_noise_of_its_strength() -> None:
    """From pure noise nothing of the image is left; from little of it, most."""
    process = "edm"
    full = EDITING_METHODS.create("sdedit", strength=1.0)
    one = full.edit(two_classes(process), IMAGES, SOURCE, TARGET, 20, seed=3)
    other = full.edit(two_classes(process), IMAGES + 1, SOURCE, TARGET, 20, seed=3)
    assert float((one.x - other.x).abs().max()) < 0.05
    little = EDITING_METHODS.create("sdedit", strength=0.05).edit(two_classes(process), IMAGES, SOURCE, TARGET, 20)
    assert float((little.x - IMAGES).abs().max()) < 0.05


@pytest.mark.parametrize("process", ["vp", "edm", "flow"])
@pytest.mark.parametrize("strength", [0.4, 0.6, 0.8, 1.0])
def test_sdedit_has_the_law_of_its_strength(strength: float, process: str) -> None:
    """Of a Gaussian target N(m, v) the ODE is affine: m + sqrt(v / (a^2 v + s^2)) (a (x - m) + s n)."""
    steps, model = 150, two_classes(process)
    grid = LogSNR()
    points = sampling_points(model, steps, grid, "state")
    t = points[len(points) - 1 - round(strength * (len(points) - 1))].floats
    end = points[-1].floats
    noise = NoiseSource.from_seed(3, 4).normal("edit", 0, IMAGES)
    made = EDITING_METHODS.create("sdedit", strength=strength)
    found = made.edit(model, IMAGES, SOURCE, TARGET, steps, grid=grid, seed=3)
    for mean, x in ((MEANS[1], found.x), (MEANS[0], found.reconstruction)):
        shrink = ((end.alpha**2 * VARIANCE + end.sigma**2) / (t.alpha**2 * VARIANCE + t.sigma**2)).sqrt()
        law = end.alpha * mean + shrink * (t.alpha * (IMAGES - mean) + t.sigma * noise)
        assert float((x - law).abs().max()) < 0.04  # of first order: 0.08 at half of the steps
    assert float((found.x - IMAGES).abs().max()) > 0.1


@pytest.mark.parametrize("name", EDITING_METHODS)
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    together = edited(name, Bent(), 6, seed=[3, 4, 5, 6])
    made = EDITING_METHODS.create({"name": name, **SHORT.get(name, {})})
    alone = made.edit(Bent(), IMAGES[2:3], [0], [1], 6, seed=[5])
    assert torch.allclose(together.x[2:3], alone.x, rtol=0, atol=1e-10)
    assert torch.allclose(together.reconstruction[2:3], alone.reconstruction, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", EDITING_METHODS)
def test_every_step_of_every_branch_is_reported(name: str) -> None:
    """In order, with the prediction of its branch's images, and without a change of the result."""
    steps: list[EditingStep] = []
    found = edited(name, Bent(), 6, on_step=steps.append)
    assert torch.equal(found.x, edited(name, Bent(), 6).x)
    branches = EDITING_METHODS[name].branches
    total = 3 if name == "sdedit" else 5
    assert [(step.branch, step.index) for step in steps] == [(one, i) for one in branches for i in range(total)]
    assert {step.total for step in steps} == {total}
    assert all(step.x0.shape == IMAGES.shape and not step.x0.requires_grad for step in steps)
    found = edited(name, two_classes("flow"), 60, on_step=steps.append)
    last = {step.branch: step.x0 for step in steps}
    for branch, x in (("edit", found.x), ("reconstruction", found.reconstruction)):
        assert branch not in last or float((last[branch] - x).abs().max()) < 0.15, "the last prediction"


@pytest.mark.parametrize("name", EDITING_METHODS)
def test_evaluations_are_counted(name: str) -> None:
    class Counting(Bent):
        calls = 0

        def __call__(self, x_t: Tensor, t: Any, cond: Condition) -> Denoised:
            self.calls += len(x_t) // len(IMAGES)
            return super().__call__(x_t, t, cond)

    denoiser = Counting()
    found = edited(name, denoiser, 6)
    again = {"ddim": 5, "sdedit": 3, "spdinv": 5, "edict": 10, "bdia": 5}.get(name, 0)  # of the reconstruction
    together = 5 if name == "null-embedding" else 0  # two conditions in one evaluation
    assert found.nfe == denoiser.calls - again - together


def test_the_states_of_the_inversion_begin_at_noise_and_end_at_the_image() -> None:
    from dinit.inverse import EditingTask
    from dinit.samplers import NoiseSource

    model = two_classes("edm")
    labels = torch.tensor(SOURCE)
    task = EditingTask(model, model, IMAGES, labels, labels, 20, None, NoiseSource.from_seed(0, 4))
    points = task.points()
    states = pivots(task, points)
    assert len(states) == len(points) == 20
    assert torch.equal(states[-1], IMAGES)
    ratio = states[0].abs().mean() / points[0].sigma
    assert 0.1 < float(ratio) < 3


@pytest.mark.parametrize("name", EDITING_METHODS)
def test_what_cannot_be_edited_is_refused_before_the_first_evaluation(name: str) -> None:
    class Refusing(Bent):
        def __call__(self, x_t: Tensor, t: Any, cond: Condition) -> Denoised:
            raise AssertionError("evaluated")

    made = EDITING_METHODS.create(name)
    with pytest.raises(ValueError, match=r"labels must be in 0 \.\. 1"):
        made.edit(Refusing(), IMAGES, SOURCE, [7] * 4, 10)
    with pytest.raises(ValueError, match="expected 4 labels, one per sample"):
        made.edit(Refusing(), IMAGES, [0], TARGET, 10)
    with pytest.raises(ValueError, match="at least 2 steps, got 1"):
        made.edit(Refusing(), IMAGES, SOURCE, TARGET, 1)
    unconditional = Refusing()
    unconditional.num_classes = 0  # type: ignore[misc]
    with pytest.raises(ValueError, match="needs a network with classes"):
        made.edit(unconditional, IMAGES, SOURCE, TARGET, 10)


def test_null_embeddings_need_a_null_class() -> None:
    denoiser = Bent()
    denoiser.null_class = False  # type: ignore[misc]
    with pytest.raises(ValueError, match=r"trained with a null class.* use another method, such as ddim"):
        edited("null-embedding", denoiser, 5)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("edict:mixing=0", r"mixing must be in \(0, 1\]"),
        ("bdia:gamma=2", r"gamma must be in \(0, 1\]"),
        ("direct:to_target=2", r"to_target is a share, in \[0, 1\], got 2"),
        ("spdinv:iterations=0", "iterations must be at least 1"),
        ("null-embedding:scale=1", "scale must be above 1"),
        ("condition-embedding:keep=-1", r"keep must be in \[0, 1\]"),
        ("sdedit:strength=0", r"strength must be in \(0, 1\], got 0"),
    ],
)
def test_options_out_of_range(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EDITING_METHODS.create(spec)


def test_a_pipeline_edits_pictures_by_class_name() -> None:
    from PIL import Image

    from dinit import Pipeline

    pipe = Pipeline.from_pretrained("digits-dico")
    (three,) = pipe([3], steps=4, output_type="pil").images
    found = pipe.edit([three, three], source=3, target=[8, 9], method="direct", steps=4, batch_size=1)
    assert [type(image) for image in found.images] == [Image.Image] * 2
    assert found.nfe == 9
    given = torch.tensor(list(three.getdata()), dtype=torch.int16)
    again = torch.tensor(list(found.reconstructions[0].getdata()), dtype=torch.int16)
    assert int((again - given).abs().max()) <= 1, "direct inversion makes the image again"
    reported: list[EditingStep] = []
    together = pipe.edit(
        [three, three], source=3, target=[8, 9], method="direct", steps=4, callback_on_step_end=reported.append
    )
    assert [step.branch for step in reported] == ["inversion"] * 3 + ["edit"] * 3
    assert list(together.images[1].getdata()) == list(found.images[1].getdata())
    with pytest.raises(ValueError, match="source needs one class for all images, or one for each of 1"):
        pipe.edit(three, source=[3, 4], target=8)
    with pytest.raises(ValueError, match="unknown editing method 'direkt'; did you mean 'direct'"):
        pipe.edit(three, source=3, target=8, method="direkt")
    with pytest.raises(ValueError, match="unknown output type 'pill'"):
        pipe.edit(three, source=3, target=8, output_type="pill")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="12"):
        pipe.edit(three, source=3, target=12)
