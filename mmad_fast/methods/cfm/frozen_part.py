"""The part of a CFM detector that is not trained: both backbones, exported and loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray

from mmad_fast.backbones import WeightsSource, build_point_backbone, build_rgb_backbone
from mmad_fast.backbones.point_mae import PointTransformer
from mmad_fast.data.scan_file import ScanFile
from mmad_fast.engines import open_graph
from mmad_fast.errors import EmptyScanError
from mmad_fast.export.onnx_graph import export_graph
from mmad_fast.export.quantization import quantize_graph
from mmad_fast.methods.cfm.detector import (
    POINT_GRAPH,
    RGB_GRAPH,
    CfmFeatures,
    CfmPipeline,
    FeatureExtractor,
    mapping_networks,
)
from mmad_fast.methods.cfm.fit_options import CfmFitOptions
from mmad_fast.methods.cfm.parameters import (
    EMBEDDER_PREFIX,
    POINT_STATISTICS_PREFIX,
    CfmParameters,
)
from mmad_fast.methods.variants import get_variant
from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.knn_grouping import knn_grouping
from mmad_fast.ops.point_embedding import TOKEN_CHANNELS as POINT_TOKEN_CHANNELS
from mmad_fast.preprocess import check_resolution, prepare
from mmad_fast.preprocess.recipes import RECIPES
from mmad_fast.scan import PreparedScan, Scan, Unit
from mmad_fast.stage_clock import StageClock

if TYPE_CHECKING:
    from mmad_fast.backbones.dino import VisionTransformer as RgbBackbone
    from mmad_fast.backbones.point_mae import PointMae

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total): stages are "export", "features", "training", "threshold"."""

CALIBRATION_SCANS = 16
"""Training scans whose groups give the statistics of batch_norm="calibrated"."""


@dataclass(frozen=True)
class FrozenPart:
    """Everything of a detector that is not trained.

    Attributes:
        parameters: The detector's constants.
        graphs: ONNX file by graph name.
        extractor: Both graphs and the point embedder, loaded.
        weights: Where the backbones' weights came from, JSON types.
        tensors: The point embedder's weights, and what the dense reference needs to rebuild the
            backbones, by name.
    """

    parameters: CfmParameters
    graphs: dict[str, Path]
    extractor: FeatureExtractor
    weights: dict[str, Any]
    tensors: dict[str, NDArray]


def build_frozen_part(
    train: Sequence[ScanFile | Scan],
    options: CfmFitOptions,
    scratch: Path,
    *,
    progress: Progress,
) -> FrozenPart:
    """Both backbones as graphs in `scratch`, loaded.

    Args:
        train: Training scans; read only for batch_norm="calibrated".
        options: Backbones, weights, layers and sizes.
        scratch: An existing folder.
        progress: Called with ("export", done, total).
    """
    rgb, point = build_backbones(options)
    parameters = CfmParameters(
        rgb_backbone=rgb.name,
        rgb_size=rgb.image_size,
        token_grid=rgb.token_grid,
        rgb_layers=rgb.num_layers,
        point_layers=point.layers,
        num_groups=options.num_groups,
        group_size=options.group_size,
        batch_norm=options.batch_norm,
        skip_near_origin=options.skip_near_origin,
        aggregation=options.aggregation,
        mapping=options.mapping,
        score_norm=options.score_norm,
        smoothing=options.smoothing,
        hidden=options.hidden,
        pixel_stride=options.pixel_stride,
        precision=options.precision,
    )
    if options.batch_norm == "calibrated":
        point.calibrate(_calibration_groups(train, parameters, options))
    graphs = _export(rgb, point, parameters, scratch, progress)
    embedder = point.encoder.to_embedder_weights()
    return FrozenPart(
        parameters,
        graphs,
        FeatureExtractor(
            open_graph(graphs[RGB_GRAPH], num_threads=options.num_threads),
            open_graph(graphs[POINT_GRAPH], num_threads=options.num_threads),
            embedder,
            parameters,
        ),
        {
            "rgb": _source_record(rgb.name, rgb.weights_source),
            "point": _source_record("point-mae", point.weights_source),
            "seed": options.seed,
        },
        {**embedder.to_tensors(EMBEDDER_PREFIX), **_point_statistics(point)},
    )


def build_backbones(options: CfmFitOptions) -> tuple[RgbBackbone, PointMae]:
    """Both backbones as the options say; with batch_norm="calibrated" not yet calibrated."""
    variant = get_variant(options.method)
    rgb_layers = variant.rgb_layers if options.rgb_layers is None else options.rgb_layers
    point_layers = variant.point_layers if options.point_layers is None else options.point_layers
    rgb = build_rgb_backbone(
        options.rgb_backbone or variant.rgb_backbone,
        num_layers=rgb_layers,
        weights=options.rgb_weights,
        seed=options.seed,
    )
    point = build_point_backbone(
        layers=tuple(point_layers),
        weights=options.point_weights,
        batch_norm=options.batch_norm,
        seed=options.seed,
    )
    return rgb, point


