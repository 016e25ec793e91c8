"""Whether the page of GPU resources is what compiling the kernels gives here."""

from __future__ import annotations

from rendering.resources import VERSIONS


def difference(page: str, wanted: str) -> str | None:
    """Why the page is not the wanted one; None if it is."""
    if page == wanted:
        return None
    made, here = (
        next((line for line in text.splitlines() if line.startswith(VERSIONS)), "")
        for text in (page, wanted)
    )
    if made != here:
        return f"the page says {made!r}, here it is {here!r}: they cannot be compared"
    lines = [line for line in wanted.splitlines() if line not in page.splitlines()]
    return f"the page is out of date, e.g. {lines[0] if lines else 'a line too many'!r}"
