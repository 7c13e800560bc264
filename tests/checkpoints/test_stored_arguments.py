"""What a checkpoint states of its own training: read, compared with its tensors, and decided by an option."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
sys.path.insert(0, str(Path(__file__).parents[1] / "samplers"))
sys.path.insert(0, str(Path(__file__).parents[1]))
from fuzzing import edited
from golden import Golden, error
from reference import GOLDEN, Reference, relative_error

from dinit.checkpoints.claims import Labels, read_labels, size_claims
from dinit.checkpoints.reading import read_checkpoint
from dinit.checkpoints.recognition import Recognised
from dinit.checkpoints.stored import RunArguments, run_arguments
from dinit.cli.convert import parse_options
from dinit.diffusion import PARAMETERIZATIONS, BackboneDenoiser
from dinit.diffusion.continuous import GVP, VP, LinearFlow
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.weights.arguments import backbone_arguments
from dinit.pipelines.weights.convert import Converted, _trained_on, convert
from dinit.samplers import Euler

Namespace = argparse.Namespace
SAMPLERS_GOLDEN = Path(__file__).parents[1] / "golden" / "samplers"


def golden(name: str) -> Reference:
    return Reference(GOLDEN / f"{name}.safetensors")


def converted(
    state: Mapping[str, Tensor], folder: Path, args: Any = None, *, entry: str = "args", **given: Any
) -> tuple[Converted, Pipeline]:
    """A training checkpoint of these weights and arguments, converted and opened."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"ema": dict(state), **({} if args is None else {entry: args})}, folder / "weights.pt")
    made = convert(folder / "weights.pt", folder / "pipe", overwrite=True, **given)
    return made, Pipeline.from_pretrained(made.folder)


# --- SiT's path and prediction ---

PATHS = {"Linear": LinearFlow(), "GVP": GVP(), "VP": VP()}
OUTPUTS = {"velocity": "reversed-velocity", "noise": "reversed-epsilon", "score": "reversed-score"}


def sit_path(name: str, t: float) -> tuple[float, float, float, float]:
    """SiT's own path in its own time, 0 noise and 1 data: alpha, sigma and their slopes. Ma et al. 2024."""
    if name == "Linear":
        return t, 1 - t, 1, -1
    if name == "GVP":
        return (
            math.sin(math.pi * t / 2),
            math.cos(math.pi * t / 2),
            *(math.pi / 2 * slope for slope in (math.cos(math.pi * t / 2), -math.sin(math.pi * t / 2))),
        )
    log_alpha = -((1 - t) ** 2) * (20 - 0.1) / 4 - (1 - t) * 0.1 / 2
    slope = (1 - t) * (20 - 0.1) / 2 + 0.1 / 2
    alpha = math.exp(log_alpha)
    sigma = math.sqrt(1 - alpha**2)
    return alpha, sigma, slope * alpha, -slope * alpha**2 / sigma


@pytest.mark.parametrize("prediction", OUTPUTS)
@pytest.mark.parametrize("path", PATHS)
@torch.no_grad()
def test_sits_path_and_prediction_are_those_of_its_arguments(path: str, prediction: str, tmp_path: Path) -> None:
    sit = golden("sit")
    args = Namespace(model="SiT-XL/2", path_type=path, prediction=prediction, num_classes=10, loss_weight=None)
    _, pipe = converted(sit.state, tmp_path, args, options={"num_heads": 4})
    assert (pipe.process, pipe.parameterization.registry_name) == (PATHS[path], OUTPUTS[prediction])
    assert pipe.t_max == (0.999 if path != "VP" and prediction != "velocity" else 1)
    assert pipe.defaults["sampler"] == {"name": "heun"}
    denoiser, x = pipe.denoiser(), sit.tensors["in.x"][:2]
    for t in (0.15, 0.6, 0.97):  # in SiT's time
        alpha, sigma, d_alpha, d_sigma = sit_path(path, t)
        out = pipe.backbone(x, torch.tensor([t, t]), pipe.backbone.embed(torch.tensor([1, 2])))
        if prediction == "velocity":  # alpha' x0 + sigma' eps and alpha x0 + sigma eps, for x0
            x0 = (d_sigma * x - sigma * out) / (d_sigma * alpha - d_alpha * sigma)
        else:
            x0 = (x - sigma * (out if prediction == "noise" else -sigma * out)) / alpha
        ours = denoiser(x, 1 - t, denoiser.condition([1, 2], 2)).x0
        assert relative_error(ours, x0) < 1e-4, t
    images = pipe([1, 2], steps=3, output_type="latent").images
    assert bool(images.isfinite().all())


