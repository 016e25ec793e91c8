"""Data sets: MVTec 3D-AD layout, raw Eyecandies, a plain folder of pairs, and a procedural set."""

from mmad_fast.data.dataset import Dataset, open_dataset
from mmad_fast.data.eyecandies import convert_eyecandies
from mmad_fast.data.scan_file import SPLITS, ScanFile, Split

__all__ = ["SPLITS", "Dataset", "ScanFile", "Split", "convert_eyecandies", "open_dataset"]
