"""The public surface is a written-out list: lazy at run time, seen by `dir()`, completion and type checkers."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from dinit._exports import attach, exported_names

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
