"""Correctness on a GPU: the same numbers as on the CPU, compiled and not, by kernels and without; no waiting."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from gpu_common import Job, Row, Setting
from torch import Tensor

from dinit.diffusion import PARAMETERIZATIONS, PROCESSES, BackboneDenoiser
from dinit.models.base import BACKBONES
from dinit.models.layers.scan import selective_scan
from dinit.pipelines.generate import Pipeline
from dinit.samplers import SAMPLERS, NoiseSource

CPU = torch.device("cpu")
PAIRS = {"vp-discrete": "epsilon", "edm": "edm", "flow": "velocity"}
CLOSE = 1e-3  # relative RMS between float32 on the device and on the CPU, TF32 off
STEPS = 8


def jobs(setting: Setting) -> list[Job]:
    return [
        Job("backbones, device against CPU", backbones, 20),
        Job("the selective scan", scan, 20),
        Job("samplers, device against CPU", samplers, 30),
        Job("waits for the device in sampling", waits_in_sampling, 15),
        Job("waits for the device in a pipeline's call", waits_in_a_call, 5),
        Job("waits for the device in training", waits_in_training, 15),
        Job("compiled against eager", compiled, 60),
    ]


def relative(found: Tensor, wanted: Tensor) -> float:
    """RMS of the difference, over the RMS of what is wanted; inf where something is not finite."""
    difference = found.detach().double().cpu() - wanted.detach().double().cpu()
    value = float(difference.square().mean().sqrt() / wanted.double().square().mean().sqrt().cpu())
    return value if value == value else float("inf")


@contextmanager
def exact_products() -> Iterator[None]:
    """TF32 off: convolutions use it on a GPU unless they are kept from it."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def tiny(name: str, device: torch.device, **overrides: Any) -> Any:
    """The smallest preset of a family, with the same random weights on every device."""
    torch.manual_seed(0)
    model: Any = BACKBONES[name].preset("tiny", **overrides).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.05, generator=generator)
    return model.to(device)


def summary(what: str, found: dict[str, float], limit: float) -> Iterator[Row]:
    """One row for all that hold, and one for each that does not."""
    wrong = {name: value for name, value in found.items() if not value <= limit}
    if found:
        worst = max(found, key=lambda name: found[name])
        figure = f"{len(found) - len(wrong)} of {len(found)}; largest {found[worst]:.1e} ({worst})"
        yield Row(what, figure, not wrong, f"relative RMS at most {limit:.0e}")
    for name, value in wrong.items():
        yield Row(f"{what}: {name}", f"{value:.1e}", False)


def backbones(setting: Setting) -> Iterator[Row]:
    """Output and gradients of every backbone."""
    outputs, gradients = {}, {}
    for name in BACKBONES:
        try:
            with exact_products():
                (a, ga), (b, gb) = (_output_and_gradients(name, device) for device in (CPU, setting.device))
            outputs[name], gradients[name] = relative(b, a), relative(gb, ga)
        except Exception as error:  # the other backbones are still of interest
            yield failed(f"backbone {name}", error)
    yield from summary("output of every backbone, device against CPU", outputs, CLOSE)
    yield from summary("gradient of every backbone, device against CPU", gradients, 10 * CLOSE)


def _output_and_gradients(name: str, device: torch.device) -> tuple[Tensor, Tensor]:
    model = tiny(name, device)
    x = torch.randn(3, model.in_channels, 8, 8, generator=torch.Generator().manual_seed(1)).to(device)
    label, labels = torch.tensor([417.0, 3.0, 900.0], device=device), torch.tensor([0, 3, 10], device=device)
    output = model(x, label, model.embed(labels))
    output.square().mean().backward()
    flat = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return output, torch.cat(flat)


