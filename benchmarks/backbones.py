"""Speed of the backbones, as ratios of medians measured in one run.

Every pair is timed in turns, A B A B …, so that what else the machine does falls on both alike. Baselines are
diffusers' networks of the same shape; the floor is the matrix products and attention of a DiT and nothing else.
Run: python benchmarks/backbones.py [--quick] [--out benchmarks/results/backbones_NAME.md]
"""

from __future__ import annotations

import argparse
import logging
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dinit.models  # noqa: F401  (makes diffusers importable with a torchvision whose operators do not load)
from dinit.models.base import BACKBONES

Run = Callable[[], Any]
DIT_S = {"hidden": 384, "depth": 12, "heads": 6, "tokens": 256}
# Milliseconds of one forward at batch 4, float32, 2 cores, measured once side by side with the repositories'
# own code, which does not come in here: what they take relative to diffusers' DiT is the baseline.
REPOSITORY_OVER_DIFFUSERS_DIT = {"dic": 394 / 334, "dico": 359 / 334}
# Networks of about DiT-S's 33 million parameters, on 32x32x4 and 1000 classes: presets, or sizes of our choice.
_SHAPE = {"image_size": 32, "in_channels": 4, "num_classes": 1000}
MATCHED: dict[str, tuple[str | None, dict[str, Any]]] = {
    "dit": ("S/2", {}),
    "sit": ("S/2", {}),
    "lightningdit": ("S/2", _SHAPE),
    "lit": ("S/2", {}),
    "diffit": (None, {**_SHAPE, "hidden_size": 384, "depth": 14, "num_heads": 6}),
    "dic": ("S", {}),
    "dico": ("S", {}),
    "unet": (None, {**_SHAPE, "channel_mult": (1, 2, 2), "attention_resolutions": (16, 8)}),
    "adm": (
        None,
        {**_SHAPE, "channels": 96, "channel_mult": (1, 2, 3), "attention_factors": (2, 4), "head_dim": 32},
    ),
    "ddpm": (None, _SHAPE),
    "ncsnpp": (None, {**_SHAPE, "channels": 96, "blocks_per_level": 3}),
    "dis": ("S/2", {}),
    "diffussm": (None, {**_SHAPE, "hidden_size": 384, "depth": 12}),
    "lamamba": ("S", {}),
    "dimr": (
        None,  # XL/2R's shape, at 384 and 192 channels
        {
            **_SHAPE,
            "num_heads": 6,
            "stages": (
                {"width": 384, "mlp_width": 768, "depth": 15, "patch_size": 2},
                {"width": 192, "mlp_width": 384, "depth": 9, "kernel_size": 7},
            ),
        },
    ),
}


@dataclass(frozen=True)
class Row:
    """One comparison: milliseconds of both sides."""

    what: str
    baseline: str
    baseline_ms: float
    ours_ms: float

    @property
    def ratio(self) -> float:
        return self.baseline_ms / self.ours_ms


