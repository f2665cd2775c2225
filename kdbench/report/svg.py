"""The look that figures of papers share, and SVG texts with the same bytes every time.

matplotlib is imported when something is drawn.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from kdbench.verdict import Summary

__all__ = ["INCHES", "reach", "shade", "style", "svg"]

INCHES = (7.0, 5.0)
"""Width and height of a figure."""

STYLE: Any = {  # its keys are a type of their own in some versions of matplotlib
    "font.family": "DejaVu Sans",  # it comes with matplotlib, so it is there on every machine
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}


@contextmanager
def style(salt: str) -> Iterator[None]:
    """Within it figures are drawn and written in our look, whatever style the caller has set.

    Parameters
    ----------
    salt : a name of the plugin's own. Ids in the file are salted hashes: the same figure has the same bytes.
    """
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**STYLE, "svg.hashsalt": salt})
        yield


def svg(figure: Figure) -> str:
    """The text of a figure, without the date; to be called within :func:`style`."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def reach(summary: Summary) -> tuple[float, float]:
    """How far the 95 % interval reaches below and above the mean; nowhere where there is none, as with one seed."""
    if summary.mean is None or summary.low is None or summary.high is None:
        return 0.0, 0.0
    return summary.mean - summary.low, summary.high - summary.mean


def shade(share: float) -> tuple[float, float, float, float]:
    """Colour (red, green, blue, alpha) of a line whose place among its kind is ``share``, from 0 to 1."""
    from matplotlib import colormaps

    red, green, blue, alpha = colormaps["viridis"](0.9 * share)
    return float(red), float(green), float(blue), float(alpha)
