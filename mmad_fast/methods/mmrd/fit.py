"""The fit half of MMRD and its kin: the teacher's statistics, and students trained on its maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mmad_fast.engines import open_graph
from mmad_fast.methods.branches.feature_levels import BRANCH
from mmad_fast.methods.branches.feature_levels.graph import export_feature_levels
from mmad_fast.methods.branches.feature_levels.network import build_network, with_statistics
from mmad_fast.methods.family import Trained
from mmad_fast.methods.feature_store import FeatureStore
from mmad_fast.methods.fit_request import FitTask
from mmad_fast.methods.mmrd.detector import (
    FeatureExtractor,
    MmrdFeatures,
    MmrdPipeline,
    modality_pictures,
)
from mmad_fast.methods.mmrd.official_students import load_official_students
from mmad_fast.methods.mmrd.options import STATISTICS_PREFIX, STUDENT_PREFIX, MmrdOptions
from mmad_fast.methods.mmrd.student import MmrdStudent, Student, build_student
from mmad_fast.methods.mmrd.student_graph import export_students
from mmad_fast.methods.mmrd.teacher_statistics import Statistics, estimate_statistics
from mmad_fast.methods.mmrd.training import (
    held_out_loss,
    map_statistics,
    read_batch,
    train_students,
    training_schedule,
)
from mmad_fast.methods.network_tensors import to_tensors
from mmad_fast.methods.network_training import training_device
from mmad_fast.scan import PreparedScan
from mmad_fast.stage_clock import StageClock

PROTOTYPE_SCANS = 16
"""Training scans at most, evenly chosen, whose maps prototypes are drawn from."""


class MmrdFit:
    """One fit of MMRD, TRD, RD4AD or forward distillation; see family.Fit."""

    memory_limit_mib = 1024.0
    """About 140 scans of two modalities in float16; each step of the training reads some of
    them."""

    def __init__(self, task: FitTask) -> None:
        """Builds the teacher of the task and estimates its BatchNorm statistics.

        Raises:
            EmptyScanError: no training scan has a measured point, and statistics are estimated.
            WeightsError: the weights, or the students' file, cannot be had or do not fit.
        """
        self._task = task
        self._options: MmrdOptions = task.options
        self._official = None  # a wrong file is found before the teacher reads the scans
        if not self._options.trains_students:
            self._official = load_official_students(self._options)
        network = build_network(
            self._options,
            weights=task.request.weights_of(BRANCH.key),
            seed=task.request.seed,
        )
        self._statistics = self._estimate(network)
        task.progress("export", 0, 1)
        networks = {
            graph: with_statistics(network, self._statistics.get(graph, {}))
            for graph in self._options.teacher_graphs
        }
        self._teacher = export_feature_levels(task, networks, self._calibration_images())
        task.progress("export", 1, 1)
        self._extractor = FeatureExtractor(self._teacher.extractor, self._options)

    def extract(self, prepared: PreparedScan) -> MmrdFeatures:
        """The features of a scan, as the detector computes them."""
        return self._extractor.extract(prepared, StageClock())

    def train(
        self, train: FeatureStore[MmrdFeatures], held_out: FeatureStore[MmrdFeatures]
    ) -> Trained:
        """The detector with trained students, or with those of the options' file.

        Raises:
            InvalidInputError: the task's checkpoint is of other networks.
            MmadFastError: the training diverged, or the disk is full.
        """
        options, task, device = self._options, self._task, training_device()
        facts: dict[str, Any] = {}
        weights = {BRANCH.key: self._teacher.source}
        if self._official is None:
            student = initial_student(options, task.request.seed, train).to(device)
            losses = train_students(
                student,
                train,
                options,
                seed=task.request.seed,
                device=device,
                progress=lambda name, done, total: task.progress(f"{name} training", done, total),
                checkpoint=task.checkpoint,
            )
            facts = {
                **asdict(training_schedule(options, len(train))),
                "schedule": options.schedule,
                "prior_weight": options.prior_weight,
                "prototype_init": options.prototype_init,
                "training_loss": losses[-1],
            }
        else:
            student, weights["student"] = self._official
            student.to(device)
        validation_loss = held_out_loss(student, held_out, options, device)
        if options.distillation == "trd":
            means, stds = map_statistics(student, held_out, options, device)
            options = replace(options, map_means=means, map_stds=stds)
        student.cpu()
        graphs = export_students(student, options, task.scratch)
        opened = {name: open_graph(path) for name, path in graphs.items()}
        return Trained(
            pipeline=MmrdPipeline(self._extractor, opened, options),
            weights=weights,
            graphs={**self._teacher.graphs, **graphs},
            tensors={
                **{
                    f"{STATISTICS_PREFIX}{modality}.{key}": array
                    for modality, statistics in self._statistics.items()
                    for key, array in statistics.items()
                },
                **to_tensors(student, STUDENT_PREFIX),
            },
            facts={
                "adaptation_passes": options.adaptation_passes,
                **facts,
                "validation_loss": validation_loss,
            },
        )

    def _estimate(self, network: nn.Module) -> Mapping[str, Statistics]:
        """The statistics of those modalities that are adapted, by modality."""
        options, task = self._options, self._task
        adapted = options.adapted_modalities
        if not adapted:
            return {}

        def pictures_of(index: int) -> dict[str, NDArray[np.float32]]:
            pictures = modality_pictures(task.prepare(task.train[index]), options)
            named = zip(options.modality_names, pictures, strict=True)
            return {name: picture for name, picture in named if name in adapted}

        return estimate_statistics(
            network,
            len(task.train),
            pictures_of,
            passes=options.adaptation_passes,
            seed=task.request.seed,
            progress=partial(task.progress, "statistics"),
        )

    def _calibration_images(self) -> dict[str, list[NDArray[np.float32]]]:
        """Of some training scans the pictures by teacher's graph, for precision="int8" alone."""
        images: dict[str, list[NDArray[np.float32]]] = {}
        if self._options.precision == "int8":
            for prepared in self._task.calibration_scans():
                pictures = modality_pictures(prepared, self._options)
                for graph, picture in zip(self._options.teacher_graphs, pictures, strict=True):
                    images.setdefault(graph, []).append(picture)
        return images


def initial_student(options: MmrdOptions, seed: int, scans: FeatureStore[MmrdFeatures]) -> Student:
    """The untrained students of the options; prototypes from maps of some of the scans."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = build_student(options)
        if isinstance(student, MmrdStudent) and options.prototype_init == "samples":
            chosen = range(0, len(scans), -(-len(scans) // PROTOTYPE_SCANS))
            (levels,) = read_batch([scans[index] for index in chosen], options, torch.device("cpu"))
            student.initialise_prototypes(levels)
        return student
