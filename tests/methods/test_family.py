"""A family of methods is a folder and one line: nothing else in the project knows its name."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import mmad_fast
from mmad_fast.errors import InvalidInputError
from mmad_fast.methods.family import (
    FAMILIES,
    default_method,
    families,
    get_family,
    get_method,
    get_recipe,
    method_names,
)
from mmad_fast.methods.fit_request import FitRequest, resolve_options
from mmad_fast.methods.options import chosen_options, option_fields

ROOT = Path(__file__).parents[2]
PACKAGE = Path(mmad_fast.__file__).parent
FAMILY_FILE = Path("methods/family.py")
COMMAND_LINE = "from mmad_fast.cli import main; main()"
# An editable installation's finder would come before the copy of the package.
WITHOUT_EDITABLE_FINDER = (
    "import sys\n"
    "sys.meta_path[:] = [f for f in sys.meta_path if 'Redirecting' not in type(f).__name__]\n"
)


@pytest.mark.parametrize("family", families(), ids=FAMILIES)
def test_a_record_is_complete(family) -> None:
    names = [variant.name for variant in family.variants]
    assert family.default in names
    assert family.speeds["exact"] == {}
    assert "cpu" in family.pipelines
    keys = {branch.key for branch in family.branches}
    for variant in family.variants:
        assert get_method(variant.name) == (family, variant)
        assert set(variant.branches) <= keys
        assert set(variant.values) <= set(option_fields(family.options))
        resolve_options(FitRequest(variant.name, options=family.speed_only.values))
        for speed in family.speeds:
            assert resolve_options(FitRequest(method=variant.name, speed=speed)).is_exact == (
                speed == "exact"
            )
    for branch in family.branches:
        assert set(branch.identity) <= set(option_fields(branch.options))
    assert get_recipe(family.recipe.name) == family.recipe
    assert all(facts.help for facts in chosen_options(family.options).values())


def test_names_of_methods_and_recipes_are_unique() -> None:
    assert len(set(method_names())) == len(method_names())
    assert default_method() in method_names()
    with pytest.raises(InvalidInputError, match=f"no method 'nope'.*{default_method()}"):
        get_method("nope")
    with pytest.raises(InvalidInputError, match="no family of methods 'nope'; it has cfm"):
        get_family("nope")
    with pytest.raises(InvalidInputError, match="no preprocessing recipe 'nope'; known are.*none"):
        get_recipe("nope")


def test_the_records_import_no_torch() -> None:
    code = (
        "import sys; from mmad_fast.methods.family import families; families(); "
        "assert not {'torch', 'onnx', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_precisions_that_messages_advise_can_be_asked_of_a_fit() -> None:
    advised = {
        name
        for path in PACKAGE.rglob("*.py")
        for name in re.findall(r"precision='(\w+)'", path.read_text())
    }
    assert "fp32" in advised
    for name in advised:
        assert FitRequest.of(precision=name).options == {"precision": name}


def test_no_other_file_has_a_familys_name_as_code() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text}"
        for folder in ("mmad_fast", "csrc", "bench", "export")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in (".py", ".h", ".cpp", ".cu", ".inc")
        for line, text in _names_as_code(path)
    ]
    allowed = re.compile(r'^mmad_fast/methods/family\.py:\d+: "\w+"$')
    assert [one for one in found if not allowed.match(one)] == []
    assert len(found) == len(FAMILIES)


def _names_as_code(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every name and string literal, docstrings left out, with a family's name."""
    if any(PACKAGE.name in path.parts and name in path.parts for name in FAMILIES):
        return
    if _has_familys_name(path.name):
        yield 0, path.name
    text = path.read_text()
    if path.suffix != ".py":
        for number, line in enumerate(text.splitlines(), start=1):
            if _has_familys_name(line.split("//")[0]):
                yield number, line.strip()
        return
    docstrings = {
        number
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    kinds = {tokenize.NAME, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        is_code = token.type in kinds and token.start[0] not in docstrings
        if is_code and _has_familys_name(token.string):
            yield token.start[0], token.string


def _has_familys_name(text: str) -> bool:
    """A family's name is a word of the text: "ast" is one of AstOptions, but not of "fast"."""
    forms = "|".join(
        rf"(?<![A-Za-z]){name}(?![a-z])|{name.capitalize()}(?![a-z])|(?<![A-Z]){name.upper()}(?![A-Z])"
        for name in FAMILIES
    )
    return re.search(forms, text) is not None


def test_a_name_is_found_as_a_word() -> None:
    for text in ("ast", "AstOptions", "write_ast", "ast-depth", "CFM", "M3dmFit"):
        assert _has_familys_name(text), text
    for text in ("fast", "broadcast", "mmad_fast", "last", "PASTE"):
        assert not _has_familys_name(text), text


@dataclass(frozen=True)
class PackageCopy:
    """A copy of the installed package in a folder, in which a family can be added."""

    folder: Path

    @property
    def package(self) -> Path:
        return self.folder / PACKAGE.name

    def add_line(self, family: str) -> None:
        """The one line outside of the family's folder."""
        path = self.package / FAMILY_FILE
        text = path.read_text()
        start = "FAMILIES: tuple[str, ...] = (\n"
        path.write_text(text.replace(start, f'{start}    "{family}",\n'))

    def changed_files(self) -> list[str]:
        """Files of the package that are not as installed; new folders are not looked at."""
        return [
            str(path.relative_to(PACKAGE))
            for path in sorted(PACKAGE.rglob("*.py"))
            if path.read_bytes() != (self.package / path.relative_to(PACKAGE)).read_bytes()
        ]

    def run(self, *arguments: str | Path, code: int = 0) -> str:
        """What the command line prints to its output; for another exit code, the words that it
        prints to its error stream, without the frame around them."""
        done = subprocess.run(
            [sys.executable, "-c", COMMAND_LINE, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(self.folder)},
            capture_output=True,
            text=True,
            cwd=self.folder,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return re.sub(r"[\s│╭╮╰╯─]+", " ", done.stderr) if code else done.stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> PackageCopy:
    folder = tmp_path_factory.mktemp("package")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, folder / PACKAGE.name, ignore=ignored)
    from mmad_fast import _kernels

    compiled = Path(_kernels.__file__)
    if not (folder / PACKAGE.name / compiled.name).exists():
        shutil.copy(compiled, folder / PACKAGE.name)
    (folder / "sitecustomize.py").write_text(WITHOUT_EDITABLE_FINDER)
    return PackageCopy(folder)


@pytest.fixture(scope="module")
def data(package: PackageCopy) -> Path:
    sizes = ["--train", "4", "--validation", "2", "--good", "2", "--per-defect", "1"]
    package.run("synth", "set", "--category", "biscuit", "--size", "96", *sizes)
    return package.folder / "set"


def test_a_family_that_is_no_transformer_and_has_no_points_does_everything(
    package: PackageCopy, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(Path(__file__).parent / "patch_color", package.package / "methods/patch_color")
    package.add_line("patch_color")
    assert package.changed_files() == [str(FAMILY_FILE)]
    artifact, method = tmp_path / "artifact", ("--method", "patch-color")

    shown = package.run("fit", *method, "--help")
    assert "--patch-size" in shown
    assert "--rgb-backbone" not in shown
    refused = package.run("fit", data, "-o", artifact, *method, "--patch-size", "7", code=2)
    assert "patch_size is '7'; it must be one of 16, 32" in refused
    package.run("fit", data, "-o", artifact, *method, "--spread-floor", "0.2")
    manifest = json.loads((artifact / "manifest.json").read_text())
    assert manifest["parameters"]["patch_size"] == 16
    assert manifest["parameters"]["training"]["spread_floor"] == 0.2

    package.run("infer", artifact, data / "biscuit/test/good", "--output", tmp_path / "results")
    assert list((tmp_path / "results").rglob("*.png"))
    accuracy = json.loads(package.run("eval", artifact, "--data", data, "--json"))
    assert accuracy["rows"][0]["method"] == "patch-color"
    assert accuracy["rows"][0]["decisions"]["false_rejects"]["num_scans"] == 2
    exported = package.run("export", artifact, "--to", "openvino", "--no-measure", "--json")
    assert json.loads(exported)["golden"]["map_difference"] < 1e-4
    assert "agrees" in package.run("doctor", artifact)

    sizes = ["--train", "5", "--validation", "0", "--good", "1", "--per-defect", "0"]
    package.run("synth", tmp_path / "few", "--category", "biscuit", "--size", "96", *sizes)
    fitted = json.loads(
        package.run("fit", tmp_path / "few", "-o", tmp_path / "aside", *method, "--json")
    )
    assert fitted["threshold"]["source"] == "training, set aside"
    assert fitted["threshold"]["num_scans"] == 1
    manifest = json.loads((tmp_path / "aside" / "manifest.json").read_text())
    assert manifest["parameters"]["training"]["num_train_scans"] == 4

    rows = tmp_path / "rows.jsonl"
    fits = ("--few-shot", "2", "--compare", "reference", "--results", rows)
    printed = package.run("bench", "--data", data, *method, "--patch-size", "32", *fits)
    assert "patch-color (patch_size 32), 2-shot" in printed.replace("\n", " ")
    measured = [json.loads(line) for line in rows.read_text().splitlines()]
    assert [row["engine"] for row in measured].count("reference") == 2
    assert {row["shots"] for row in measured} == {2, None}
    refused = package.run("train-shared", data, *method, "-o", tmp_path / "x", code=1)
    assert "trains nothing for several categories; methods that do: m3dm" in refused


def test_a_copy_of_a_family_under_another_name_needs_one_line(
    package: PackageCopy, data: Path, tmp_path: Path
) -> None:
    methods = package.package / "methods"
    shutil.copytree(methods / "cfm", methods / "crossmap")
    for path in (methods / "crossmap").glob("*.py"):
        renamed = path.read_text().replace("methods.cfm", "methods.crossmap")
        path.write_text(re.sub(r'"cfm(-\w)?"', r'"crossmap\1"', renamed))
    package.add_line("crossmap")
    assert package.changed_files() == [str(FAMILY_FILE)]
    artifact = tmp_path / "artifact"
    small = ["--rgb-backbone", "dinov2-vits14", "--rgb-layers", "1", "--point-layers", "0"]
    small += ["--num-groups", "64", "--group-size", "32", "--epochs", "1"]
    random = ["--rgb-weights", "random", "--point-weights", "random"]
    package.run("fit", data, "-o", artifact, "--method", "crossmap-t", *small, *random)
    assert json.loads((artifact / "manifest.json").read_text())["family"] == "crossmap"
    assert "agrees" in package.run("doctor", artifact)
