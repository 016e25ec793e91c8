"""What a manifest says of both backbones and the geometry between them, whatever the method does
with their features. Shared by both halves; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

from mmad_fast.errors import ArtifactError, InvalidInputError

POINT_STATISTICS_PREFIX = "point_statistics."
"""Of the tensors that hold the point backbone's calibrated BatchNorm statistics."""

EMBEDDER_PREFIX = "embedder."
"""Of the tensors that hold the weights of the point embedder."""

Parameters = TypeVar("Parameters", bound="BackboneParameters")


@dataclass(frozen=True)
class BackboneParameters:
    """The backbones and sizes that a detector was fitted with. A method's parameters extend it.

    Attributes:
        rgb_backbone: Name in mmad_fast.backbones.
        rgb_size: R, side of the RGB network's input in pixels.
        token_grid: Side of the RGB network's token grid; T = token_grid ** 2.
        rgb_layers: Transformer blocks of the RGB backbone that are kept.
        point_layers: 0-based Point-MAE blocks whose outputs are concatenated.
        grid_size: S, side of the anomaly map in pixels.
        num_groups: G, point groups per scan.
        group_size: K, points per group.
        batch_norm: Statistics of the point embedder's BatchNorm: "cloud", "calibrated" or
            "checkpoint".
        skip_near_origin: Farthest point sampling skips points within 0.0316 m of the origin, as the
            published kernel does.
        precision: Of the backbones' matrix products: "float32", or "int8", which approximates.
    """

    KNOWN_VALUES: ClassVar[Mapping[str, tuple[str | int, ...]]] = {
        "batch_norm": ("cloud", "calibrated", "checkpoint"),
        "precision": ("float32", "int8"),
    }
    """What a field may hold, where that is a choice; children add their own."""

    rgb_backbone: str
    rgb_size: int
    token_grid: int
    rgb_layers: int
    point_layers: tuple[int, ...]
    grid_size: int = 224
    num_groups: int = 1024
    group_size: int = 128
    batch_norm: Literal["cloud", "calibrated", "checkpoint"] = "cloud"
    skip_near_origin: bool = False
    precision: Literal["float32", "int8"] = "float32"

    def __post_init__(self) -> None:
        for name, known in self.KNOWN_VALUES.items():
            if getattr(self, name) not in known:
                listed = ", ".join(map(str, known))
                raise InvalidInputError(
                    f"{name} is {getattr(self, name)!r}; it must be one of {listed}"
                )
        for name in ("rgb_size", "token_grid", "grid_size", "num_groups", "group_size"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name} is {getattr(self, name)}; it must be at least 1")

    def to_dict(self) -> dict[str, Any]:
        """The parameters as JSON types."""
        return {name: _to_json(value) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls: type[Parameters], content: Mapping[str, Any]) -> Parameters:
        """The parameters in a manifest; keys that are not parameters are left out.

        Raises:
            ArtifactError: a parameter is missing or has a value that this version does not know.
        """
        names = [field.name for field in fields(cls)]
        missing = [name for name in names if name not in content]
        if missing:
            raise ArtifactError(
                f"the manifest's parameters lack {', '.join(missing)}; fit the detector again"
            )
        hints = get_type_hints(cls)
        try:
            return cls(**{name: _from_json(content[name], hints[name], name) for name in names})
        except InvalidInputError as error:
            raise ArtifactError(
                f"the manifest holds a parameter that this version cannot run: {error}; "
                "upgrade with: pip install --upgrade mmad-fast, or fit again"
            ) from error


def _to_json(value: Any) -> Any:
    """The value with lists for tuples."""
    if isinstance(value, Mapping):
        return {key: _to_json(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_to_json(item) for item in value]
    return value


def _from_json(value: Any, hint: Any, name: str) -> Any:
    """The value of a parameter: `_to_json` undone, numbers as its type hint says.

    Raises:
        InvalidInputError: the value is of another kind than the hint.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    is_mapping = isinstance(origin, type) and issubclass(origin, Mapping)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(_from_json(item, arguments[0], name) for item in value)
    if is_mapping and isinstance(value, Mapping):
        return {key: _from_json(item, arguments[1], name) for key, item in value.items()}
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is float and is_number:
        return float(value)
    is_integer = is_number and isinstance(value, int)
    if origin is tuple or is_mapping or hint is float or (hint is int and not is_integer):
        raise InvalidInputError(f"{name} is {value!r}; it must be of type {hint}")
    return value
