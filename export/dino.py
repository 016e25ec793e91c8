"""Engines of a DINO or DINOv2 backbone cut after some block, final norm included.

    python export/dino.py --layers 4 --precision fp16 --sm 89 --weights random --output engines
    python export/dino.py --backbone dinov2-vits14 --layers 1 4 8 12 --to onnx openvino \\
        --precision fp32 --weights dinov2_vits14_pretrain.pth --output engines

An engine maps image (1, 3, R, R) float32, normalised as ImageNet, to tokens (1, 784, C) float32. It
holds no block after the last one, no class token in the result, no dropout.
"""

from __future__ import annotations

from options import new_parser, run

from mmad_fast.backbones import RGB_BACKBONES
from mmad_fast.export.backbone_cut import BackboneCut

parser = new_parser(__doc__)
parser.add_argument("--backbone", choices=RGB_BACKBONES, default="dino-vitb8")
parser.add_argument(
    "--layers", type=int, nargs="+", default=[4], help="blocks to keep, an engine for each"
)
parser.add_argument(
    "--weights", "--rgb-weights", default="auto", help="PATH, auto (download; default) or random"
)

if __name__ == "__main__":
    run(
        parser,
        lambda arguments: [BackboneCut(arguments.backbone, layers) for layers in arguments.layers],
        weights=lambda arguments: {"rgb_weights": arguments.weights},
    )