class Exact:
    """The golden mixture as SiT's network: of x and SiT's time, its noise, score or velocity."""

    in_channels = out_channels = 1
    dtype = torch.float64

    def __init__(self, case: Golden, process: Any, prediction: str) -> None:
        self.mixture, self.prediction = case.mixture(process), prediction
        self.num_classes = self.mixture.num_classes
        self.in_channels = self.out_channels = case["in.x_init"].shape[1]

    def embed(self, labels: Tensor) -> Tensor:
        return labels[:, None].double()

    def __call__(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        assert noise_label.unique().numel() == 1
        labels = cond.flatten().long()
        d = self.mixture(x, 1 - noise_label[0].double(), self.mixture.condition(labels, len(labels)))
        return {"noise": d.eps, "score": d.score, "velocity": -d.velocity}[self.prediction]


@pytest.mark.parametrize("file", sorted(SAMPLERS_GOLDEN.glob("sit_ode_*_euler.safetensors")), ids=lambda f: f.stem)
def test_reversed_outputs_run_sits_golden_trajectories(file: Path) -> None:
    case = Golden(file)
    process, prediction = PATHS[case.kwargs["path_type"]], case.kwargs["prediction"]
    output = PARAMETERIZATIONS.create(OUTPUTS[prediction])
    times = 1 - case["sched.t_grid"]
    denoiser = BackboneDenoiser(Exact(case, process, prediction), process, output, float(times[0]))
    ours = case.run(Euler(), denoiser, times, end="state")
    assert error(ours, case["out.trajectory"]) < 1e-6  # the stub's time is float32


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (Namespace(path_type="Foo"), "args.path_type = 'Foo'.*linear, gvp, vp.*--process"),
        (Namespace(path_type=3), "args.path_type = 3"),
        (Namespace(prediction="x0"), "args.prediction = 'x0'.*velocity, noise, score.*--parameterization"),
        (Namespace(path_type="linear", prediction="v"), "args.prediction = 'v'"),  # REPA's SiT: its time runs back
        ({"path_type": "x" * 10_000}, "args.path_type = 'x{99}[.]{3}, unknown"),
        ({"transport": {"path_type": "cosine"}}, "args.transport.path_type = 'cosine'"),
    ],
    ids=str,
)
def test_unknown_paths_and_predictions_are_refused(args: Any, named: str, tmp_path: Path) -> None:
    state, given = golden("sit").state, {"options": {"num_heads": 4}, "layout": "sit"}
    with pytest.raises(ValueError, match=named):
        converted(state, tmp_path, args, **given)
    _, pipe = converted(state, tmp_path, args, process="gvp", parameterization="reversed-velocity", **given)
    assert pipe.process == GVP()


# --- where the arguments stand, and as what ---

PLACES: dict[str, tuple[str, Any]] = {
    "namespace": ("args", Namespace(path_type="GVP", prediction="noise")),
    "dict": ("args", {"path_type": "GVP", "prediction": "noise", "lr": 1e-4, "ckpt": None}),
    "nested": ("config", {"transport": {"path_type": "GVP", "prediction": "noise"}, "data": {"num_classes": "10"}}),
    "namespace in a dict": ("hyper_parameters", {"args": Namespace(path_type="GVP", prediction="noise")}),
    "hyphens": ("args", {"path-type": "gvp", "Prediction": " noise "}),
    "args.json": ("file", {"path_type": "GVP", "prediction": "noise"}),
    "config.yaml": ("file", {"transport": {"path_type": "GVP", "prediction": "noise"}}),
    "hparams.yaml": ("file", {"model": {"path_type": "GVP", "prediction": "noise"}}),
    ".hydra/config.yaml": ("file", {"transport": {"path_type": "GVP", "prediction": "noise"}}),
}


def write(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content) if file.suffix == ".json" else yaml.safe_dump(content))


@pytest.mark.parametrize("place", PLACES)
def test_arguments_are_read_wherever_they_stand(place: str, tmp_path: Path) -> None:
    entry, args = PLACES[place]
    if entry == "file":
        write(tmp_path / place, args)
        entry, args = "args", None
    _, pipe = converted(
        golden("sit").state, tmp_path, args, entry=entry, layout="sit", options={"num_heads": 4, "num_classes": 10}
    )
    assert (pipe.process, pipe.parameterization.registry_name) == (GVP(), "reversed-epsilon")


