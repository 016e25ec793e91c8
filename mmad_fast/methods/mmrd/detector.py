"""The run half of MMRD and its kin: prepared scan in, anomaly map and score out. Needs no torch.

Read `FeatureExtractor.teacher_levels` and `MmrdPipeline.score_levels` from top to bottom: that is
the data flow. The published pipelines compute the same in torch, see reference.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmad_fast.artifact import Artifact
from mmad_fast.engines import Engine
from mmad_fast.engines.selection import EngineChoice
from mmad_fast.errors import ArtifactError
from mmad_fast.methods.branches.branch import HOST, Place, check_graph, require_points
from mmad_fast.methods.branches.feature_levels.extractor import FeatureLevelExtractor
from mmad_fast.methods.branches.feature_levels.options import NUM_LEVELS, level_name
from mmad_fast.methods.mmrd.options import MmrdOptions
from mmad_fast.ops.cosine_maps import cosine_maps
from mmad_fast.preprocess.recipes import Recipe
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock

Levels = Sequence[Sequence[Any]]
"""[modality][level]: maps (1, C, H, W) float32, where the graphs run."""


@dataclass(frozen=True)
class MmrdFeatures:
    """The features of one scan.

    Attributes:
        levels: (M, D) float32, or float16 as kept for training: per modality the teacher's maps,
            shallow to deep, flattened one after the other.
        pictures: (M, 3, R, R) float32: the pictures themselves, where the students read them.
    """

    levels: NDArray[np.floating]
    pictures: NDArray[np.float32] | None


@dataclass(frozen=True)
class MmrdScores:
    """What MMRD says of one scan.

    Attributes:
        anomaly_map: (S, S) float32.
        image_score: Its maximum.
    """

    anomaly_map: NDArray[np.float32]
    image_score: float


class FeatureExtractor:
    """The frozen teacher. `extract` is thread-safe."""

    def __init__(
        self, teacher: FeatureLevelExtractor, options: MmrdOptions, place: Place = HOST
    ) -> None:
        """Takes the branch, which runs in the place."""
        self.place = place
        self._teacher = teacher
        self._options = options

    def teacher_levels(
        self, prepared: PreparedScan, clock: StageClock
    ) -> tuple[Sequence[Any], Levels]:
        """(pictures (1, 3, R, R), teacher's maps) by modality, of a prepared scan.

        Raises:
            EmptyScanError: nothing was measured.
        """
        require_points(prepared, 1)
        with clock.stage("upload"):
            pictures = [
                self.place.upload(one) for one in modality_pictures(prepared, self._options)
            ]
        levels = [
            self._teacher.levels(graph, picture, clock)
            for graph, picture in zip(self._options.teacher_graphs, pictures, strict=True)
        ]
        return pictures, levels

    def extract(self, prepared: PreparedScan, clock: StageClock) -> MmrdFeatures:
        """The features of a prepared scan, on the host.

        Raises:
            EmptyScanError: nothing was measured.
        """
        pictures, levels = self.teacher_levels(prepared, clock)
        rows = [np.concatenate([np.ravel(one) for one in maps]) for maps in levels]
        kept = np.concatenate(pictures) if self._options.reads_pictures else None
        return MmrdFeatures(np.stack(rows), kept)


class MmrdPipeline:
    """A fitted detector by distillation. `score` is thread-safe."""

    def __init__(
        self, extractor: FeatureExtractor, students: Mapping[str, Engine], options: MmrdOptions
    ) -> None:
        """Takes the graphs of the students by name; use `from_artifact`."""
        self.extractor = extractor
        self.options = options
        self._students = students

    @classmethod
    def from_artifact(cls, artifact: Artifact, choice: EngineChoice) -> MmrdPipeline:
        """The pipeline in an artifact, its graphs run as the choice says.

        Raises:
            ArtifactError: a graph or parameter is missing or damaged.
            BackendUnavailableError: no such engine.
        """
        return cls(*open_parts(artifact, choice, HOST))

    def score(self, prepared: PreparedScan, clock: StageClock) -> MmrdScores:
        """The anomaly map and image score of a prepared scan.

        Raises:
            EmptyScanError: nothing was measured.
        """
        with self.extractor.place.current():
            return self.score_levels(*self.extractor.teacher_levels(prepared, clock), clock)

    def score_features(self, features: MmrdFeatures, clock: StageClock) -> MmrdScores:
        """The anomaly map and image score of extracted features, as precise as these are."""
        with self.extractor.place.current():
            upload = self.extractor.place.upload
            levels = [
                [upload(one) for one in split_levels(row, self.options.level_shapes)]
                for row in features.levels.astype(np.float32, copy=False)
            ]
            pictures: list[Any] = []
            if features.pictures is not None:
                pictures = [upload(one[None]) for one in features.pictures]
            return self.score_levels(pictures, levels, clock)

    def score_levels(
        self, pictures: Sequence[Any], levels: Levels, clock: StageClock
    ) -> MmrdScores:
        """The anomaly map and image score of a teacher's maps and the pictures that they are of."""
        options = self.options
        arrays = {f"{n}_image": p for n, p in zip(options.modality_names, pictures, strict=False)}
        for name, maps in zip(options.modality_names, levels, strict=True):
            arrays |= {level_name(level, name): one for level, one in enumerate(maps)}
        inputs = {name: arrays[name] for name in options.student_inputs}
        anomaly_map = None
        for index, student in enumerate(self._students.values()):
            with clock.stage("student"):
                outputs = self.extractor.place.run_all(student, **inputs)
            with clock.stage("scoring"):
                restored = [outputs[level_name(level, "restored")] for level in range(NUM_LEVELS)]
                targets = levels[index]
                if options.fuses:
                    targets = [outputs[level_name(level, "target")] for level in range(NUM_LEVELS)]
                found = self._cosine_map(targets, restored)
                if options.map_stds:  # the blur of a z-score is the z-score of the blur
                    found = (found - options.map_means[index]) / options.map_stds[index]
                anomaly_map = found if anomaly_map is None else anomaly_map + found
        assert anomaly_map is not None, "there is a student"
        return MmrdScores(anomaly_map, float(anomaly_map.max()))

    def published_evaluation_maps(
        self, anomaly_map: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(map for AUPRO, map for pixel AUROC): both as they are."""
        return anomaly_map, anomaly_map

    def _cosine_map(self, targets: Sequence[Any], restored: Sequence[Any]) -> NDArray[np.float32]:
        """(S, S) float32, on the host: the smoothed sum of the levels' cosine distances."""
        return cosine_maps(
            [one[0] for one in targets],
            [one[0] for one in restored],
            size=self.options.grid_size,
            sigma=self.options.smoothing_sigma,
        )


def modality_pictures(prepared: PreparedScan, options: MmrdOptions) -> list[NDArray[np.float32]]:
    """Per modality the network's input (1, 3, R, R) float32."""
    pictures = [] if options.modalities == "aux" else [prepared.rgb[None]]
    if options.auxiliary_pictures:
        assert prepared.auxiliary is not None, "the recipe has been checked"
        pictures += [one[None] for one in prepared.auxiliary]
    return pictures


def split_levels(
    row: NDArray[np.float32], shapes: Sequence[tuple[int, int, int]]
) -> list[NDArray[np.float32]]:
    """The maps (1, C, H, W) of a modality's flattened levels (D,): views of it."""
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    parts = np.split(row, ends[:-1])
    return [part.reshape(1, *shape) for part, shape in zip(parts, shapes, strict=True)]


def open_parts(
    artifact: Artifact, choice: EngineChoice, place: Place
) -> tuple[FeatureExtractor, dict[str, Any], MmrdOptions]:
    """(extractor, graphs of the students, options) of an artifact, in the place.

    Raises:
        ArtifactError: a graph or parameter is missing or damaged.
        BackendUnavailableError: no such engine, or it cannot run there.
    """
    options = MmrdOptions.from_manifest(artifact.manifest.parameters)
    check_parameters(artifact, options)
    teacher = FeatureLevelExtractor.from_artifact(
        artifact, choice, options, options.teacher_graphs, place
    )
    students = {}
    for name in options.student_graphs:
        students[name] = place.open_graph(choice, name)
        check_graph(
            artifact,
            name,
            students[name],
            inputs=options.student_inputs,
            outputs=options.student_outputs,
        )
    return FeatureExtractor(teacher, options, place), students, options


def check_parameters(artifact: Artifact, options: MmrdOptions) -> None:
    """Raises ArtifactError where an artifact's parameters or recipe are none that this family
    writes."""
    recipe = Recipe.from_dict(artifact.manifest.preprocess)
    num_scales = len(options.student_graphs) if options.distillation == "trd" else 0
    scales = (*options.map_means, *options.map_stds)
    fits = len(options.map_means) == len(options.map_stds) == num_scales
    if not fits or not all(map(math.isfinite, scales)) or min(options.map_stds, default=1) <= 0:
        raise ArtifactError(
            f"{artifact.path}: the manifest's map_means {options.map_means} and map_stds "
            f"{options.map_stds} must be {num_scales} numbers each, the latter above 0; fit the "
            "detector again"
        )
    if options.prepared_by(recipe) != recipe:
        raise ArtifactError(
            f"{artifact.path}: the manifest's recipe {recipe.name!r} does not prepare the pictures "
            f"{options.auxiliary_pictures} that its parameters need; fit the detector again"
        )
