"""The part of a CFM detector that is not trained: the backbones and what it does with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from numpy.typing import NDArray

from mmad_fast.data.scan_file import ScanFile
from mmad_fast.methods.backbone_graphs import (
    BackbonePart,
    backbone_parameters,
    build_backbone_part,
    prepare_scan,
)
from mmad_fast.methods.cfm.detector import (
    CfmFeatures,
    CfmPipeline,
    FeatureExtractor,
    mapping_networks,
)
from mmad_fast.methods.cfm.fit_options import CfmFitOptions
from mmad_fast.methods.cfm.parameters import CfmParameters
from mmad_fast.methods.fitting import Progress
from mmad_fast.scan import Scan
from mmad_fast.stage_clock import StageClock


@dataclass(frozen=True)
class FrozenPart:
    """Everything of a CFM detector that is not trained.

    Attributes:
        parameters: The detector's constants.
        backbones: Both backbones, with their graphs, tensors and origin.
        extractor: The backbones and how the pixels mix their features.
    """

    parameters: CfmParameters
    backbones: BackbonePart
    extractor: FeatureExtractor


def build_frozen_part(
    train: Sequence[ScanFile | Scan],
    options: CfmFitOptions,
    scratch: Path,
    *,
    progress: Progress,
) -> FrozenPart:
    """Both backbones as graphs in `scratch`, loaded; see build_backbone_part."""
    parameters = cfm_parameters(options)  # refuses its part before anything is exported
    backbones = build_backbone_part(train, options, scratch, progress=progress)
    assert backbones.rgb is not None  # both modalities are the default
    assert backbones.point is not None
    extractor = FeatureExtractor(backbones.rgb, backbones.point, parameters)
    return FrozenPart(parameters, backbones, extractor)


def cfm_parameters(options: CfmFitOptions) -> CfmParameters:
    """The constants that the options stand for.

    Raises:
        InvalidInputError: an unknown backbone or value.
    """
    return CfmParameters(
        **asdict(backbone_parameters(options)),
        aggregation=options.aggregation,
        mapping=options.mapping,
        score_norm=options.score_norm,
        smoothing=options.smoothing,
        hidden=options.hidden,
        pixel_stride=options.pixel_stride,
    )


def extract_features(
    scan: ScanFile | Scan, frozen: FrozenPart, options: CfmFitOptions
) -> CfmFeatures:
    """The features of one scan, as the detector computes them."""
    prepared = prepare_scan(scan, options, frozen.parameters)
    return frozen.extractor.extract(prepared, StageClock())


def assemble_pipeline(frozen: FrozenPart, tensors: dict[str, NDArray]) -> CfmPipeline:
    """The run half of the detector, from the frozen part and the tensors of its networks."""
    networks = mapping_networks(tensors, frozen.parameters)
    return CfmPipeline(frozen.extractor, networks, frozen.parameters)
