"""LaMamba-Diff: windows against masked attention, scans against the recurrence, the U-Net's way, sizes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from dinit.models.lamamba import LaMamba, LaMambaBlock, MergeDown, SplitUp
from dinit.models.layers import scan
from dinit.models.layers.local_attention import LocalAttention
from dinit.models.layers.mamba2d import Mamba2d, serpentine

# DiT's trainable parameters at patch 2; the paper calls its sizes comparable with them.
DIT_COUNTS = {"S": 32_865_056, "B": 130_315_808, "L": 457_840_672, "XL": 674_834_720}


def randomized(module: nn.Module) -> nn.Module:
    """The module in float64 with random values in every parameter."""
    torch.manual_seed(0)
    for parameter in module.double().parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def masked_attention(layer: LocalAttention, x: Tensor, rows: int, columns: int) -> Tensor:
    """Softmax over all tokens of the image, with those of other windows masked, one query at a time."""

    def window_of(place: int, length: int) -> int:
        if length <= layer.window:
            return 0
        return (place + (layer.window // 2 if layer.shifted else 0)) // layer.window

    dim = x.shape[-1]
    d = dim // layer.num_heads
    q, k, v = layer.qkv(x).split(dim, -1)
    places = [(i, j) for i in range(rows) for j in range(columns)]
    out = torch.zeros_like(x)
    for head in range(layer.num_heads):
        part = slice(head * d, (head + 1) * d)
        logits = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(d)
        for a, (i, j) in enumerate(places):
            for b, (m, n) in enumerate(places):
                same = window_of(i, rows) == window_of(m, rows) and window_of(j, columns) == window_of(n, columns)
                if same:
                    logits[:, a, b] += layer.offset_bias[head, i - m + layer.window - 1, j - n + layer.window - 1]
                else:
                    logits[:, a, b] = -math.inf
        out[..., part] = logits.softmax(-1) @ v[..., part]
    return layer.proj(out)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (5, 7), (4, 9), (2, 3), (1, 1), (6, 4)])
@pytest.mark.parametrize("window", [4, 3, 1])
@torch.no_grad()
def test_local_attention_is_masked_full_attention(window: int, rows: int, columns: int, shifted: bool) -> None:
    layer = randomized(LocalAttention(4, 2, window, shifted))
    x = torch.randn(2, rows * columns, 4, dtype=torch.float64)
    expected = masked_attention(layer, x, rows, columns)
    torch.testing.assert_close(layer(x, rows, columns), expected, rtol=1e-10, atol=1e-12)


def test_serpentine_visits_every_token_and_only_neighbours() -> None:
    for rows, columns in [(3, 4), (1, 5), (4, 1), (2, 2)]:
        path = serpentine(rows, columns)
        assert path.sort().values.tolist() == list(range(rows * columns))
        steps = (path[1:] // columns - path[:-1] // columns).abs() + (
            path[1:] % columns - path[:-1] % columns
        ).abs()
        assert (steps == 1).all()
    assert serpentine(3, 3).tolist() == [0, 1, 2, 5, 4, 3, 6, 7, 8]


@pytest.mark.parametrize("states", [1, 3])
@torch.no_grad()
def test_mamba_is_four_recurrences(states: int) -> None:
    """The state carried from token to token, along paths written down by hand."""
    rows, columns, inner = 3, 4, 8
    layer = randomized(Mamba2d(4, states))
    tokens = torch.randn(2, rows * columns, 4, dtype=torch.float64)
    x, gate = layer.in_proj(tokens).split(inner, -1)
    padded = nn.functional.pad(x.transpose(1, 2).reshape(2, inner, rows, columns), (1, 1, 1, 1))
    kernel = layer.conv.weight[:, 0, :, :, None, None]
    u = sum(kernel[:, i, j] * padded[:, :, i : i + rows, j : j + columns] for i in range(3) for j in range(3))
    u = (u * u.sigmoid()).flatten(2).transpose(1, 2)
    by_row = [0, 1, 2, 3, 7, 6, 5, 4, 8, 9, 10, 11]
    by_column = [0, 4, 8, 9, 5, 1, 2, 6, 10, 11, 7, 3]
    y = torch.zeros_like(u)
    for k, path in enumerate((by_row, by_row[::-1], by_column, by_column[::-1])):
        h = torch.zeros(2, inner, states, dtype=torch.float64)
        for place in path:
            dt, B, C = (u[:, place] @ layer.x_proj[k].T).split(layer.sizes, -1)
            delta = (1 + (dt @ layer.dt_proj[k].T + layer.dt_bias[k]).exp()).log()[..., None]
            h = torch.exp(delta * -layer.A_log[k].exp()) * h + delta * B[:, None] * u[:, place, :, None]
            y[:, place] += (h * C[:, None]).sum(-1) + layer.D[k] * u[:, place]
    centered = y - y.mean(-1, keepdim=True)
    normed = centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    normed = normed * layer.norm.weight + layer.norm.bias
    expected = layer.out_proj(normed * gate * gate.sigmoid())
    torch.testing.assert_close(layer(tokens, rows, columns), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("code", ["torch", "numba"])
@pytest.mark.parametrize("states", [1, 3])
def test_mamba_in_float32_with_and_without_gradients(
    code: str, states: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against float64, which PyTorch computes in every case."""
    if code == "numba":
        pytest.importorskip("numba")
    monkeypatch.setattr(scan, "_HAS_NUMBA", code == "numba")
    layer = randomized(Mamba2d(4, states))
    tokens = torch.randn(2, 15, 4, dtype=torch.float64, requires_grad=True)
    exact = layer(tokens, 3, 5)
    wanted = (tokens, *layer.parameters())
    exact_gradients = torch.autograd.grad(exact.square().sum(), wanted)
    layer.float()
    single = tokens.detach().float().requires_grad_()
    out = layer(single, 3, 5)
    gradients = torch.autograd.grad(out.square().sum(), (single, *layer.parameters()))
    with torch.no_grad():
        inference = layer(single, 3, 5)
    pairs = ((out, exact), (inference, exact), *zip(gradients, exact_gradients, strict=True))
    for ours, theirs in pairs:
        assert (ours.double() - theirs).abs().max() <= 3e-6 * theirs.abs().max()


