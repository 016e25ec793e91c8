"""Damaged and hostile artifacts: one change each, the digests resealed so that the checks behind
them are met.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from robustness.attack import (
    ANSWER,
    NOT_FINITE,
    REFUSAL,
    WRONG_EXCEPTION,
    Outcome,
    Work,
    run_guarded,
)

HUGE = 10**400
HANG_S = 20.0
MAX_MIB = 1536.0
DEEP = "__DEEP__"
"""Stands for a list nested 100,000 deep, which no encoder writes."""
REPLACEMENTS: tuple[Any, ...] = (
    None, "", "x" * 5000, "../../etc/passwd", "\ud800", [], [[]], {}, {"a": None}, True, -1, 0, 1,
    0.5, 2**31, 2**63, 10**12, HUGE, float("nan"), float("inf"), -1e308, DEEP,
)  # fmt: skip
REMOVED = object()


class Damage(NamedTuple):
    """What is done to an artifact's folder."""

    name: str
    apply: Callable[[Path], None]


def reseal(folder: Path, *, files: bool = True) -> None:
    """Makes the digests those of the files, as a forger would."""
    manifest = folder / "manifest.json"
    content = json.loads(manifest.read_text())
    if files:
        for name in content["files"]:
            file = folder / name
            if file.is_file():
                data = file.read_bytes()
                digest = hashlib.sha256(data).hexdigest()
                content["files"][name] = {"sha256": digest, "bytes": len(data)}
    write_sealed(content, manifest)


def write_sealed(content: dict[str, Any], manifest: Path) -> None:
    content = {key: value for key, value in content.items() if key != "manifest_sha256"}
    canonical = _spelled(json.dumps(content, sort_keys=True, separators=(",", ":")))
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = json.dumps({**content, "manifest_sha256": digest})
    manifest.write_text(_spelled(text))


def _spelled(text: str) -> str:
    return text.replace(json.dumps(DEEP), "[" * 100_000 + "]" * 100_000)


def damages(folder: Path, *, seed: int, count: int) -> Iterator[Damage]:
    """So many damages of the artifact, drawn from all kinds in turn."""
    rng = random.Random(seed)
    kinds = [_whole_kind(), _field_kind(folder), _bytes_kind(folder), _tensors_kind(folder)]
    kinds += [_graph_kind(folder), _folder_kind(folder)]
    fixed = [damage for kind in kinds[:1] for damage in kind]
    rng.shuffle(fixed)
    for at in range(count):
        if at % 6 == 0 and fixed:
            yield fixed.pop()
        else:
            yield rng.choice(kinds[1:][at % 5])(rng)


Draw = Callable[[random.Random], Damage]


def _paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _paths(item, (*at, key))


def _field_kind(folder: Path) -> list[Draw]:
    """A field of the manifest gone, of another type, or out of every range; or one more."""
    content = json.loads((folder / "manifest.json").read_text())
    del content["manifest_sha256"]
    by_top: dict[str, list[tuple[Any, ...]]] = {}
    for path in _paths(content):
        by_top.setdefault(path[0], []).append(path)

    def draw(rng: random.Random) -> Damage:
        path = rng.choice(by_top[rng.choice(sorted(by_top))])
        value = rng.choice((REMOVED, *REPLACEMENTS))
        shown = "removed" if value is REMOVED else repr(value)[:24]
        return Damage(f"field {'.'.join(map(str, path))} {shown}", lambda f: _set(f, path, value))

    def add(rng: random.Random) -> Damage:
        top = rng.choice(sorted(by_top))
        value = rng.choice(REPLACEMENTS)
        return Damage(
            f"field {top}.more {repr(value)[:24]}", lambda f: _set(f, (top, "more"), value)
        )

    return [draw, draw, draw, add]


def _set(folder: Path, path: tuple[Any, ...], value: Any) -> None:
    manifest = folder / "manifest.json"
    content = json.loads(manifest.read_text())
    place = content
    for key in path[:-1]:
        place = place[key]
    if value is REMOVED:
        del place[path[-1]]
    elif isinstance(place, (dict, list)) and isinstance(place, dict) == isinstance(path[-1], str):
        place[path[-1]] = value
    write_sealed(content, manifest)


