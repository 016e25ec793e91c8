"""Which engine is taken, from which files, and what is said of the others."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mmad_fast import engines, processor
from mmad_fast.engines import ENGINES, as_it_is, selection
from mmad_fast.engines.selection import ENGINE_BY_TARGET, EngineChoice, EngineFiles, choose_engine
from mmad_fast.errors import BackendUnavailableError, InvalidInputError
from mmad_fast.measure import environment

HERE = "tensorrt-rtx 1.7.1.116"
GPU = "no GPU is plugged in"


def files(target: str = "onnx", precision: str = "fp32", **changes: Any) -> EngineFiles:
    library = HERE if target == "tensorrt-rtx" else ""
    record = {
        "target": target,
        "precision": precision,
        "batch_min": 1,
        "batch_max": 1,
        "sms": (86, 89) if target == "tensorrt-rtx" else (),
        "library": library,
        "files": {"rgb": Path(f"rgb.{precision}.{target}{len(changes)}")},
    }
    return EngineFiles(**{**record, **changes})


def measured(p50_ms: float, **changes: Any) -> dict[str, Any]:
    return {"machine": "this CPU", "threads": 2, "p50_ms": p50_ms, **changes}


OWN = files()


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Why engines cannot run, by name, to be changed; the GPU is an sm_89, the CPU "this CPU"."""
    refusals: dict[str, str] = {}

    def refusal(engine: str, device: str = "cpu") -> str | None:
        return refusals.get(engine)

    monkeypatch.setattr(selection, "engine_refusal", refusal)
    monkeypatch.setattr(engines, "engine_refusal", refusal)  # as check_engine asks
    monkeypatch.setattr(selection, "library_version", lambda name: HERE)
    monkeypatch.setattr(selection, "gpu_sm", lambda device_index: 89 - 3 * device_index)
    monkeypatch.setattr(selection, "cpu_model", lambda: "this CPU")
    monkeypatch.setattr(selection, "resolve_num_threads", lambda count: count or 2)
    return refusals


def test_an_artifacts_own_graphs_are_run_by_onnx_runtime() -> None:
    assert choose_engine([OWN]) == EngineChoice(
        "onnxruntime",
        "fp32",
        OWN.files,
        "onnxruntime (onnx fp32) is the first in the order of preference",
    )


def test_a_choice_says_where_and_with_how_many_threads_it_was_made() -> None:
    choice = choose_engine([OWN], num_threads=4)
    assert (choice.device, choice.num_threads, choice.wrap) == ("cpu", 4, None)
    choice = choose_engine([OWN], device="cuda")
    assert (choice.device, choice.num_threads) == ("cuda", None)


def test_a_choice_opens_graphs_and_wraps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[Any, ...]] = []

    def note(path: Path, **options: Any) -> str:
        opened.append((path, options))
        return f"engine of {path.name}"

    monkeypatch.setattr(selection, "open_graph", note)
    monkeypatch.setattr(selection, "open_device_graph", note)
    choice = replace(choose_engine([OWN], num_threads=4), files={"rgb": Path("a"), "b": Path("b")})
    assert choice.open("rgb") == "engine of a"
    wrapping = replace(choice, wrap=lambda name, engine: (name, engine))
    assert wrapping.open("b") == ("b", "engine of b")
    assert choice.open_on_device("rgb", device_index=1, stream=7) == "engine of a"
    assert opened == [
        (Path("a"), {"engine": "onnxruntime", "num_threads": 4, "locate": as_it_is}),
        (Path("b"), {"engine": "onnxruntime", "num_threads": 4, "locate": as_it_is}),
        (
            Path("a"),
            {"engine": "onnxruntime", "device_index": 1, "stream": 7, "locate": as_it_is},
        ),
    ]
    with pytest.raises(InvalidInputError, match="of 'b' on device .*cannot be wrapped"):
        wrapping.open_on_device("b", device_index=0, stream=0)


