"""What an export is asked for, checked before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmad_fast.engine_record import PRECISIONS, EngineKey
from mmad_fast.engines import engine_refusal
from mmad_fast.engines.tensorrt_library import LIBRARIES, gpu_refusal, library_refusal
from mmad_fast.errors import BackendUnavailableError, InvalidInputError
from mmad_fast.export.batch import Batch
from mmad_fast.export.deployment_graph import QUANTIZED_PRECISIONS, TARGETS, check_choice
from mmad_fast.export.opset import import_onnx
from mmad_fast.validation import check_integer


@dataclass(frozen=True)
class ExportRequest:
    """One engine to make. Make it with `of`.

    Attributes:
        target: A name in TARGETS.
        precision: A name in PRECISIONS.
        batch: Scans per run.
        sms: Compute capabilities, ascending; none for targets that are bound to none.
    """

    target: str
    precision: str
    batch: Batch
    sms: tuple[int, ...]

    @classmethod
    def of(
        cls, *, to: str, precision: str, sms: Sequence[int], batch: Batch | int
    ) -> ExportRequest:
        """The request, if this machine can serve it.

        Raises:
            InvalidInputError: a name, number or combination that there is not.
            MissingDependencyError: onnx is not installed.
            BackendUnavailableError: the target's library is not installed or needs a GPU.
        """
        check_choice("to", to, TARGETS)
        check_choice("precision", precision, PRECISIONS)
        request = cls(to, precision, _batch(batch), _sms(to, sms))
        import_onnx()
        refusal = _target_refusal(to)
        if refusal is not None:
            raise BackendUnavailableError(f"an export to {to} cannot be made here: {refusal}")
        return request

    @property
    def needs_calibration(self) -> bool:
        """Its ranges come from scans."""
        return self.precision in QUANTIZED_PRECISIONS

    @property
    def key(self) -> EngineKey:
        """What the artifact will know the engine by; a GPU's own library adds the GPU's."""
        batch = self.batch
        return EngineKey(self.target, self.precision, (batch.min, batch.opt, batch.max), self.sms)


def _batch(batch: Batch | int) -> Batch:
    if isinstance(batch, Batch):
        return batch
    size = int(check_integer(batch, "batch", minimum=1))
    return Batch(size, size, size)


def _sms(to: str, sms: Sequence[int]) -> tuple[int, ...]:
    """The compute capabilities, ascending.

    Raises:
        InvalidInputError: no list of numbers, one twice, one that the library does not build for,
            or for a target that is bound to none.
    """
    if isinstance(sms, (str, bytes)) or not isinstance(sms, Sequence):
        raise InvalidInputError(f"sms is {sms!r}; it must be a list of numbers, e.g. [86, 89]")
    numbers = sorted(int(check_integer(sm, "sms", minimum=1)) for sm in sms)
    twice = {sm for sm in numbers if numbers.count(sm) > 1}
    if twice:
        raise InvalidInputError(
            f"sms names {', '.join(map(str, sorted(twice)))} twice; name each compute capability "
            "once"
        )
    if to not in LIBRARIES:
        if numbers:
            raise InvalidInputError(
                f"sms is {numbers}, and an export to {to} is bound to no compute capability; leave "
                "sms (--sm) out, or choose to='tensorrt-rtx'"
            )
        return ()
    buildable = LIBRARIES[to].sms
    if buildable is not None and not numbers:
        raise InvalidInputError(
            f"an export to {to} needs the compute capabilities of the GPUs that will run it: sms "
            f"(--sm), some of {', '.join(map(str, buildable))}; nvidia-smi --query-gpu=compute_cap "
            "--format=csv names that of a GPU, 8.9 being 89"
        )
    unknown = [sm for sm in numbers if sm not in (buildable or numbers)]
    if unknown:
        raise InvalidInputError(
            f"{to} does not build for {', '.join(map(str, unknown))}, only for "
            f"{', '.join(map(str, buildable or ()))}; for other GPUs, such as 87 (Jetson Orin), 90 "
            "(Hopper) and 100, export to='tensorrt' on a machine with that GPU"
        )
    return tuple(numbers)


def _target_refusal(target: str) -> str | None:
    """Why the target's library cannot build here; None where it can."""
    if target == "openvino":
        return engine_refusal(target)
    if target not in LIBRARIES:
        return None
    # A library that builds for any GPU needs none.
    return library_refusal(target) or (gpu_refusal() if LIBRARIES[target].sms is None else None)