def test_a_runs_folder_has_its_configuration_one_up(tmp_path: Path) -> None:
    write(tmp_path / "config.yaml", {"transport": {"path_type": "VP"}})
    torch.save(golden("sit").state, tmp_path / "x.pt")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "x.pt").rename(tmp_path / "checkpoints" / "x.pt")
    made = convert(tmp_path / "checkpoints" / "x.pt", tmp_path / "p", layout="sit", options={"num_heads": 4})
    assert Pipeline.from_pretrained(made.folder).process == VP()


def test_python_objects_in_hparams_are_not_made(tmp_path: Path) -> None:
    text = "model: !!python/object:argparse.Namespace\n  path_type: GVP\nx: !!python/name:os.system ''\n"
    (tmp_path / "hparams.yaml").write_text(text)
    found = RunArguments.of({}, Path(__file__).rename if False else tmp_path / "hparams.yaml").get("path_type")
    assert str(found) == "hparams.yaml: model.path_type = 'GVP'"


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"config.json": {"path_type": "VP"}}, "args.path_type = 'GVP', but config.json: path_type = 'VP'"),
        ({"config.yaml": {"model": {"path_type": "Linear"}}}, "config.yaml: model.path_type = 'Linear'"),
        ({"args.json": "{"}, "args.json cannot be read"),
        ({"config.yaml": "a: [1"}, "config.yaml cannot be read"),
    ],
)
def test_two_places_that_disagree_or_damaged_files_are_refused(
    files: dict[str, Any], named: str, tmp_path: Path
) -> None:
    for name, content in files.items():
        if isinstance(content, str):
            (tmp_path / name).write_text(content)
        else:
            write(tmp_path / name, content)
    with pytest.raises(ValueError, match=named):
        converted(golden("sit").state, tmp_path, {"path_type": "GVP"}, layout="sit", options={"num_heads": 4})


@pytest.mark.parametrize(
    "content",
    [{"vae": {"path_type": "Foo"}, "optimizer": {"num_classes": 3}}, ["path_type"], "text", {"path_typ": "VP"}, 3],
    ids=str,
)
def test_what_is_no_argument_of_the_network_changes_nothing(content: Any, tmp_path: Path) -> None:
    write(tmp_path / "config.json", content)
    _, pipe = converted(golden("sit").state, tmp_path, layout="sit", options={"num_heads": 4})
    assert (pipe.process, pipe.num_classes) == (LinearFlow(), 10)


def test_entries_of_a_checkpoint_that_hold_arguments() -> None:
    tensor = torch.ones(1)
    content = {
        "args": Namespace(a=1),
        "config": {"b": 2},
        "options": {"c": tensor},
        "hparams": 3,
        "ema": {"d": tensor},
    }
    assert run_arguments(content) == {"a": 1, "config": {"b": 2}}
    assert not RunArguments.of(run_arguments({"model": {}}), Path("x.pt"))


# --- labels ---


def stated(**args: Any) -> RunArguments:
    return RunArguments.of(args, Path("x.pt"))


@pytest.mark.parametrize(
    ("rows", "args", "options", "expected"),
    [
        (1001, {}, {}, (1000, True)),
        (1000, {}, {}, (1000, False)),
        (11, {}, {}, (10, True)),
        (8, {}, {}, (7, True)),
        (1, {}, {}, (0, True)),
        (10, {"num_classes": 10}, {}, (10, False)),
        (10, {"num_classes": "9"}, {}, (9, True)),
        (10, {"num_classes": 10.0, "class_dropout_prob": 0}, {}, (10, False)),
        (10, {"class_dropout_prob": "0.0"}, {}, (10, False)),
        (10, {"class_dropout_prob": 0.1}, {}, (9, True)),
        (1000, {"num_classes": 999}, {}, (999, True)),
        (1001, {"num_classes": 1001, "label_dropout": 0}, {}, (1001, False)),
        (1001, {"num_classes": None, "data": {"num_classes": 1000}}, {}, (1000, True)),
        (10, {"num_classes": 3}, {"null_class": False}, (10, False)),
        (10, {}, {"null_class": True}, (9, True)),
        (10, {}, {"num_classes": 10}, (10, False)),
        (10, {}, {"num_classes": 9}, (9, True)),
    ],
    ids=str,
)
def test_labels_of_a_table(rows: int, args: Any, options: Any, expected: tuple[int, bool]) -> None:
    labels = read_labels(rows, stated(**args), options, null_row=True)
    assert (labels.num_classes, labels.null_class) == expected
    undecided = not args and not options and rows not in (1, 1001)
    assert bool(labels.notes) == undecided
    assert labels.doubtful == (undecided and rows == 8)