def test_an_engine_built_for_this_gpu_comes_first(machine: dict[str, str]) -> None:
    built = files("tensorrt-rtx")
    choice = choose_engine([OWN, built])
    assert (choice.engine, choice.files) == ("tensorrt-rtx", built.files)
    machine["tensorrt-rtx"] = GPU
    choice = choose_engine([OWN, built])
    assert (choice.engine, choice.files) == ("onnxruntime", OWN.files)
    assert choice.reason == (
        "onnxruntime (onnx fp32) is the first in the order of preference that can run here; "
        f"not tensorrt-rtx: {GPU}"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"sms": (75, 86)},
            "tensorrt-rtx (tensorrt-rtx fp32 sm_75 sm_86): the GPU here is sm_89; build it again "
            "with: mmad-fast export ARTIFACT --to tensorrt-rtx --precision fp32 --sm 89",
        ),
        (
            {"library": "tensorrt-rtx 1.2.0"},
            "was built by tensorrt-rtx 1.2.0, here is tensorrt-rtx 1.7.1.116; build it again with:",
        ),
        ({"batch_min": 4, "batch_max": 4}, "takes batches of 4, a detector runs one scan"),
        ({"batch_min": 4, "batch_max": 8}, "takes batches of 4 to 8, a detector runs one scan"),
    ],
)
def test_an_engine_that_does_not_fit_here_is_passed_over(changes: dict, words: str) -> None:
    unfit = files("tensorrt-rtx", **changes)
    choice = choose_engine([OWN, unfit])
    assert choice.engine == "onnxruntime"
    assert f"; not tensorrt-rtx ({unfit.label}): " in choice.reason
    assert words in choice.reason
    fit = files("tensorrt-rtx", measured=None)
    choice = choose_engine([OWN, unfit, fit])
    assert choice.files == fit.files
    assert words in choice.reason
    with pytest.raises(BackendUnavailableError, match=re.escape(words)):
        choose_engine([OWN, unfit], engine="tensorrt-rtx")


def test_the_gpu_is_the_one_that_is_named() -> None:
    built = files("tensorrt-rtx", sms=(86,))
    assert choose_engine([OWN, built], device_index=1).engine == "tensorrt-rtx"
    assert choose_engine([OWN, built], device_index=0).engine == "onnxruntime"


def test_no_sm_in_the_record_means_any() -> None:
    built = files("tensorrt", sms=(), library=HERE)
    assert choose_engine([OWN, built]).engine == "tensorrt"


def test_a_batch_that_holds_one_is_taken() -> None:
    built = files("tensorrt-rtx", batch_max=8)
    assert choose_engine([OWN, built]).files == built.files


def test_the_fastest_measured_here_comes_first() -> None:
    own = files(measured=measured(900.0))
    openvino = files("openvino", measured=measured(812.25))
    built = files("tensorrt-rtx")
    choice = choose_engine([own, openvino, built])
    assert (choice.engine, choice.files) == ("openvino", openvino.files)
    assert choice.reason.startswith(
        "openvino (openvino fp32) is the fastest of those measured here (812.2 ms)"
    )
    slower = files("openvino", measured=measured(901.0))
    assert choose_engine([own, slower]).engine == "onnxruntime"
    gpu = files("tensorrt-rtx", measured=measured(3.0))
    assert choose_engine([own, openvino, gpu]).engine == "tensorrt-rtx"


@pytest.mark.parametrize("changes", [{"machine": "another CPU"}, {"threads": 4}])
def test_times_of_another_machine_do_not_count(changes: dict) -> None:
    openvino = files("openvino", measured=measured(1.0, **changes))
    choice = choose_engine([OWN, openvino])
    assert choice.engine == "onnxruntime"
    assert "measured" not in choice.reason


def test_times_count_for_the_threads_that_are_asked_for() -> None:
    openvino = files("openvino", measured=measured(1.0, threads=4))
    assert choose_engine([OWN, openvino], num_threads=4).engine == "openvino"
    assert choose_engine([OWN, openvino]).engine == "onnxruntime"


def test_times_of_arrays_on_the_host_do_not_count_on_a_device() -> None:
    own = files(measured=measured(1.0))
    built = files("tensorrt-rtx", measured=measured(2.0))
    assert choose_engine([own, built], device="cpu").engine == "onnxruntime"
    assert choose_engine([own, built], device="cuda").engine == "tensorrt-rtx"