def scan(setting: Setting) -> Iterator[Row]:
    """The selective scan on the device, in both directions, against float64 on the CPU."""
    from dinit.models.layers.scan import scan_backend

    values, gradients, code = {}, {}, set()
    for states, length, reverse in ((16, 256, False), (16, 77, True), (8, 64, False), (32, 100, True)):
        generator = torch.Generator().manual_seed(states)
        shapes = [(2, 40, length), (2, 40, length), (40, states), (2, states, length), (2, states, length), (40,)]
        given = [torch.randn(shape, generator=generator) for shape in shapes]
        given[1], given[2] = torch.nn.functional.softplus(given[1]), -given[2].exp()
        results = []
        for device, dtype in ((CPU, torch.float64), (setting.device, torch.float32)):
            leaves = [one.to(device, dtype).requires_grad_() for one in given]
            y = selective_scan(*leaves, reverse=reverse)
            y.square().sum().backward()
            results.append((y, torch.cat([leaf.grad.flatten() for leaf in leaves if leaf.grad is not None])))
            code.add(scan_backend(leaves[0]))
        name = f"{states} states, length {length}{', reversed' if reverse else ''}"
        values[name], gradients[name] = (relative(b, a) for a, b in zip(*results, strict=True))
    yield from summary(f"scan by {' and '.join(sorted(code))}, against float64", values, 1e-5)
    yield from summary("its gradients", gradients, 1e-4)


def _denoiser(process: str, device: torch.device) -> BackboneDenoiser:
    backbone = tiny("dit", device)
    return BackboneDenoiser(
        backbone, PROCESSES.create(process), PARAMETERIZATIONS.create(PAIRS[process]), _t_max(process)
    )


def _t_max(process: str) -> float:
    return 0.999 if process == "vp-discrete" else 1.0


def _trajectory(name: str, process: str, device: torch.device) -> Iterator[Any]:
    noise = NoiseSource.from_seed(3, 2).normal("start", 0, torch.zeros(2, 1, 8, 8)).to(device)
    denoiser = _denoiser(process, device)
    labels = torch.tensor([1, 2])
    return SAMPLERS.create(name).iterate(denoiser, noise, STEPS, labels=labels, seed=5)


def _walk(setting: Setting) -> Iterator[tuple[str, str]]:
    names = list(SAMPLERS)[::9] if setting.smoke else list(SAMPLERS)
    yield from ((name, process) for name in names for process in PAIRS)