@pytest.mark.parametrize(
    ("rows", "args", "options", "named"),
    [
        (10, {}, {}, "table has 10 rows, .*null_class=true .9 classes.*null_class=false .10 classes"),
        (100, {}, {}, "table has 100 rows"),
        (1001, {"num_classes": 100}, {}, "args.num_classes = 100, but the label table has 1001 rows"),
        (
            11,
            {"num_classes": 10, "class_dropout_prob": 0},
            {},
            "args.num_classes = 10 and args.class_dropout_prob = 0",
        ),
        (10, {"num_classes": 10, "class_dropout_prob": 0.1}, {}, "args.class_dropout_prob = 0.1, but"),
        (10, {"num_classes": "ten"}, {}, "args.num_classes = 'ten', which must be a whole number"),
        (10, {"num_classes": 9.5}, {}, "args.num_classes = 9.5"),
        (10, {"num_classes": True}, {}, "args.num_classes = True"),
        (10, {"class_dropout_prob": 3}, {}, r"args.class_dropout_prob = 3, which must be a fraction in \[0, 1\]"),
        (10, {}, {"num_classes": 8}, "num_classes = 8 was given, but the label table has 10 rows"),
        (10, {}, {"num_classes": 9, "null_class": False}, "num_classes = 9 and null_class = False was given"),
        (10, {}, {"null_class": "no"}, "null_class is true or false, got 'no'"),
    ],
    ids=str,
)
def test_labels_that_nothing_decides_or_that_disagree(rows: int, args: Any, options: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named) as caught:
        read_labels(rows, stated(**args), options, null_row=True)
    for advice in re.findall(r"--option (null_class=\w+)", str(caught.value)):  # each of them decides
        assert isinstance(read_labels(rows, stated(**args), parse_options([advice]), null_row=True), Labels)


def test_labels_of_programs_without_a_null_label() -> None:
    assert read_labels(10, stated(), {}, null_row=False) == Labels(10, False)
    assert read_labels(1001, stated(), {}, null_row=False) == Labels(1000, True)
    assert "null_class=true" in read_labels(11, stated(), {}, null_row=False).notes[0]
    assert read_labels(1000, stated(), {}, null_row=True, certain=True) == Labels(999, True)
    assert read_labels(1, stated(), {}, null_row=True, lone_null=False) == Labels(1, False)


