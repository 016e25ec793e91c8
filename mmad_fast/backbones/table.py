"""The RGB backbones by name: what differs between them stands here, one table per branch that runs
them. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from mmad_fast.errors import InvalidInputError

Spec = TypeVar("Spec")


@dataclass(frozen=True)
class RgbSpec:
    """One vision transformer with published weights.

    Attributes:
        name: As in `--rgb-backbone` and in the manifest.
        patch_size: Side of a patch in pixels.
        dim: C, channels of a token.
        num_heads: Attention heads; a head has 64 channels.
        depth: Blocks of the published network.
        image_size: R, side of the input in pixels that gives 28 x 28 tokens.
        pretrained_grid: Side of the token grid that the published position embedding has.
        layer_scale: Whether each branch of a block is scaled per channel (DINOv2).
    """

    name: str
    patch_size: int
    dim: int
    num_heads: int
    depth: int
    image_size: int
    pretrained_grid: int
    layer_scale: bool


# Source: facebookresearch/dino and facebookresearch/dinov2, their published configurations;
# method facts, section 2. DINOv2 was trained at 518 pixels (37 x 37 tokens); 392 pixels give the
# 28 x 28 tokens that CFM's interpolation expects.
RGB_BACKBONES: dict[str, RgbSpec] = {
    spec.name: spec
    for spec in (
        RgbSpec("dino-vitb8", 8, 768, 12, 12, 224, 28, layer_scale=False),
        RgbSpec("dinov2-vits14", 14, 384, 6, 12, 392, 37, layer_scale=True),
        RgbSpec("dinov2-vitb14", 14, 768, 12, 12, 392, 37, layer_scale=True),
    )
}


class MapSize(NamedTuple):
    """Size of a feature map.

    Attributes:
        channels: C.
        stride: Pixels of the input per pixel of the map, along a side.
    """

    channels: int
    stride: int


@dataclass(frozen=True)
class CnnSpec:
    """One convolutional network with published weights.

    Attributes:
        name: As in `--rgb-backbone` and in the manifest.
        image_size: R, side in pixels of the input that the published detectors give it.
        part: What its outputs are those of: "layer" or "block", in the owner's words.
        maps: Size of the feature map behind each part, by the owner's number of it.
        takes_int8: 8-bit convolutions gain time. They do where most work is in wide convolutions;
            EfficientNet's are thin, with swishes between them.
    """

    name: str
    image_size: int
    part: str
    maps: Mapping[int, MapSize]
    takes_int8: bool

    def output_name(self, output: int) -> str:
        """What the output of a part is called in a graph: "layer2", "block35"."""
        return f"{self.part}{output}"

    def check_outputs(self, outputs: Sequence[int], image_size: int) -> None:
        """Raises InvalidInputError unless the network has all outputs, each once, and the input's
        side is a multiple of the deepest one's stride: other sides would be padded unequally."""
        if not outputs or len(set(outputs)) != len(outputs) or not set(outputs) <= set(self.maps):
            raise InvalidInputError(
                f"outputs of {self.name} are {tuple(outputs)}; they must be different numbers of "
                f"its {self.part}s, {min(self.maps)} to {max(self.maps)}"
            )
        stride = self.maps[max(outputs)].stride
        if image_size < stride or image_size % stride:
            raise InvalidInputError(
                f"{self.name}: image_size is {image_size}; for {self.part} {max(outputs)} it must "
                f"be a positive multiple of {stride}"
            )

    def map_shape(self, output: int, image_size: int) -> tuple[int, int, int]:
        """(C, H, W) of an output."""
        channels, stride = self.maps[output]
        return channels, image_size // stride, image_size // stride


class EfficientNetStage(NamedTuple):
    """Blocks of one kind in a row; the first one of them has the stride."""

    num_blocks: int
    kernel_size: int
    stride: int
    expansion: int
    channels: int


# Source: Tan and Le, EfficientNet, table 1, with B5's factors 1.6 for the width and 2.2 for the
# depth, channels rounded to multiples of 8.
EFFICIENTNET_B5_STAGES = (
    EfficientNetStage(3, 3, 1, 1, 24),
    EfficientNetStage(5, 3, 2, 6, 40),
    EfficientNetStage(5, 5, 2, 6, 64),
    EfficientNetStage(7, 3, 2, 6, 128),
    EfficientNetStage(7, 5, 1, 6, 176),
    EfficientNetStage(9, 5, 2, 6, 304),
    EfficientNetStage(3, 3, 1, 6, 512),
)


def _efficientnet_maps(stages: Sequence[EfficientNetStage]) -> dict[int, MapSize]:
    sizes, stride = [], 2
    for stage in stages:
        stride *= stage.stride
        sizes += stage.num_blocks * [MapSize(stage.channels, stride)]
    return dict(enumerate(sizes))


_RESNET_MAPS = {layer: MapSize(128 * 2**layer, 2 ** (layer + 1)) for layer in range(1, 5)}

# Source: method facts 9.1 (BTF reads layers 2 and 3 at 224 pixels; timm's weights of that name are
# not torchvision's) and 9.2 (AST reads block 35 at 768 pixels).
CNN_BACKBONES: dict[str, CnnSpec] = {
    spec.name: spec
    for spec in (
        CnnSpec("wide-resnet50-2-timm", 224, "layer", _RESNET_MAPS, takes_int8=True),
        CnnSpec("wide-resnet50-2", 224, "layer", _RESNET_MAPS, takes_int8=True),
        CnnSpec(
            "efficientnet-b5",
            768,
            "block",
            _efficientnet_maps(EFFICIENTNET_B5_STAGES),
            takes_int8=False,
        ),
    )
}


def get_rgb_spec(name: str) -> RgbSpec:
    """The vision transformer of that name.

    Raises:
        InvalidInputError: no such name; the message lists the known ones.
    """
    return _get_spec(RGB_BACKBONES, name, "RGB backbone")


def get_cnn_spec(name: str) -> CnnSpec:
    """The convolutional network of that name.

    Raises:
        InvalidInputError: no such name; the message lists the known ones.
    """
    return _get_spec(CNN_BACKBONES, name, "convolutional RGB backbone")


def _get_spec(table: Mapping[str, Spec], name: str, what: str) -> Spec:
    try:
        return table[name]
    except KeyError:
        raise InvalidInputError(
            f"there is no {what} {name!r}; known are {', '.join(table)}"
        ) from None
