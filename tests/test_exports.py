"""The public surface is a written-out list: lazy at run time, seen by `dir()`, completion and type checkers."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import dinit
from dinit._exports import attach, exported_names
from dinit.registry import Registry

PACKAGES = (
    "dinit",
    "dinit.checkpoints",
    "dinit.data",
    "dinit.diffusion",
    "dinit.evaluation",
    "dinit.inverse",
    "dinit.likelihood",
    "dinit.models",
    "dinit.pipelines",
    "dinit.reuse",
    "dinit.samplers",
    "dinit.samplers.guidance",
    "dinit.training",
)
# A registry, and the packages that export every class in it.
COMPLETE = {
    "dinit.checkpoints.LAYOUTS": (),
    "dinit.data.DATASETS": ("dinit.data",),
    "dinit.diffusion.PARAMETERIZATIONS": ("dinit.diffusion",),
    "dinit.diffusion.PROCESSES": ("dinit.diffusion",),
    "dinit.evaluation.EXTRACTORS": ("dinit.evaluation",),
    "dinit.evaluation.METRICS": (),  # functions, called by name alone
    "dinit.inverse.EDITING_METHODS": ("dinit.inverse",),
    "dinit.inverse.OPERATORS": ("dinit.inverse",),
    "dinit.inverse.POSTERIOR_SAMPLERS": ("dinit.inverse",),
    "dinit.models.BACKBONES": ("dinit", "dinit.models"),
    "dinit.reuse.CACHES": ("dinit.reuse",),
    "dinit.reuse.EDITS": ("dinit.reuse",),
    "dinit.samplers.GRIDS": ("dinit.samplers",),
    "dinit.samplers.SAMPLERS": ("dinit.samplers",),
    "dinit.samplers.guidance.GUIDANCES": ("dinit.samplers.guidance",),
    "dinit.samplers.guidance.SCHEDULES": ("dinit.samplers.guidance",),
    "dinit.training.ENCODERS": (),  # functions, called by name alone
    "dinit.training.LOSS_TERMS": ("dinit.training",),
    "dinit.training.TIME_SAMPLERS": ("dinit.training",),
    "dinit.training.WEIGHTINGS": ("dinit.training",),
}

SOURCE = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from math import tau as circle
    from math import pi as pi
    from os import sep
else:
    from dinit._exports import attach
    __getattr__, __dir__, __all__ = attach(__name__, __file__)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "made_up_package").mkdir()
    (tmp_path / "made_up_package" / "__init__.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "made_up_package", raising=False)
    return "made_up_package"


def test_names_are_those_with_an_alias() -> None:
    assert exported_names(SOURCE) == {"circle": ("math", "tau"), "pi": ("math", "pi")}


def test_a_name_is_resolved_on_first_use(package: str) -> None:
    module = importlib.import_module(package)
    assert "pi" not in vars(module)
    assert module.circle == 2 * module.pi
    assert "pi" in vars(module)
    assert {"circle", "pi"} <= set(dir(module))
    assert module.__all__ == ["circle", "pi"]


def test_an_unknown_name_is_answered_with_the_nearest(package: str) -> None:
    module = importlib.import_module(package)
    with pytest.raises(AttributeError, match=r"has no attribute 'circel'; did you mean 'circle'"):
        _ = module.circel


def test_submodules_are_still_found() -> None:
    code = "import dinit.samplers.ode.ddim as m; print(m.DDIM.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "DDIM"


def test_attach_reads_the_file_it_is_given(tmp_path: Path) -> None:
    file = tmp_path / "__init__.py"
    file.write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from os import sep as sep\n")
    assert attach("os", str(file))[2] == ["sep"]


@pytest.mark.parametrize("name", PACKAGES)
def test_every_export_is_there_and_is_no_module(name: str) -> None:
    package = importlib.import_module(name)
    files = {path.stem for path in Path(str(package.__file__)).parent.iterdir()}
    assert len(package.__all__) > 3
    for export in package.__all__:
        assert not isinstance(getattr(package, export), ModuleType)
        # Importing the module would put it in place of the export.
        assert export not in files, f"{name}.{export} is the name of a module too"


@pytest.mark.parametrize("place", COMPLETE)
def test_every_registered_class_is_exported(place: str) -> None:
    package, _, attribute = place.rpartition(".")
    registry = getattr(importlib.import_module(package), attribute)
    assert len(registry) > 0
    for home in COMPLETE[place]:
        for name in registry:
            made = registry[name]
            where = "dinit.inverse" if made.__module__.startswith("dinit.inverse.") else home
            exported = vars(importlib.import_module(where))
            line = f"from {made.__module__} import {made.__name__} as {made.__name__}"
            assert made.__name__ in exported["__all__"], f"add to {where}'s __init__: {line}"
            assert getattr(importlib.import_module(where), made.__name__) is made


def test_no_registry_is_left_out() -> None:
    found = set()
    for name in PACKAGES:
        package = importlib.import_module(name)
        found |= {
            f"{name}.{export}" for export in package.__all__ if isinstance(getattr(package, export), Registry)
        }
    assert found == set(COMPLETE)


def test_a_name_of_another_package_is_answered_with_the_package() -> None:
    for package, name, home in (
        ("dinit", "DDIM", "dinit.samplers"),
        ("dinit", "CFG", "dinit.samplers.guidance"),
        ("dinit.samplers", "CFG", "dinit.samplers.guidance"),
    ):
        with pytest.raises(AttributeError, match=f"module '{package}' has no attribute '{name}': it is in {home}$"):
            getattr(importlib.import_module(package), name)


def test_listing_takes_wildcards() -> None:
    assert dinit.list_samplers("*2M*") == ["dpmpp-2m", "dpmpp-2m-sde"]
    assert dinit.list_grids("k*") == ["karras"]
    assert dinit.list_guidances("cfg*") == ["cfg", "cfg++", "cfg-zero*"]
    assert dinit.list_backbones("di?") == ["dic", "dis", "dit"]
    assert dinit.list_backbones("dit-xl*", presets=True) == ["DiT-XL/2", "DiT-XL/4", "DiT-XL/8"]
    assert "vp" in dinit.list_processes()
    assert dinit.list_parameterizations("x*") == ["x0"]
    assert dinit.list_datasets("dig*") == ["digits"]
    assert "fid" in dinit.list_metrics()
    assert "digits-dit" in dinit.list_pipelines("digits-*")
    assert dinit.list_recipes("DIGITS-di?") == ["digits-dic", "digits-dis", "digits-dit"]