def test_a_doubtful_reading_of_labels_is_a_warning(tmp_path: Path) -> None:
    given: dict[str, Any] = {"layout": "sit", "options": {"num_heads": 4}}
    with pytest.warns(
        UserWarning,
        match=r"weights.pt: its label table has 7 rows, read as 6 classes and the null label.*null_class=false",
    ):
        converted(golden("sit_nosigma").state, tmp_path, **given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, pipe = converted(golden("sit_nosigma").state, tmp_path, {"num_classes": 7}, **given)
    assert (pipe.num_classes, pipe.backbone.null_class) == (7, False)


def test_a_network_of_another_class_that_was_trained_as_sit_is(tmp_path: Path) -> None:
    args = {"model": "DiT-XL/2", "transport": {"path_type": "GVP"}}
    made, pipe = converted(golden("dit_sigma").state, tmp_path, args, options={"num_heads": 4})
    assert made.recognised.name == "dit"
    assert (pipe.process, pipe.parameterization.registry_name) == (GVP(), "reversed-velocity")
    assert pipe.defaults["sampler"] == {"name": "heun"}
    made, _ = converted(golden("dit_sigma").state, tmp_path, args, options={"num_heads": 4}, layout="sit")
    assert any(
        "args.model = 'DiT-XL/2' is of backbone 'dit', and it was read as 'sit'" in one for one in made.notes
    )


WITHOUT_NULL = [
    "dit_sigma",
    "sit",
    "lightningdit_xl1flags",
    "diffit_latent",
    "dic_h",
    "dico",
    "dis_cond",
    "dimr_3r",
]


@pytest.mark.parametrize("name", WITHOUT_NULL)
@torch.no_grad()
def test_a_network_without_a_null_label_keeps_its_last_class(name: str, tmp_path: Path) -> None:
    file = golden(name)
    layout = file.layout
    assert layout is not None
    table = re.compile(str(layout.label_table).replace("01", "0-9").replace(r"ls\.0", r"ls\.\d"))
    state = {key: tensor[:-1] if table.fullmatch(key) else tensor for key, tensor in file.state.items()}
    shorter = [key for key in state if state[key].shape != file.state[key].shape]
    rows = len(state[shorter[0]])
    untold = file.build().config
    args = {"num_classes": rows, "class_dropout_prob": 0} if name != "dimr_3r" else {"p_uncond": 0}
    given: dict[str, Any] = {"layout": layout.registry_name, "options": {}}
    given["options"] = {key: untold[key] for key in ("num_heads", "skip_stride") if key in untold}
    given["options"] |= {"image_size": file.tensors["in.x"].shape[-1]}
    made, pipe = converted(state, tmp_path, args, **given)
    assert (pipe.num_classes, pipe.backbone.null_class, made.arguments["null_class"]) == (rows, False, False)
    x, t, last = file.tensors["in.x"][:1], file.tensors["in.t"][:1], torch.tensor([rows - 1])
    theirs = file.build()
    ours = pipe.backbone(x, t, pipe.backbone.embed(last))
    assert torch.equal(ours, theirs(x, t, theirs.embed(last)))
    assert not pipe.guidance
    with pytest.raises(ValueError, match="null class"):
        pipe([rows - 1], steps=2, guidance_scale=2.0, output_type="latent")
    with pytest.raises(ValueError, match=r"without a null class|labels"):
        pipe(num_images=1, steps=2, output_type="latent")
    assert pipe([rows - 1], steps=2, output_type="latent").images.isfinite().all()


# --- sizes ---


@pytest.mark.parametrize(
    ("name", "args", "named"),
    [
        (
            "dit_sigma",
            {"model": "DiT-XL/2"},
            "args.model = 'DiT-XL/2', which has hidden_size = 1152, but its tensors",
        ),
        ("dit_sigma", {"depth": 12}, "args.depth = 12, but its tensors have depth = 3"),
        ("dit_sigma", {"image_size": 512}, "args.image_size = 512, 64 for its latents, but its tensors .* for 8"),
        ("dit_sigma", {"input_size": 16}, "args.input_size = 16, but its tensors"),
        ("dit_sigma", {"learn_sigma": False}, "args.learn_sigma = False, but its tensors have learn_sigma = True"),
        ("dit_sigma", {"num_classes": 100}, "args.num_classes = 100, but the label table has 11 rows"),
        ("dit_sigma", {"patch_size": "4"}, "args.patch_size = 4, but its tensors have patch_size = 2"),
        ("dit_sigma", {"image_size": "big"}, "args.image_size = 'big', which must be a whole number"),
        ("lightningdit_xl1flags", {"model": {"use_qknorm": True}}, "args.model.use_qknorm = True, but its tensors"),
        (
            "dic_h",
            {"mult_channels": [1, 2, 2, 2, 1]},
            r"args.mult_channels = \[1, 2, 2, 2, 1\], which|but its tensors",
        ),
        ("dis_cond", {"d_state": 8}, "args.d_state = 8, which has states = 8|args.d_state = 8, but"),
        ("adm_cond_neworder", {"num_channels": 64}, "args.num_channels = 64, but its tensors have channels = 32"),
        ("adm_cond_neworder", {"channel_mult": "1,2"}, r"args.channel_mult = '1,2', which has .*\(1, 2\), but"),
        (
            "adm_cond_neworder",
            {"class_cond": "False"},
            "args.class_cond = False, but its tensors have num_classes = 5",
        ),
        ("adm_cond_neworder", {"channel_mult": "1,x"}, "args.channel_mult = '1,x', which must be numbers"),
    ],
    ids=str,
)
def test_arguments_and_tensors_that_disagree_are_both_named(
    name: str, args: Any, named: str, tmp_path: Path
) -> None:
    file = golden(name)
    assert file.layout is not None
    given: dict[str, Any] = {"layout": file.layout.registry_name}
    with pytest.raises(ValueError, match=named) as caught:
        converted(file.state, tmp_path, args, **given)
    advice = re.findall(r"--option ((?!num_classes)\w+=(?:\[[^]]*\]|[\w.]+))", str(caught.value))
    untold = file.build().config
    heads = {
        key: untold[key] for key in ("num_heads", "head_dim", "decoder_heads", "attention_order") if key in untold
    }
    for text in advice[:1]:
        converted(file.state, tmp_path, args, options={**heads, **parse_options([text])}, **given)


@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        ("dit_sigma", {"num_heads": 4, "image_size": 64, "num_classes": 10, "depth": "3"}, {"num_heads": 4}),
        ("dit_sigma", {"config": {"model": {"num_heads": 4, "hidden_size": 48.0}}}, {"num_heads": 4}),
        ("dit_sigma", {"input_size": 8, "num_heads": 4}, {"image_size": 8}),
        ("lightningdit_layernorm_gelu", {"model": {"num_heads": 4, "use_swiglu": "False"}}, {"use_swiglu": False}),
        ("dic_h", {"image_size": 64, "skip_stride": 3}, {"image_size": 8}),
        ("dico", {"image_size": 128}, {"image_size": 16}),
        ("dico", {"latent_size": 4}, {"image_size": 4}),
        ("lightningdit_xl1flags", {"model": {"num_heads": 4, "use_rmsnorm": True}}, {"num_heads": 4}),
        (
            "adm_cond_neworder",
            {"num_head_channels": 8, "num_heads": 4, "num_heads_upsample": -1, "use_new_attention_order": True}
            | {
                "image_size": 8,
                "attention_resolutions": "8,4",
                "channel_mult": "1,1",
                "resblock_updown": "True",
                "class_cond": True,
            },
            {"head_dim": 8, "attention_order": "qkv-first", "image_size": 8, "decoder_heads": None},
        ),
    ],
    ids=str,
)
@torch.no_grad()
def test_arguments_give_what_the_tensors_do_not(name: str, args: Any, expected: Any, tmp_path: Path) -> None:
    file = golden(name)
    assert file.layout is not None
    made, pipe = converted(file.state, tmp_path, args, layout=file.layout.registry_name)
    assert {key: made.arguments[key] for key in expected} == expected
    given = file.tensors
    out = pipe.backbone(given["in.x"], given["in.t"], pipe.backbone.embed(given["in.y"]))
    channels = given["out.sample"].shape[1]
    assert relative_error(out[:, :channels], given["out.sample"]) <= file.tolerance
    assert not any("image_size is assumed" in note for note in made.notes) or "image_size" not in expected


