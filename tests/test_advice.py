"""What an error advises works where it is shown: the call that fails, the words, and the call that follows them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dinit.cli import main
from dinit.diffusion import PROCESSES
from dinit.pipelines.generate import Pipeline
from dinit.samplers import SAMPLERS, compare
from dinit.samplers.guidance import CFG, Autoguidance, Classifier
from dinit.training.batches import Share

ONE = "--classes 0 --per-class 1 --steps 2"
COMMANDS = [
    # what fails, what is advised, what does it
    (
        "generate digits-dico --classes seven --overwrite",
        "known: 0, 1, 2",
        f"generate digits-dico {ONE} --overwrite",
    ),
    (
        "generate digits-dico --classes 11 --overwrite",
        "known: 0, 1, 2",
        "generate digits-dico --classes 9 --steps 2 --overwrite",
    ),
    (f"generate digits-dico {ONE}", "allow it with --overwrite", f"generate digits-dico {ONE} --overwrite"),
    (f"generate digits-dico {ONE} --out s.jpg", "must end in .png", f"generate digits-dico {ONE} --out s.png"),
    (
        f"generate digits-dico {ONE} --trajectory t.png --overwrite",
        "must end in .gif or .webp",
        f"generate digits-dico {ONE} --trajectory t.gif --overwrite",
    ),
    ("generate digits-dicoo --overwrite", "did you mean 'digits-dico'", f"generate digits-dico {ONE} --overwrite"),
    (
        f"generate digits-dico {ONE} --sampler huen --overwrite",
        "did you mean 'heun'",
        f"generate digits-dico {ONE} --sampler heun --overwrite",
    ),
    (
        f"generate digits-dico {ONE} --sampler ddim:eta=3 --overwrite",
        "eta must be in [0, 1] (0 is DDIM, 1 is DDPM)",
        f"generate digits-dico {ONE} --sampler ddim:eta=1 --overwrite",
    ),
    (
        f"generate digits-dico {ONE} --sampler ddpm:variance=learned-range --overwrite",
        "choose 'fixed-small' or 'fixed-large'",
        f"generate digits-dico {ONE} --sampler ddpm:variance=fixed-large --overwrite",
    ),
    (
        f"generate digits-dico {ONE} --sampler heun --guidance cfg++:scale=1 --overwrite",
        "samplers that use it: ddim",
        f"generate digits-dico {ONE} --sampler ddim --guidance cfg++:scale=1 --overwrite",
    ),
    (
        f"generate digits-dico {ONE} --sampler-option eta --overwrite",
        "read KEY=VALUE",
        f"generate digits-dico {ONE} --sampler ddim --sampler-option eta=0.5 --overwrite",
    ),
    (
        "generate digits-dico --classes 0 --per-class 1 --grid times:values=[0.2,0.1] --overwrite",
        "a grid that starts near t = 1",
        "generate digits-dico --classes 0 --per-class 1 --grid times:values=[0.99,0.1] --overwrite",
    ),
    (
        "generate digits-dico --classes 0 --steps 5 --grid times:values=[0.99,0.1] --overwrite",
        "2 times, got steps = 5",
        "generate digits-dico --classes 0 --steps 2 --grid times:values=[0.99,0.1] --overwrite",
    ),
    (
        "generate digits-dico --classes 0 --steps 3000 --grid timesteps --overwrite",
        "do not fit in the 1000 timesteps",
        "generate digits-dico --classes 0 --per-class 1 --steps 20 --grid timesteps --overwrite",
    ),
    (
        "generate digits-dico --labels 1,2 --classes 0 --overwrite",
        "give one of them",
        "generate digits-dico --labels 1,2 --steps 2 --overwrite",
    ),
    (
        "generate digits-dico --out set --num-images 3 --out-dir x",
        "leave them out",
        "generate digits-dico --out set --num-images 3 --steps 2",
    ),
    (
        "generate digits-dico --class-order foo --num-images 4 --out set",
        "known: balanced, random, none",
        "generate digits-dico --class-order random --num-images 4 --out set --steps 2",
    ),
    (
        f"generate digits-dico {ONE} --dtype float8 --overwrite",
        "float32, bfloat16, float16",
        f"generate digits-dico {ONE} --dtype bfloat16 --overwrite",
    ),
    (
        "evaluate digits-dico --num-samples 2 --steps 1",
        "--num-samples must be at least 8",
        "evaluate digits-dico --num-samples 8 --steps 1 --metrics fid",
    ),
    (
        "evaluate digits-dico --num-samples 8 --steps 1 --metrics fdi",
        "did you mean 'fid'",
        "evaluate digits-dico --num-samples 8 --steps 1 --metrics fid",
    ),
    (
        "evaluate digits-dico --num-samples 8 --steps 1 --features digits-classifier --protocol adm",
        "leave one of the two out",
        "evaluate digits-dico --num-samples 8 --steps 1 --features digits-classifier --metrics fid",
    ),
    (
        "evaluate digits-dico --num-samples 8 --steps 1 --features inception-v3",
        "--metrics memorisation,pixels needs no features",
        "evaluate digits-dico --num-samples 8 --steps 1 --metrics memorisation,pixels",
    ),
    (
        "evaluate digits-dico --num-samples 8 --steps 1 --reference no.npz --metrics fid",
        "`dinit stats` makes such a file",
        "stats digits --out no.npz",
    ),
    ("export digits-dit --format diffusres --to out", "did you mean 'diffusers'", None),
    ("train --data digits", "give a recipe, or --init-from PIPELINE and --data FOLDER", None),
]


def run(line: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and error text, without the panel and its line breaks, of `dinit LINE`."""
    with pytest.raises(SystemExit) as stopped:
        main(shlex.split(line))
    text = re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().err)
    return int(stopped.value.code or 0), " ".join(text.split())


