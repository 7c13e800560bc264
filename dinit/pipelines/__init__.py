"""Pipelines: generation, training, evaluation, and the files that record what was run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dinit.compat import ensure_torchvision

if __name__ != "dinit.pipelines":
    raise ImportError("import dinit.pipelines, not pipelines: a second name for one folder makes a second registry")

ensure_torchvision()  # before diffusers, which imports torchvision

if TYPE_CHECKING:
    from dinit.pipelines.call import Call as Call
    from dinit.pipelines.generate import Generated as Generated
    from dinit.pipelines.generate import Pipeline as Pipeline
    from dinit.pipelines.generate import Trajectory as Trajectory
    from dinit.pipelines.train import TrainResult as TrainResult
    from dinit.pipelines.weights.convert import Converted as Converted
else:
    from dinit._exports import attach

    __getattr__, __dir__, __all__ = attach(__name__, __file__, elsewhere=("dinit",))
