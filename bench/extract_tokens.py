"""Real features for the benchmarks of nearest_neighbor_scoring: DINOv2 tokens of a data set.

python bench/extract_tokens.py --data DATA_SET --weights dinov2_vits14.safetensors --output FOLDER

Writes FOLDER/bank.npy, tokens of good scans, and FOLDER/queries.npy, tokens of other test scans. A
token's channels are the outputs of blocks 4, 8 and 12 after the final norm, 3 x 384.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmad_fast.backbones import build_rgb_backbone
from mmad_fast.backbones.dino import VisionTransformer
from mmad_fast.data import ScanFile, open_dataset
from mmad_fast.preprocess import get_recipe, prepare
from mmad_fast.threads import get_num_threads

BLOCKS = (3, 7, 11)  # 0-based


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--bank-rows", type=int, default=76_518, help="as many as M3DM's bagel has")
    parser.add_argument("--query-scans", type=int, default=4, help="784 queries each")
    return parser.parse_args()


def choose_scans(
    root: Path, bank_rows: int, query_scans: int
) -> tuple[list[ScanFile], list[ScanFile]]:
    """Good scans enough for the bank, and test scans for the queries, spread over the others."""
    dataset = open_dataset(root)
    scans = [
        scan
        for split in ("train", "validation", "test")
        for category in dataset.categories()
        for scan in dataset.scans(category, split)
    ]
    good = [scan for scan in scans if scan.defect == "good"]
    bank = good[: -(-bank_rows // 784)]
    taken = {scan.name for scan in bank}
    others = [scan for scan in scans if scan.split == "test" and scan.name not in taken]
    chosen = np.linspace(0, len(others) - 1, query_scans).round().astype(int)
    return bank, [others[i] for i in chosen]


def tokens_of(backbone: VisionTransformer, scans: Sequence[ScanFile]) -> NDArray[np.float32]:
    """(scans * T, 3 * 384) float32."""
    outputs: list[Tensor] = []
    hooks = [
        backbone.blocks[block].register_forward_hook(
            lambda _module, _args, out: outputs.append(out)
        )
        for block in BLOCKS
    ]
    rows = []
    for scan in scans:
        outputs.clear()
        image = prepare(scan.load(), get_recipe("cfm"), rgb_size=backbone.image_size).rgb
        backbone(torch.from_numpy(image)[None])
        normed = [backbone.norm(tokens[0, 1:]) for tokens in outputs]
        rows.append(torch.cat(normed, dim=1).numpy())
    for hook in hooks:
        hook.remove()
    return np.concatenate(rows)


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(get_num_threads())
    backbone = build_rgb_backbone("dinov2-vits14", num_layers=12, weights=arguments.weights)
    bank, queries = choose_scans(arguments.data, arguments.bank_rows, arguments.query_scans)
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows = tokens_of(backbone, bank)[: arguments.bank_rows]
    if len(rows) < arguments.bank_rows:
        raise SystemExit(
            f"{arguments.data} has tokens for {len(rows)} bank rows of its good scans; "
            f"{arguments.bank_rows} are asked for: pass a smaller --bank-rows"
        )
    np.save(arguments.output / "bank.npy", rows)
    np.save(arguments.output / "queries.npy", tokens_of(backbone, queries))


if __name__ == "__main__":
    main()
