"""The part of a detector that no method trains: both backbones, exported to graphs and loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from numpy.typing import NDArray

from mmad_fast.backbones import WeightsSource, build_point_backbone, build_rgb_backbone
from mmad_fast.backbones.point_mae import PointTransformer
from mmad_fast.backbones.table import get_rgb_spec
from mmad_fast.data.scan_file import ScanFile
from mmad_fast.engines import open_graph
from mmad_fast.errors import EmptyScanError, InvalidInputError
from mmad_fast.export.onnx_graph import export_graph
from mmad_fast.export.quantization import quantize_graph
from mmad_fast.methods.backbone_parameters import (
    EMBEDDER_PREFIX,
    POINT_STATISTICS_PREFIX,
    BackboneParameters,
)
from mmad_fast.methods.feature_extraction import (
    POINT_GRAPH,
    RGB_GRAPH,
    PointExtractor,
    RgbExtractor,
)
from mmad_fast.methods.fitting import Progress
from mmad_fast.methods.variants import get_variant
from mmad_fast.ops.farthest_point_sampling import farthest_point_sampling
from mmad_fast.ops.knn_grouping import knn_grouping
from mmad_fast.ops.point_embedding import TOKEN_CHANNELS as POINT_TOKEN_CHANNELS
from mmad_fast.preprocess import check_resolution, prepare
from mmad_fast.preprocess.recipes import RECIPES
from mmad_fast.scan import PreparedScan, Scan, Unit

if TYPE_CHECKING:
    from mmad_fast.backbones.dino import VisionTransformer as RgbBackbone
    from mmad_fast.backbones.point_mae import PointMae

CALIBRATION_SCANS = 16
"""Training scans whose groups give the statistics of batch_norm="calibrated"."""

MODALITIES = ("rgb", "point")


@dataclass(frozen=True)
class BackboneFitOptions:
    """What may be chosen of the backbones and the scans, whatever the method does with the
    features. A method's options extend it and give `method` and `recipe` their defaults.

    Attributes:
        method: A name of the variants table.
        recipe: Name of the preprocessing recipe.
        rgb_backbone, rgb_layers, point_layers: Override the variant's.
        rgb_weights, point_weights: "auto" (cache or download), "random", or a file.
        num_groups, group_size, batch_norm, skip_near_origin, precision: As in BackboneParameters.
        seed: Of everything random.
        threshold_quantile: The threshold is this quantile of the validation scans' image scores;
            with few scans it is their maximum.
        num_threads: Threads of extraction and training; None means the default.
        unit: Of the scans' files.
    """

    method: str
    recipe: str
    rgb_backbone: str | None = None
    rgb_weights: str | Path = "auto"
    point_weights: str | Path = "auto"
    rgb_layers: int | None = None
    point_layers: tuple[int, ...] | None = None
    num_groups: int = 1024
    group_size: int = 128
    batch_norm: Literal["cloud", "calibrated", "checkpoint"] = "cloud"
    skip_near_origin: bool = False
    precision: Literal["float32", "int8"] = "float32"
    seed: int = 0
    threshold_quantile: float = 0.99
    num_threads: int | None = None
    unit: Unit = "m"

    def __post_init__(self) -> None:
        if not 0 <= self.threshold_quantile <= 1:
            raise InvalidInputError(
                f"threshold_quantile is {self.threshold_quantile}; it must be from 0 to 1"
            )
        if self.recipe not in RECIPES:
            raise InvalidInputError(
                f"there is no preprocessing recipe {self.recipe!r}; known are {', '.join(RECIPES)}"
            )


@dataclass(frozen=True)
class BackbonePart:
    """The backbones of a detector, ready to extract features and to be written.

    Attributes:
        parameters: Their constants.
        graphs: ONNX file by graph name, of the modalities that were asked for.
        rgb: The RGB graph, loaded; None without that modality.
        point: The point graph and embedder, loaded; None without that modality.
        weights: Where the weights came from, JSON types.
        tensors: The point embedder's weights, and what the dense reference needs to rebuild the
            backbones, by name.
    """

    parameters: BackboneParameters
    graphs: dict[str, Path]
    rgb: RgbExtractor | None
    point: PointExtractor | None
    weights: dict[str, Any]
    tensors: dict[str, NDArray]


def build_backbone_part(
    train: Sequence[ScanFile | Scan],
    options: BackboneFitOptions,
    scratch: Path,
    *,
    modalities: tuple[str, ...] = MODALITIES,
    progress: Progress,
) -> BackbonePart:
    """The backbones of the modalities as graphs in `scratch`, loaded. Weights of a modality that is
    not asked for are neither read nor downloaded.

    Args:
        train: Training scans; read only for batch_norm="calibrated".
        options: Backbones, weights, layers and sizes.
        scratch: An existing folder.
        modalities: "rgb", "point" or both.
        progress: Called with ("export", done, total).

    Raises:
        InvalidInputError: an option is out of range.
        EmptyScanError: batch_norm="calibrated" finds no training scan with enough foreground.
        WeightsError: weights are missing or do not fit.
    """
    parameters = backbone_parameters(options)
    graphs: dict[str, Path] = {}
    weights: dict[str, Any] = {}
    tensors: dict[str, NDArray] = {}
    rgb_extractor, point_extractor = None, None
    progress("export", 0, len(modalities))
    if "rgb" in modalities:
        rgb = build_rgb(options, parameters)
        graphs[RGB_GRAPH] = _export_rgb(rgb, parameters, scratch)
        weights["rgb"] = _source_record(rgb.name, rgb.weights_source)
        rgb_graph = open_graph(graphs[RGB_GRAPH], num_threads=options.num_threads)
        rgb_extractor = RgbExtractor(rgb_graph)
        progress("export", len(graphs), len(modalities))
    if "point" in modalities:
        point = build_point(options, parameters)
        if options.batch_norm == "calibrated":
            point.calibrate(_calibration_groups(train, options, parameters))
        graphs[POINT_GRAPH] = _export_point(point, parameters, scratch)
        weights["point"] = _source_record("point-mae", point.weights_source)
        embedder = point.encoder.to_embedder_weights()
        tensors = {**embedder.to_tensors(EMBEDDER_PREFIX), **_point_statistics(point)}
        point_graph = open_graph(graphs[POINT_GRAPH], num_threads=options.num_threads)
        point_extractor = PointExtractor(point_graph, embedder, parameters)
        progress("export", len(graphs), len(modalities))
    weights["seed"] = options.seed
    return BackbonePart(parameters, graphs, rgb_extractor, point_extractor, weights, tensors)


def backbone_parameters(options: BackboneFitOptions) -> BackboneParameters:
    """The constants that the options stand for, the variant's where they leave it open. Reads no
    weights.

    Raises:
        InvalidInputError: an unknown backbone or value.
    """
    variant = get_variant(options.method)
    spec = get_rgb_spec(options.rgb_backbone or variant.rgb_backbone)
    layers = variant.point_layers if options.point_layers is None else options.point_layers
    return BackboneParameters(
        rgb_backbone=spec.name,
        rgb_size=spec.image_size,
        token_grid=spec.image_size // spec.patch_size,
        rgb_layers=variant.rgb_layers if options.rgb_layers is None else options.rgb_layers,
        point_layers=tuple(layers),
        num_groups=options.num_groups,
        group_size=options.group_size,
        batch_norm=options.batch_norm,
        skip_near_origin=options.skip_near_origin,
        precision=options.precision,
    )


def build_rgb(options: BackboneFitOptions, parameters: BackboneParameters) -> RgbBackbone:
    """The RGB backbone as the options say."""
    return build_rgb_backbone(
        parameters.rgb_backbone,
        num_layers=parameters.rgb_layers,
        weights=options.rgb_weights,
        seed=options.seed,
    )


def build_point(options: BackboneFitOptions, parameters: BackboneParameters) -> PointMae:
    """Point-MAE as the options say; with batch_norm="calibrated" not yet calibrated."""
    return build_point_backbone(
        layers=parameters.point_layers,
        weights=options.point_weights,
        batch_norm=options.batch_norm,
        seed=options.seed,
    )


def prepare_scan(
    scan: ScanFile | Scan, options: BackboneFitOptions, parameters: BackboneParameters
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


def _source_record(name: str, source: WeightsSource) -> dict[str, Any]:
    """What the manifest says of a backbone's weights; no path, since it names a machine."""
    return {"name": name, "kind": source.kind, "detail": source.detail, "sha256": source.sha256}


