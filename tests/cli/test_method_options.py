"""The flags of `fit`, `bench` and `train-shared`: derived from the options of the method."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from mmad_fast import cli
from mmad_fast.cli.bench import bench
from mmad_fast.cli.fit import fit
from mmad_fast.cli.method_options import CHOSEN
from mmad_fast.cli.train_shared import SHARING, train_shared
from mmad_fast.errors import MmadFastError
from mmad_fast.methods.family import default_method, families, get_method, method_names
from mmad_fast.methods.fit_request import FitRequest, resolve_options
from mmad_fast.methods.options import chosen_options

COMMANDS: dict[str, Callable[..., None]] = {
    "fit": fit,
    "bench": bench,
    "train-shared": train_shared,
}
Call = Callable[..., tuple[int, str]]


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def flags_of(method: str) -> set[str]:
    """Those of a method's options, and of its backbones' weights."""
    family, _ = get_method(method)
    weights = {f"--{branch.key}-weights" for branch in family.weighted_branches}
    return weights | {flag(name) for name in chosen_options(family.options)}


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """A function of the command line's arguments: (exit code, what was printed, on one line)."""

    def call_main(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["mmad-fast", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "400")
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), " ".join((printed.out + printed.err).split())

    return call_main


def target(command: str, tmp_path: Path) -> tuple[object, ...]:
    """The arguments that the command needs; the data set is not there."""
    data, output = tmp_path / "absent", ("--output", tmp_path / "out")
    return (command, data, *output) if command == "train-shared" else (command, "--data", data)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("method", ["cfm", "m3dm", "m3dm-rgb", None])
def test_help_shows_the_options_of_the_method_and_of_no_other(
    call: Call, command: str, method: str | None
) -> None:
    named = () if method is None else ("--method", method)
    code, printed = call(command, *named, "--help")
    method = method or (SHARING[0] if command == "train-shared" else default_method())
    found = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", printed))
    assert code == 0
    assert f"Options of {method}" in printed
    assert flags_of(method) <= found
    others = {name for other in method_names() for name in flags_of(other)} - flags_of(method)
    assert others
    assert not others & found


def test_help_shows_what_the_methods_name_stands_for(call: Call) -> None:
    for method, layers, blocks in (("cfm-s", 4, "1,2,3"), ("cfm-m", 8, "1,4,7")):
        _, printed = call("fit", f"--method={method}", "-h")
        assert f"Transformer blocks of the RGB backbone to keep. (default: {layers})" in printed
        assert f"(default: {blocks})" in printed
    assert "56x56|28x28|groups" in call("bench", "--method", "m3dm", "-h")[1]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("named", [("--method", "m3d"), ("--method=m3d",)])
def test_an_unknown_method_is_answered_with_the_known_ones(
    call: Call, tmp_path: Path, command: str, named: tuple[str, ...]
) -> None:
    code, printed = call(*target(command, tmp_path), *named)
    assert code == 2
    known = ", ".join(method_names())
    assert f"Invalid value for '--method': there is no method 'm3d'; known are {known}" in printed


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--method", "m3dm", "--epochs", 3],
            "'--epochs': m3dm has no such option; it has",
        ),
        (
            ["--method", "m3dm", "--pixel-stride", 2],
            "'--pixel-stride': m3dm has no such option; it has",
        ),
        (
            ["--method", "cfm", "--blur", "float"],
            "'--blur': cfm has no such option; it has",
        ),
        (
            ["--blur", "float", "--method", "m3dm", "--method", "cfm"],
            "'--blur': cfm has no such option; it has",
        ),
        (
            ["--method", "m3dm", "--set", "blur=float"],
            "'--set': m3dm has no such option; it has",
        ),
        (
            ["--method", "m3dm", "--banks", "rgb"],
            "'--banks': m3dm has no such option; it has",
        ),
        (
            ["--method", "m3dm", "--point-patches", "7x7"],
            "Invalid value for '--point-patches': point_patches is '7x7'; it must be one of 56x56, "
            "28x28, groups",
        ),
        (["--method", "cfm", "--patience", "many"], "'many'; it must be an integer or none"),
        (
            ["--method", "m3dm", "--rgb-lambda", "x"],
            "'x'; it must be a finite number",
        ),
        (["--skip-near-origin", "maybe"], "'maybe'; it must be true or false"),
        (["--rgb-backbone", "resnet"], "one of dino-vitb8, dinov2-vits14, dinov2-vitb14"),
        (["--num-groups", 60000], "num_groups is 60000; it must be at most 4096"),
        (["--num-groups", 0], "num_groups is 0; it must be at least 1"),
    ],
)
def test_wrong_flags_and_values_are_wrong_usage(
    call: Call, tmp_path: Path, command: str, arguments: list[object], words: str
) -> None:
    code, printed = call(*target(command, tmp_path), *arguments)
    assert code == 2
    assert words in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "m3dm", "--point-patches", "groups"], "whose patches need a grid"),
        (["--method", "m3dm-rgb", "--num-groups", 64], "m3dm-rgb uses no point features"),
        (["--method", "m3dm-rgb", "--rgb-lambda", 2], "rgb_lambda changes nothing in m3dm-rgb"),
        (["--speed", "quick"], "speed is 'quick'; it must be one of exact, fast, small"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "bench"])