def test_a_time_is_of_one_engine() -> None:
    """OpenVINO reads the ONNX file too, but ONNX Runtime was timed."""
    exported = files("onnx", "fp16", measured=measured(1.0))
    openvino = files("openvino", "fp16", measured=measured(2.0))
    assert choose_engine([OWN, openvino, exported], precision="fp16").engine == "onnxruntime"
    choice = choose_engine([OWN, exported, openvino], engine="openvino", precision="fp16")
    assert choice.files == openvino.files


def test_the_artifacts_own_graphs_stay_the_default_until_both_were_measured() -> None:
    exported = files("onnx", measured=measured(1.0))
    assert choose_engine([OWN, exported]).files == OWN.files
    own = files(measured=measured(2.0), library="own")
    assert choose_engine([own, exported]).files == exported.files


def test_nothing_is_approximated_unasked() -> None:
    half = files("tensorrt-rtx", "fp16", measured=measured(0.1))
    choice = choose_engine([OWN, half])
    assert (choice.engine, choice.precision) == ("onnxruntime", "fp32")
    assert choice.reason.endswith(
        "; in another precision, which must be asked for: tensorrt-rtx fp16 sm_86 sm_89"
    )
    asked = choose_engine([OWN, half], precision="fp16")
    assert (asked.engine, asked.precision, asked.files) == ("tensorrt-rtx", "fp16", half.files)
    assert "must be asked for" not in asked.reason
    with pytest.raises(BackendUnavailableError, match="nothing in fp32 for engine 'tensorrt-rtx'"):
        choose_engine([OWN, half], engine="tensorrt-rtx")


def test_a_detector_fitted_with_int8_runs_in_it() -> None:
    own = files(precision="int8")
    choice = choose_engine([own])
    assert (choice.engine, choice.precision, choice.files) == ("onnxruntime", "int8", own.files)
    with pytest.raises(BackendUnavailableError, match="nothing in fp32: it holds onnx int8; make"):
        choose_engine([own], precision="fp32")


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "onnxruntime-tensorrt"])
def test_an_engine_that_is_named_is_taken(engine: str) -> None:
    choice = choose_engine([OWN, files("tensorrt-rtx")], engine=engine)
    assert (choice.engine, choice.files) == (engine, OWN.files)
    assert choice.reason == f"{engine} (onnx fp32) is asked for"


def test_a_named_engine_prefers_the_files_made_for_it() -> None:
    openvino = files("openvino")
    assert choose_engine([OWN, openvino], engine="openvino").files == openvino.files


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"engine": "openvino", "precision": "int8"},
            "nothing in int8 for engine 'openvino': it holds onnx fp32, tensorrt-rtx fp16 sm_86 "
            "sm_89; make it with: mmad-fast export ARTIFACT --to openvino --precision int8 "
            "(or name the precision of what it holds: onnx fp32)",
        ),
        (
            {"engine": "tensorrt-rtx"},
            "make it with: mmad-fast export ARTIFACT --to tensorrt-rtx --precision fp32 --sm 89 "
            "(or name the precision of what it holds: tensorrt-rtx fp16 sm_86 sm_89)",
        ),
        ({"precision": "fp8"}, "nothing in fp8: it holds onnx fp32, tensorrt-rtx fp16 sm_86 sm_89"),
        ({"precision": "bf16"}, "make it with: mmad-fast export ARTIFACT --to openvino --prec"),
        (
            {"precision": "bf16", "engine": "onnxruntime"},
            "nothing in bf16 for engine 'onnxruntime': it has no bf16 kernels for device 'cpu'; "
            "take engine 'openvino'",
        ),
        ({"precision": "bf16", "device": "cuda"}, "mmad-fast export ARTIFACT --to onnx --prec"),
        ({"engine": "onnx"}, "there is no engine 'onnx'; known are "),
        ({"engine": "openvino", "device": "cuda"}, "cannot run on device 'cuda'; it runs on cpu"),
        ({"device": "gpu"}, "there is no device 'gpu'; known are cpu, cuda"),
        ({"device": "gpu", "engine": "openvino"}, "there is no device 'gpu'; known are cpu, cuda"),
    ],
)
def test_what_cannot_be_served_says_how_to_get_it(given: dict, words: str) -> None:
    with pytest.raises(BackendUnavailableError, match=re.escape(words)):
        choose_engine([OWN, files("tensorrt-rtx", "fp16")], **given)


