"""Speed against peers in a minute: ratios with quartiles, above 1 dinit is faster.

`python benchmarks/ratios.py --quick` prints the time of the sampling loop around an empty network (overhead.py), a
forward pass and a training step of DiT-S/2, and a forward pass of the U-Net, each against diffusers' same work.
Both sides take turns; the interval is that of the quartiles over the rounds. Without --quick there are four times
as many rounds.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from backbones import Run, backward, dit_pair, inputs, ours, theirs, unet_pair
from overhead import CASES, QUICK, SHAPE, loops
from pairs import ratio, times
from torch import Tensor, nn

CPU, F32 = torch.device("cpu"), torch.float32


def of_loops(rounds: int) -> Iterator[str]:
    """One line a method and library."""
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    for case in CASES:
        if case.sampler in QUICK and not case.options:
            with torch.no_grad():
                found = times(dict(loops(case, noise)), rounds)
            for peer in [name for name in found if name != "dinit"]:
                yield f"loop, {case.sampler}, against {peer}: {ratio(found[peer], found['dinit'])}"


def training_step(model: nn.Module, forward: Run) -> Run:
    """Forward, backward, and AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def step() -> None:
        backward(model, forward)
        optimizer.step()

    return step


def forward_of_ours(model: Any, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    return model(x, t, model.embed(labels))


def forward_of_peer(model: Any, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    return model(x, timestep=t, class_labels=labels, return_dict=False)[0]


def of_networks(rounds: int) -> Iterator[str]:
    """Lines of the networks, eager, at batch 2."""
    for name, channels, (peer, model) in (
        ("DiT-S/2", 4, dit_pair("S/2", CPU, F32)),
        ("U-Net", 3, unet_pair(CPU, F32)),
    ):
        call: dict[str, Any] = {"batch": 2, "channels": channels, "device": CPU, "dtype": F32}
        runs = {"peer": theirs(peer, **call), "ours": ours(model, **call)}
        found = times(runs, rounds, clock=time.perf_counter)
        yield f"{name}, forward, against diffusers: {ratio(found['peer'], found['ours'])}"
        if name == "DiT-S/2":
            x, t, labels = inputs(2, channels, CPU, F32)
            t = t.expand(2)
            runs = {
                "peer": training_step(peer, partial(forward_of_peer, peer, x, t, labels)),
                "ours": training_step(model, partial(forward_of_ours, model, x, t, labels)),
            }
            found = times(runs, max(3, rounds // 2), clock=time.perf_counter)
            yield f"{name}, training step with AdamW, against diffusers: {ratio(found['peer'], found['ours'])}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="in about a minute")
    rounds = 6 if parser.parse_args().quick else 24
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    threads = torch.get_num_threads()
    print(f"{threads} threads, {rounds} rounds; median (quartiles) of peer / dinit", flush=True)
    torch.set_num_threads(1)
    for line in of_loops(rounds):
        print(line, flush=True)
    torch.set_num_threads(threads)
    for line in of_networks(rounds):
        print(line, flush=True)


if __name__ == "__main__":
    main()
