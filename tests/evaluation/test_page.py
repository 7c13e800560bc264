"""The HTML page holds all of a report and needs nothing beside it."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinit.data.digits import Digits
from dinit.evaluation import ReportOptions, evaluate_images
from dinit.evaluation.reports import plots
from dinit.evaluation.reports.page import html_page, write_page
from dinit.evaluation.reports.report import Report


class Balanced(HTMLParser):
    """Fails on tags that do not close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def pictures_in(page: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(one))) for one in found]


@pytest.mark.slow
def test_the_page_shows_figures_pictures_and_protocol(tmp_path: Path) -> None:
    data = Digits("train")
    images, labels = data.uint8_images(list(range(300))), torch.from_numpy(data.labels[:300])
    metrics = ("fid", "cafd", "fringe", "memorisation")
    report_options = ReportOptions(bootstrap=20, curve=True)
    report = evaluate_images(
        images, labels, metrics=metrics, report_options=report_options, cuda=False, name="<b>mine</b>"
    )
    write_page(report, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert "<b>mine</b>" not in page
    assert "&lt;b&gt;mine&lt;/b&gt;" in page
    assert not re.search(r'(src|href)="(?!data:)', page), "nothing is loaded from elsewhere"
    row = report.model.metrics
    for text in (f"{row['fid']:.4g} [", "fid (digits)", "cafd (digits)", report.protocol.weights, "fid infinity"):
        assert text in page
    for note in report.notes:
        assert note in page
    sizes = [picture.size for picture in pictures_in(page)]
    assert len(sizes) == 6  # samples, reference, neighbours, curve, histograms, classes
    assert sizes[0] == (16 * 50, 4 * 50)
    assert Report.read_json(_json(report, tmp_path)) == report


def _json(report: Report, folder: Path) -> Path:
    report.write_json(folder / "report.json")
    return folder / "report.json"


def test_a_report_from_json_has_a_page_without_pictures(tmp_path: Path) -> None:
    report = evaluate_images(Digits("train").uint8_images(list(range(30))), metrics=["fid"], cuda=False)
    again = replace(Report.read_json(_json(report, tmp_path)), warnings=("mind <this>",))
    page = html_page(again)
    assert pictures_in(page) == []
    assert "warning: mind &lt;this&gt;" in page


def test_grids_show_the_images_pixel_for_pixel() -> None:
    images = torch.randint(0, 256, (5, 3, 24, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    sheet = np.asarray(Image.open(io.BytesIO(plots.grid(images, columns=3))))
    assert sheet.shape == (100, 150, 3)
    fourth = sheet[50:98:2, 0:48:2]
    assert np.array_equal(fourth.transpose(2, 0, 1), images[3].numpy())
    above = np.asarray(Image.open(io.BytesIO(plots.pairs(images[:2], images[3:]))))
    assert np.array_equal(above[50:98:2, 50:98:2].transpose(2, 0, 1), images[4].numpy())