def _whole_kind() -> list[Damage]:
    """The manifest's text as a whole."""

    def rewrite(name: str, change: Callable[[bytes], bytes]) -> Damage:
        def apply(folder: Path) -> None:
            file = folder / "manifest.json"
            file.write_bytes(change(file.read_bytes()))

        return Damage(f"manifest {name}", apply)

    twice = b'{"schema": 4, "schema": 3,'
    return [
        rewrite("with a byte order mark", lambda text: b"\xef\xbb\xbf" + text),
        rewrite("in UTF-16", lambda text: text.decode().encode("utf-16")),
        rewrite("not in UTF-8", lambda text: text.replace(b"cfm", b"\xff\xfe\x00")),
        rewrite("with a key twice", lambda text: text.replace(b"{", twice, 1)),
        rewrite("nested deep", lambda text: b"[" * 200_000),
        rewrite("nested deep in an object", lambda text: b'{"a":' * 200_000),
        rewrite("a list", lambda text: b"[" + text + b"]"),
        rewrite("a number", lambda text: b"4"),
        rewrite("a huge number", lambda text: b"9" * 100_000),
        rewrite("empty", lambda text: b""),
        rewrite("zeros", lambda text: bytes(len(text))),
        rewrite("cut", lambda text: text[: len(text) // 2]),
        rewrite("20 MB long", lambda text: text + b" " * 20_000_000),
        rewrite("twice", lambda text: text + text),
    ]


def _bytes_kind(folder: Path) -> list[Draw]:
    """Bytes of any file flipped, cut off, put in; mostly resealed."""
    names = sorted(path.name for path in folder.iterdir())

    def draw(rng: random.Random) -> Damage:
        name, what = rng.choice(names), rng.choice(("flip", "cut", "insert", "zero", "header"))
        seed, sealed = rng.random(), rng.random() < 0.8

        def apply(target: Path) -> None:
            inner = random.Random(seed)
            file = target / name
            data = bytearray(file.read_bytes())
            at = inner.randrange(len(data)) if what != "header" else inner.randrange(64)
            if what in ("flip", "header"):
                for _ in range(inner.choice((1, 1, 4, 64))):
                    spot = inner.randrange(len(data)) if what == "flip" else inner.randrange(64)
                    data[spot % len(data)] ^= 1 << inner.randrange(8)
            elif what == "cut":
                del data[at:]
            elif what == "insert":
                data[at:at] = inner.randbytes(inner.choice((1, 8, 1000)))
            else:
                data[at : at + 64] = bytes(len(data[at : at + 64]))
            file.write_bytes(data)
            if sealed and name != "manifest.json":
                reseal(target)

        return Damage(f"bytes of {name} {what}{' resealed' * sealed}", apply)

    return [draw]


def _tensors_kind(folder: Path) -> list[Draw]:
    """The header of a safetensors file: entries gone, of other types, shapes and places."""

    def draw(rng: random.Random) -> Damage:
        name = rng.choice(("tensors.safetensors", "golden.safetensors"))
        seed = rng.random()
        key = rng.choice(("dtype", "shape", "data_offsets", "entry", "rename", "more"))
        value = rng.choice(
            ("F16", "BF16", "F8_E4M3", "F64", "I64", "X", None, [], [0], [-1], [2**63], [2**32] * 2,
             [0, 0], [HUGE], {}, 3, "swap", "numbers")
        )  # fmt: skip

        def apply(target: Path) -> None:
            inner = random.Random(seed)
            file = target / name
            data = file.read_bytes()
            size = int.from_bytes(data[:8], "little")
            header, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
            entry = inner.choice([one for one in header if one != "__metadata__"])
            if value == "numbers":  # of the tensor itself
                begin, end = header[entry]["data_offsets"]
                bad = inner.choice((np.nan, np.inf, 3e38, -3e38, 1e-42, 0.0))
                filled = np.full((end - begin) // 4, bad, np.float32).tobytes()
                rest = rest[:begin] + filled + rest[begin + len(filled) :]
            elif key == "entry":
                del header[entry]
            elif key == "rename":
                header[entry + "x"] = header.pop(entry)
            elif key == "more":
                header["more"] = value
            elif value == "swap":
                other = inner.choice([one for one in header if one != "__metadata__"])
                header[entry], header[other] = header[other], header[entry]
            else:
                header[entry][key] = value
            text = json.dumps(header).encode()
            file.write_bytes(len(text).to_bytes(8, "little") + text + rest)
            reseal(target)
            if inner.random() < 0.5 and value == "swap":  # the manifest agrees
                content = json.loads((target / "manifest.json").read_text())
                for tensor, wanted in content["tensors"].items():
                    if name.startswith("tensors") and tensor in header:
                        wanted["shape"] = header[tensor]["shape"]
                write_sealed(content, target / "manifest.json")

        return Damage(f"{name} {key} {repr(value)[:24]}", apply)

    return [draw]


def _graph_kind(folder: Path) -> list[Draw]:
    """Graphs that ask for other files, for time, or for memory."""
    names = sorted(path.name for path in folder.glob("*.onnx"))

    def draw(rng: random.Random) -> Damage:
        name, kind, seed = rng.choice(names), rng.choice(sorted(HOSTILE_GRAPHS)), rng.random()

        def apply(target: Path) -> None:
            import onnx

            model = onnx.load_model(target / name, load_external_data=False)
            HOSTILE_GRAPHS[kind](model, random.Random(seed))
            (target / name).write_bytes(model.SerializeToString())
            reseal(target)

        return Damage(f"graph {name} {kind}", apply)

    return [draw]


def _constant(model: Any, name: str, values: Any, dtype: Any = np.int64) -> str:
    from onnx import numpy_helper

    model.graph.initializer.append(numpy_helper.from_array(np.array(values, dtype), name))
    return name


def _before_output(model: Any, op_type: str, inputs: list[str], **attributes: Any) -> None:
    """The operator's result is added to an output, so that no engine leaves it out."""
    from onnx import helper

    output = model.graph.output[0].name
    for node in model.graph.node:
        for at, name in enumerate(node.output):
            if name == output:
                node.output[at] = "former"
    model.graph.node.append(helper.make_node(op_type, inputs, ["hostile"], **attributes))
    one = _constant(model, "one_axis", [0])
    model.graph.node.append(helper.make_node("ReduceMax", ["hostile"], ["least"], keepdims=0))
    model.graph.node.append(helper.make_node("Unsqueeze", ["least", one], ["widened"]))
    model.graph.node.append(helper.make_node("Add", ["former", "widened"], [output]))


def _external(place: str) -> Callable[[Any, random.Random], None]:
    def change(model: Any, rng: random.Random) -> None:
        import onnx

        tensor = rng.choice(list(model.graph.initializer))
        length = len(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", place), ("offset", "0"), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)

    return change


def _external_without_location(model: Any, rng: random.Random) -> None:
    rng.choice(list(model.graph.initializer)).external_data.add(key="location", value="/etc/passwd")


def _constant_of_shape(model: Any, rng: random.Random) -> None:
    shape = _constant(model, "shape_of_it", [2**20, 2**20])
    _before_output(model, "ConstantOfShape", [shape])


def _expanded(model: Any, rng: random.Random) -> None:
    number = _constant(model, "number", 1.0, np.float32)
    _before_output(model, "Expand", [number, _constant(model, "shape_of_it", [2**17, 2**17])])


def _outer_product(model: Any, rng: random.Random) -> None:
    column = _constant(model, "column", np.ones((2**17, 1)), np.float32)
    row = _constant(model, "row", np.ones((1, 2**17)), np.float32)
    _before_output(model, rng.choice(("MatMul", "Add", "Mul")), [column, row])


def _doubled(model: Any, rng: random.Random) -> None:
    from onnx import helper

    name = _constant(model, "seed_of_it", [1.0], np.float32)
    for at in range(40):
        model.graph.node.append(helper.make_node("Concat", [name, name], [f"twice{at}"], axis=0))
        name = f"twice{at}"
    _before_output(model, "Identity", [name])


def _padded(model: Any, rng: random.Random) -> None:
    number = _constant(model, "number", [1.0], np.float32)
    _before_output(model, "Pad", [number, _constant(model, "pads", [2**40, 2**40])])


def _range(model: Any, rng: random.Random) -> None:
    limits = [_constant(model, f"limit{at}", value) for at, value in enumerate((0, 2**40, 1))]
    _before_output(model, "Range", limits)


def _loop(model: Any, rng: random.Random) -> None:
    from onnx import TensorProto, helper

    state = helper.make_tensor_value_info("state_in", TensorProto.FLOAT, [])
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]),
         helper.make_node("Identity", ["state_in"], ["state_out"])],
        "body",
        [helper.make_tensor_value_info("at", TensorProto.INT64, []),
         helper.make_tensor_value_info("go", TensorProto.BOOL, []), state],
        [helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
         helper.make_tensor_value_info("state_out", TensorProto.FLOAT, [])],
    )  # fmt: skip
    count, go = _constant(model, "count", 2**62), _constant(model, "go_first", True, np.bool_)
    _before_output(
        model, "Loop", [count, go, _constant(model, "state", 0.0, np.float32)], body=body
    )


