"""What of a file of statistics has to be as it is here, and what may differ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dinit.data.digits import Digits
from dinit.evaluation.features.digits import DigitsExtractor
from dinit.evaluation.protocols import named_protocol
from dinit.evaluation.reference import Reference, load_reference, make_statistics, write_statistics

OF_MEASURE = {"features": "inception-v3", "weights": "0123456789abcdef", "resize": "bicubic to 299×299"}
FREE = {"dataset": "others", "fingerprint": "f" * 32, "class_names": ["a"] * 10, "dinit": "9.9", "statistics": "-"}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    path = tmp_path_factory.mktemp("reference") / "digits.npz"
    about = {"dataset": "digits", "fingerprint": "0" * 32, "class_names": list("0123456789")}
    images = Digits("test").uint8_images(list(range(24)))
    write_statistics(
        path, make_statistics(images, None, DigitsExtractor(), named_protocol("digits"), about, cuda=False)
    )
    return load_reference(path)


def opened(file: Reference, **changed: Any) -> Any:
    other = replace(file, meta={**file.meta, **changed})
    return other.featured(named_protocol("digits"), DigitsExtractor(), cuda=False)


@pytest.mark.parametrize("key", OF_MEASURE)
def test_statistics_that_were_measured_otherwise_are_refused_by_what_differs(file: Reference, key: str) -> None:
    value = OF_MEASURE[key]
    with pytest.raises(ValueError, match=f"another protocol .*\n  {key}: '{value}' there, .* here$"):
        opened(file, **{key: value})


@pytest.mark.parametrize("key", FREE)
def test_names_and_versions_may_differ(file: Reference, key: str) -> None:
    assert file.meta[key] != FREE[key]
    featured, notes = opened(file, **{key: FREE[key]})
    assert featured.count == 24
    assert notes == opened(file)[1]


def test_every_entry_of_the_file_is_of_one_kind_or_the_other(file: Reference) -> None:
    counted = {"format", "count", "protocol", "halves_fid", "content"}
    assert set(file.meta) == {*OF_MEASURE, *FREE, *counted}


def test_a_changed_number_is_found(file: Reference, tmp_path: Path) -> None:
    copy = tmp_path / "copy.npz"
    content = bytearray(file.path.read_bytes())
    content[len(content) // 2] ^= 1
    copy.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be read|was changed after it was made"):
        load_reference(copy)
