"""From a matplotlib figure to pixels, with names from files drawn as plain text."""

from __future__ import annotations

import warnings

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from detector.core.errors import printable_lines

DPI = 120
GREY = "0.45"
"""Resolution of whole pages, and the colour of their axes and captions."""


def pixels_of(figure: Figure) -> np.ndarray:
    """Draw a finished ``figure`` and return its pixels (H, W, 3) uint8 RGB.

    All texts are drawn as plain text: a class named "$x$" is not read as a formula, and control characters
    are escaped. A character that the font lacks is drawn as an empty box, without a warning.
    """
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)
        text.set_text(printable_lines(text.get_text()))
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