@pytest.mark.parametrize(("fails", "advice", "works"), COMMANDS, ids=[line for line, _, _ in COMMANDS])
def test_the_command_line_s_advice_works(
    fails: str,
    advice: str,
    works: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DINIT_INCEPTION_WEIGHTS", str(tmp_path / "none.pth"))
    Path("samples.png").touch()
    code, text = run(fails, capsys)
    assert (code, advice in text) == (2, True), text
    if works is not None:
        assert run(works, capsys)[0] == 0


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    made = Pipeline.from_pretrained("digits-dico")
    made.set_progress_bar_config(disable=True)
    return made


def latents(pipe: Pipeline, *arguments: Any, **options: Any) -> torch.Tensor:
    return pipe(*arguments, output_type="latent", **{"steps": 2, **options}).images


NOISE = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Call = Callable[[Pipeline], Any]
CALLS: list[tuple[Call, str, Call]] = [
    (lambda p: p([]), "give at least one, or None with num_images", lambda p: latents(p, None, num_images=1)),
    (lambda p: p([3], stepz=20), "did you mean 'steps'", lambda p: latents(p, [3])),
    (lambda p: p([3], 2), "name it", lambda p: latents(p, [3])),
    (lambda p: p([3], num_inference_steps=3, steps=2), "give one of them", lambda p: latents(p, [3])),
    (
        lambda p: p([3, 4], seed=[1]),
        "give one seed, or one for each of 2 images",
        lambda p: latents(p, [3, 4], seed=[1, 2]),
    ),
    (lambda p: p([3], seed=1, generator=torch.Generator()), "give one of them", lambda p: latents(p, [3], seed=1)),
    (
        lambda p: p([3], guidance=2.0, guidance_scale=3.0),
        "give one of them",
        lambda p: latents(p, [3], guidance_scale=3.0),
    ),
    (lambda p: p([3], output_type="pli"), "did you mean 'pil'", lambda p: p([3], steps=2, output_type="pil")),
    (lambda p: p([3], sampler=SAMPLERS["heun"]), r"call it, Heun\(\)", lambda p: latents(p, [3], sampler="heun")),
    (lambda p: p("dog"), "known: 0, 1, 2|classes", lambda p: latents(p, "3")),
    (
        lambda p: p([3], guidance="autoguidance"),
        r"Autoguidance\(scale, weak=weak_pipeline.denoiser\(\)\)",
        lambda p: latents(p, [3], guidance=Autoguidance(2.0, weak=p.denoiser())),
    ),
    (
        lambda p: p([3], guidance={"name": "classifier", "scale": 1.0}),
        r"Classifier\(scale, classifier=network\)",
        lambda p: latents(p, [3], guidance=Classifier(1.0, classifier=lambda x, t: x.flatten(1)[:, :10])),
    ),
    (
        lambda p: p.sampler.sample(p.denoiser([3]), NOISE, steps=2, end="stat"),
        "'posterior-mean' or 'state'",
        lambda p: p.sampler.sample(p.denoiser([3]), NOISE, steps=2, end="state"),
    ),
    (lambda p: p([3], prompt="a dog"), r"labels=\[207\]", lambda p: latents(p, labels=[7])),
    (
        lambda p: p([3], guidance_rescale=0.7),
        re.escape("guidance={'name': 'cfg', 'scale': 4, 'rescale': 0.7}"),
        lambda p: latents(p, [3], guidance={"name": "cfg", "scale": 4, "rescale": 0.7}),
    ),
    (
        lambda p: p([3], negative_class_labels=[2]),
        re.escape("guidance={'name': 'negative', 'label': 3}"),
        lambda p: latents(p, [5], guidance={"name": "negative", "label": 3}),
    ),
    (
        lambda p: p([3], use_clipped_model_output=True),
        "guidance='clip-x0'",
        lambda p: latents(p, [3], guidance="clip-x0"),
    ),
    (
        lambda p: p([3], timesteps=[1, 2]),
        "a tensor of decreasing times",
        lambda p: latents(p, [3], steps=None, grid=torch.tensor([0.99, 0.4])),
    ),
    (lambda p: CFG(-1.0), "must be >= 0", lambda p: CFG(0.0)),
    (
        lambda p: compare(p.denoiser([3]), NOISE, [3], ["ddim", "ddim"], steps=2),
        "a mapping",
        lambda p: compare(p.denoiser([3]), NOISE, [3], {"a": "ddim", "b": "ddim"}, steps=2),
    ),
    (lambda p: Share(10, parts=2, processes=3), "a multiple of", lambda p: Share(12, parts=2, processes=3)),
    (
        lambda p: PROCESSES.create("vp-descrete"),
        "did you mean 'vp-discrete'",
        lambda p: PROCESSES.create("vp-discrete"),
    ),
]


@pytest.mark.parametrize(("fails", "advice", "works"), CALLS)
def test_the_advice_of_an_exception_works(fails: Call, advice: str, works: Call, pipe: Pipeline) -> None:
    with pytest.raises((ValueError, TypeError), match=advice):
        fails(pipe)
    made = works(pipe)
    if isinstance(made, torch.Tensor):
        assert bool(made.isfinite().all())