@torch.no_grad()
def test_mamba_hears_both_ways() -> None:
    torch.manual_seed(0)
    layer = Mamba2d(8).double()
    x = torch.randn(1, 30, 8, dtype=torch.float64)
    out = layer(x, 5, 6)
    for source, target in [(-1, 0), (0, -1)]:
        changed = x.clone()
        changed[:, source] += 1
        assert (layer(changed, 5, 6)[:, target] - out[:, target]).abs().max() > 1e-9


@torch.no_grad()
def test_block_is_its_formula() -> None:
    block = randomized(LaMambaBlock(8, 12, 2, 2, True, 1, 0.0))
    x, c = torch.randn(2, 12, 8, dtype=torch.float64), torch.randn(2, 12, dtype=torch.float64)
    c_own = block.condition(c)
    chunks = block.modulation.linear(c_own * c_own.sigmoid())[:, None].split(8, -1)

    def normed(h: Tensor, k: int) -> Tensor:
        centered = h - h.mean(-1, keepdim=True)
        return centered / (centered.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + chunks[k + 1]) + chunks[k]

    h = x + chunks[2] * block.mamba(normed(x, 0), 3, 4)
    h = h + chunks[5] * block.attention(normed(h, 3), 3, 4)
    expected = h + chunks[8] * block.mlp(normed(h, 6))
    torch.testing.assert_close(block(x, c, 3, 4), expected, rtol=1e-9, atol=1e-10)


def test_fresh_block_is_the_identity() -> None:
    x, c = torch.randn(2, 12, 16), torch.randn(2, 24)
    assert torch.equal(LaMambaBlock(16, 24, 2, 4, True, 1, 0.0)(x, c, 3, 4), x)


