"""What the pictures have in common: canvas, style, boxes, text that fits."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from esper.report.markup import Markup, el

_MARGIN = 20.0  # around a picture that is a file of its own


@cache
def style() -> Markup:
    """The style sheet of the pictures. Its classes all begin with `es-`."""
    return Markup(files("esper.report").joinpath("svg.css").read_text(encoding="utf-8"))


class Canvas:
    """Collects the parts of one picture.

    Args:
        width: in pixels.
        prefix: of all IDs inside, so that pictures can share a page.
        title: for assistive technology and the tooltip.
        description: what the picture shows, in a sentence, for those who cannot see it.
    """

    def __init__(self, width: float, prefix: str, title: str, description: str) -> None:
        self.width = width
        self.prefix = prefix
        self._title = title
        self._description = description
        self._parts: list[Markup] = []

    def add(self, *parts: Markup | None) -> None:
        """Put parts on top."""
        self._parts.extend(part for part in parts if part is not None)

    def box(self, x: float, y: float, width: float, height: float, style: str) -> Markup:
        """A rectangle. `es-cut` and `es-grown` get their pattern, which lives in this picture."""
        fill = None
        if "es-cut" in style:
            fill = f"url(#{self.prefix}-cut)"
        elif "es-grown" in style:
            fill = f"url(#{self.prefix}-grown)"
        inset = 0.5 if "es-fixed" in style else 0.0
        return el(
            "rect",
            x=x + inset,
            y=y + inset,
            width=max(0.4, width - 2 * inset),
            height=max(0.4, height - 2 * inset),
            rx=min(2.0, width / 4, height / 4),
            class_=style,
            fill=fill,
        )

    def svg(self, height: float, standalone: bool) -> Markup:
        """The finished picture."""
        name, about = f"{self.prefix}-title", f"{self.prefix}-desc"
        edge = _MARGIN if standalone else 0.0
        wide, high = self.width + 2 * edge, height + 2 * edge
        paper = el("rect", x=-edge, y=-edge, width=wide, height=high, class_="es-paper")
        return el(
            "svg",
            el("title", self._title, id=name),
            el("desc", self._description, id=about),
            el("style", style()) if standalone else None,
            el("defs", self._hatch("cut", 45), self._hatch("grown", 135)),
            paper if standalone else None,
            *self._parts,
            xmlns="http://www.w3.org/2000/svg",
            viewbox=f"{-edge:g} {-edge:g} {wide:g} {high:g}",
            width=wide,
            height=high,
            role="img",
            class_="es",
            aria_labelledby=f"{name} {about}",
        )

    def _hatch(self, name: str, angle: int) -> Markup:
        return el(
            "pattern",
            el("rect", width=5, height=5, class_=f"es-hatch-{name}"),
            el("line", x1=0, y1=0, x2=0, y2=5, class_=f"es-line-{name}"),
            id=f"{self.prefix}-{name}",
            width=5,
            height=5,
            patternUnits="userSpaceOnUse",
            patternTransform=f"rotate({angle})",
        )


def text_at(x: float, y: float, content: str, class_: str | None = None) -> Markup:
    """Text with its baseline at y."""
    return el("text", content, x=x, y=y, class_=class_)


def fit(content: str, room: float, advance: float) -> str:
    """Text shortened in the middle to fit `room` pixels at `advance` pixels a character."""
    limit = int(room / advance)
    if len(content) <= limit:
        return content
    if limit < 4:
        return ""
    head = (limit - 1) // 2
    return f"{content[:head]}\N{HORIZONTAL ELLIPSIS}{content[len(content) - (limit - 1 - head) :]}"
