"""What docs/ shows: a whole report of drawn cells, and charts, never photographs, of a run on real images."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cytodino_hf.evaluation.report import DRAWN_NOTE
from cytodino_hf.evaluation.report_parts import PARTS

DOCS = Path(__file__).parent.parent / "docs"
REAL = DOCS / "real_images"
# Figures of a report that show the images themselves.
PHOTOGRAPHS = ("class_panel", "augmentation_strip", "confident_mistakes", "dangerous_mistakes", "audit")


def test_the_sample_report_is_whole_self_contained_and_says_that_its_cells_are_drawn() -> None:
    page = (DOCS / "sample_report.html").read_text(encoding="utf-8")
    assert DRAWN_NOTE in page
    assert "<script" not in page
    assert set(re.findall(r'src="(.{5})', page)) == {"data:"}
    assert not re.search(r"/(?:home|root|tmp|work|Users)/", page)
    for name, part in PARTS.items():
        if name not in ("comparison", "test_time"):  # nobody asked for these
            assert part.title in page, name


def test_figures_of_the_real_images_are_charts_and_each_is_shown() -> None:
    text = (DOCS / "real_images.md").read_text(encoding="utf-8")
    files = {path.name for path in REAL.iterdir()}
    assert files
    assert {name.rpartition("/")[2] for name in re.findall(r"\]\(real_images/([^)]+)\)", text)} == files
    assert not [name for name in files if name.startswith(PHOTOGRAPHS)]


@pytest.mark.parametrize("path", sorted(DOCS.rglob("*.svg")), ids=lambda path: path.name)
def test_no_drawing_holds_a_picture(path: Path) -> None:
    """An SVG may carry pixels: only those of a colour scale or a matrix do, and they are small."""
    for pixels in re.findall(r'base64,([^"]+)"', path.read_text(encoding="utf-8")):
        assert len(pixels) < 20_000