@torch.no_grad()
def test_merging_and_splitting_keep_tokens_in_place() -> None:
    down, up = randomized(MergeDown(2)), randomized(SplitUp(4))
    x = torch.randn(1, 4, 6, 2, dtype=torch.float64)
    merged = down(x.flatten(1, 2), 4, 6).reshape(1, 2, 3, 4)
    split = up(merged.flatten(1, 2), 2, 3).reshape(1, 4, 6, 2)
    for i in range(2):
        for j in range(3):
            square = torch.cat([x[:, 2 * i + a, 2 * j + b] for a in (0, 1) for b in (0, 1)], -1)
            torch.testing.assert_close(merged[:, i, j], down.linear(down.norm(square)))
            parts = up.linear(merged[:, i, j]).split(2, -1)
            for a in (0, 1):
                for b in (0, 1):
                    torch.testing.assert_close(split[:, 2 * i + a, 2 * j + b], up.norm(parts[2 * a + b]))


@torch.no_grad()
def test_unet_goes_down_and_up_with_added_skips() -> None:
    """Unrolled for one halving; the second and third stage share a resolution."""
    model = randomized(LaMamba.preset("tiny", patch_size=1, depth=(1, 1, 1), channel_mult=(1, 2, 2)))
    x, label = torch.randn(2, 1, 4, 8, dtype=torch.float64), torch.tensor([5.0, 7.0], dtype=torch.float64)
    cond = model.embed(torch.tensor([1, 2]))
    c = model.time_embedding(label, x.dtype) + cond
    h = model.stem_norm(model.stem(x)) + model.positions(4, 8)
    first = model.encoder[0][0](h, c, 4, 8)
    second = model.encoder[1][0](model.downs[0](first, 4, 8), c, 2, 4)
    third = model.encoder[2][0](second, c, 2, 4)
    h = model.bottom[0](third, c, 2, 4)
    for block in model.decoder[0]:
        h = block(h + third if block is model.decoder[0][0] else h, c, 2, 4)
    for block in model.decoder[1]:
        h = block(h + second if block is model.decoder[1][0] else h, c, 2, 4)
    h = model.ups[0](h, 2, 4) + first
    for block in model.decoder[2]:
        h = block(h, c, 4, 8)
    h = model.head(h, model.head_condition(c))  # patches of one pixel
    expected = h.transpose(1, 2).reshape(2, 1, 4, 8)
    torch.testing.assert_close(model(x, label, cond), expected, rtol=1e-9, atol=1e-9)
    assert [len(stage) for stage in model.decoder] == [2, 2, 2]
    assert [block.attention.shifted for block in model.decoder[2]] == [False, True]


@pytest.mark.parametrize("name", sorted(DIT_COUNTS))
def test_presets_are_near_dit(name: str) -> None:
    """Within 5 %; the published width of XL gives 661.8 million, near DiT-XL's 674.8."""
    with torch.device("meta"):
        model = LaMamba.preset(name)
    count = sum(p.numel() for p in model.parameters())
    assert abs(count / DIT_COUNTS[name] - 1) < 0.05
    if name == "XL":
        assert count == 661_771_048


def test_every_preset_is_counted() -> None:
    assert set(LaMamba.presets) - {"tiny"} == set(DIT_COUNTS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "num_heads must divide hidden_size, got num_heads = 3 and hidden_size = 16"),
        ({"hidden_size": 18}, "position table"),
        ({"depth": (1, 0)}, "depth must be positive integers"),
        ({"depth": (1,)}, r"as many as channel_mult has, got \(1,\) with channel_mult = \(1, 2\)"),
        ({"depth": (), "channel_mult": ()}, "depth must be positive integers"),
        ({"channel_mult": (2, 2)}, "channel_mult must start at 1"),
        ({"channel_mult": (1, 3)}, r"or twice that .half of it., got \(1, 3\)"),
        ({"bottom_depth": 0}, "bottom_depth must be at least 1, got 0"),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"states": 0}, "states must be at least 1, got 0"),
        ({"image_size": 9}, "image_size must be a multiple of 4, got 9"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LaMamba.preset("tiny", **options)
