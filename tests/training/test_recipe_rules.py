"""The rules of `dinit recipe`: from pictures, speed and minutes to the numbers of a recipe."""

from __future__ import annotations

import pytest

from dinit.training.recipe import rules


@pytest.mark.parametrize(
    ("short_side", "gpu", "minutes", "size"),
    [
        (480, False, 30, 32),
        (480, False, 180, 64),
        (63, False, 600, 32),
        (28, False, 30, 28),
        (31, False, 30, 28),
        (3, False, 30, 8),
        (480, True, 60, 256),
        (192, True, 60, 256),
        (191, True, 60, 64),
        (50, True, 60, 48),
        (28, True, 60, 28),
    ],
)
def test_size(short_side: int, gpu: bool, minutes: float, size: int) -> None:
    assert rules.data_size(short_side, gpu, minutes) == size
    rules.check_size(size)


@pytest.mark.parametrize("size", [0, -4, 4, 30, 130, 144])
def test_sizes_that_no_recipe_is_for(size: int) -> None:
    with pytest.raises(ValueError, match=f"multiple of .*, got {size}"):
        rules.check_size(size)


# Seconds of a step at width 16, which grow with the width; pictures, minutes, GPU -> width, steps, what limits.
CHOICES = [
    (0.32, 60_000, 30, False, 16, 5_300, "time"),  # 1,710 s of 0.32 s
    (0.32, 60_000, 51, False, 16, 9_000, "time"),  # width 24 would leave 6,050 steps
    (0.32, 60_000, 120, False, 32, 10_000, "time"),  # width 48 would leave 7,120
    (0.01, 60_000, 30, False, 128, 21_000, "time"),  # 60,000 pictures allow no more than width 128
    (0.01, 600_000, 30, False, 256, 10_000, "time"),
    (0.01, 4_000, 30, False, 32, 85_000, "time"),
    (0.01, 600, 30, False, 24, 18_000, "pictures"),  # 1,000 epochs of 600 pictures in batches of 32
    (0.05, 40, 30, False, 24, 2_000, "pictures"),  # 40 pictures in 1,250 steps would be 1,000 epochs
    (4.0, 60_000, 30, False, 16, 420, "time"),
    (500.0, 60_000, 30, False, 16, 10, "time"),  # never fewer than ten
    (0.02, 60_000, 60, True, 24, 50_000, "time"),
]


@pytest.mark.parametrize(("seconds", "images", "minutes", "gpu", "width", "steps", "limit"), CHOICES)
def test_width_and_steps(
    seconds: float, images: int, minutes: float, gpu: bool, width: int, steps: int, limit: str
) -> None:
    power = 3.0 if gpu else 1.0
    called = []

    def step_seconds(one: int) -> float:
        called.append(one)
        return seconds * (one / 16) ** power

    batch = rules.batch_size(gpu, images)
    choice = rules.choose(step_seconds, images, batch, minutes, gpu)
    assert (choice.width, choice.steps, choice.limit) == (width, steps, limit)
    assert choice.seconds == pytest.approx(seconds * (width / 16) ** power)
    assert choice.minutes <= minutes or steps == 10
    # Widths are measured from the narrowest on, and none beyond the first that is too slow.
    assert called == list(rules.WIDTHS[: len(called)])
    assert called[-1] in (width, *rules.WIDTHS[rules.WIDTHS.index(width) + 1 :][:1])


def test_minutes_for_enough_steps() -> None:
    choice = rules.choose(lambda width: 1.0, 60_000, 32, 30, False)
    assert (choice.steps, choice.enough) == (1_700, 8_000)
    assert choice.minutes_for_enough == pytest.approx(8_000 / 60 / 0.95)
    assert choice.minutes == pytest.approx(1_700 / 60 / 0.95)


@pytest.mark.parametrize(
    ("steps", "warmup", "decay", "previews", "checkpoints"),
    [
        (10, 9, 0.9, 1, 1),
        (100, 10, 0.9, 10, 5),
        (420, 10, 0.98, 25, 20),
        (2_000, 40, 0.995, 200, 100),
        (5_300, 100, 0.998, 500, 250),
        (9_600, 190, 0.999, 500, 250),
        (30_000, 500, 0.9995, 2_500, 1_000),
        (110_000, 500, 0.9999, 10_000, 5_000),
    ],
)
def test_numbers_that_follow_the_steps(
    steps: int, warmup: int, decay: float, previews: int, checkpoints: int
) -> None:
    assert rules.warmup_steps(steps) == warmup < steps
    assert rules.ema_decay(steps) == decay
    assert (rules.every(steps, 10), rules.every(steps, 20)) == (previews, checkpoints)


def test_learning_rate_and_dropout() -> None:
    assert [rules.learning_rate(width) for width in (16, 32, 64, 256)] == [0.012, 0.0085, 0.006, 0.003]
    assert (rules.dropout(199.9), rules.dropout(200)) == (0.0, 0.1)
    assert [rules.rounded(n) for n in (0.4, 7, 99, 9_648, 10_999)] == [0, 7, 99, 9_600, 10_000]


def test_estimate_is_that_of_glyphs_32() -> None:
    assert rules.estimated_step(32, 32, 16, cores=2, gpu=False) == pytest.approx(0.32)
    assert rules.estimated_step(64, 32, 16, cores=2, gpu=False) == pytest.approx(4 * 0.32)
    assert rules.estimated_step(32, 32, 32, cores=4, gpu=False) == pytest.approx(0.16 * 2**1.3)
    assert rules.estimated_step(8, 32, 16, cores=2, gpu=True) == 0.02


def test_classes_to_name() -> None:
    assert rules.small_classes({"a": 19, "b": 20}) == ["a"]
    assert rules.is_uneven({"a": 10, "b": 100})
    assert not rules.is_uneven({"a": 11, "b": 100})


@pytest.mark.parametrize(("side", "name"), [(28, "dico"), (64, "dico"), (30, "dit"), (31, "dit"), (9, "dit")])
def test_backbone_divides_the_side(side: int, name: str) -> None:
    options = rules.backbone(side, 24)
    assert options["name"] == name
    if name == "dit":
        assert side % options["patch_size"] == 0
        assert options["hidden_size"] == 32 * options["num_heads"]
