"""Options of the branch; no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

from mmad_fast.backbones.table import CNN_BACKBONES, get_cnn_spec
from mmad_fast.errors import InvalidInputError
from mmad_fast.methods.branches.branch import GraphOptions
from mmad_fast.methods.options import option

Options = TypeVar("Options", bound="CnnPyramidOptions")


@dataclass(frozen=True)
class CnnPyramidOptions(GraphOptions):
    """Which convolutional network, and which of its feature maps.

    A family whose published detector reads others gives these fields its own defaults and choices.

    Attributes:
        rgb_backbone: Name in mmad_fast.backbones.
        rgb_outputs: Numbers of the parts whose feature maps are used; parts after the last are cut.

    Raises:
        InvalidInputError: the network has no such outputs, or not at this size of the image, or is
            not run in this precision.
    """

    rgb_backbone: str = option(
        "wide-resnet50-2-timm", "Convolutional network of the RGB features.",
        choices=tuple(CNN_BACKBONES), in_rows=True,
    )  # fmt: skip
    rgb_outputs: tuple[int, ...] = option(
        (2, 3),
        "Feature maps that are used: layers 1 to 4 of a wide ResNet, 0-based blocks of "
        "EfficientNet-B5.",
        minimum=0,
        in_rows=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        spec = get_cnn_spec(self.rgb_backbone)
        spec.check_outputs(self.rgb_outputs, self.rgb_size)
        if self.precision == "int8" and not spec.takes_int8:
            raise InvalidInputError(
                f"precision is 'int8', in which {spec.name} is not run: it would gain little; "
                "choose 'fp32', or export the detector with precision 'fp16'"
            )

    @property
    def map_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(C, H, W) of each feature map."""
        spec = get_cnn_spec(self.rgb_backbone)
        return tuple(spec.map_shape(output, self.rgb_size) for output in self.rgb_outputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """What each feature map is called in the graph."""
        return tuple(map(get_cnn_spec(self.rgb_backbone).output_name, self.rgb_outputs))

    def with_constants(self: Options) -> Options:
        """With the size of the network's input."""
        options = super().with_constants()
        return replace(options, rgb_size=get_cnn_spec(self.rgb_backbone).image_size)
