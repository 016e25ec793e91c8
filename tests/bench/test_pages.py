"""bench/pages.py: every page says what its rows say, and which pages there are."""

from __future__ import annotations

import re

import pages
from settings import BENCH, RESULTS, ROOT


def test_the_pages_in_the_repository_are_what_their_rows_say(capsys, monkeypatch):
    assert pages.main(["--check"]) == 0
    monkeypatch.setattr(pages, "text_of", lambda page: "another\n")
    assert pages.main(["--check", "cpu"]) == 1
    assert "docs/benchmarks/cpu.md is not what its rows say" in capsys.readouterr().out


def test_every_script_that_a_page_names_is_there():
    for page in pages.load_pages().values():
        text = (ROOT / page["file"]).read_text(encoding="utf-8")
        named = re.findall(r"bench/[\w/]+\.py|bench/results/\w+\.jsonl", text)
        assert named
        for name in named:
            assert (ROOT / name).is_file(), name


def test_no_code_of_bench_and_export_names_a_family():
    """What differs between families is data, in TOML."""
    import ast

    families = sorted(path.parent.name for path in ROOT.glob("mmad_fast/methods/*/detector.py"))
    assert len(families) > 1
    # A word, or a part of a name: "fast" holds no "ast".
    forms = (
        rf"(?<![A-Za-z]){name}(?![a-z])|{name.capitalize()}(?![a-z])|(?<![A-Z]){name.upper()}(?![A-Z])"
        for name in families
    )
    pattern = re.compile("|".join(forms))
    for file in [*BENCH.rglob("*.py"), *ROOT.glob("export/*.py")]:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        texts = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            found = [value for value in vars(node).values() if isinstance(value, str)]
            if id(node) in texts:
                continue
            assert not any(map(pattern.search, found)), (file.name, found)
    assert RESULTS.is_dir()