@torch.no_grad()
def samplers(setting: Setting) -> Iterator[Row]:
    """The end of every sampler's run on three processes."""
    found: dict[str, float] = {}
    refused: list[str] = []
    with exact_products(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, process in _walk(setting):
            try:
                ends = [list(_trajectory(name, process, device))[-1].x_s for device in (CPU, setting.device)]
            except ValueError:  # the sampler does not run on this process
                refused.append(f"{name} on {process}")
                continue
            except Exception as error:  # the others are still of interest
                yield failed(f"sampler {name} on {process}", error)
                continue
            found[f"{name} on {process}"] = relative(ends[1], ends[0])
    yield from summary(f"every sampler × {', '.join(PAIRS)}, {STEPS} steps", found, 10 * CLOSE)
    if refused:
        yield Row("refused by the sampler", ", ".join(refused))


@contextmanager
def no_waits(setting: Setting) -> Iterator[None]:
    """A call that waits for the device raises. Without effect on a CPU."""
    if not setting.cuda:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@torch.no_grad()
def waits_in_sampling(setting: Setting) -> Iterator[Row]:
    """The loop of every sampler under set_sync_debug_mode('error'); adaptive samplers decide by the numbers."""
    fine, adaptive = 0, []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, process in _walk(setting):
            try:
                list(_trajectory(name, process, setting.device))  # a first run compiles kernels
                run = _trajectory(name, process, setting.device)  # what comes before the loop may wait
            except ValueError:
                continue
            except Exception as error:
                yield failed(f"sampler {name} on {process}", error)
                continue
            if SAMPLERS.create(name).claims().cost_depends_on == "state":
                adaptive.append(name)
                continue
            try:
                with no_waits(setting):
                    for _ in run:
                        pass
                fine += 1
            except RuntimeError as error:
                yield Row(f"the loop of {name} on {process} waits", one_line(error), False)
    what = "loops that never wait for the device" if setting.cuda else "loops (a CPU is not waited for)"
    yield Row(what, f"{fine}; adaptive, left out: {', '.join(sorted(set(adaptive))) or 'none'}", True)


@torch.no_grad()
def waits_in_a_call(setting: Setting) -> Iterator[Row]:
    """How often a pipeline's call waits, from labels to images on the device."""
    pipe = Pipeline(tiny("dit", setting.device), "flow", "velocity", defaults={"sampler": "euler", "steps": STEPS})
    pipe.set_progress_bar_config(disable=True)

    def call() -> None:
        pipe([1, 2, 3], guidance=2.0, seed=0, output_type="latent")

    call()
    if not setting.cuda:
        yield Row("waits in a call of a pipeline", "not counted on a CPU")
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waits = [one for one in caught if "synchroniz" in str(one.message)]
    where = sorted({f"{Path(one.filename).name}:{one.lineno}" for one in waits})
    figure = f"{len(waits)} in {STEPS} steps" + (f", at {', '.join(where[:6])}" if where else "")
    yield Row("waits in a call of a pipeline", figure, len(waits) <= 2, "at most 2, none of them in the loop")


def waits_in_training(setting: Setting) -> Iterator[Row]:
    """Steps 3 to 8 of a training under set_sync_debug_mode('error'), with the reading of data."""
    from dinit.pipelines.launch import training_processes
    from dinit.training.recipe.file import parse_recipe
    from dinit.training.step import TrainingLoop

    recipe = parse_recipe(yaml.safe_dump({
        "name": "waits", "data": "digits", "backbone": {"name": "dit", "preset": "tiny"}, "process": "flow",
        "parameterization": "velocity", "tracker": None,
        "training": {"steps": 9, "batch_size": 16, "log_every": 100, "checkpoint_every": 100,
                     **({"precision": "bf16"} if setting.cuda else {})},
    }))  # fmt: skip

    def on_step(loop: Any, result: Any) -> None:
        if setting.cuda and loop.step == 2:
            torch.cuda.set_sync_debug_mode("error")
        if setting.cuda and loop.step == 8:  # the last step saves
            torch.cuda.set_sync_debug_mode("default")

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        out.mkdir()
        try:
            with training_processes(recipe, out) as accelerator:
                loop = TrainingLoop(recipe, out, accelerator, progress=False, on_step=on_step)
                loop.run()
                where = str(loop.state.accelerator.device)
                loop.close()
            yield Row("steps of a training that never wait for the device", f"6 of 6, on {where}", True)
        except RuntimeError as error:
            yield Row("steps of a training that never wait for the device", one_line(error), False)
        finally:
            if setting.cuda:
                torch.cuda.set_sync_debug_mode("default")


@torch.no_grad()
def compiled(setting: Setting) -> Iterator[Row]:
    """Images of compiled pipelines, and of such with CUDA graphs, against those of eager ones."""
    for name in ("dit",) if setting.smoke else ("dit", "dico", "unet", "dis"):
        yield from _compiled(name, setting, "compiled", setting.compile_options, ("dpmpp-2m",))
        if name == "dit":
            graphs = ("ddpm", "heun", "dpmpp-2m")  # with a learned variance, two evaluations a step, history
            yield from _compiled(name, setting, "with CUDA graphs", setting.graph_options, graphs)
        torch._dynamo.reset()
        if setting.left < 30:
            return


def _compiled(
    name: str, setting: Setting, how: str, options: dict[str, Any], names: tuple[str, ...]
) -> Iterator[Row]:
    made = []
    for compile_ in (False, options or True):
        pipe = Pipeline(
            tiny(name, setting.device, learn_sigma=True), "vp-discrete", "epsilon", t_max=0.999, compile=compile_
        )
        pipe.set_progress_bar_config(disable=True)
        with exact_products():
            calls = [pipe([1, 2], sampler=one, steps=STEPS, seed=0, output_type="latent").images for one in names]
        made.append(calls)
    found = {one: relative(b, a) for one, a, b in zip(names, *made, strict=True)}
    yield from summary(f"{name}, {how} against eager", found, 10 * CLOSE)


def one_line(error: BaseException) -> str:
    """The first line of an error's message, fit for a table's cell."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:200].replace("|", "/")


def failed(what: str, error: BaseException) -> Row:
    return Row(what, one_line(error), False)
