"""What the convolutional backbones share: the feature maps of chosen parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from mmad_fast.backbones.table import CnnSpec
from mmad_fast.backbones.weights import WeightsSource


class ConvolutionalNetwork(nn.Module):
    """The feature maps of chosen parts of a convolutional network. The official networks extend it.

    Attributes:
        name: The backbone's name.
        image_size: R, side of the input in pixels.
        outputs: Numbers of the parts, in the order of the maps.
        weights_source: Where the weights came from.
    """

    CUT_PATTERN: str
    """Regular expression of the keys that belong to a part; its first group is the number."""
    IGNORED_PREFIXES: tuple[str, ...]
    """Of the official keys behind the last part: the classifier."""

    def __init__(self, spec: CnnSpec, *, outputs: Sequence[int], image_size: int) -> None:
        super().__init__()
        self.name = spec.name
        self.image_size = image_size
        self.outputs = tuple(outputs)
        self.weights_source = WeightsSource("random", "not initialised")

    def parts(self, image: Tensor) -> Iterator[tuple[int, Tensor]]:
        """(number, feature map (B, C, H, W)) of each part that is kept, in the network's order."""
        raise NotImplementedError

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """The feature maps of the chosen parts.

        Args:
            image: (B, 3, R, R) float32, normalised with the ImageNet mean and deviation.

        Returns:
            Per output (B, C, H, W) float32.
        """
        found = dict(self.parts(image))
        return tuple(found[output] for output in self.outputs)
