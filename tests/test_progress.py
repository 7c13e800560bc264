"""The progress display: its lines by a clock of the test's own, and the time left."""

from __future__ import annotations

import itertools

import pytest

from dinit import progress as module
from dinit.progress import Progress, Speed, duration, shown, stage


class Clock:
    """Seconds that pass only when they are added."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (99.4, "99 s"), (99.6, "2 min"), (3569, "59 min"), (3570, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
    assert duration(float("inf")) == "?"


@pytest.mark.parametrize("first", [0.5, 60.0], ids=["at once", "after a minute of compiling"])
@pytest.mark.parametrize("every", [1, 50], ids=["each step", "each 50 steps"])
def test_time_left_of_a_steady_run_is_right_within_a_factor_of_1_3(first: float, every: int) -> None:
    """1,000 steps of 0.5 s, and previews of 5 s after each hundred."""
    ends = list(itertools.accumulate(first if k == 0 else 0.5 + 5.0 * (k % 100 == 99) for k in range(1000)))
    speed = Speed(0, 0.0)
    for step in range(every, 1000, every):
        now = ends[step - 1]
        speed.update(step, now)
        if 100 < step <= 900:  # the last preview is one lump
            assert 1 / 1.3 < speed.seconds_left(1000, now) / (ends[-1] - now + 0.01) < 1.3
    speed.update(1000, ends[-1])
    assert speed.seconds_left(1000, ends[-1]) == 0


def test_time_left_without_previews_is_right_after_a_twentieth() -> None:
    speed = Speed(200, 5.0)
    for step in range(201, 1200):
        now = 5.0 + 30.0 + 0.25 * (step - 201)
        speed.update(step, now)
        if step >= 250:
            assert speed.seconds_left(1200, now) == pytest.approx(0.25 * (1200 - step))


def test_a_slower_machine_shows_in_the_time_left() -> None:
    speed, now = Speed(0, 0.0), 0.0
    for step in range(1, 901):
        now += 0.1 if step <= 300 else 1.0
        speed.update(step, now)
    assert speed.seconds_left(1000, now) == pytest.approx(100, rel=0.05)


def test_lines_come_soon_and_then_every_half_minute(capsys: pytest.CaptureFixture[str]) -> None:
    clock, times = Clock(), []
    with Progress("train", 12_000, "steps", speed=("images", 32.0), enabled=True, clock=clock) as shown_progress:
        for step in range(1, 12_001):
            clock.now += 0.3
            shown_progress.update(step, note="loss 0.25")
            if (text := capsys.readouterr().err).strip():
                times.append(clock.now - 1000)
                last = text
    assert times[0] <= 5
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert max(gaps) <= 31
    assert min(gaps[1:]) >= 29
    assert len(times) < 130
    assert last.startswith("train: 11,9")
    assert "of 12,000 steps (100 %), loss 0.25, 107 images/s, " in last
    assert capsys.readouterr().err == "train: 12,000 steps in 1 h 00 min\n"


def test_a_line_is_one_line_however_long(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Progress("n" * 200 + "[red]", 10, enabled=True, clock=clock) as progress:
        clock.now += 3
        progress.update(5)
    assert capsys.readouterr().err == f"{'n' * 200}[red]: 5 of 10 images (50 %)\n"


def test_work_that_is_done_soon_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Progress("encode", 3, enabled=True, clock=clock) as progress:
        for _ in range(3):
            clock.now += 0.5
            progress.update()
    assert progress.done == 3
    assert capsys.readouterr().err == ""


def test_nothing_is_shown_unless_it_is_switched_on_in_the_first_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lines() -> str:
        clock = Clock()
        with Progress("a", 2, clock=clock) as outer, Progress("b", 2, clock=clock) as inner:
            clock.now += 3
            inner.update()
            outer.update()
        return capsys.readouterr().err

    assert lines() == ""
    with shown():
        assert lines() == "a: 1 of 2 images (50 %)\n"  # one display at a time
        with shown(False):
            assert lines() == ""
        monkeypatch.setenv("RANK", "1")
        assert lines() == ""


def test_a_stage_is_named_where_it_takes_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Late:
        """A timer of a stage that is late at once, or never."""

        fires = True

        def __init__(self, seconds: float, act: object) -> None:
            self.act = act

        def start(self) -> None:
            assert callable(self.act)
            if self.fires:
                self.act()

        def cancel(self) -> None:
            pass

    monkeypatch.setattr(module, "Timer", Late)
    with stage("reading 60,000 images [of all]", enabled=True):
        pass
    assert capsys.readouterr().err == "reading 60,000 images [of all] …\n"
    Late.fires = False
    with stage("reading", enabled=True):
        pass
    with stage("reading"):
        pass
    assert capsys.readouterr().err == ""