def _branch(model: Any, rng: random.Random) -> None:
    from onnx import helper, numpy_helper

    tensor = numpy_helper.from_array(np.float32(1), "inner")
    tensor.data_location = 1
    tensor.external_data.add(key="location", value="../secret")
    then = helper.make_graph(
        [helper.make_node("Constant", [], ["inner_value"], value=tensor)],
        "then",
        [],
        [helper.make_tensor_value_info("inner_value", 1, [])],
    )
    choice = _constant(model, "choice", True, np.bool_)
    _before_output(model, "If", [choice], then_branch=then, else_branch=then)


def _custom_domain(model: Any, rng: random.Random) -> None:
    model.opset_import.add(domain="com.evil", version=1)
    rng.choice(list(model.graph.node)).domain = "com.evil"


def _contrib(model: Any, rng: random.Random) -> None:
    model.opset_import.add(domain="com.microsoft", version=1)
    rng.choice(list(model.graph.node)).domain = "com.microsoft"


def _function(model: Any, rng: random.Random) -> None:
    from onnx import helper

    node = helper.make_node("Identity", ["a"], ["b"])
    opsets = [helper.make_opsetid("", 18)]
    model.functions.append(helper.make_function("com.own", "F", ["a"], ["b"], [node], opsets))


def _claimed_shape(model: Any, rng: random.Random) -> None:
    values = [*model.graph.input, *model.graph.output]
    dims = rng.choice(values).type.tensor_type.shape.dim
    dims[rng.randrange(len(dims))].dim_value = rng.choice((0, 2, 7, 2**31, 2**62, -5))