@pytest.mark.parametrize(
    ("backbone", "model", "sizes"),
    [
        ("dit", "DiT-XL/2", {"hidden_size": 1152, "depth": 28, "num_heads": 16, "patch_size": 2}),
        ("sit", "SiT-S/8", {"hidden_size": 384, "depth": 12, "num_heads": 6, "patch_size": 8}),
        ("lightningdit", "LightningDiT-XL/1", {"hidden_size": 1152, "depth": 28, "num_heads": 16, "patch_size": 1}),
        ("dis", "DiS-H/2", {"embed_dim": 1536, "depth": 48, "patch_size": 2}),
        ("dico", "DiCo-S", {"hidden_size": 128, "depth": (5, 4, 4, 4, 4)}),
        ("dit", "SiT-XL/2", {}),
        ("dit", "my-model", {}),
        ("dit", 3, {}),
    ],
)
def test_a_named_size_fixes_sizes_alone(backbone: str, model: Any, sizes: Any) -> None:
    """Flags, channels and classes are arguments of their own, with which the same size is trained."""
    claims = size_claims(stated(model=model), backbone)
    assert {claim.argument: claim.value for claim in claims} == sizes


# --- chains of betas, score_sde ---


@pytest.mark.parametrize(
    ("args", "process", "output"),
    [
        ({}, {"schedule": "linear"}, "epsilon"),
        ({"noise_schedule": "cosine"}, {"schedule": "cosine"}, "epsilon"),
        ({"noise_schedule": "squaredcos_cap_v2", "diffusion_steps": "4000"}, {"num_steps": 4000}, "epsilon"),
        ({"predict_xstart": True, "diffusion_steps": 1000, "rescale_timesteps": True}, {"num_steps": 1000}, "x0"),
        ({"predict_xstart": "False"}, {"num_steps": 1000}, "epsilon"),
        ({"diffusion": {"prediction_type": "v_prediction"}}, {}, "v"),
        ({"prediction": "v"}, {}, "v"),
        ({"prediction": "velocity"}, "args.prediction = 'velocity', unknown", None),
        ({"noise_schedule": "sqrt"}, "args.noise_schedule = 'sqrt', unknown", None),
        ({"predict_xstart": "maybe"}, "args.predict_xstart = 'maybe', which must be true or false", None),
        (
            {"diffusion_steps": 4000, "rescale_timesteps": True},
            "args.diffusion_steps = 4000 and rescale_timesteps",
            None,
        ),
        ({"parameterization": "flow"}, "args.parameterization = 'flow', unknown", None),
    ],
    ids=str,
)
def test_chains_of_betas(args: Any, process: Any, output: str | None, tmp_path: Path) -> None:
    state, given = golden("dit_sigma").state, {"options": {"num_heads": 4}}
    if output is None:
        with pytest.raises(ValueError, match=process):
            converted(state, tmp_path, args, **given)
        return
    _, pipe = converted(state, tmp_path, args, **given)
    assert {key: getattr(pipe.process, key) for key in process} == process
    assert pipe.parameterization.registry_name == output
    assert pipe.defaults["steps"] == 250


