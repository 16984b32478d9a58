"""Small pieces of HTML that are safe by construction: every text is escaped unless it is already :class:`Html`."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

_VOID = ("br",)


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def text(value: object) -> Html:
    """``value`` as markup: escaped, unless it is markup."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def tag(name: str, *children: object, cls: str = "", **attributes: str) -> Html:
    """One element; children are escaped unless they are markup, attributes always."""
    written = {"class": cls} if cls else {}
    written |= {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
    head = "".join(f' {key}="{html.escape(value)}"' for key, value in written.items())
    if name in _VOID:
        return Html(f"<{name}{head}>")
    return Html(f"<{name}{head}>{join(children)}</{name}>")


def join(parts: Iterable[object]) -> Html:
    """Parts one after the other."""
    return Html("".join(text(part) for part in parts))


def table(
    headers: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    left: int = 1,
    foot: Sequence[object] | None = None,
) -> Html:
    """A table that scrolls sideways on narrow screens.

    Parameters
    ----------
    headers : cells
    rows : of cells
    left : int
        Columns that hold text, aligned left; the others hold numbers, aligned right.
    foot : cells or None
        A row of totals.
    """

    def row(cells: Sequence[object], element: str) -> Html:
        return tag("tr", *(tag(element, c, cls="" if i < left else "number") for i, c in enumerate(cells)))

    body = [tag("thead", row(headers, "th")), tag("tbody", *(row(cells, "td") for cells in rows))]
    if foot is not None:
        body.append(tag("tfoot", row(foot, "td")))
    return tag("div", tag("table", *body), cls="scroll", tabindex="0")


def figure(svg: str, caption: object, *, wide: bool = False) -> Html:
    """An inline SVG with its caption."""
    return tag(
        "figure", tag("figcaption", caption), tag("div", Html(svg), cls="scroll plot"), cls="wide" if wide else ""
    )


def badge(label: object, kind: str) -> Html:
    """A small coloured label; ``kind`` is good, bad, warn or plain."""
    mark = {"good": "✓ ", "bad": "✗ ", "warn": "! "}.get(kind, "")
    return tag("span", Html(mark), label, cls=f"badge {kind}")


def section(anchor: str, title: object, *children: object, lead: object = "") -> Html:
    """A titled part of the page; an empty one vanishes."""
    content = [c for c in children if c]
    if not content:
        return Html("")
    intro = [tag("p", lead, cls="lead")] if lead else []
    return tag("section", tag("h2", title), *intro, *content, id=anchor)
