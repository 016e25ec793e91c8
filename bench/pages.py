"""Writes the pages and README's tables that are made of measured rows: no figure is typed by hand.

python bench/pages.py                      # all of them
python bench/pages.py cpu gpu              # some
python bench/pages.py --check              # exit code 1 if one would change, and nothing is written
python bench/pages.py gpu_resources        # compiles every GPU kernel: only where it is named

What a page says besides figures stands in pages.toml, how its tables are made in rendering/.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from settings import BENCH, ROOT, read_toml

from mmad_fast.measure.generated_pages import with_section, write_changed


def load_pages() -> dict[str, dict[str, Any]]:
    """The settings of each page, by its name."""
    tables = read_toml(BENCH / "pages.toml")
    single = tables["single_fits"]
    return {
        name: {**page, "single_fits": single} for name, page in tables.items() if "file" in page
    }


def text_of(page: Mapping[str, Any]) -> str:
    """The page, or the part of it that is made of rows."""
    module, function = page["renderer"].split(":")
    return str(getattr(import_module(module), function)(page))


def render_pages(names: Iterable[str] = ()) -> dict[Path, str]:
    """The whole text of each file; without names of all pages but those that compile."""
    pages = load_pages()
    chosen = list(names) or [name for name, page in pages.items() if not page.get("is_compiled")]
    texts: dict[Path, str] = {}
    for name in chosen:
        page = pages[name]
        file, text = ROOT / page["file"], text_of(page)
        if section := page.get("section"):
            whole = texts.get(file) or file.read_text(encoding="utf-8")
            marks = f"<!-- {section}: begin -->", f"<!-- {section}: end -->"
            text = with_section(whole, *marks, text)
        texts[file] = text
    return texts


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pages", nargs="*", choices=[*load_pages(), []], metavar="PAGE")
    parser.add_argument("--check", action="store_true", help="change nothing, report a difference")
    options = parser.parse_args(arguments)
    changed = write_changed(render_pages(options.pages), check=options.check)
    for file in changed:
        if options.check:
            print(f"{file.relative_to(ROOT)} is not what its rows say: python bench/pages.py")
    return int(options.check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
