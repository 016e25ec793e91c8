"""Stands in for TensorRT on a machine with a GPU: records the calls that building makes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

ENGINE = b"a plan for the GPU at hand"


class ILogger:
    VERBOSE, WARNING, ERROR, INTERNAL_ERROR = "verbose", "warning", "error", "internal error"

    def __init__(self) -> None:
        pass


class Recorder:
    """An object whose methods note their name and arguments in the module's list of calls."""

    def __init__(self, module: FakeTensorRt) -> None:
        self.module = module

    def note(self, *call: Any) -> None:
        self.module.calls.append(call)


class Parser(Recorder):
    def __init__(self, module: FakeTensorRt) -> None:
        super().__init__(module)
        self.num_errors = len(module.parser_errors)

    def parse(self, graph: bytes) -> bool:
        self.note("parse", len(graph) > 0)
        self.module.parsed = graph
        return not self.module.parser_errors

    def get_error(self, index: int) -> Any:
        return SimpleNamespace(
            desc=lambda: self.module.parser_errors[index],
            node_name=lambda: "a_node",
            node_operator=lambda: "MatMul",
        )


class Config(Recorder):
    profiling_verbosity = None

    def clear_flag(self, flag: str) -> None:
        self.note("clear_flag", flag)

    def add_optimization_profile(self, profile: Profile) -> None:
        self.note("add_optimization_profile")

    def set_compute_capability(self, capability: Any, index: int) -> None:
        raise AssertionError("TensorRT has no such method")


class Profile(Recorder):
    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self.note("set_shape", name, *shapes)


class Builder(Recorder):
    def __init__(self, module: FakeTensorRt, logger: Any) -> None:
        super().__init__(module)
        self.logger = logger

    def create_network(self, flags: int) -> Any:
        self.note("create_network", flags)
        return SimpleNamespace(
            num_inputs=1,
            get_input=lambda index: SimpleNamespace(name="tokens", shape=(-1, 49, 64)),
        )

    def create_builder_config(self) -> Config:
        self.module.config = Config(self.module)
        return self.module.config

    def create_optimization_profile(self) -> Profile:
        return Profile(self.module)

    def build_serialized_network(self, network: Any, config: Config) -> bytes | None:
        self.note("build_serialized_network")
        self.logger.log(ILogger.WARNING, "a warning")
        for error in self.module.build_errors:
            self.logger.log(ILogger.ERROR, error)
        return None if self.module.build_errors else ENGINE


class FakeTensorRt:
    """The module. What a test changes are its attributes."""

    ILogger = ILogger
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
    BuilderFlag = SimpleNamespace(TF32="tf32")
    LayerInformationFormat = SimpleNamespace(JSON="json")

    def __init__(self, version: str = "10.14.1") -> None:
        self.__version__ = version
        self.calls: list[tuple[Any, ...]] = []
        self.parser_errors: list[str] = []
        self.build_errors: list[str] = []
        self.information = '{"Layers": ["_gemm_mha_v2_myl0_5"]}'
        self.parsed = b""
        self.config: Any = None

    def Builder(self, logger: Any) -> Builder:
        return Builder(self, logger)

    def OnnxParser(self, network: Any, logger: Any) -> Parser:
        return Parser(self)

    def Runtime(self, logger: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=self._deserialize)

    def _deserialize(self, engine: bytes) -> Any:
        self.calls.append(("deserialize_cuda_engine", engine))
        return SimpleNamespace(
            create_engine_inspector=lambda: SimpleNamespace(
                get_engine_information=lambda kind: self.information
            )
        )
