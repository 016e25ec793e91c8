from __future__ import annotations

import logging

import pytest

from mmad_fast.errors import BackendUnavailableError
from mmad_fast.ops import STEMS, all_ops, all_tables
from mmad_fast.ops.registry import Backend, Op, always


def make_op(device: str = "cpu", **refusals: str | None) -> Op:
    """An op whose backends take the arrays of a device and refuse with the given reasons."""
    return Op("an_op", make_backends(device, **refusals))


def make_backends(device: str, **refusals: str | None) -> tuple[Backend, ...]:
    return tuple(
        Backend(name, lambda: None, lambda reason=reason: reason, device)
        for name, reason in refusals.items()
    )


def test_a_named_backend_runs() -> None:
    op = make_op(cuda=None, cpu=None)
    assert op.resolve("cpu").name == "cpu"
    assert op.resolve("cuda").name == "cuda"


def test_a_named_backend_that_cannot_run_says_why_even_if_another_could() -> None:
    op = make_op(cuda="no CUDA device; needs compute capability 7.5", cpu=None)
    with pytest.raises(
        BackendUnavailableError,
        match=r"an_op: backend 'cuda' cannot run here: no CUDA device; needs compute capability",
    ):
        op.resolve("cuda")


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    op = make_op(cuda="no device", cpu=None)
    with pytest.raises(
        BackendUnavailableError, match=r"no backend 'gpu'; known are auto, cuda, cpu$"
    ):
        op.resolve("gpu")


def test_a_backend_that_was_not_written_is_answered_with_the_reason() -> None:
    cpu = Backend("cpu", lambda: None, always)
    op = Op("an_op", (cpu,), absent={"cuda": "no kernel in this version: use 'cpu'"})
    with pytest.raises(
        BackendUnavailableError, match=r"an_op: backend 'cuda' cannot run here: no kernel in this"
    ):
        op.resolve("cuda")
    assert op.resolve("auto").name == "cpu"


@pytest.mark.parametrize("op", all_tables(), ids=lambda op: op.name)
@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_every_op_runs_on_a_gpu_or_says_why_not(op: Op, name: str) -> None:
    if name not in [backend.name for backend in op.backends]:
        with pytest.raises(BackendUnavailableError, match="no kernel"):
            op.resolve(name)


def test_auto_takes_the_first_that_can(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="mmad_fast"):
        assert make_op(cuda=None, cpu=None).resolve().name == "cuda"
    assert not caplog.records


def test_auto_falls_through_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    op = make_op(cuda="no device", triton="not installed", cpu=None, reference=None)
    with caplog.at_level(logging.WARNING, logger="mmad_fast"):
        assert [op.resolve("auto").name for _ in range(3)] == ["cpu"] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "an_op runs on 'cpu' because: cuda: no device; triton: not installed"
    ]


def test_auto_stays_on_the_device_of_the_arrays(caplog: pytest.LogCaptureFixture) -> None:
    on_host, on_device = (
        make_backends("cpu", cpu=None),
        make_backends("cuda", cuda="x", triton=None),
    )
    op = Op("an_op", (*on_device, *on_host))
    with caplog.at_level(logging.WARNING, logger="mmad_fast"):
        assert [op.resolve().name for _ in range(2)] == ["cpu"] * 2
        assert not caplog.records
        assert [op.resolve("auto", device="cuda").name for _ in range(2)] == ["triton"] * 2
    assert [record.getMessage() for record in caplog.records] == [
        "an_op runs on 'triton' because: cuda: x"
    ]


def test_nothing_is_asked_of_the_other_device() -> None:
    def refusal() -> str:
        raise AssertionError("asked")

    op = Op(
        "an_op", (Backend("cuda", lambda: None, refusal, "cuda"), *make_backends("cpu", cpu=None))
    )
    assert op.resolve().name == "cpu"
    with pytest.raises(
        BackendUnavailableError,
        match="an_op: backend 'cuda' takes arrays on a CUDA device and was given NumPy arrays; "
        "those go to auto, cpu$",
    ):
        op.resolve("cuda")


def test_device_arrays_without_a_backend_name_every_reason() -> None:
    op = Op(
        "an_op",
        (*make_backends("cpu", cpu=None), *make_backends("cuda", cuda="no driver", torch="none")),
        absent={"triton": "no kernel: it does not suit"},
    )
    with pytest.raises(
        BackendUnavailableError,
        match="an_op: no backend can run on arrays on a CUDA device: cuda: no driver; torch: none; "
        "triton: no kernel: it does not suit; or bring them to the host and pass NumPy arrays$",
    ):
        op.resolve(device="cuda")


def test_auto_raises_with_all_reasons_if_nothing_can_run() -> None:
    with pytest.raises(
        BackendUnavailableError, match="an_op: no backend can run: cuda: no device; cpu: not built"
    ):
        make_op(cuda="no device", cpu="not built").resolve()


def test_always_never_refuses() -> None:
    assert always() is None


def test_every_op_has_its_kernel_and_a_reference_that_runs_everywhere() -> None:
    assert tuple(op.name for op in all_ops()) == STEMS
    for op in all_ops():
        backends = [backend.name for backend in op.backends_of("cpu")]
        assert backends[-1] == "reference", f"{op.name}: 'auto' must try the reference last"
        assert op.backends[-1].refusal() is None
        assert op.resolve("cpu").name == "cpu"
        assert op.resolve("auto").name != "reference"
        assert op.backends_of("cuda"), f"{op.name}: nothing takes arrays on a CUDA device"
