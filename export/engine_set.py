"""Every engine of the published detectors: both backbones, cut for each variant.

    python export/engine_set.py --sm 86,89,120 --output engines
    python export/engine_set.py --variants cfm-s cfm-t --to onnx openvino tensorrt-rtx \\
        --precision fp32 fp16 int8 --calibration mvtec3d --category bagel --sm 89 --output engines

DINO is cut after 12, 8, 4 and 1 blocks, Point-MAE after 12, 8, 4 and 1. manifest.json has a record
per engine (multiply-adds, parameters, size, build time, layers) and the sha256 of every file.
"""

from __future__ import annotations

from argparse import Namespace

from options import new_parser, run

from mmad_fast.backbones import RGB_BACKBONES
from mmad_fast.export.backbone_cut import BackboneCut
from mmad_fast.methods.variants import VARIANTS

parser = new_parser(__doc__)
parser.add_argument(
    "--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="default: all"
)
parser.add_argument(
    "--backbone", choices=RGB_BACKBONES, help="in place of the variants' own (dino-vitb8)"
)
parser.add_argument("--rgb-weights", default="auto", help="PATH, auto (download) or random")
parser.add_argument("--point-weights", default="auto", help="PATH, auto (download) or random")


def cuts(arguments: Namespace) -> list[BackboneCut]:
    """The backbones of every variant; what several share once."""
    variants = [VARIANTS[name] for name in arguments.variants]
    rgb = [
        BackboneCut(arguments.backbone or v.rgb_backbone, v.rgb_layers)
        for v in variants
        if "rgb" in v.modalities
    ]
    point = [BackboneCut.point_mae(v.point_layers) for v in variants if "point" in v.modalities]
    return list(dict.fromkeys(rgb + point))


if __name__ == "__main__":
    run(
        parser,
        cuts,
        weights=lambda arguments: {
            "rgb_weights": arguments.rgb_weights,
            "point_weights": arguments.point_weights,
        },
    )
