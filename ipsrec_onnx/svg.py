"""Plots as inline SVG: text stays text, and ink and lines take the page's colours, light or dark; matplotlib's home."""

from __future__ import annotations

import html
import io
import re
from contextlib import AbstractContextManager
from typing import Any

import matplotlib
from matplotlib.figure import Figure

# Middle tones, to be told apart on white and on black, and by most colour-blind readers in this order.
COLOURS = ("#2f7fd1", "#d9730d", "#159a6c", "#c2407f", "#8a63d2", "#a08a00", "#5f7a8c", "#c4453a", "#23a3b5", "#9a6a4b")

INK, LINE = "#010203", "#040506"  # stand for the page's own, which CSS knows
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may have $ in it
    "font.size": 10,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": LINE,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
}


def plot_style(**changes: Any) -> AbstractContextManager[None]:
    """The look of all plots, for the block in which a figure is drawn; changes by matplotlib's names, _ for its dot."""
    return matplotlib.rc_context(_STYLE | {name.replace("_", ".", 1): value for name, value in changes.items()})


def svg(figure: Figure, name: str, *, label: str) -> str:
    """The figure as an SVG element that takes the page's width, the same bytes every time.

    Args:
        figure: drawn within plot_style.
        name: of letters; no other figure of the page has it.
        label: what the figure shows, for who does not see it.
    """
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub("<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'\bid="', f'id="{name}-', text)  # several figures on one page must not share names
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    text = text.replace(INK, "var(--ink)").replace(LINE, "var(--line)")
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)
