"""Whether the compiled kernels load here."""

from __future__ import annotations

from functools import cache


@cache
def kernels_refusal() -> str | None:
    """None if the compiled kernels can be imported, else why not."""
    try:
        import mmad_fast._kernels  # noqa: F401
    except ImportError as error:
        return (
            f"the compiled kernels do not load ({error}); reinstall with: "
            "pip install --force-reinstall --no-deps mmad-fast"
        )
    return None