def test_a_precision_that_there_is_not_is_answered_with_those_there_are() -> None:
    words = "there is no precision 'f16'; known are fp32, fp16, bf16, int8, fp8$"
    with pytest.raises(InvalidInputError, match=words):
        choose_engine([OWN, files(precision="fp16")], precision="f16")


def test_files_are_told_apart_by_their_batch() -> None:
    held = [OWN, files(precision="int8", batch_min=4, batch_max=4), files(batch_max=8)]
    words = "it holds onnx fp32, onnx int8 batch 4, onnx fp32 batch 1 to 8; make it"
    with pytest.raises(BackendUnavailableError, match=words):
        choose_engine(held, precision="fp16")


def test_graphs_that_onnx_runtime_has_no_kernels_for_go_to_openvino(
    machine: dict[str, str],
) -> None:
    exported = files(precision="bf16")
    choice = choose_engine([OWN, exported], precision="bf16")
    assert (choice.engine, choice.files) == ("openvino", exported.files)
    assert "not onnxruntime (onnx bf16): it has no bf16 kernels for device 'cpu'" in choice.reason
    assert choose_engine([OWN, exported], precision="bf16", device="cuda").engine == "onnxruntime"
    machine.update(dict.fromkeys(ENGINES, "it is not installed"))
    del machine["onnxruntime"]
    with pytest.raises(BackendUnavailableError, match="it has no bf16 kernels .*; openvino: it is"):
        choose_engine([OWN, exported], precision="bf16")


def test_a_detector_on_a_device_takes_torchs_current_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(is_available=lambda: True, current_device=lambda: 1)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    built = files("tensorrt-rtx", sms=(86,))
    assert choose_engine([OWN, built], device="cuda").engine == "tensorrt-rtx"
    assert choose_engine([OWN, built], device="cpu").engine == "onnxruntime"


def test_a_named_engine_that_cannot_run_is_refused(machine: dict[str, str]) -> None:
    machine["openvino"] = "it is not installed; install it"
    with pytest.raises(BackendUnavailableError, match="'openvino' cannot run here: it is not inst"):
        choose_engine([OWN], engine="openvino")


def test_where_nothing_can_run_every_reason_is_said(machine: dict[str, str]) -> None:
    machine.update({name: f"{name} is broken" for name in ENGINES})
    with pytest.raises(BackendUnavailableError, match="no engine can run this artifact") as caught:
        choose_engine([OWN, files("tensorrt-rtx")], device="cuda")
    readers = ["tensorrt-rtx", "onnxruntime", "onnxruntime-tensorrt-rtx", "onnxruntime-tensorrt"]
    for name in readers:
        assert f"{name}: {name} is broken" in str(caught.value)
    assert "openvino" not in str(caught.value)  # does not serve the device


@pytest.mark.parametrize("given", [{"engine": None}, {"device": 1}, {"precision": 16}])
def test_arguments_of_other_types_are_refused(given: dict) -> None:
    with pytest.raises(InvalidInputError, match=f"{next(iter(given))} is .*; it must be a name"):
        choose_engine([OWN], **given)


def test_no_candidates_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="an artifact has at least its own graphs"):
        choose_engine([])


def test_every_target_is_measured_with_an_engine_that_reads_it_first() -> None:
    assert {target for entry in ENGINES.values() for target in entry.reads} == set(ENGINE_BY_TARGET)
    for target, engine in ENGINE_BY_TARGET.items():
        assert ENGINES[engine].reads[0] == target


def test_engines_behind_the_chosen_one_are_not_imported() -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from mmad_fast.engines.selection import EngineFiles, choose_engine\n"
        "own = EngineFiles('onnx', 'fp32', 1, 1, (), '', {'rgb': Path('rgb.onnx')})\n"
        "assert choose_engine([own]).engine == 'onnxruntime'\n"
        "print(sorted({'openvino', 'cuda', 'tensorrt', 'tensorrt_rtx', 'torch', 'onnx'} "
        "& set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_processor_of_this_machine_is_known_by_a_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()
    assert processor.cpu_model()
    assert processor.cpu_model() == environment.environment()["cpu"]