@pytest.mark.parametrize(
    ("training", "model", "process"),
    [
        ({"sde": "vesde", "continuous": False}, {"num_scales": 40}, {"name": "ve-discrete"}),
        ({"sde": "VESDE"}, {}, {"name": "ve-discrete"}),
        ({"sde": "vpsde"}, {}, "training.sde = 'vpsde', but layout 'ncsnpp-ve-discrete' .*--layout ncsnpp-vp"),
        ({"sde": "edm"}, {}, "training.sde = 'edm', unknown"),
        (
            {"sde": "vesde"},
            {"num_scales": "many"},
            "model.num_scales = 'many', but its tensors have",
        ),
        ({"sde": "vesde"}, {"nf": 128, "num_scales": 40}, "model.nf = 128, but its tensors have channels = 12"),
        ({"sde": "vesde"}, {"sigma_max": 90}, "model.sigma_max = 90, but its tensors have sigma_max = "),
    ],
    ids=str,
)
def test_score_sdes_configuration(training: Any, model: Any, process: Any, tmp_path: Path) -> None:
    file = golden("ncsnpp_ve_discrete")
    write(tmp_path / "config.yaml", {"training": training, "model": model, "data": {"image_size": 16}})
    given: dict[str, Any] = {"options": {"fir": file.build().config["fir"]}}
    if isinstance(process, str):
        with pytest.raises(ValueError, match=process):
            converted(file.state, tmp_path, layout="ncsnpp-ve-discrete", **given)
        return
    made, pipe = converted(file.state, tmp_path, **given)
    assert made.recognised.name == "ncsnpp-ve-discrete"
    assert "training.sde" in made.recognised.evidence
    assert pipe.process.to_config().items() >= process.items()
    assert pipe.process.num_steps == len(file.state["sigmas"]) == 40, "the state's own levels"


# --- LightningDiT's configuration ---

LIGHTNING = {
    "ckpt_path": None,
    "data": {"data_path": "/d", "image_size": 96, "num_classes": 10, "latent_norm": True, "latent_multiplier": 2.0},
    "vae": {"model_name": "vavae_f16d32", "downsample_ratio": 16},
    "model": {
        "model_type": "LightningDiT",
        "use_qknorm": False,
        "use_swiglu": True,
        "use_rope": True,
        "in_chans": 8,
    }
    | {"use_rmsnorm": True, "wo_shift": False, "num_heads": 4},
    "train": {"max_steps": 80000, "global_batch_size": 1024},
    "optimizer": {"lr": 0.0002, "beta2": 0.95},
    "transport": {"path_type": "Linear", "prediction": "velocity", "loss_weight": None, "use_cosine_loss": True},
    "sample": {"mode": "ODE", "sampling_method": "euler", "num_sampling_steps": 250, "cfg_scale": 6.7},
}


def test_lightningdits_configuration_and_latent_statistics(tmp_path: Path) -> None:
    file = golden("lightningdit_xl1flags")
    write(tmp_path / "config.yaml", LIGHTNING)
    made, pipe = converted(file.state, tmp_path)
    assert (pipe.process, pipe.num_classes, made.arguments["num_heads"]) == (LinearFlow(), 10, 4)
    assert pipe.defaults["steps"] == 249
    assert any("latents_stats.pt" in note for note in made.notes)
    mean, std = torch.linspace(-1, 1, 8), torch.linspace(1, 2, 8)
    torch.save({"mean": mean.reshape(1, 8, 1, 1), "std": std.reshape(1, 8, 1, 1)}, tmp_path / "latents_stats.pt")
    made, pipe = converted(file.state, tmp_path)
    stored = pipe.config["latent_normalization"]
    assert stored["mean"] == pytest.approx(mean.tolist())
    assert stored["std"] == pytest.approx((std / 2).tolist())
    assert not any("latents_stats.pt" in note for note in made.notes)
    for wrong, named in (({"mean": mean}, "no std of 8"), ({"mean": mean[:4], "std": std}, "no mean of 8")):
        torch.save(wrong, tmp_path / "latents_stats.pt")
        with pytest.raises(ValueError, match=named):
            converted(file.state, tmp_path)
    torch.save({"mean": mean, "std": -std}, tmp_path / "latents_stats.pt")
    with pytest.raises(ValueError, match="std that is not positive"):
        converted(file.state, tmp_path)
    write(tmp_path / "config.yaml", LIGHTNING | {"data": {"latent_norm": "False"}})
    _, pipe = converted(file.state, tmp_path)
    assert pipe.config["latent_normalization"] is None


