"""Names from files in figures: drawn letter for letter."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.text import Text

from detector.errors import printable_lines


def draw_names_plainly(figure: Figure) -> None:
    """Make all texts of a finished ``figure`` plain: a class "$x$" is no formula, "\\x1b" no letter."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)
        text.set_text(printable_lines(text.get_text()))
