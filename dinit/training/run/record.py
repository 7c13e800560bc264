"""What a run has written into its folder, and figures made of it: state, speed, time left."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from dinit.progress import Speed
from dinit.training.run.charts import Points
from dinit.training.run.health import read_lines

Entry = dict[str, Any]


@dataclass
class RunRecord:
    """What a run's folder holds, with figures made of it.

    Attributes:
        folder: Of the run; recipe.yaml, health.jsonl, events.jsonl and samples/ are read, where they exist.
        name: Of its recipe.
        now: Seconds since 1970.
    """

    folder: Path
    name: str
    now: float = field(default_factory=time.time)

    @cached_property
    def entries(self) -> list[Entry]:
        """Lines of health.jsonl."""
        return read_lines(self.folder / "health.jsonl")

    @cached_property
    def recipe(self) -> Entry:
        """recipe.yaml, as it is written; empty where it cannot be read."""
        try:
            read = yaml.safe_load((self.folder / "recipe.yaml").read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            return {}
        return read if isinstance(read, dict) else {}

    @cached_property
    def reports(self) -> list[Entry]:
        """Lines of health.jsonl that have a loss."""
        return [entry for entry in self.entries if "loss" in entry]

    @cached_property
    def events(self) -> list[Entry]:
        """Lines of events.jsonl."""
        return read_lines(self.folder / "events.jsonl")

    @cached_property
    def session(self) -> Entry:
        """Of the last session; empty for runs of versions that did not record it."""
        return next((event["session"] for event in reversed(self.events) if "session" in event), {})

    @cached_property
    def end(self) -> Entry:
        """The line with the run's state, unless a session began after it."""
        for event in reversed(self.events):
            if "state" in event:
                return event
            if "session" in event:
                return {"state": "running"}
        done = (self.folder / "pipeline" / "training.json").is_file()
        return {"state": "finished" if done else "unknown"}

    @property
    def state(self) -> str:
        """running, finished, stopped, diverged, failed or unknown."""
        return str(self.end["state"])

    @cached_property
    def step(self) -> int:
        """The last one recorded."""
        return max((int(entry.get("step", 0)) for entry in (*self.entries, *self.events)), default=0)

    @cached_property
    def total(self) -> int:
        """Steps of the run; 0 where nothing records them."""
        return int(self.session.get("steps") or self.setting("training", "steps", 0))

    @cached_property
    def batch(self) -> int:
        """Images of a step; 0 where nothing records them."""
        return int(self.session.get("batch_size") or self.setting("training", "batch_size", 0))

    def setting(self, section: str, key: str, default: Any = None) -> Any:
        """A setting of recipe.yaml."""
        values = self.recipe.get(section)
        found = values.get(key) if isinstance(values, dict) else None
        return default if found is None else found

    @cached_property
    def speed(self) -> Speed:
        """Steps a second, of the last session."""
        timed = [(entry["step"], entry["seconds"]) for entry in self.reports if "seconds" in entry]
        first = max((event["step"] for event in self.events if "session" in event), default=0)
        speed = Speed(first, max((seconds for step, seconds in timed if step <= first), default=0.0))
        for step, seconds in timed:
            speed.update(step, seconds)
        return speed

    @property
    def images_per_second(self) -> float | None:
        """Lately; as the last report has it for runs that recorded no times."""
        if self.speed.per_second:
            return self.speed.per_second * self.batch
        return self.reports[-1].get("images_per_second") if self.reports else None

    @property
    def seconds_left(self) -> float | None:
        """None where it is not known."""
        rate = self.images_per_second
        return (self.total - self.step) * self.batch / rate if rate and self.batch and self.total else None

    @property
    def elapsed(self) -> float | None:
        """Seconds of training, over all sessions."""
        return next((entry["seconds"] for entry in reversed(self.reports) if "seconds" in entry), None)

    def points(self, key: str) -> Points:
        """(step, value) of every report that has a finite value of this key."""
        return [(entry["step"], entry[key]) for entry in self.reports if entry.get(key) is not None]

    @cached_property
    def resumed(self) -> list[int]:
        """Steps at which the run was resumed."""
        return sorted({event["step"] for event in self.events if "session" in event and event["step"]})

    @cached_property
    def previews(self) -> list[Path]:
        """The newest first."""
        return sorted((self.folder / "samples").glob("*.png"), reverse=True)