def randomized(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Random weights everywhere: zeros could be faster."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02, generator=generator)
    model.to(device, dtype).eval()
    # As Pipeline keeps it; diffusers' own networks stay as they come.
    return model.to(memory_format=torch.channels_last) if getattr(model, "channels_last", False) else model  # pyright: ignore


def medians(runs: dict[str, Run], rounds: int, device: torch.device) -> dict[str, float]:
    """Milliseconds of each, measured in turns after two warm-up calls."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(), run()
    for _ in range(rounds):
        for name, run in runs.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def inputs(batch: int, channels: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x (B, C, 32, 32), one noise label, labels."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, channels, 32, 32, generator=generator).to(device, dtype)
    return x, torch.tensor([417.0], device=device), torch.arange(batch, device=device) % 10


def ours(
    model: Any, batch: int, channels: int, device: torch.device, dtype: torch.dtype, train: bool = False
) -> Run:
    """A forward pass as in sampling, or a training step without its optimiser."""
    x, t, labels = inputs(batch, channels, device, dtype)
    if not train:
        with torch.no_grad():
            cond = model.embed(labels)
        return torch.no_grad()(lambda: model(x, t, cond))
    return lambda: backward(model, lambda: model(x, t.expand(batch), model.embed(labels)))


def theirs(
    model: Any, batch: int, channels: int, device: torch.device, dtype: torch.dtype, train: bool = False
) -> Run:
    """The same of a diffusers network."""
    x, t, labels = inputs(batch, channels, device, dtype)

    def forward() -> Tensor:
        return model(x, timestep=t.expand(batch), class_labels=labels, return_dict=False)[0]

    return (lambda: backward(model, forward)) if train else torch.no_grad()(forward)


def backward(model: nn.Module, forward: Callable[[], Tensor]) -> None:
    model.zero_grad()
    forward().float().square().mean().backward()


def dit_pair(preset: str, device: torch.device, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """diffusers' DiT and ours, of one shape."""
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel

    model = BACKBONES["dit"].preset(preset)
    config: Any = model.config
    peer = DiTTransformer2DModel(
        num_attention_heads=config.num_heads, attention_head_dim=config.hidden_size // config.num_heads,
        in_channels=4, out_channels=8, num_layers=config.depth, attention_bias=True, sample_size=32, patch_size=2,
        activation_fn="gelu-approximate", num_embeds_ada_norm=1000, norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    )  # fmt: skip
    return randomized(peer, device, dtype), randomized(model, device, dtype)


def unet_pair(device: torch.device, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    """diffusers' UNet2DModel and ours: widths 64, 128, 128, two blocks a level, attention at 16 and 8 pixels."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    peer = UNet2DModel(
        sample_size=32, in_channels=3, out_channels=3, layers_per_block=2, block_out_channels=(64, 128, 128),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"), num_class_embeds=11, attention_head_dim=32,
    )  # fmt: skip
    model = BACKBONES["unet"](
        image_size=32, in_channels=3, channels=64, channel_mult=(1, 2, 2), blocks_per_level=2,
        attention_resolutions=(16, 8), num_groups=32, num_heads=4, num_classes=10,
    )  # fmt: skip
    return randomized(peer, device, dtype), randomized(model, device, dtype)


def floor(batch: int, device: torch.device, dtype: torch.dtype, train: bool = False) -> Run:
    """The matrix products and attention of DiT-S/2, with nothing between them; train: forward and backward."""
    width, heads, tokens = DIT_S["hidden"], DIT_S["heads"], DIT_S["tokens"]
    shapes = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
    layers = [
        [
            torch.randn(shape, device=device, dtype=dtype).div_(shape[1] ** 0.5).requires_grad_(train)
            for shape in shapes
        ]
        for _ in range(DIT_S["depth"])
    ]
    x = torch.randn(batch, tokens, width, device=device, dtype=dtype)

    def forward() -> Tensor:
        y = x
        for qkv, proj, up, down in layers:
            q, k, v = F.linear(y, qkv).view(batch, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
            y = F.linear(F.linear(F.linear(mixed, proj), up), down)
        return y

    def step() -> None:
        for weight in (one for layer in layers for one in layer):
            weight.grad = None
        output = forward()
        output.backward(output.detach())

    return step if train else torch.no_grad()(forward)


def compare(name: str, pair: tuple[nn.Module, nn.Module], channels: int, args: argparse.Namespace) -> Iterable[Row]:
    """Every batch size, eager and compiled, forward and training step, of one pair."""
    peer, model = pair
    dtype = next(model.parameters()).dtype
    kind = str(dtype).removeprefix("torch.")
    for batch in args.batches:
        for train in (False, True):
            call = {"batch": batch, "channels": channels, "device": args.device, "dtype": dtype, "train": train}
            runs = {"peer": theirs(peer, **call), "eager": ours(model, **call)}
            runs["peer compiled"] = theirs(torch.compile(peer), **call)
            compiled: Any = torch.compile(model)
            runs["compiled"] = ours(_WithEmbed(compiled, model), **call)
            measured = medians(runs, args.rounds, args.device)
            what = f"{name}, batch {batch}, {kind}, {'training step' if train else 'forward'}"
            yield Row(f"{what}, eager", "diffusers eager", measured["peer"], measured["eager"])
            yield Row(f"{what}, compiled", "diffusers eager", measured["peer"], measured["compiled"])
            yield Row(f"{what}, compiled", "diffusers compiled", measured["peer compiled"], measured["compiled"])


class _WithEmbed:
    """A compiled backbone with the embed of the eager one."""

    def __init__(self, compiled: Any, model: Any) -> None:
        self.compiled, self.embed = compiled, model.embed

    def __call__(self, *arguments: Tensor) -> Tensor:
        return self.compiled(*arguments)

    def zero_grad(self) -> None:
        self.compiled.zero_grad()


def small_cases(args: argparse.Namespace) -> Iterable[Row]:
    """At batch 4 in float32: DiT-S/2 and its floor, the U-Net, DiC-S and DiCo-S against their repositories."""
    where = {"batch": 4, "channels": 4, "device": args.device, "dtype": torch.float32}
    peer, dit = dit_pair("S/2", args.device, torch.float32)
    unet_peer, unet = unet_pair(args.device, torch.float32)
    images = {**where, "channels": 3}
    runs = {"peer": theirs(peer, **where), "floor": floor(4, args.device, torch.float32)}
    runs |= {"unet peer": theirs(unet_peer, **images), "unet": ours(unet, **images)}
    runs["unet compiled"] = ours(_WithEmbed(torch.compile(unet), unet), **images)
    models = {
        "dit": dit,
        **{
            n: randomized(BACKBONES[n].preset("S"), args.device, torch.float32)
            for n in REPOSITORY_OVER_DIFFUSERS_DIT
        },
    }
    for name, model in models.items():
        runs[name] = ours(model, **where)
        runs[f"{name} compiled"] = ours(_WithEmbed(torch.compile(model), model), **where)
    measured = medians(runs, args.rounds, args.device)
    for how in ("", " compiled"):
        label = how.strip() or "eager"
        yield Row(f"DiT-S/2, batch 4, forward, {label}", "diffusers eager", measured["peer"], measured[f"dit{how}"])
        yield Row(f"DiT-S/2, batch 4, forward, {label}", "the floor", measured["floor"], measured[f"dit{how}"])
        what = f"U-Net, batch 4, forward, {label}"
        yield Row(what, "diffusers eager", measured["unet peer"], measured[f"unet{how}"])
        for name, factor in REPOSITORY_OVER_DIFFUSERS_DIT.items():
            baseline = factor * measured["peer"]
            title = BACKBONES[name].__name__
            yield Row(
                f"{title}-S, batch 4, forward, {label}", "its repository, eager", baseline, measured[f"{name}{how}"]
            )


def families(args: argparse.Namespace) -> Iterable[tuple[str, float, float, float]]:
    """(name, millions of parameters, images/s, ratio to DiT-S/2 timed in the same run), eager, float32, batch 4."""
    dit = ours(
        randomized(BACKBONES["dit"].preset("S/2"), args.device, torch.float32), 4, 4, args.device, torch.float32
    )
    for name, (preset, overrides) in MATCHED.items():
        cls = BACKBONES[name]
        model: Any = cls.preset(preset, **overrides) if preset else cls(**overrides)
        randomized(model, args.device, torch.float32)
        run = ours(model, 4, model.in_channels, args.device, torch.float32)
        measured = medians({"dit": dit, name: run}, args.rounds, args.device)
        parameters = sum(p.numel() for p in model.parameters()) / 1e6
        title = f"{cls.__name__}-{preset}" if preset else cls.__name__
        yield title, parameters, 4e3 / measured[name], measured["dit"] / measured[name]


def report(rows: list[Row], table: list[tuple[str, float, float, float]], args: argparse.Namespace) -> str:
    """Both tables in Markdown."""
    device = (
        torch.cuda.get_device_name()
        if args.device.type == "cuda"
        else f"{torch.get_num_threads()} cores of {cpu_name()}"
    )
    lines = [
        f"# Backbones on {device}",
        "",
        f"`python benchmarks/backbones.py`, torch {torch.__version__}, medians of {args.rounds} rounds in turns.",
        "Ratio: how many times as fast as the baseline.",
        "",
        "| what | baseline | baseline ms | dinit ms | ratio |",
        "|---|---|---|---|---|",
        *(f"| {r.what} | {r.baseline} | {r.baseline_ms:.4g} | {r.ours_ms:.4g} | {r.ratio:.2f} |" for r in rows),
        "",
        "| backbone, eager, float32, batch 4 | million parameters | evaluations/s | relative to DiT-S/2 |",
        "|---|---|---|---|",
        *(f"| {name} | {size:.1f} | {rate:.1f} | {ratio:.2f} |" for name, size, rate, ratio in table),
    ]
    return "\n".join(lines) + "\n"


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.is_file()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--device", type=torch.device, default=torch.device("cuda" if torch.cuda.is_available() else "cpu")
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="batch 4 in float32 only")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    args = parser.parse_args()
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    rows: list[Row] = []
    table: list[tuple[str, float, float, float]] = []
    # Written after every line, so that an interrupted run keeps what it has.
    for row in small_cases(args):
        rows.append(row)
        write(report(rows, table, args), args.out)
    torch._dynamo.reset()
    for line in families(args):
        table.append(line)
        write(report(rows, table, args), args.out)
    for row in () if args.quick else large_cases(args):
        rows.append(row)
        write(report(rows, table, args), args.out)
    print(report(rows, table, args))


def large_cases(args: argparse.Namespace) -> Iterable[Row]:
    """What --quick leaves out: batches, training steps, bf16. The large presets on a GPU are gpu.py's."""
    for dtype in (torch.float32, torch.bfloat16):
        torch._dynamo.reset()
        yield from compare("DiT-S/2", dit_pair("S/2", args.device, dtype), 4, args)
        torch._dynamo.reset()
        yield from compare("U-Net", unet_pair(args.device, dtype), 3, args)


def write(text: str, path: Path | None) -> None:
    if path:
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
