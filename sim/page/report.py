"""One self-contained HTML page about a run: no scripts, no requests, opens anywhere, prints well."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path
from string import Template

from ... import __version__
from ...whole_file import written_whole
from . import energy_section, sections
from .markup import Html, join, tag, text
from .summary import RunSummary

# Anchor, name in the navigation, and the function that writes the section; absent data leave a section out.
SECTIONS = (
    ("pipeline", "Pipeline", sections.pipeline),
    ("equivalence", "Equivalence", sections.equivalence),
    ("energy", "Energy and latency", energy_section.energy),
    ("activity", "Activity", sections.activity),
    ("answers", "Answers", sections.answers),
    ("network", "Network", sections.network),
    ("chips", "Chips", sections.chips),
    ("environment", "Environment", sections.environment),
)


def page(summary: RunSummary) -> str:
    """The page as text.

    Parameters
    ----------
    summary : RunSummary
        Every text in it is escaped; whatever is absent is left out.
    """
    written = [(anchor, name, write(summary)) for anchor, name, write in SECTIONS]
    present = [(anchor, name, body) for anchor, name, body in written if body]
    links = [tag("a", name, href=f"#{anchor}") for anchor, name, _ in present]
    folder = files(sections.__name__.rpartition(".")[0])
    template = Template((folder / "report.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=text(f"{summary.name} · lapilli"),
        heading=text(summary.name),
        subtitle=sections.subtitle(summary),
        navigation=tag("nav", *links, aria_label="Sections") if links else Html(""),
        body=join([sections.headline(summary), *(body for *_, body in present)]),
        style=(folder / "report.css").read_text(encoding="utf-8"),
        version=text(__version__),
    )


def write_report(path: str | os.PathLike[str], summary: RunSummary) -> Path:
    """Write the page of a run to ``path``, all at once: an interrupted write leaves no half page.

    Parameters
    ----------
    path : path-like
        Of the HTML file; its folder is made if it does not exist.
    summary : RunSummary

    Returns
    -------
    pathlib.Path
        The file.
    """
    target = Path(path)
    content = page(summary)
    target.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(target) as temporary:
        temporary.write_text(content, encoding="utf-8")
    return target
