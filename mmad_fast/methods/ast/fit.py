"""The fit half of AST: teacher and student, trained on the features of nominal scans."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from mmad_fast.engines import open_graph
from mmad_fast.errors import InvalidInputError
from mmad_fast.export.onnx_graph import export_graph
from mmad_fast.methods.ast.detector import AstFeatures, AstPipeline, FeatureExtractor
from mmad_fast.methods.ast.networks import (
    SquaredDifference,
    Student,
    Teacher,
    build_networks,
)
from mmad_fast.methods.ast.options import (
    GRAPH,
    PERMUTATIONS,
    STUDENT_PREFIX,
    TEACHER_PREFIX,
    AstOptions,
)
from mmad_fast.methods.ast.training import (
    SCHEDULES,
    held_out_loss,
    train_student,
    train_teacher,
)
from mmad_fast.methods.branches.branch import BranchPart
from mmad_fast.methods.branches.cnn_pyramid.extractor import CnnPyramidExtractor
from mmad_fast.methods.branches.cnn_pyramid.graph import build_cnn_pyramid
from mmad_fast.methods.family import Trained
from mmad_fast.methods.feature_store import FeatureStore
from mmad_fast.methods.fit_request import FitTask
from mmad_fast.methods.network_tensors import to_tensors
from mmad_fast.methods.network_training import Schedule
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock


class AstFit:
    """One fit of AST; see family.Fit."""

    memory_limit_mib = 1024.0
    """Over 1000 scans of the combined detector: each step of the training reads some of them."""

    def __init__(self, task: FitTask) -> None:
        """Builds the backbone of the task.

        Raises:
            InvalidInputError: a recipe without a depth picture.
        """
        if task.recipe.depth_plane_m is None:
            raise InvalidInputError(
                f"recipe is {task.recipe.name!r}, which prepares no depth picture, and "
                f"{task.request.method} reads one; leave recipe out"
            )
        self._options: AstOptions = task.options
        self._schedule = training_schedule(self._options)
        self._task = task
        self._rgb: BranchPart[CnnPyramidExtractor] | None = None
        if self._options.reads_rgb:
            task.progress("export", 0, 1)
            self._rgb = build_cnn_pyramid(task)
            task.progress("export", 1, 1)
        extractor = None if self._rgb is None else self._rgb.extractor
        self._extractor = FeatureExtractor(extractor, self._options)

    def extract(self, prepared: PreparedScan) -> AstFeatures:
        """The features of a scan, as the detector computes them."""
        return self._extractor.extract(prepared, StageClock())

    def train(
        self, train: FeatureStore[AstFeatures], held_out: FeatureStore[AstFeatures]
    ) -> Trained:
        """The detector with trained networks.

        Raises:
            MmadFastError: the training diverged.
        """
        options, seed = self._options, self._task.request.seed
        teacher, student = initial_networks(options, seed)
        arguments: dict[str, Any] = {
            "seed": seed,
            "progress": self._progress,
            "checkpoint": self._task.checkpoint,
        }
        teacher_losses = train_teacher(teacher, train, self._schedule, **arguments)
        student_losses = train_student(student, teacher, train, self._schedule, **arguments)
        path = export_networks(teacher, student, options, self._task.scratch / f"{GRAPH}.onnx")
        rgb = self._rgb
        return Trained(
            pipeline=AstPipeline(self._extractor, open_graph(path), options),
            weights={} if rgb is None else {"rgb": rgb.source},
            graphs={GRAPH: path, **({} if rgb is None else rgb.graphs)},
            tensors={
                **to_tensors(teacher, TEACHER_PREFIX),
                **to_tensors(student, STUDENT_PREFIX),
                PERMUTATIONS: teacher.permutations.numpy(),
            },
            facts={
                **asdict(self._schedule),
                "schedule": options.schedule,
                "teacher_loss": teacher_losses[-1],
                "student_loss": student_losses[-1],
                "validation_loss": held_out_loss(teacher, student, held_out),
            },
        )

    def _progress(self, network: str, done: int, total: int) -> None:
        self._task.progress(f"{network} training", done, total)


def training_schedule(options: AstOptions) -> Schedule:
    """The training's part of the options."""
    schedule = SCHEDULES[options.schedule]
    return replace(
        schedule,
        epochs=options.epochs or schedule.epochs,
        learning_rate=options.learning_rate or schedule.learning_rate,
    )


def initial_networks(options: AstOptions, seed: int) -> tuple[Teacher, Student]:
    """Untrained networks of the options' sizes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_networks(
            options.channels,
            teacher_channels=options.teacher_channels,
            student_channels=options.student_channels,
            student_blocks=options.student_blocks,
        )


def export_networks(teacher: Teacher, student: Student, options: AstOptions, file: Path) -> Path:
    """The float32 graph features (1, C, M, M) -> difference (1, M, M), written to the file and
    checked against torch."""
    network = SquaredDifference(teacher, student, options.map_side).eval()
    generator = torch.Generator().manual_seed(0)
    shape = (1, options.channels, options.map_side, options.map_side)
    features = torch.randn(shape, generator=generator)
    return export_graph(network, {"features": features}, file, output_name="difference")
