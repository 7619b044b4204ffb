"""SVG drawings: escaped elements, scales, axes.

Marks carry the classes s0, s1, … of their model; the page's style sheet has a light and a dark
colour for each class.
"""

import math
from collections.abc import Callable, Sequence
from xml.etree import ElementTree

from markupsafe import Markup

Element = ElementTree.Element


def add(
    parent: Element, tag: str, title: str = "", text: str = "", **attributes: object
) -> Element:
    """Appends an element; `title` shows on hover. Attribute a_b is written a-b, cls is class."""
    named = {
        "class" if key == "cls" else key.replace("_", "-"): number(value)
        for key, value in attributes.items()
    }
    element = ElementTree.SubElement(parent, tag, named)
    if text:
        element.text = text
    if title:
        ElementTree.SubElement(element, "title").text = title
    return element


def number(value: object) -> str:
    """Formats coordinates to a hundredth, and any other value as text."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def markup(root: Element) -> Markup:
    """Returns the drawing as markup for an HTML page."""
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Returns round numbers in [low, high], about as many as `about`."""
    if not high > low:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / about))
    step *= min((1, 2, 5, 10), key=lambda factor: abs((high - low) / (factor * step) - about))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


class Plot:
    """A drawing with a frame of axes.

    Attributes:
      root: the svg element.
    """

    def __init__(
        self,
        title: str,
        x: tuple[float, float],
        y: tuple[float, float],
        *,
        width: int = 440,
        height: int = 280,
        left: int = 62,
        top: int = 14,
        right: int = 24,
        bottom: int = 44,
    ):
        """Opens a drawing called `title` whose axes run over `x` and `y`, both (low, high)."""
        self.width, self.height = width, height
        self.left, self.top, self.right, self.bottom = left, top, width - right, height - bottom
        self._x, self._y = x, y
        self.root = Element(
            "svg",
            {
                "viewBox": f"0 0 {width} {height}",
                "role": "img",
                "aria-label": title,
                "class": "plot",
            },
        )

    def x(self, value: float) -> float:
        """Returns the position of a value in drawing units from the left."""
        low, high = self._x
        return self.left + (value - low) / (high - low) * (self.right - self.left)

    def y(self, value: float) -> float:
        """Returns the position of a value in drawing units from the top."""
        low, high = self._y
        return self.bottom - (value - low) / (high - low) * (self.bottom - self.top)

    def x_axis(
        self, label: str, at: Sequence[float], text: Callable[[float], str] = "{:g}".format
    ) -> None:
        """Draws the horizontal axis with ticks `at`."""
        for value in at:
            x = self.x(value)
            add(self.root, "line", cls="tick", x1=x, x2=x, y1=self.bottom, y2=self.bottom + 4)
            add(self.root, "text", cls="num", x=x, y=self.bottom + 17, text=text(value))
        add(
            self.root,
            "line",
            cls="axis",
            x1=self.left,
            x2=self.right,
            y1=self.bottom,
            y2=self.bottom,
        )
        middle = (self.left + self.right) / 2
        add(self.root, "text", cls="label", x=middle, y=self.height - 6, text=label)

    def y_axis(
        self, label: str, at: Sequence[float], text: Callable[[float], str] = "{:g}".format
    ) -> None:
        """Draws the grid lines of the vertical axis with ticks `at`."""
        for value in at:
            y = self.y(value)
            add(self.root, "line", cls="grid", x1=self.left, x2=self.right, y1=y, y2=y)
            add(self.root, "text", cls="num end", x=self.left - 7, y=y + 4, text=text(value))
        middle = (self.top + self.bottom) / 2
        turned = f"translate(11 {number(middle)}) rotate(-90)"
        add(self.root, "text", cls="label", transform=turned, text=label)

    def path(self, points: Sequence[tuple[float, float]], cls: str) -> None:
        """Draws a line through points (x, y), in units of the axes."""
        steps = [f"{number(self.x(x))} {number(self.y(y))}" for x, y in points]
        add(self.root, "path", cls=cls, d="M" + "L".join(steps))

    def mark(self, x: float, y: float, series: int, title: str, size: float = 5.0) -> None:
        """Draws the sign of a model at a point in drawing units; its shape works without colour."""
        sign(self.root, x, y, series, title, size)


def sign(
    parent: Element, x: float, y: float, series: int, title: str = "", size: float = 5.0
) -> None:
    """Draws the sign of a model: circle, diamond, square or triangle, by `series`."""
    cls = f"mark s{series % 4}"
    if series % 4 == 0:
        add(parent, "circle", title, cls=cls, cx=x, cy=y, r=size)
        return
    corners = {
        1: ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
        2: ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
        3: ((0, -1.2), (1.15, 0.9), (-1.15, 0.9)),
    }[series % 4]
    points = " ".join(f"{number(x + size * dx)},{number(y + size * dy)}" for dx, dy in corners)
    add(parent, "polygon", title, cls=cls, points=points)
