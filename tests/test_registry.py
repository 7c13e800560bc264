"""Names to classes, with the nearest name when there is none."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from dinit.diffusion import PROCESSES
from dinit.registry import Registry, UnknownName, suggest
from dinit.samplers import DDIM, SAMPLERS


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
    from dinit.samplers import GRIDS

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