def test_options_that_do_not_go_together_are_refused_before_any_work(
    call: Call, tmp_path: Path, command: str, arguments: list[object], words: str
) -> None:
    pytest.importorskip("torch", reason="fitting needs torch")
    output = ("--output", tmp_path / "out")
    code, printed = call(command, "--data", tmp_path / "absent", *output, *arguments)
    assert code == 1
    assert words in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_no_option_has_the_name_of_a_commands_own_flag(command: str) -> None:
    own: set[str] = set()
    names: set[str] = set()
    hints = get_type_hints(COMMANDS[command], include_extras=True)
    for name in inspect.signature(COMMANDS[command]).parameters:
        if name == CHOSEN:
            continue
        names.add(name)
        (settings,) = get_args(hints[name])[1:]
        # Typer keeps the first of the flags that an option is given as its default.
        given = {one for one in (settings.default, *(settings.param_decls or ())) if one != ...}
        own |= given or {flag(name)}
    assert {"--method", "--seed", "--unit", "--recipe", "--threads", "--json"} <= own
    for family in families():
        assert not own & flags_of(family.default), family.name
        assert not names & set(chosen_options(family.options)), family.name


class WorkBeganError(MmadFastError):
    """Instead of the work of a command."""


@pytest.fixture
def request_of(call: Call, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FitRequest]:
    """A function of a command's arguments: the request that it makes of them."""
    pytest.importorskip("torch", reason="fitting needs torch")
    requests: list[FitRequest] = []

    def stop(*given: Any, **named: Any) -> None:
        requests.extend(one for one in (*given, *named.values()) if isinstance(one, FitRequest))
        raise WorkBeganError

    monkeypatch.setattr("mmad_fast.methods.fit_run.fit_detector", stop)
    monkeypatch.setattr("mmad_fast.measure.benchmark.run_benchmark", stop)

    def make(*arguments: object) -> FitRequest:
        requests.clear()
        output = ("--output", "out") if arguments[0] == "fit" else ()
        assert call(*arguments, "--data", "absent", *output)[0] == 1
        (request,) = requests
        return request

    return make


@pytest.mark.parametrize("command", ["fit", "bench"])
def test_what_is_missing_may_be_named(request_of: Callable[..., FitRequest], command: str) -> None:
    assert request_of(command).missing is None
    assert request_of(command, "--missing", "-9999").missing == -9999.0


@pytest.mark.parametrize("command", ["fit", "bench"])
def test_flags_that_are_given_become_options(
    request_of: Callable[..., FitRequest], command: str
) -> None:
    flags = ("--point-patches", "28x28", "--uff-updates", 7, "--rgb-lambda", 0.5)
    networks = ("--point-layers", "1,2", "--rgb-weights", "random", "--skip-near-origin", "yes")
    request = request_of(command, "--method", "m3dm", "--seed", 3, *flags, *networks)
    assert (request.method, request.seed, request.weights) == ("m3dm", 3, {"rgb": "random"})
    assert set(request.options) == {
        *("point_patches", "uff_updates", "rgb_lambda", "point_layers", "skip_near_origin"),
    }
    options: Any = resolve_options(request)
    assert (options.point_patches, options.uff_updates, options.rgb_lambda) == ("28x28", 7, 0.5)
    assert (options.point_layers, options.skip_near_origin) == ((1, 2), True)
    assert options.uff == "train"  # the default
    assert request_of(command).options == {}


@pytest.mark.parametrize("command", ["fit", "bench"])
@pytest.mark.parametrize(
    ("method", "speed", "expected"),
    [
        ("cfm-s", "exact", {"pixel_stride": 1, "precision": "fp32"}),
        ("cfm-s", "fast", {"pixel_stride": 2, "precision": "int8"}),
        ("cfm-s", "small", {"pixel_stride": 1, "precision": "int8"}),
        ("m3dm", "exact", {"bank_dtype": "float32", "precision": "fp32"}),
        ("m3dm", "fast", {"bank_dtype": "float32", "precision": "int8"}),
        ("m3dm", "small", {"bank_dtype": "float16", "precision": "int8"}),
    ],
)
def test_speeds(
    request_of: Callable[..., FitRequest],
    command: str,
    method: str,
    speed: str,
    expected: dict[str, Any],
) -> None:
    """Fast takes nothing that is not faster, and small nothing that is not smaller."""
    request = request_of(command, "--method", method, "--speed", speed)
    options = resolve_options(request)
    assert {name: getattr(options, name) for name in expected} == expected
    assert options.is_exact == (speed == "exact")
    wins = request_of(command, "--method", method, "--speed", speed, "--precision", "fp32")
    chosen: Any = resolve_options(wins)
    assert chosen.precision == "fp32"
