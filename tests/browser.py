"""Looks at a page in a real browser: a screenshot, and what overflows or overlaps at a width.

The page stands in a frame of that width, for a window of the browser cannot be as narrow as a phone. Media queries go
by the frame. A script that only the frame's copy has measures it.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from needed import skip_without

# Boxes are compared as they are drawn. An SVG's text has no layout of its own: its box is what counts there.
_MEASURE = """
<script>
addEventListener("load", () => {
  const shown = element => { const box = element.getBoundingClientRect(); return box.width > 0 && box.height > 0; };
  const name = element => element.tagName.toLowerCase() + ": " + element.textContent.trim().slice(0, 60);
  const inside = (inner, outer) => inner.left >= outer.left - 1 && inner.right <= outer.right + 1
    && inner.top >= outer.top - 1 && inner.bottom <= outer.bottom + 1;
  const meet = (one, other) => Math.min(one.right, other.right) - Math.max(one.left, other.left) > 1
    && Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top) > 1;
  const overlaps = elements => {
    const found = [], boxes = elements.map(element => element.getBoundingClientRect());
    elements.forEach((one, i) => elements.forEach((other, j) => {
      if (i < j && !one.contains(other) && meet(boxes[i], boxes[j])) found.push([name(one), name(other)]);
    }));
    return found;
  };
  const width = document.documentElement.clientWidth;
  const all = [...document.body.querySelectorAll("*")].filter(shown);
  const blocks = all.filter(element => element.matches("h1, h2, h3, p, dt, dd, figcaption, svg, li, td, th"));
  const svgs = [...document.querySelectorAll("svg")];
  const words = svgs.flatMap(svg => [...svg.querySelectorAll("text")].filter(shown));
  const result = {
    width, scroll_width: document.documentElement.scrollWidth, height: document.documentElement.scrollHeight,
    too_wide: all.filter(e => {
      const box = e.getBoundingClientRect();
      return box.right > width + 1 || box.left < -1;
    }).map(name),
    overlapping_blocks: overlaps(blocks),
    overlapping_words: svgs.flatMap(svg => overlaps([...svg.querySelectorAll("text")].filter(shown))),
    words_outside: words.filter(
      e => !inside(e.getBoundingClientRect(), e.ownerSVGElement.getBoundingClientRect())).map(name),
    smallest_text: Math.min(...words.map(e => {
      const scale = e.ownerSVGElement.getBoundingClientRect().width / e.ownerSVGElement.viewBox.baseVal.width;
      return parseFloat(getComputedStyle(e).fontSize) * scale;
    }), ...blocks.filter(e => e.tagName != "svg").map(e => parseFloat(getComputedStyle(e).fontSize))),
    svgs: svgs.length,
    headings: [...document.querySelectorAll("h1, h2, h3")].map(e => e.tagName),
    unlabelled: svgs.filter(svg => svg.getAttribute("role") != "img" || !svg.getAttribute("aria-label")).length,
    colours: blocks.filter(e => e.tagName != "svg").map(e => {
      let behind = e;
      while (behind && getComputedStyle(behind).backgroundColor == "rgba(0, 0, 0, 0)") behind = behind.parentElement;
      return [getComputedStyle(e).color, behind ? getComputedStyle(behind).backgroundColor : "rgb(255, 255, 255)"];
    }),
  };
  const said = parent.document.createElement("pre");
  said.id = "measured"; said.textContent = JSON.stringify(result);
  parent.document.body.append(said);
});
</script>
"""


def need_chromium() -> str:
    """Path of the browser; the test is skipped where there is none."""
    path = shutil.which("chromium")
    if path is None:
        skip_without("chromium is not installed (Debian's package of that name)")
    return path


def measure(page: Path, folder: Path, *, width: int) -> dict[str, Any]:
    """Lay a page out at a width, and measure it.

    Returns:
        what the script above gives.
    """
    dom = _run(_framed(page, folder, width=width, height=1000, script=_MEASURE), folder, "--dump-dom")
    found = re.search(r'<pre id="measured">(.*?)</pre>', dom, re.DOTALL)
    assert found, dom[-2000:]
    result: dict[str, Any] = json.loads(html.unescape(found[1]))
    return result


def screenshot(page: Path, folder: Path, target: Path, *, width: int, height: int) -> None:
    """Take a picture of a page at a width."""
    framed = _framed(page, folder, width=width, height=height, script="")
    _run(framed, folder, f"--screenshot={target}", f"--window-size={max(width, 500)},{height}")


def _framed(page: Path, folder: Path, *, width: int, height: int, script: str) -> Path:
    """A page that shows another one, and a script after it, in a frame of this size."""
    inner = html.escape(page.read_text(encoding="utf-8").replace("</body>", f"{script}</body>"))
    frame = folder / f"frame-{width}.html"
    style = f"border: 0; display: block; width: {width}px; height: {height}px"
    frame.write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><body style="margin: 0"><iframe style="{style}" srcdoc="{inner}">'
        "</iframe></body>",
        encoding="utf-8",
    )
    return frame


def _run(page: Path, folder: Path, *options: str) -> str:
    command = [
        need_chromium(),
        "--headless",
        "--no-sandbox",  # root has no other way
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--virtual-time-budget=5000",
        f"--user-data-dir={folder / 'chromium'}",
        *options,
        page.resolve().as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
