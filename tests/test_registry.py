"""Names to classes, with the nearest name when there is none."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from typer.testing import CliRunner

from dinit import _deprecate
from dinit.cli import app
from dinit.conformance import two_component_mixture
from dinit.diffusion import PROCESSES
from dinit.models.base import BACKBONES
from dinit.registry import Registry, UnknownName, suggest
from dinit.samplers import DDIM, GRIDS, SAMPLERS
from dinit.samplers.guidance import CFG, GUIDANCES


def test_unknown_name_is_a_key_error_and_a_value_error_with_a_suggestion() -> None:
    with pytest.raises(KeyError, match=r"unknown sampler 'dddim'; did you mean 'ddim'\? \(known: ab, ") as caught:
        SAMPLERS["dddim"]
    assert isinstance(caught.value, ValueError)
    assert str(caught.value).count("'") == 4  # the message itself, not its repr


def test_far_off_name_lists_all_without_a_guess() -> None:
    with pytest.raises(UnknownName) as caught:
        SAMPLERS["xyzzy"]
    assert "did you mean" not in str(caught.value)
    assert "ddim" in str(caught.value)


def test_registering_twice_is_an_error() -> None:
    registry: Registry[type] = Registry("thing", "dinit.diffusion")
    registry.register("one")(type("First", (), {}))
    with pytest.raises(ValueError, match="thing 'one' is already registered"):
        registry.register("one")(type("Second", (), {}))


def test_create_takes_a_name_a_mapping_or_an_object() -> None:
    assert SAMPLERS.create("ddim", eta=0.5) == DDIM(eta=0.5)
    assert SAMPLERS.create({"name": "ddim", "eta": 0.5}) == DDIM(eta=0.5)
    own = DDIM(eta=0.25)
    assert SAMPLERS.create(own) is own


def test_create_refuses_unknown_options_and_options_for_an_object() -> None:
    with pytest.raises(ValueError, match="sampler 'ddim' has no option 'etta'; did you mean 'eta'"):
        SAMPLERS.create("ddim", etta=0.5)
    with pytest.raises(ValueError, match="need a sampler name"):
        SAMPLERS.create(DDIM(), eta=0.5)
    with pytest.raises(ValueError, match="needs a 'name'"):
        SAMPLERS.create({"eta": 0.5})


def test_create_names_the_options_that_an_entry_needs() -> None:
    with pytest.raises(ValueError, match="grid 'times' needs a value for values"):
        GRIDS.create("times")


def test_suggestion_keeps_the_case_of_the_known_name() -> None:
    assert "did you mean 'DiT'?" in suggest("ditt", ["DiT", "UNet"])


def test_every_entry_says_what_it_is_in_one_line() -> None:
    for registry in (SAMPLERS, PROCESSES):
        for name in registry:
            assert 20 < len(registry.summary(name)) <= 116
            assert name == name.lower()


def test_a_class_is_found_by_its_own_name() -> None:
    import dinit.samplers

    @dataclass(frozen=True)
    class Unregistered:
        pass

    assert dinit.samplers.DDIM is SAMPLERS["ddim"]
    with pytest.raises(AttributeError, match="Unregistered"):
        getattr(dinit.samplers, Unregistered.__name__)


@pytest.mark.parametrize(
    ("typed", "name", "options"),
    [
        ("DDIM", "ddim", {}),
        ("dpmpp_2m", "dpmpp-2m", {}),
        ("DPM++ 2M", "dpmpp-2m", {}),
        ("dpm++ 2m", "dpmpp-2m", {}),
        ("dpm++ 2m sde", "dpmpp-2m-sde", {}),
        ("DPM-Solver++(2M)", "dpmpp-2m", {}),
        ("DPM++ SDE", "dpmpp-sde", {}),
        ("DPM adaptive", "dpm-adaptive", {}),
        ("euler_a", "ancestral", {}),
        ("euler-ancestral", "ancestral", {}),
        ("Euler a", "ancestral", {}),
        ("k_euler_a", "ancestral", {}),
        ("dpm2", "dpm-2", {}),
        ("dpm2 a", "ancestral", {"solver": "dpm-2"}),
        ("DPM++ 2S a", "ancestral", {"solver": "dpmpp-2s"}),
        ("edm", "edm-heun", {}),
        ("k_heun", "edm-heun", {}),
        ("k_euler", "edm-euler", {}),
        ("plms", "pndm", {}),
        ("lms", "lms", {}),
        ("uni_pc", "unipc", {}),
        ("UniPC", "unipc", {}),
        ("dopri5", "rk45", {}),
        ("AdamsBashforth", "ab", {}),
    ],
)
def test_names_of_other_programs_are_found(typed: str, name: str, options: dict[str, str]) -> None:
    assert SAMPLERS.resolve(typed) == (name, options)
    assert SAMPLERS.create(typed) == SAMPLERS.create(name, **options)


@pytest.mark.parametrize(
    ("typed", "advice"),
    [
        ("dpmpp_2m_karras", "write sampler='dpmpp-2m', grid='karras'"),
        ("DPM++ 2M SDE Karras", "write sampler='dpmpp-2m-sde', grid='karras'"),
        ("DPM2 a Karras", "write sampler='ancestral:solver=dpm-2', grid='karras'"),
        ("dpmpp_3m_sde_exponential", "write sampler='dpmpp-3m-sde', grid='exponential'"),
        ("sample_dpmpp_2m", "write sampler='dpmpp-2m'"),
        ("dpmpp_sde_gpu", "write sampler='dpmpp-sde'"),
        ("euler_cfg_pp", "write sampler='euler', guidance='cfg++'"),
        ("lcm", "distilled"),
    ],
)
def test_names_that_are_two_things_here_are_answered(typed: str, advice: str) -> None:
    with pytest.raises(UnknownName, match="unknown sampler") as caught:
        SAMPLERS.create(typed)
    assert advice in str(caught.value)


def test_a_name_that_stands_for_options_is_no_class() -> None:
    with pytest.raises(UnknownName, match=r"'dpm2 a' is 'ancestral' with solver='dpm-2': `create` makes it"):
        SAMPLERS["dpm2 a"]
    assert "dpm2 a" not in SAMPLERS
    assert "DPM++ 2M" in SAMPLERS


def test_spelling_variants_and_aliases_cannot_be_taken_twice() -> None:
    registry: Registry[type] = Registry("thing", "dinit.diffusion")
    registry.register("one-two", aliases=("three",))(type("First", (), {}))
    for name, aliases in (("onetwo", ()), ("four", ("ONE_TWO",)), ("THREE", ())):
        with pytest.raises(ValueError, match=r"is already registered by <class '.*First'>"):
            registry.register(name, aliases=aliases)(type("Second", (), {}))


def test_options_in_the_name_are_read_as_on_the_command_line() -> None:
    assert SAMPLERS.create("ddim:eta=0.5") == DDIM(eta=0.5)
    assert GUIDANCES.create("cfg:scale=4,high=inf") == CFG(4.0, high=math.inf)
    with pytest.raises(ValueError, match="eta is given twice"):
        SAMPLERS.create("ddim:eta=0.5", eta=1.0)
    with pytest.raises(ValueError, match="options read KEY=VALUE"):
        SAMPLERS.create("ddim:0.5")


def test_an_option_of_a_wrong_type_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="eta must be a number, got 'a little'"):
        SAMPLERS.create("ddim", eta="a little")


def test_a_class_is_answered_with_its_call() -> None:
    with pytest.raises(ValueError, match=r"a sampler is an object, got the class DDIM: call it, DDIM\(\)"):
        SAMPLERS.create(DDIM)  # pyright: ignore[reportArgumentType]


def test_names_follow_a_pattern() -> None:
    assert SAMPLERS.names("*2M*") == ["dpmpp-2m", "dpmpp-2m-sde"]
    assert SAMPLERS.names("dpmpp_?m") == ["dpmpp-2m", "dpmpp-3m"]
    assert SAMPLERS.names("nothing") == []
    assert BACKBONES.presets("SiT-XL*") == ["SiT-XL/2", "SiT-XL/4", "SiT-XL/8"]


def test_published_sizes_are_names_of_backbones() -> None:
    for typed, name, preset in (
        ("DiT-XL/2", "dit", "XL/2"),
        ("ADM-256", "adm", "256"),
        ("DiT_XL_2", "dit", "XL/2"),
    ):
        assert BACKBONES.resolve(typed) == (name, BACKBONES[name].presets[preset])
    made = BACKBONES.create("DiT-tiny", num_classes=7)
    assert made.config == BACKBONES["dit"].preset("tiny", num_classes=7).config
    with pytest.raises(ValueError, match="has no option 'clases'; did you mean 'num_classes'"):
        BACKBONES.create("DiT-tiny", clases=7)
    for size in BACKBONES.presets():
        name, arguments = BACKBONES.resolve(size)
        assert BACKBONES[name].presets[size.split("-", 1)[1]] is arguments
        assert size.startswith(BACKBONES[name].__name__)


def test_special_cases_name_another_entry() -> None:
    for registry in (SAMPLERS, GRIDS):
        for name in registry:
            special = registry.special_case_of(name)
            assert special is None or special in registry.names()
            assert special != name
    assert SAMPLERS.special_case_of("edm-euler") == "ddim"
    assert SAMPLERS.special_case_of("heun") is None


def moved(sampler: str, grid: str, process: str) -> torch.Tensor:
    """States at the end of a run of 6 steps on an exact mixture, in float64."""
    exact = two_component_mixture(PROCESSES.create(process))
    noise = torch.randn(8, 1, 1, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return SAMPLERS.create(sampler).sample(exact, noise, 6, grid=grid)


@pytest.mark.parametrize("process", ["vp", "flow", "edm"])
def test_special_cases_equal_the_entry_they_name(process: str) -> None:
    """And heun, which is no special case, does not."""
    for name in SAMPLERS:
        if special := SAMPLERS.special_case_of(name):
            ours, theirs = moved(name, "log-snr", process), moved(special, "log-snr", process)
            # Other orders of the same sums and products in float64, over 6 steps: 1e-13 was measured.
            assert (ours - theirs).abs().max() < 1e-9, name
    for name in GRIDS:
        if special := GRIDS.special_case_of(name):
            path = PROCESSES.create(process)
            ours, theirs = (GRIDS.create(one).times(path, 9, path.t_min, 1.0) for one in (name, special))
            assert (ours - theirs).abs().max() < 1e-9, name
    assert (moved("heun", "log-snr", process) - moved("ddim", "log-snr", process)).abs().max() > 1e-3


def test_listing_says_which_entry_a_special_case_equals() -> None:
    done = CliRunner().invoke(app, ["list", "samplers"])
    assert done.exit_code == 0
    lines = {line.split()[0]: line for line in done.output.splitlines() if line.strip()}
    assert "equals ddim at its defaults" in lines["edm-euler"]
    assert "at its defaults" not in lines["heun"]


@pytest.fixture
def renamed() -> Registry[type]:
    """A registry with one class, whose `levels` became `order`, and no warning given yet."""
    registry: Registry[type] = Registry("thing", "dinit.diffusion", subfolders=False)

    @registry.register("one")
    @dataclass(frozen=True)
    class One:
        order: int = 1
        renamed_options: ClassVar[dict[str, str]] = {"levels": "order"}

    _deprecate._warned.clear()
    return registry


def test_old_option_names_are_read_and_warned_of_once(renamed: Registry[type]) -> None:
    with pytest.warns(DeprecationWarning, match="option 'levels' of thing 'one'") as caught:
        assert renamed.create("one", levels=3).order == 3
    assert "is deprecated since dinit 0.1 and will be removed before 1.0; use 'order'" in str(caught[0].message)
    assert caught[0].filename == __file__  # the caller, not the registry
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert renamed.create({"name": "one", "levels": 2}).order == 2  # not a second time
        assert renamed.create("one", order=3).order == 3


def test_an_option_under_both_names_is_refused(renamed: Registry[type]) -> None:
    with pytest.raises(ValueError, match="'levels' is the old name of 'order'; give 'order' alone"):
        renamed.create("one", levels=3, order=3)


def test_an_entry_that_is_not_listed_is_created_by_name() -> None:
    registry = Registry("thing", "dinit.samplers")
    registry._loaded = True

    class Thing:
        pass

    registry.register("listed")(type("Listed", (), {}))
    registry.register("record-only", listed=False)(Thing)
    assert registry.names() == list(registry) == ["listed"]
    assert len(registry) == 1
    assert isinstance(registry.create("record-only"), Thing)
    assert "record-only" in registry
