"""Every example notebook runs top to bottom, with the interpreter that runs the tests."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
SECONDS_A_CELL = 600
KILOBYTES = 400  # of a notebook with its pictures: a repository keeps every version
# Sizes in the notebooks, and those of a test: every call is made, with fewer steps and images.
SMALLER = {
    "restore_and_edit": {
        "] * 6, image": "] * 2, steps=8, image",
        '["K"] * 4': '["K"] * 2',
        '"steps": 15': '"steps": 3',
        '{"ddim": 40, "direct": 27, "infedit": 40, "sdedit": 80, "spdinv": 16}': (
            '{"ddim": 3, "direct": 3, "infedit": 3, "sdedit": 4, "spdinv": 2}'
        ),
        "sample(256, g)": "sample(64, g)",
        "randn(256,": "randn(64,",
        "noise, 50)": "noise, 10)",
        "--steps 10": "--steps 2",
    },
    "swap_samplers": {
        "nfe=20": "nfe=8",
        "noise, 200": "noise, 20",
        "for nfe in (8, 16, 32)": "for nfe in (8, 16)",
        "IMAGES = 200": "IMAGES = 60",
        "for nfe in (4, 8, 16)": "for nfe in (4,)",
        "torch.arange(200)": "torch.arange(40)",
    },
    "train_class_conditional": {
        "training.steps=600": "training.steps=60",
        "evaluate(pipe, 300": "evaluate(pipe, 60",
        "steps: 400": "steps: 40",
    },
}


class ThisInterpreter(AsyncKernelManager):
    """Starts ipykernel of the interpreter under test, whatever kernels the machine has installed."""

    @property
    def kernel_spec(self) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="Python", language="python")


def smaller(path: Path) -> nbformat.NotebookNode:
    """The notebook with the sizes of a test."""
    notebook = nbformat.read(path, as_version=4)
    missing = set(SMALLER[path.stem])
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        for size, less in SMALLER[path.stem].items():
            if size in cell.source:
                missing.discard(size)
                cell.source = cell.source.replace(size, less)
    assert not missing, f"{path.name} has no {missing}: SMALLER is out of date"
    return notebook


def test_there_are_notebooks() -> None:
    assert {path.stem for path in NOTEBOOKS} >= {"restore_and_edit", "swap_samplers", "train_class_conditional"}


@pytest.mark.slow
@pytest.mark.notebook
@pytest.mark.timeout(900)  # several cells, each with the limit above
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path) -> None:
    """CellExecutionError, with the cell and its traceback, at the first error."""
    notebook = smaller(path)
    client = NotebookClient(
        notebook,
        timeout=SECONDS_A_CELL,
        kernel_manager_class=ThisInterpreter,
        resources={"metadata": {"path": str(EXAMPLES)}},
    )
    client.execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_saved_notebook_shows_its_pictures(path: Path) -> None:
    """What a reader sees on a code host: valid, run in order, with figures, small, without errors or stderr."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    assert all(output.output_type != "error" and output.get("name") != "stderr" for output in outputs)
    assert path.stat().st_size < KILOBYTES * 1024


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_saved_notebook_names_no_machine(path: Path) -> None:
    """Absolute paths in an output are one machine's business."""
    cells = nbformat.read(path, as_version=4).cells
    outputs = [dict(output) for cell in cells for output in cell.get("outputs", [])]
    for output in outputs:  # a picture is text as well, in which anything may occur
        output["data"] = {kind: data for kind, data in output.get("data", {}).items() if "image" not in kind}
    text = str(outputs)
    for folder in (Path.home(), EXAMPLES.parent, Path(sys.prefix), Path(tempfile.gettempdir())):
        assert f"{folder}/" not in text, f"{path.name} shows {folder}"
