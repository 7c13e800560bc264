"""Calls that are given an image, a mask or a measurement: what they compute, what they record, what they refuse."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dinit import Pipeline
from dinit.data.pixels import from_uint8
from dinit.diffusion import Condition, Denoised, Scales
from dinit.inverse import MMPS, Measurement
from dinit.inverse.guidance.base import PosteriorGuidance
from dinit.inverse.operators.base import Operator
from dinit.models import MixtureDenoiser
from dinit.models.base import BACKBONES
from dinit.models.codec import IdentityCodec
from dinit.pipelines.call import Call
from dinit.pipelines.given import Given
from dinit.pipelines.method import around, make_method, method_names
from dinit.samplers import NoiseSource, Sampler
from dinit.samplers.guidance import CFG, Autoguidance
from dinit.samplers.points import sampling_times

SIZE = 8
MASK = torch.zeros(SIZE, SIZE)
MASK[2:6, 1:5] = 1


def tiny(process: str = "vp", parameterization: str = "v", **options: Any) -> Any:
    torch.manual_seed(0)
    network = BACKBONES["dit"].preset("tiny")
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    defaults = {"sampler": "ddim", "steps": 5, "guidance": "cfg:scale=2"}
    pipe = Pipeline(network, {"name": process}, {"name": parameterization}, defaults=defaults, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny()


@pytest.fixture(scope="module")
def image() -> Tensor:
    levels = torch.randint(
        0, 256, (1, 1, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    return from_uint8(levels)


def raw(pipe: Any, labels: Any = 3, **options: Any) -> Tensor:
    return pipe(labels, **{"output_type": "raw", **options}).images


def seen(shape: tuple[int, ...] = (5, 64), rows: int = 1, noise_std: float = 0.1) -> Measurement:
    generator = torch.Generator().manual_seed(2)
    a = torch.randn(shape, generator=generator)
    return Measurement({"name": "matrix", "A": a}, torch.randn(rows, shape[0], generator=generator), noise_std)


class _Square(Operator):
    """x^2, which is not linear."""

    def apply(self, x: Tensor) -> Tensor:
        return x**2

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(shape)


class _Pushed(PosteriorGuidance):
    """Takes any operator, and diverges."""

    linear_only = False

    def posterior(
        self, denoiser: Any, x_t: Tensor, t: Scales, cond: Condition, measurement: Measurement
    ) -> Denoised:
        denoised = denoiser(x_t, t, cond)
        return replace(denoised, x0=denoised.x0 * 0 + 9)


class _Consistent(PosteriorGuidance):
    """x0 moved to the nearest image that has the measurement, a cheap stand-in for the methods."""

    def posterior(self, denoiser: Any, x_t: Tensor, t: Scales, cond: Condition, measurement: Any) -> Denoised:
        denoised = denoiser(x_t, t, cond)
        operator = measurement.linear("this")
        moved = operator.pseudo_inverse(measurement.residual(denoised.x0), tuple(x_t.shape[1:]))
        return replace(denoised, x0=denoised.x0 + moved)


@pytest.mark.parametrize(("process", "parameterization"), [("vp", "v"), ("edm", "v"), ("flow", "velocity")])
def test_the_last_steps_start_from_the_image_with_the_noise_of_its_key(
    process: str, parameterization: str, image: Tensor
) -> None:
    """SDEdit by hand, on the times and the noise of the call."""
    pipe = tiny(process, parameterization)
    call = pipe.prepare([3, 1], image=image, strength=0.5, steps=7, seed=4)
    denoiser = CFG(2.0).wrap(pipe.denoiser())
    times = sampling_times(denoiser, 7, call.grid)[-3:]
    k, source = denoiser.process.scales(times[0]), NoiseSource(call.keys)
    like = image.expand(2, -1, -1, -1)
    start = k.alpha * like + k.sigma * source.normal("initial", 0, like)
    with torch.no_grad():
        expected = call.sampler.sample(
            denoiser, like, grid=times, initial_state=start, labels=torch.tensor([3, 1]), noise_source=source
        )
    done = pipe.run(call, "raw")
    assert torch.equal(done.images, expected)
    assert done.nfe == 3


# Strengths, and what a pixel x becomes: its mean m + gain (x - m) and its variance, where data are N(m, v) and the
# state is a x + s n. By the ODE the noise n is all that is random; by the SDE x0 is a draw of p(x0 | x_t) too.
STEPS = {"dpmpp-2m": 60, "ddpm": 250}


@pytest.mark.parametrize("sampler", STEPS)
@pytest.mark.parametrize(("process", "parameterization"), [("vp", "v"), ("edm", "v"), ("flow", "velocity")])
def test_an_image_of_any_strength_has_the_law_that_gaussian_data_give(
    process: str, parameterization: str, sampler: str
) -> None:
    pipe, mean, v, count = tiny(process, parameterization), 0.3, 0.04, 96
    exact = MixtureDenoiser(pipe.process, torch.full((1, 1, 8, 8), mean), torch.full((1, 1, 8, 8), v))
    pipe.denoiser = lambda labels=None: exact
    pipe.backbone.num_classes = 0
    image = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    for strength in (0.3, 0.6, 0.8, 1.0):
        options = {"sampler": sampler, "steps": STEPS[sampler], "guidance": None, "grid": "log-snr"}
        call = pipe.prepare(num_images=count, image=image, strength=strength, batch_size=count, **options)
        made = pipe.run(call, "raw").images.double()
        t = sampling_times(exact, call.steps, call.grid)[-int(call.steps * strength)]
        k = pipe.process.scales(t).floats
        whole = k.alpha**2 * v + k.sigma**2
        if sampler == "ddpm":
            gain, variance = k.alpha**2 * v / whole, (v * k.alpha * k.sigma / whole) ** 2 + v * k.sigma**2 / whole
        else:
            gain, variance = k.alpha * (v / whole) ** 0.5, v * k.sigma**2 / whole
        normed = (made - (mean + gain * (image - mean))) / variance**0.5
        bound = 5 * (count * 64) ** -0.5
        assert abs(float(normed.mean())) < bound, strength
        assert abs(float((normed * (image - mean)).mean() / (image - mean).square().mean())) < 2 * bound, strength
        assert float(normed.var()) == pytest.approx(1.0, abs=0.05 + bound), strength


@pytest.mark.parametrize("given", ["mask", "measurement"])
@pytest.mark.parametrize("name", method_names())
@pytest.mark.filterwarnings("ignore")  # of methods that diverge on a network without training
def test_pixels_that_are_known_without_noise_are_the_images_by_every_method(
    pipe: Any, image: Tensor, name: str, given: str
) -> None:
    short = {"ode_steps": 2, "langevin_steps": 2, "iterations": 2, "particles": 2, "resamples": 2}
    fields = make_method(name).__dataclass_fields__
    method = {"name": name, **{key: value for key, value in short.items() if key in fields}}
    known: dict[str, Any] = {"image": image, "mask": MASK}
    if given == "measurement":
        known = {"measurement": Measurement({"name": "mask", "hidden": MASK}, image * (1 - MASK))}
    done = raw(pipe, [3, 1], method=method, steps=3, **known)
    same = (done == image).all(1)
    assert bool(same[:, MASK == 0].all())
    assert not bool(same[:, MASK == 1].any())


def test_a_strength_of_0_returns_the_image_to_the_bit(pipe: Any, image: Tensor) -> None:
    done = pipe([3, 1], image=image, strength=0, output_type="raw")
    assert torch.equal(done.images, image.expand(2, -1, -1, -1))
    assert done.nfe == 0
    assert (
        pipe(3, image=image, strength=0).images[0].tobytes()
        == ((image + 1) * 127.5).round().byte().numpy().tobytes()
    )
    ranged = tiny(pixel_range=(0.0, 1.0))
    assert torch.equal(raw(ranged, image=image, strength=0), image)
    assert torch.equal(raw(ranged, image=image, strength=0, output_type="latent"), (image + 1) / 2)


def test_strength_counts_steps_as_diffusers_does() -> None:
    start = Given(torch.zeros(1, 1, 8, 8), 0.29)
    assert [start.steps(total) for total in (4, 10, 100)] == [1, 2, 28]
    assert Given(torch.zeros(1, 1, 8, 8), 1.0).steps(10) == 10
    with pytest.raises(ValueError, match="less than one step: take 4 steps"):
        start.steps(3)


def test_images_do_not_depend_on_the_batch(pipe: Any, image: Tensor) -> None:
    each = torch.cat([image, -image, image.flip(3)])
    for given in (
        {"image": each, "strength": 0.6},
        {"image": each, "mask": MASK, "method": _Consistent()},
        {"measurement": seen(rows=3), "method": _Consistent()},
        {"guidance": ["cfg", _Consistent(seen(rows=3))]},
    ):
        whole = raw(pipe, [3, 1, 4], steps=3, **given)
        assert torch.allclose(whole, raw(pipe, [3, 1, 4], steps=3, batch_size=2, **given), atol=1e-4)
        call = pipe.prepare([3, 1, 4], steps=3, batch_size=1, **given)
        assert torch.allclose(whole[1:2], pipe.run(call.batches()[1], "raw").images, atol=1e-4)
    assert len(pipe(3, image=each, steps=1, strength=1).images) == 3  # an image a row


def test_a_mask_keeps_what_is_black_and_changes_what_is_white(pipe: Any, image: Tensor) -> None:
    for ends in ((-1.0, 1.0), (0.0, 1.0)):
        one = tiny(pixel_range=ends)
        options = {"mask": MASK, "method": _Consistent(), "steps": 3}
        done = raw(one, [3, 1], image=image, **options)
        same = (done == image).all(1)
        assert bool(same[:, MASK == 0].all())
        assert not bool(same[:, MASK == 1].any())
        latent = raw(one, [3, 1], image=image, output_type="latent", **options)
        assert torch.allclose(latent, one.codec.encode(done), atol=1e-6)
        known = Measurement({"name": "mask", "hidden": MASK}, image * (1 - MASK))
        again = raw(one, [3, 1], measurement=known, method=_Consistent(), steps=3)
        assert torch.equal(again, done)
        known = replace(known, noise_std=0.1)
        assert not torch.equal(raw(one, [3, 1], measurement=known, method=_Consistent(), steps=3), done)
    half = raw(pipe, 3, image=image, mask=MASK, strength=0.4)
    assert bool((half == image)[..., MASK == 0].all())


def test_the_method_is_bound_innermost_with_the_rows_of_its_batch(pipe: Any) -> None:
    """The same run as by hand, and the same where the method holds the measurement."""
    known, options = seen(), {"sampler": "ddpm", "steps": 3, "seed": 2}
    done = raw(pipe, [3, 1], measurement=known, method=_Consistent(), **options)
    call = pipe.prepare([3, 1], **options)
    guided = CFG(2.0).wrap(_Consistent(known).wrap(pipe.denoiser()))
    source = NoiseSource(call.keys)
    noise = source.normal("initial", 0, done)
    with torch.no_grad():
        expected = call.sampler.sample(
            guided, noise, 3, labels=torch.tensor([3, 1]), noise_source=source, grid=call.grid, end=call.end
        )
    assert torch.equal(done, expected)
    assert torch.equal(done, raw(pipe, [3, 1], method=_Consistent(known), **options))
    assert not torch.allclose(done, raw(pipe, [3, 1], **options))
    assert pipe.prepare(3, measurement=known, method="mmps:iterations=2").guidance == (MMPS(None, 2), CFG(2.0))
    own = pipe.prepare(3, measurement=known, guidance=[2.0, "mmps:iterations=2"]).guidance
    assert own == (CFG(2.0), MMPS(None, 2))  # an order that is given stays
    weak = Autoguidance(1.5, pipe.denoiser())
    assert around(MMPS(), (weak, CFG(2.0))) == (weak, MMPS(), CFG(2.0))


def test_on_a_pixel_range_the_measurement_is_of_images_in_minus_1_to_1() -> None:
    """A z = c y + A(d 1) for z = c x + d, so that the residuals are those of x, times c."""
    known, codec = seen(), IdentityCodec(1, 0.0, 2.0 / 3)
    x = torch.randn(4, 1, 8, 8)
    moved = Given(measurement=known).measured(codec, (1, 8, 8))
    assert moved is not None
    assert moved.a is known.a
    assert moved.noise_std == pytest.approx(known.noise_std / 3)
    assert torch.allclose(moved.fitted(x).residual(codec.encode(x)), known.fitted(x).residual(x) / 3, atol=1e-6)


def test_calls_read_back_from_their_records(pipe: Any, image: Tensor) -> None:
    for given in (
        {"image": image, "strength": 0.6},
        {"image": image, "mask": MASK},
        {"measurement": seen(rows=2), "method": "mmps:iterations=2"},
    ):
        call = pipe.prepare([3, 1], steps=2, **given)
        config, tensors = json.loads(json.dumps(call.to_config())), call.given.tensors() if call.given else {}
        again = Call.from_config(config, tensors)
        assert again == call
        assert torch.equal(pipe.run(again, "raw").images, pipe.run(call, "raw").images)
        other = {digest: values.clone() for digest, values in tensors.items()}
        removed = other.popitem()[0]
        assert removed in tensors
        with pytest.raises(ValueError, match="is not given"):
            Call.from_config(config, other)
    plain = pipe.prepare([3, 1])
    assert plain != pipe.prepare([3, 1], image=image)
    assert pipe.prepare(3, image=image) != pipe.prepare(3, image=-image)
    assert not {"image", "mask", "strength", "measurement"} & plain.to_config().keys()


def test_pictures_of_every_form_are_the_same_image(pipe: Any, image: Tensor, tmp_path: Path) -> None:
    levels = ((image[0, 0] + 1) * 127.5).round().byte().numpy()
    picture = Image.fromarray(levels)
    picture.save(tmp_path / "one.png")
    forms = (
        picture, [picture], str(tmp_path / "one.png"), tmp_path / "one.png", levels, levels[..., None],
        levels[None, ..., None], levels[..., None] / 255, image, image[0], torch.from_numpy(levels)[None],
    )  # fmt: skip
    for form in forms:
        given = pipe.prepare(3, image=form).given
        assert given is not None
        assert given.image is not None
        assert torch.allclose(given.image, image, atol=1e-6), type(form)
    large = picture.resize((24, 16), Image.Resampling.NEAREST)
    given = pipe.prepare(3, image=large).given  # the central square, scaled
    assert given is not None
    assert given.image is not None
    assert given.image.shape == image.shape
    drawn = Image.fromarray((MASK * 255).byte().numpy())
    for form in (MASK, MASK.bool(), MASK.numpy(), MASK[..., None].numpy(), (MASK * 255).byte(), drawn):
        given = pipe.prepare(3, image=image, mask=form).given
        assert given is not None
        assert given.mask is not None
        assert torch.equal(given.mask[0, 0], MASK.bool()), type(form)
    mask = drawn.resize((24, 16), Image.Resampling.NEAREST)
    pipe.prepare(3, image=large, mask=mask)  # scaled and cropped with its image


SQUARE = Measurement(_Square(), torch.ones(1, 1, SIZE, SIZE))
ZEROS = torch.zeros(1, 1, SIZE, SIZE)
WRONG: dict[str, dict[str, Any]] = {
    "strength is the share": {"image": ZEROS, "strength": 1.2},
    "strength is the share of": {"image": ZEROS, "strength": -0.1},
    "strength must be a number": {"image": ZEROS, "strength": "half"},
    "less than one step": {"image": ZEROS, "strength": 0.1},
    "strength= is about an image": {"strength": 0.5},
    "mask= is about an image": {"mask": MASK},
    "image has pictures of shape": {"image": torch.zeros(1, 1, 9, 9)},
    "must be \\(1, 8, 8\\)": {"image": torch.zeros(1, 3, SIZE, SIZE)},
    "values from 0 to 255": {"image": torch.full((1, 1, SIZE, SIZE), 255.0) * (MASK > 0)},
    "it must hold bytes": {"image": -np.ones((SIZE, SIZE, 1))},
    "image must be a picture": {"image": 3},
    "there is no picture": {"image": "nowhere.png"},
    "image is an empty list": {"image": []},
    "image has 3 rows for 2 images": {"image": torch.zeros(3, 1, SIZE, SIZE)},
    "mask is of 9 x 9 pixels": {"image": ZEROS, "mask": torch.zeros(9, 9)},
    "mask is of 10 x 8 pixels": {"image": ZEROS, "mask": Image.new("L", (10, 8))},
    "one mask is that of all": {"image": ZEROS, "mask": torch.zeros(2, 1, SIZE, SIZE)},
    "values outside": {"image": ZEROS, "mask": MASK * 3},
    "hides every pixel": {"image": ZEROS, "mask": MASK * 0 + 1},
    "a measurement of its own": {"image": ZEROS, "mask": MASK, "measurement": seen()},
    "A has 65 columns": {"measurement": seen((5, 65))},
    "y must have the shape": {"measurement": Measurement(seen().a, torch.zeros(1, 6))},
    "3 rows for 2 images": {"measurement": seen(rows=3)},
    "measurement must be a dinit.inverse.Measurement": {"measurement": torch.zeros(1, 5)},
    "needs a linear operator, and this operator is not": {"measurement": SQUARE, "method": "mmps"},
    "method= uses a measurement": {"method": "mmps"},
    "unknown method 'mmsp'; did you mean 'mmps'": {"measurement": seen(), "method": "mmsp"},
    "'cfg' does not take a measurement": {"measurement": seen(), "method": "cfg:scale=3"},
    "method must be a name": {"measurement": seen(), "method": 3},
    "both hold a measurement": {"measurement": seen(), "method": {"name": "mmps", "measurement": seen()}},
    "dps and mmps both use": {"measurement": seen(), "method": "mmps", "guidance": "dps"},
    "mmps and dps both use": {"measurement": seen(), "guidance": ["mmps", "dps"]},
    "replace and mmps both use": {"measurement": seen(), "method": "replace", "guidance": "mmps"},
    "class 12": {"image": ZEROS, "labels": 12},
    "3 channels": {"measurement": Measurement("grey", ZEROS)},
    "the shape \\(1, 8, 9\\)|\\(B, 1, 8, 8\\)": {
        "measurement": Measurement("identity", torch.zeros(1, 1, SIZE, SIZE + 1))
    },
}
WRONG_EDITS: dict[str, dict[str, Any]] = {
    "image has pictures of shape": {"image": torch.zeros(1, 1, 9, 9)},
    "must be \\(1, 8, 8\\)": {"image": torch.zeros(1, 3, SIZE, SIZE)},
    "class 12": {"target": 12},
    "class -1": {"source": -1},
    "target needs one class for all images, or one for each of 1": {"target": [3, 1]},
    "source needs one class": {"source": None},
    "strength must be in": {"method": "sdedit:strength=1.5"},
    "did you mean 'infedit'": {"method": "infedti"},
    "at least 2 steps": {"steps": 1},
    "steps": {"steps": 0},
    "seed": {"seed": [1, 2]},
    "batch_size": {"batch_size": 0},
}


@pytest.mark.parametrize(("message", "given"), WRONG.items(), ids=WRONG)
def test_what_cannot_run_is_refused_before_the_network(
    pipe: Any, message: str, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(pipe.backbone), "forward", lambda *_: pytest.fail("the network was evaluated"))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        pipe(**{"labels": [3, 1], **given})


@pytest.mark.parametrize(("message", "given"), WRONG_EDITS.items(), ids=WRONG_EDITS)
def test_an_edit_that_cannot_run_is_refused_before_the_network(
    pipe: Any, message: str, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(pipe.backbone), "forward", lambda *_: pytest.fail("the network was evaluated"))
    with pytest.raises(ValueError, match=message):
        pipe.edit(**{"image": ZEROS, "source": 3, "target": 1, **given})


def test_a_measurement_has_no_negative_noise() -> None:
    with pytest.raises(ValueError, match="noise_std is a standard deviation, at least 0"):
        seen(noise_std=-0.1)


def test_on_latents_an_operator_is_not_linear(image: Tensor) -> None:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(1, 1, block_out_channels=(32,), latent_channels=1)
    one = tiny(vae=vae)
    with pytest.raises(ValueError, match="'mmps' needs a linear operator, and no operator is linear on latents"):
        one(3, measurement=seen(), method="mmps")
    given = one.prepare(3, measurement=seen(), method=_Pushed()).given
    assert given is not None
    moved = given.measured(one.codec, (1, 8, 8))
    assert moved is not None
    z = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(moved.a.apply(z), seen().a.apply(one.codec.decode(z)))
    assert torch.equal(raw(one, image=image, strength=0), image)


def test_a_run_that_leaves_the_range_of_data_is_warned_of(pipe: Any) -> None:
    with pytest.warns(UserWarning, match="method '_Pushed' diverged in 2 of 2 images: values up to 9"):
        pipe([3, 1], measurement=SQUARE, method=_Pushed(), steps=2)


def test_a_tensor_without_negative_values_is_warned_of(pipe: Any) -> None:
    with pytest.warns(UserWarning, match="2 \\* x - 1"):
        pipe.prepare(3, image=MASK.expand(1, 1, -1, -1))


def test_an_image_is_iterated_step_by_step(pipe: Any, image: Tensor) -> None:
    call = pipe.prepare([3, 1], image=image, strength=0.6, batch_size=1)
    steps = list(pipe.iterate(call))
    assert [step.total for step in steps] == [3] * 6
    assert isinstance(call.sampler, Sampler)
    assert torch.equal(torch.cat([steps[2].x_s, steps[5].x_s]), pipe.run(call, "raw").images)
