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
from mmad_fast.methods.branches import point_groups, vit_tokens
from mmad_fast.methods.branches.point_groups.options import PointGroupOptions
from mmad_fast.methods.branches.vit_tokens.options import VitTokenOptions
from mmad_fast.methods.family import get_method, method_names

parser = new_parser(__doc__)
parser.add_argument(
    "--variants", nargs="+", choices=method_names(), default=method_names(), help="default: all"
)
parser.add_argument(
    "--backbone", choices=RGB_BACKBONES, help="in place of the variants' own (dino-vitb8)"
)
parser.add_argument("--rgb-weights", default="auto", help="PATH, auto (download) or random")
parser.add_argument("--point-weights", default="auto", help="PATH, auto (download) or random")


def cuts(arguments: Namespace) -> list[BackboneCut]:
    """The backbones of every variant; what several share once."""
    rgb, point = [], []
    for name in arguments.variants:
        family, variant = get_method(name)
        branches, options = family.branches_of(variant), family.options(**variant.values)
        if vit_tokens.BRANCH in branches and isinstance(options, VitTokenOptions):
            backbone = arguments.backbone or options.rgb_backbone
            rgb.append(BackboneCut(backbone, options.rgb_layers))
        if point_groups.BRANCH in branches and isinstance(options, PointGroupOptions):
            point.append(BackboneCut.point_mae(options.point_layers))
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
