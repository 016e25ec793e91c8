"""Engines of Point-MAE's transformer, cut after the last block that is fetched.

    python export/point_mae.py --layers 1,2,3 --precision fp16 --sm 89 --weights random \\
        --output engines

An engine maps tokens (1, 1024, 384) float32 and centers (1, 1024, 3) float32 metres to features
(1, 1024, 384 per fetched block) float32. The tokens come from the group embedder, which is the op
mmad_fast.ops.point_embedding and in no engine: its weights lie beside as safetensors.
"""

from __future__ import annotations

from options import argument, block_numbers, new_parser, run

from mmad_fast.export.backbone_cut import BackboneCut

parser = new_parser(__doc__)
parser.add_argument(
    "--layers",
    type=argument(block_numbers),
    nargs="+",
    default=[(1, 2, 3)],
    metavar="N,N,N",
    help="0-based blocks whose outputs are concatenated, an engine for each list (default: 1,2,3)",
)
parser.add_argument(
    "--weights", "--point-weights", default="auto", help="PATH, auto (download; default) or random"
)

if __name__ == "__main__":
    run(
        parser,
        lambda arguments: [BackboneCut.point_mae(layers) for layers in arguments.layers],
        weights=lambda arguments: {"point_weights": arguments.weights},
    )
