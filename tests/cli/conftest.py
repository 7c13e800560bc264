"""What tests of several commands need."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dinit.models.base import BACKBONES
from dinit.pipelines.generate import Pipeline


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a pipeline of ten named classes, whose network is not trained."""
    torch.manual_seed(0)
    network = BACKBONES["dit"].preset("tiny")
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    names = [f"digit {k}" for k in range(10)]
    defaults = {"sampler": "ddim", "steps": 2}
    pipe = Pipeline(network, {"name": "vp"}, {"name": "v"}, class_names=names, defaults=defaults)
    path = tmp_path_factory.mktemp("pipelines") / "tiny"
    pipe.save_pretrained(path)
    return str(path)