def _source_record(name: str, source: WeightsSource) -> dict[str, Any]:
    """What the manifest says of a backbone's weights; no path, since it names a machine."""
    return {"name": name, "kind": source.kind, "detail": source.detail, "sha256": source.sha256}


def _point_statistics(point: torch.nn.Module) -> dict[str, NDArray]:
    """The calibrated BatchNorm statistics, for the reference: the embedder has them folded
    in."""
    if point.batch_norm != "calibrated":
        return {}
    return {
        POINT_STATISTICS_PREFIX + name: buffer.detach().numpy().copy()
        for name, buffer in point.named_buffers()
        if name.endswith(("running_mean", "running_var"))
    }


def _export(
    rgb: torch.nn.Module,
    point: PointMae,
    parameters: CfmParameters,
    scratch: Path,
    progress: Progress,
) -> dict[str, Path]:
    """The ONNX files of both backbones by graph name."""
    progress("export", 0, 2)
    image = torch.zeros(1, 3, parameters.rgb_size, parameters.rgb_size)
    rgb_path = export_graph(
        rgb, {"image": image}, scratch / f"{RGB_GRAPH}.onnx", output_name="tokens"
    )
    progress("export", 1, 2)
    generator = torch.Generator().manual_seed(0)
    batch = (1, parameters.num_groups)
    examples = {
        "tokens": torch.randn((*batch, POINT_TOKEN_CHANNELS), generator=generator),
        "centers": 0.1 * torch.randn((*batch, 3), generator=generator),
    }
    point_path = export_graph(
        PointTransformer(point).eval(),
        examples,
        scratch / f"{POINT_GRAPH}.onnx",
        output_name="features",
    )
    if parameters.precision == "int8":
        rgb_path, point_path = quantize_graph(rgb_path), quantize_graph(point_path)
    progress("export", 2, 2)
    return {RGB_GRAPH: rgb_path, POINT_GRAPH: point_path}


def extract_features(
    scan: ScanFile | Scan, frozen: FrozenPart, options: CfmFitOptions
) -> CfmFeatures:
    """The features of one scan, as the detector computes them."""
    prepared = prepare_scan(scan, frozen.parameters, options)
    return frozen.extractor.extract(prepared, StageClock())


def assemble_pipeline(frozen: FrozenPart, tensors: dict[str, NDArray]) -> CfmPipeline:
    """The run half of the detector, from the frozen part and the tensors of its networks."""
    networks = mapping_networks(tensors, frozen.parameters)
    return CfmPipeline(frozen.extractor, networks, frozen.parameters)


def _calibration_groups(
    train: Sequence[ScanFile | Scan], parameters: CfmParameters, options: CfmFitOptions
) -> Iterator[torch.Tensor]:
    """Groups (1, G, K, 3) of some training scans, evenly chosen; those without foreground left out.

    Raises:
        EmptyScanError: none of them has enough foreground.
    """
    step = max(1, len(train) // CALIBRATION_SCANS)
    num_used = 0
    for scan in train[::step]:
        try:
            points = prepare_scan(scan, parameters, options).points
        except EmptyScanError:
            continue
        if len(points) < parameters.group_size:
            continue
        center_indices = farthest_point_sampling(
            points, parameters.num_groups, skip_near_origin=parameters.skip_near_origin
        )
        groups = knn_grouping(points, center_indices, parameters.group_size).groups
        num_used += 1
        yield torch.from_numpy(groups)[None]
    if not num_used:
        raise EmptyScanError(
            f"none of the training scans used for batch_norm='calibrated' has "
            f"{parameters.group_size} foreground points; check the unit and the background plane"
        )


def prepare_scan(
    scan: ScanFile | Scan, parameters: CfmParameters, options: CfmFitOptions
) -> PreparedScan:
    """The scan as the detector reads it.

    Raises:
        InvalidInputError: a scan of too few pixels.
    """
    scan = load_scan(scan, options.unit)
    check_resolution(scan)
    return prepare(
        scan,
        RECIPES[options.recipe],
        rgb_size=parameters.rgb_size,
        grid_size=parameters.grid_size,
    )


def load_scan(scan: ScanFile | Scan, unit: Unit) -> Scan:
    """The scan, read if it is a file."""
    return scan if isinstance(scan, Scan) else scan.load(unit=unit)
