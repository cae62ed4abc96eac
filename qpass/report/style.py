"""What all pictures share: colours, type, names that are never read as TeX, files with the same bytes every time."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Iterator
from functools import lru_cache

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

from qpass.report.wording import one_line

INK, GREY, FAINT, PALE, RULE = "#1f2933", "#66727f", "#a9b2bb", "#e4e8ec", "#c3cad1"
FLOAT_COLOUR, QUANT_COLOUR, THRESHOLD_COLOUR = "#7d98b3", "#d9622b", "#a3123f"
FAMILY_COLOURS = {
    "conv2d": "#2f6fa8",
    "depthwise_conv2d": "#e08a2c",
    "conv2d_transpose": "#2f9683",
    "matmul": "#8c5aa8",
}
OTHER_FAMILY = "#7b8794"
MONO = "DejaVu Sans Mono"
MONO_ADVANCE = 0.602  # width of a character over the font size: DejaVu Sans Mono, 1233 of 2048 units


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Draw with Matplotlib's defaults and this module's changes, whatever the user's matplotlibrc says.

    Figures must be made and written inside of it: some parts are made only when a figure is drawn.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rc("font", family=["DejaVu Sans"], size=9.0)
        matplotlib.rc("text", color=INK)
        matplotlib.rc("axes", edgecolor=RULE, labelcolor=GREY, axisbelow=True)
        matplotlib.rc("axes.spines", top=False, right=False)
        matplotlib.rc("grid", color=PALE, linewidth=0.8)
        matplotlib.rc("xtick", color=RULE, labelcolor=GREY)
        matplotlib.rc("ytick", color=RULE, labelcolor=GREY)
        yield


def family_colour(family: str) -> str:
    """Colour of a family of layers."""
    return FAMILY_COLOURS.get(family, OTHER_FAMILY)


@lru_cache(maxsize=1)
def _drawable() -> frozenset[int]:
    font = FT2Font(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSansMono.ttf"))
    return frozenset(font.get_charmap())


def plain(text: str, most: int | None = None) -> str:
    r"""`text` as Matplotlib must be given it to draw just these characters.

    Dollars are escaped (two of them would start TeX), control characters too, and characters that Matplotlib's own font
    lacks become ``\u`` escapes, so that a picture does not depend on the fonts of the machine. Longer than `most`
    characters, the middle gives way to an ellipsis.
    """
    shown = "".join(c if ord(c) in _drawable() else c.encode("unicode_escape").decode("ascii") for c in one_line(text))
    if most is not None and len(shown) > most:
        head = (most - 1) // 3
        shown = f"{shown[:head]}…{shown[len(shown) - (most - 1 - head) :]}"
    return shown.replace("$", r"\$")


def drawn_length(text: str) -> int:
    """Number of characters that a `plain` text shows."""
    return len(text.replace(r"\$", "$"))


def png_bytes(figure: Figure, dpi: int) -> bytes:
    """The figure as PNG, the same bytes for the same figure."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def pdf_bytes(pages: Iterable[Figure], title: str) -> bytes:
    """The figures as the pages of one PDF, the same bytes for the same figures; pages are drawn one at a time."""
    buffer = io.BytesIO()
    metadata = {"Title": title, "CreationDate": None, "Creator": "qpass", "Producer": None}
    with PdfPages(buffer, metadata=metadata) as pdf:
        for figure in pages:
            FigureCanvasAgg(figure)
            pdf.savefig(figure)
    return buffer.getvalue()
