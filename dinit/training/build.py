"""Construction of the objects that a recipe names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from dinit.data import DATASETS, ImageData
from dinit.diffusion import PARAMETERIZATIONS, PROCESSES
from dinit.models.base import BACKBONES, Backbone
from dinit.training.finetune.transfer import Transfer, start_from
from dinit.training.losses.bound import check_chain
from dinit.training.losses.terms import LOSS_TERMS
from dinit.training.losses.times import TIME_SAMPLERS
from dinit.training.losses.weighting import WEIGHTINGS
from dinit.training.network import TrainingNetwork
from dinit.training.objective import Objective
from dinit.training.recipe.model import AlignmentSection, ConditionNoiseSection, Named, Recipe, RoutingSection
from dinit.training.regularizers.alignment import Alignment
from dinit.training.regularizers.condition_noise import ConditionNoise
from dinit.training.regularizers.encoders import make_encoder
from dinit.training.regularizers.routing import Routing


def make_objective(recipe: Recipe) -> Objective:
    """The loss. ValueError as its parts raise it."""
    return Objective(
        PROCESSES.create(recipe.process.spec()),
        PARAMETERIZATIONS.create(recipe.parameterization.spec()),
        WEIGHTINGS.create(recipe.loss.weighting.spec()),
        TIME_SAMPLERS.create(recipe.time.spec()),
        recipe.t_max,
        tuple(LOSS_TERMS.create(term.spec()) for term in recipe.loss.terms),
        recipe.loss.variational,
    )


def make_data(recipe: Recipe, quick: bool = False) -> ImageData:
    """The data set. quick: without reading every file, which data sets with a `check` option otherwise do."""
    extra = (
        {"check": False} if quick and "check" in inspect.signature(DATASETS[recipe.data.name]).parameters else {}
    )
    return DATASETS.create({**recipe.data.spec(), **extra})


def backbone_options(named: Named, data: ImageData) -> dict[str, Any]:
    """The backbone's arguments: of its preset if one is named, from the data, and from the recipe."""
    options = named.options
    preset = options.pop("preset", None)
    known = BACKBONES[named.name].presets
    if preset is not None and preset not in known:
        raise ValueError(f"unknown {named.name} preset {preset!r}; known: {', '.join(known) or '(none)'}")
    shape = {"image_size": data.image_size, "in_channels": data.channels, "num_classes": data.num_classes}
    return {**(known[preset] if preset else {}), **shape, **options}


def make_backbone(recipe: Recipe, data: ImageData, report: list[Transfer] | None = None) -> Backbone:
    """The network, freshly initialised from torch's generator, or with the weights of the pipeline that the recipe
    starts from and what fine-tuning adds. ValueError where it does not fit the data.

    report: gets what was taken over from a pipeline.
    """
    options = backbone_options(recipe.backbone, data)
    for key, have in (("in_channels", data.channels), ("num_classes", data.num_classes)):
        if options[key] != have:
            raise ValueError(
                f"{key} is {options[key]}, but the data set {recipe.data.name!r} has {have}; leave it out"
            )
    if options["image_size"] != data.image_size:
        raise ValueError(
            f"image_size is {options['image_size']}, but the images of {recipe.data.name!r} are "
            f"{data.image_size}×{data.image_size}; leave it out or make the data's size the same"
        )
    backbone = BACKBONES.create(recipe.backbone.name, **options)
    if recipe.label_dropout and not backbone.null_class:
        raise ValueError(
            f"label_dropout is {recipe.label_dropout:g}, which trains the null label, and the backbone has none "
            "(null_class: false): set label_dropout: 0, or leave null_class out"
        )
    if backbone.out_channels != backbone.in_channels:
        with torch.device("cpu"):  # a chain reads its betas, also where only shapes are computed
            check_chain(PROCESSES.create(recipe.process.spec()))
    if recipe.finetune is not None and backbone.device.type != "meta":
        transfer = start_from(backbone, data.class_names, recipe.finetune)
        if report is not None:
            report.append(transfer)
    return backbone


SWITCHES = ("condition_noise", "routing", "alignment")
"""The recipe's sections that change the network's forward pass in training, null where they are off."""


def make_network(recipe: Recipe, backbone: Backbone, switches: Sequence[str] = SWITCHES) -> TrainingNetwork:
    """The backbone with those of the recipe's switches that are on. ValueError where one does not fit it."""
    makers: dict[str, Callable[[Any, Backbone], Any]] = {
        "condition_noise": _condition_noise,
        "routing": _routing,
        "alignment": _alignment,
    }
    on = {name: getattr(recipe, name) for name in switches if getattr(recipe, name) is not None}
    return TrainingNetwork(
        backbone, recipe.seed, **{name: makers[name](section, backbone) for name, section in on.items()}
    )


def _condition_noise(section: ConditionNoiseSection, backbone: Backbone) -> ConditionNoise:
    if backbone.num_classes == 0:
        raise ValueError("condition_noise needs classes, and the data has none; leave it out")
    return ConditionNoise(section.gamma, section.kind)


def _routing(section: RoutingSection, backbone: Backbone) -> Routing:
    routing = Routing(section.ratio, section.start, section.end)
    routing.blocks(backbone)  # its errors now, not at the first step
    return routing


def _alignment(section: AlignmentSection, backbone: Backbone) -> Alignment:
    with torch.device("cpu"):  # its weights are read even where only shapes are computed
        encoder = make_encoder(section.encoder)
    return Alignment(backbone, encoder, section.block, section.weight, section.hidden)