def _point_statistics(point: PointMae) -> dict[str, NDArray]:
    """The calibrated BatchNorm statistics, for the reference: the embedder has them folded
    in."""
    if point.batch_norm != "calibrated":
        return {}
    return {
        POINT_STATISTICS_PREFIX + name: buffer.detach().numpy().copy()
        for name, buffer in point.named_buffers()
        if name.endswith(("running_mean", "running_var"))
    }


def _export_rgb(rgb: RgbBackbone, parameters: BackboneParameters, scratch: Path) -> Path:
    image = torch.zeros(1, 3, parameters.rgb_size, parameters.rgb_size)
    path = export_graph(rgb, {"image": image}, scratch / f"{RGB_GRAPH}.onnx", output_name="tokens")
    return quantize_graph(path) if parameters.precision == "int8" else path


def _export_point(point: PointMae, parameters: BackboneParameters, scratch: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    batch = (1, parameters.num_groups)
    examples = {
        "tokens": torch.randn((*batch, POINT_TOKEN_CHANNELS), generator=generator),
        "centers": 0.1 * torch.randn((*batch, 3), generator=generator),
    }
    path = export_graph(
        PointTransformer(point).eval(),
        examples,
        scratch / f"{POINT_GRAPH}.onnx",
        output_name="features",
    )
    return quantize_graph(path) if parameters.precision == "int8" else path


def _calibration_groups(
    train: Sequence[ScanFile | Scan], options: BackboneFitOptions, parameters: BackboneParameters
) -> Iterator[torch.Tensor]:
    """Groups (1, G, K, 3) of some training scans, evenly chosen; those without foreground left out.

    Raises:
        EmptyScanError: none of them has enough foreground.
    """
    step = max(1, len(train) // CALIBRATION_SCANS)
    num_used = 0
    for scan in train[::step]:
        try:
            points = prepare_scan(scan, options, parameters).points
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