def _claimed_constant(model: Any, rng: random.Random) -> None:
    tensor = rng.choice(list(model.graph.initializer))
    tensor.dims[:] = rng.choice(([2**40], [2**31, 2**31], [-1], [0], [1, *tensor.dims, 2], []))


def _no_data(model: Any, rng: random.Random) -> None:
    tensor = rng.choice(list(model.graph.initializer))
    tensor.ClearField("raw_data")


def _shapes_by_constant(model: Any, rng: random.Random) -> None:
    from onnx import numpy_helper

    found = [tensor for tensor in model.graph.initializer if tensor.data_type == 7]
    if found:
        tensor = rng.choice(found)
        values = numpy_helper.to_array(tensor).copy()
        values.ravel()[rng.randrange(values.size)] = rng.choice((0, -1, -2, 3, 2**40, -(2**63)))
        tensor.raw_data = values.tobytes()


def _attribute(model: Any, rng: random.Random) -> None:
    found = [attribute for node in model.graph.node for attribute in node.attribute]
    if found:
        attribute = rng.choice(found)
        attribute.i = rng.choice((0, -1, 5, 2**40))
        if attribute.ints:
            attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice((0, -1, 9, 2**40))


def _renamed(model: Any, rng: random.Random) -> None:
    node = rng.choice(list(model.graph.node))
    if node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(("", "nothing", node.output[0]))


def _another_operator(model: Any, rng: random.Random) -> None:
    node = rng.choice(list(model.graph.node))
    node.op_type = rng.choice(("Sin", "Scan", "SequenceConstruct", "NonZero", "Tile", "Relu", ""))


def _many_nodes(model: Any, rng: random.Random) -> None:
    from onnx import helper

    name = model.graph.input[0].name
    for at in range(6000):
        model.graph.node.append(helper.make_node("Neg", [name], [f"negated{at}"]))
        name = f"negated{at}"
    _before_output(model, "Identity", [name])


HOSTILE_GRAPHS: dict[str, Callable[[Any, random.Random], None]] = {
    "external data above the folder": _external("../secret"),
    "external data of the system": _external("/etc/hostname"),
    "external data beside": _external("tensors.safetensors"),
    "external data without a location": _external_without_location,
    "2^40 numbers of a shape": _constant_of_shape,
    "2^34 numbers expanded": _expanded,
    "2^34 numbers of an outer product": _outer_product,
    "2^40 numbers by doubling": _doubled,
    "2^41 numbers by padding": _padded,
    "2^40 numbers by counting": _range,
    "2^62 turns": _loop,
    "a branch with external data": _branch,
    "an operator from elsewhere": _custom_domain,
    "an operator of one engine": _contrib,
    "a function": _function,
    "another shape claimed": _claimed_shape,
    "another shape of a constant": _claimed_constant,
    "a constant without numbers": _no_data,
    "another constant of a shape": _shapes_by_constant,
    "another attribute": _attribute,
    "another input": _renamed,
    "another operator": _another_operator,
    "6000 more operators": _many_nodes,
}