# --- config.json of a folder of diffusers ---


@pytest.mark.parametrize(
    ("edits", "named"),
    [
        ({}, None),
        ({"num_attention_heads": "4", "sample_size": 8.0}, None),
        ({"num_layers": "2", "in_channels": 4.0, "out_channels": "8"}, None),
        ({"norm_num_groups": None, "dropout": 0.0, "num_vector_embeds": None}, None),
        ({"sample_size": "big"}, "config.json: sample_size = 'big', which must be a whole number"),
        ({"sample_size": [8, 8]}, r"config.json: sample_size = \[8, 8\]"),
        ({"num_attention_heads": None}, "config.json: num_attention_heads = None"),
        ({"num_layers": 3}, "gives depth = 3, but its tensors have depth = 2"),
        ({"attention_head_dim": 8}, "gives hidden_size = 32, but its tensors have hidden_size = "),
        ({"num_embeds_ada_norm": 11}, "gives num_classes = 11, but its tensors have num_classes = 10"),
        ({"activation_fn": "geglu"}, "activation_fn = 'geglu'"),
    ],
    ids=str,
)
@torch.no_grad()
def test_a_folders_config_is_compared_with_its_tensors(edits: Any, named: str | None, tmp_path: Path) -> None:
    file = golden("diffusers_dit")
    write(tmp_path / "config.json", {**file.arguments, "_class_name": "DiTTransformer2DModel", **edits})
    save_file(file.state, tmp_path / "diffusion_pytorch_model.safetensors")
    if named:
        with pytest.raises(ValueError, match=named):
            convert(tmp_path, tmp_path / "p")
        return
    convert(tmp_path, tmp_path / "p")
    pipe, given = Pipeline.from_pretrained(tmp_path / "p"), file.tensors
    out = pipe.backbone(given["in.x"], given["in.t"], pipe.backbone.embed(given["in.y"]))
    assert relative_error(out, given["out.sample"]) <= file.tolerance


# --- by chance ---

TREE = {
    "model": "SiT-S/2",
    "path_type": "GVP",
    "prediction": "noise",
    "num_classes": 10,
    "class_dropout_prob": 0.1,
    "image_size": 64,
    "config": {"transport": {"path_type": "GVP"}, "model": {"depth": 3, "num_heads": 4}},
}


def test_edited_arguments_are_read_right_or_refused(tmp_path: Path) -> None:
    torch.save({"ema": golden("sit").state, "args": TREE}, tmp_path / "x.pt")
    checkpoint, refused = read_checkpoint(tmp_path / "x.pt"), 0
    sit = Recognised("sit", "it was given")
    for what, tree in edited(3, TREE):
        try:
            run = RunArguments.of(run_arguments({"args": tree}), tmp_path / "x.pt")
            arguments, _ = backbone_arguments(sit, checkpoint, run, {"num_heads": 4})
            process, _ = _trained_on(sit.layout, checkpoint, run, arguments, None, None)
        except ValueError as problem:
            refused += 1
            assert 20 < len(str(problem)) < 1500, what
            assert re.search(r"args\.|config\.|label table", str(problem)), (what, problem)
            continue
        assert arguments["depth"] == 3, what
        assert (arguments["num_classes"], arguments["null_class"]) == (10, True), what
        kept = any(one.get("path_type") == "GVP" for one in (tree, *_groups(tree)))
        assert process["name"] == "gvp" if kept else process["name"] in ("flow", "gvp", "vp"), what
    assert 5 < refused < 55


def _groups(tree: Mapping[str, Any]) -> list[Any]:
    inner = [one for one in tree.values() if isinstance(one, dict)]
    return inner + [deeper for one in inner for deeper in _groups(one)]
