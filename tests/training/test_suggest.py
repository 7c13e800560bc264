"""Suggested recipes: valid whatever the pictures, and a reason for every line."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from dinit.data.survey import Survey
from dinit.models import BACKBONES
from dinit.training import parse_recipe
from dinit.training.recipe import rules
from dinit.training.recipe.suggest import Machine, Suggestion, duration, plain, suggest

CPU = Machine("cpu", 2)
GPU = Machine("cuda", 16, "NVIDIA H200", 140 << 30, True)


def pictures(counts: dict[str, int], width: int = 640, height: int = 480, **facts: object) -> Survey:
    spec = {"name": "folder", "path": "photos/"}
    settings: dict[str, object] = {"channels": 3, "grey": 0.0, "one_way": 0.0, "seconds": 0.004, **facts}
    return Survey(spec, counts, np.tile([width, height], (sum(counts.values()), 1)), **settings)  # type: ignore[arg-type]


def made(survey: Survey, machine: Machine = CPU, minutes: float = 30, **options: object) -> Suggestion:
    return suggest(survey, machine, None, name="mine", source="photos/", minutes=minutes, **options)  # type: ignore[arg-type]


def keys_without_comment(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if re.match(r" *[\w-]+:", line)]
    assert len(lines) > 30
    return [line for line in lines if not re.search(r"# \S", line)]


def test_text_and_values_agree_and_every_key_has_a_reason() -> None:
    for machine, size in ((CPU, None), (GPU, None), (CPU, 64)):
        suggestion = made(pictures({"cat": 400, "dog": 300}), machine, size=size)
        text = suggestion.text()
        assert yaml.safe_load(text) == suggestion.sections()
        assert keys_without_comment(text) == []
        assert max(map(len, text.splitlines())) <= 118


def test_of_typical_pictures_on_two_cores() -> None:
    recipe = made(pictures({"cat": 4000, "dog": 3000})).recipe()
    assert recipe.data.spec() == {
        "name": "folder", "path": "photos/", "size": 32, "channels": 3, "horizontal_flip": True, "check": True,
    }  # fmt: skip
    assert recipe.backbone.options == {"hidden_size": 16, "depth": [1, 2, 6, 2, 1], "dropout": 0.0}
    assert (recipe.training.steps, recipe.training.batch_size, recipe.training.workers) == (5_300, 32, 0)
    assert (recipe.ema.decay, recipe.schedule.warmup_steps, recipe.label_dropout) == (0.998, 100, 0.1)
    assert recipe.sampling.guidance[0].spec() == {"name": "cfg", "scale": 2.0}


def test_of_the_same_pictures_on_a_gpu() -> None:
    suggestion = made(pictures({"cat": 4000, "dog": 3000}), GPU, 60)
    recipe = suggestion.recipe()
    assert recipe.data.spec() == {"name": "latents", "path": "mine-latents"}
    assert suggestion.side == 32
    assert suggestion.encode_command() == (
        "dinit encode stabilityai/sd-vae-ft-mse --data folder:path=photos/,size=256 --out mine-latents --flips"
    )
    assert (recipe.training.precision, recipe.training.batch_size) == ("bf16", 128)


def test_one_class_symbols_and_few_pictures() -> None:
    survey = pictures({"a": 100}, 28, 28, one_way=0.2, channels=1, grey=1.0)
    suggestion = made(survey)
    recipe = suggestion.recipe()
    assert (recipe.label_dropout, recipe.sampling.guidance) == (0.0, [])
    assert recipe.data.options["horizontal_flip"] is False
    assert recipe.backbone.options["dropout"] == 0.1
    assert (recipe.data.options["size"], recipe.data.options["channels"]) == (28, 1)
    notes = " ".join(suggestion.remarks())
    assert "100 pictures are few" in notes
    assert "without a choice of class" in notes


def test_unreadable_small_and_uneven_classes_are_named() -> None:
    survey = pictures({"cat": 900, "dog": 12}, unreadable=((Path("photos/cat/cut.jpg"), "it ends too early"),))
    suggestion = made(survey)
    assert suggestion.recipe().data.options["check"] == "skip"
    notes = list(suggestion.remarks())
    assert "1 file cannot be read and will be left out (check: skip): photos/cat/cut.jpg" in notes[0]
    assert "fewer than 20 pictures in class dog (12): add pictures" in notes[1]
    assert "cat has 900 pictures and dog 12: training sees dog in 1.3 % of its pictures" in notes[2]


def test_what_is_too_short_or_read_too_slowly_is_named() -> None:
    notes = " ".join(made(pictures({"a": 4000, "b": 4000}), minutes=5).remarks())
    assert "5 minutes are 890 steps here" in notes
    assert "--minutes 45 holds 8,000" in notes
    many = pictures({"a": 200_000, "b": 200_000}, seconds=0.1)
    assert made(many).recipe().training.workers == 1
    assert "reading is slower than training (3.2 s for a step of 0.32 s)" in " ".join(made(many).remarks())


def test_measured_speeds_decide_and_each_is_measured_once() -> None:
    seen: list[int] = []

    def measure(suggestion: Suggestion) -> float:
        assert suggestion.recipe().backbone.options["hidden_size"] == suggestion.choice.width
        seen.append(suggestion.choice.width)
        return 0.05 * suggestion.choice.width / 16

    suggestion = suggest(pictures({"a": 9000, "b": 9000}), CPU, measure, name="mine", source="photos/", minutes=30)
    assert seen == [16, 24, 32, 48, 64]
    assert suggestion.choice.width == 64
    assert suggestion.recipe().optimizer.lr == 0.006
    assert "measured on this machine" in suggestion.text()


@pytest.mark.parametrize(
    ("size", "minutes", "message"),
    [(30, 30, "multiple of 4"), (200, 30, "multiple of 32"), (None, 0, "positive, got 0"), (None, -2, "positive")],
)
def test_settings_that_are_refused(size: int | None, minutes: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(pictures({"a": 100, "b": 100}), minutes=minutes, size=size)
    with pytest.raises(ValueError, match=r"--size is for folders; the pictures of photos/ are 28×28"):
        made(replace(pictures({"a": 100}, 28, 28), shape=28), size=32)


def test_any_pictures_make_a_recipe_whose_backbone_fits() -> None:
    """Seeded surveys: the text always parses completely, and the network takes pictures of that size."""
    rng = np.random.default_rng(15)
    for round_ in range(20):
        counts = {f"class {k}": int(rng.integers(1, 10 ** rng.integers(1, 6))) for k in range(rng.integers(1, 12))}
        counts = {name: min(count, 3000) for name, count in counts.items()}
        survey = pictures(
            counts,
            int(2 ** rng.uniform(0, 12)),
            int(2 ** rng.uniform(0, 12)),
            one_way=float(rng.uniform(0, 0.2)),
            channels=int(rng.choice([1, 3])),
            shape=int(rng.integers(5, 70)) if rng.random() < 0.3 else None,
        )
        if survey.shape is not None:
            survey = replace(survey, spec={"name": "glyphs"}, sides=np.full((survey.images, 2), survey.shape))
        machine = CPU if rng.random() < 0.5 else GPU
        suggestion = made(survey, machine, float(10 ** rng.uniform(-0.5, 3)))
        recipe = suggestion.recipe()
        if round_ % 5 == 0:  # completely, with digits in place of the pictures
            stand_in = ["data=digits", *(["backbone.patch_size=2"] if suggestion.side % 4 else [])]
            assert parse_recipe(suggestion.text(), stand_in).training == recipe.training
        assert yaml.safe_load(suggestion.text()) == suggestion.sections()
        assert recipe.training.steps > recipe.schedule.warmup_steps
        options = rules.backbone(suggestion.side, suggestion.choice.width)
        assert suggestion.sections()["backbone"]["name"] == options["name"]

        shape = {"image_size": suggestion.side, "in_channels": survey.channels, "num_classes": len(counts)}
        with torch.device("meta"):
            network = BACKBONES.create(recipe.backbone.spec(), **shape)
            x = torch.zeros(2, survey.channels, suggestion.side, suggestion.side)
            assert network(x, torch.zeros(2), network.embed(torch.zeros(2, dtype=torch.int64))).shape == x.shape


@pytest.mark.parametrize(
    "text",
    [
        "photos/",
        "my photos",
        "a: b",
        "a #b",
        "true",
        "01",
        "1e3",
        "~/photos",
        "it's",
        '"x"',
        "-",
        "ünï",
        "a,b",
        " a",
        "",
    ],
)
def test_text_is_quoted_where_yaml_needs_it(text: str) -> None:
    assert yaml.safe_load(f"key: {plain(text)}") == {"key": text}


def test_durations() -> None:
    assert [duration(m) for m in (0.2, 1, 30.4, 119, 120, 300)] == [
        "1 minute", "1 minute", "30 minutes", "119 minutes", "2 hours", "5 hours",
    ]  # fmt: skip