def _folder_kind(folder: Path) -> list[Draw]:
    """Files gone, links, folders, pipes, and files that nobody listed."""
    names = sorted(path.name for path in folder.iterdir())

    def gone(file: Path) -> None:
        file.unlink()

    def link(place: str) -> Callable[[Path], None]:
        def change(file: Path) -> None:
            if place == "same":
                shutil.move(file, file.parent.parent / "elsewhere")
            file.unlink(missing_ok=True)
            target = file.parent.parent / "elsewhere" if place == "same" else Path(place)
            file.symlink_to(target)

        return change

    def folder_instead(file: Path) -> None:
        file.unlink()
        file.mkdir()

    def pipe(file: Path) -> None:
        file.unlink()
        os.mkfifo(file)

    def more(file: Path) -> None:
        (file.parent / "rgb.bin").write_bytes(b"\0" * 10)

    def huge(file: Path) -> None:
        os.truncate(file, 2**36)

    changes = {
        "gone": gone, "a link to itself elsewhere": link("same"),
        "a link to zeros": link("/dev/zero"), "a link to a file of the system": link("/etc/passwd"),
        "a folder": folder_instead, "a pipe": pipe, "with another beside": more,
        "64 GiB long": huge,
    }  # fmt: skip

    def draw(rng: random.Random) -> Damage:
        name, kind = rng.choice(names), rng.choice(sorted(changes))
        return Damage(f"{name} {kind}", lambda target: changes[kind](target / name))

    def unlisted(rng: random.Random) -> Damage:
        part = rng.choice(("graphs", "tensors", "engines"))
        name = rng.choice(names)

        def apply(target: Path) -> None:
            content = json.loads((target / "manifest.json").read_text())
            content["files"].pop(name, None)
            (target / name).unlink()
            write_sealed(content, target / "manifest.json")

        return Damage(f"{name} left out, {part} kept", apply)

    return [draw, draw, unlisted]


def run(count: int, seed: int) -> Iterator[Outcome]:
    """What a detector makes of so many damaged artifacts."""
    from tiny_artifacts import write_tiny_cfm

    with tempfile.TemporaryDirectory(prefix="damaged-") as scratch:
        artifact = write_tiny_cfm(Path(scratch, "whole", "artifact"))
        outcomes = run_guarded(
            damager,
            (artifact, Path(scratch), seed, count),
            range(count),
            limit_s=HANG_S,
            limit_mib=MAX_MIB,
        )
        names = (damage.name for damage in damages(artifact, seed=seed, count=count))
        for case, (outcome, name) in enumerate(zip(outcomes, names, strict=True)):
            yield outcome._replace(case=f"{case}: {name}")


def damager(artifact: Path, scratch: Path, seed: int, count: int) -> Work:
    """Damages a copy of the artifact as the number says, and tries it."""
    from mmad_fast import load

    golden = load(artifact).artifact.golden()
    scan = (golden.rgb, golden.xyz)
    all_damages = list(damages(artifact, seed=seed, count=count))
    (scratch / "secret").write_bytes(bytes(10**6))
    folder = scratch / "artifact"
    engines = ["auto"] * 19 + ["openvino"] * (find_spec("openvino") is not None)

    def work(case: int) -> Outcome:
        shutil.rmtree(folder, ignore_errors=True)  # of a case that ended its process
        shutil.copytree(artifact, folder)
        all_damages[case].apply(folder)
        return outcome(folder, scan, engine=engines[case % len(engines)])

    return work


def outcome(folder: Path, scan: tuple[Any, Any], *, engine: str) -> Outcome:
    """What came of loading, inferring and replaying. A refusal is ArtifactError, a graph's engine
    that is not here, or an answer that is no number, said so."""
    from mmad_fast import load
    from mmad_fast.errors import ArtifactError, BackendUnavailableError, MmadFastError

    detector, step = None, "load"
    try:
        detector = load(folder, engine=engine)
        step = "infer"
        result = detector.infer(*scan)
        step = "replay"
        detector.replay_golden()
    except Exception as error:
        text = str(error)
        is_refusal = isinstance(error, ArtifactError) and text != ""
        is_refusal |= step == "load" and isinstance(error, BackendUnavailableError)
        if step != "load" and isinstance(error, MmadFastError):
            is_refusal |= any(word in text for word in ("doctor", "weights", "foreground points"))
        kind = REFUSAL if is_refusal else WRONG_EXCEPTION
        return Outcome(kind, what=f"{step}: {type(error).__name__}: {text}"[:400])
    if not np.isfinite(result.image_score) or not np.isfinite(result.anomaly_map).all():
        return Outcome(NOT_FINITE, what=f"score {result.image_score}")
    return Outcome(ANSWER)
