"""Real features for the ops in feature space: DINOv2 tokens of a data set.

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
from ops.case import FOLDER
from settings import read_toml

from mmad_fast.backbones import build_rgb_backbone
from mmad_fast.backbones.dino import VisionTransformer
from mmad_fast.data import Dataset, ScanFile, open_dataset
from mmad_fast.data.scan_file import Split
from mmad_fast.methods.family import get_recipe
from mmad_fast.preprocess import prepare
from mmad_fast.threads import get_num_threads

BLOCKS = (3, 7, 11)  # 0-based


def choose_scans(
    dataset: Dataset, bank_rows: int, query_scans: int
) -> tuple[list[ScanFile], list[ScanFile]]:
    """Good scans enough for the bank, and test scans for the queries, spread over the others."""
    splits: tuple[Split, ...] = ("train", "validation", "test")
    scans = [s for split in splits for c in dataset.categories() for s in dataset.scans(c, split)]
    bank = [scan for scan in scans if scan.defect == "good"][: -(-bank_rows // 784)]
    others = [scan for scan in scans if scan.split == "test" and scan not in bank]
    chosen = np.linspace(0, len(others) - 1, query_scans).round().astype(int)
    return bank, [others[i] for i in chosen]


def tokens_of(backbone: VisionTransformer, scans: Sequence[ScanFile]) -> NDArray[np.float32]:
    """(scans * T, 3 * 384) float32."""
    outputs: list[torch.Tensor] = []
    for block in BLOCKS:
        backbone.blocks[block].register_forward_hook(lambda *given: outputs.append(given[-1]))
    recipe = get_recipe(read_toml(FOLDER / "sizes.toml")["recipe"])
    rows = []
    for scan in scans:
        outputs.clear()
        image = prepare(scan.load(), recipe, rgb_size=backbone.image_size).rgb
        backbone(torch.from_numpy(image)[None])
        normed = [backbone.norm(tokens[0, 1:]) for tokens in outputs[: len(BLOCKS)]]
        rows.append(torch.cat(normed, dim=1).numpy())
    return np.concatenate(rows)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--bank-rows", type=int, default=76_518, help="default: bagel's")
    parser.add_argument("--query-scans", type=int, default=4, help="784 queries each")
    arguments = parser.parse_args()
    torch.set_num_threads(get_num_threads())
    backbone = build_rgb_backbone("dinov2-vits14", num_layers=12, weights=arguments.weights)
    dataset = open_dataset(arguments.data)
    bank, queries = choose_scans(dataset, arguments.bank_rows, arguments.query_scans)
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows = tokens_of(backbone, [*bank, *queries])
    found = rows[: 784 * len(bank)][: arguments.bank_rows]
    if len(found) < arguments.bank_rows:
        raise SystemExit(f"there are {len(found)} rows of good scans; pass a smaller --bank-rows")
    np.save(arguments.output / "bank.npy", found)
    np.save(arguments.output / "queries.npy", rows[784 * len(bank) :])


if __name__ == "__main__":
    main()
