"""Options of MMRD, TRD, RD4AD and forward distillation. Both halves read them; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from mmad_fast.errors import InvalidInputError
from mmad_fast.methods.branches.auxiliary.options import AuxiliaryOptions
from mmad_fast.methods.branches.feature_levels.options import (
    NUM_LEVELS,
    FeatureLevelOptions,
    level_name,
)
from mmad_fast.methods.options import constant, option

MAX_PROTOTYPES = 4096

STUDENT_PREFIX = "student."
"""Of the tensors that hold the student's networks, under their published keys."""

STATISTICS_PREFIX = "statistics_"
"""Of the tensors that hold the BatchNorm statistics of an adapted modality: "statistics_aux." and
the key of the teacher's state."""

Options = TypeVar("Options", bound="MmrdOptions")


@dataclass(frozen=True)
class MmrdOptions(FeatureLevelOptions, AuxiliaryOptions):
    """What a detector by distillation is fitted with.

    Attributes:
        distillation: How the students work: MMRD's one student of the fused modalities; TRD's
            student of each modality; RD4AD's; or forward distillation, whose student reads the
            pictures.
        modalities: Which pictures are read.
        adapts: Whose BatchNorm statistics are estimated anew on the training scans.
        adaptation_passes: Passes over these for it.
        fusion: How the teacher's maps F^R and F^A become one: F^R + alpha F^A, with alpha from
            their "sum" F, from the "auxiliary" F^A, or "constant" 1; or channel or spatial
            self-attention; or a squeeze-and-excitation block.
        prototypes: N of each level; 0 leaves the student without priors.
        prototype_init: Maps of training scans, or normally distributed.
        interaction: The priors of both modalities are combined by attention.
        attention_reduction: Of the channel attention's hidden layer.
        bottleneck_input: What the one-class bottleneck reads: the fused maps, or RGB's.
        prior_weight: lambda, of the prototypes' loss.
        student_width: Share of the published inner widths.
        smoothing_sigma: Of the map's Gaussian, pixels.
        student_weights: "train" (on the training scans), or a checkpoint of RD4AD's or TRD's
            public code.
        schedule: "quick", or "published", which takes many times as long.
        epochs, learning_rate, batch_scans: In place of the schedule's.
        map_means, map_stds: Per student mean and deviation of the unsmoothed map on the held-out
            scans; empty but for TRD.

    Raises:
        InvalidInputError: a value that the others do not allow.
    """

    distillation: Literal["mmrd", "trd", "rd", "forward"] = constant("mmrd")
    modalities: Literal["both", "rgb", "aux"] = constant("both")
    adapts: Literal["both", "rgb", "auxiliary", "none"] = option(
        "both", "Whose BatchNorm statistics are estimated anew on the training scans.",
        in_rows=True,
    )  # fmt: skip
    adaptation_passes: int = option(
        3, "Passes over the training scans for these statistics.", minimum=1, fit_only=True,
        in_rows=True,
    )  # fmt: skip
    fusion: Literal["sum", "auxiliary", "constant", "csa", "ssa", "se"] = option(
        "sum", "What the weight of the auxiliary maps is computed from, or another fusion.",
        in_rows=True,
    )  # fmt: skip
    prototypes: tuple[int, ...] = option(
        (50, 50, 50), "Prototypes of each level, or of all; 0: no priors.",
        minimum=0, maximum=MAX_PROTOTYPES, in_rows=True,
    )  # fmt: skip
    prototype_init: Literal["samples", "normal"] = option(
        "samples", "Prototypes before training.", fit_only=True, in_rows=True
    )
    interaction: bool = option(
        True, "Combine the priors of both modalities by attention.", in_rows=True
    )
    attention_reduction: int = option(
        16, "Reduction of the channel attention's hidden layer.", minimum=1, maximum=64,
        in_rows=True,
    )  # fmt: skip
    bottleneck_input: Literal["fused", "rgb"] = option(
        "fused", "Maps that the one-class bottleneck reads.", in_rows=True
    )
    prior_weight: float = option(
        0.1, "Weight of the prototypes' loss.", minimum=0, fit_only=True, in_rows=True
    )
    student_width: float = option(
        1.0, "Share of the published inner widths of the student; below 1 ours.",
        choices=(1.0, 0.5, 0.25, 0.125), in_rows=True,
    )  # fmt: skip
    smoothing_sigma: float = option(
        4.0, "Of the map's Gaussian, in pixels.", minimum=0, maximum=32, in_rows=True
    )
    student_weights: str = option(
        "train", "Students: train, or a FILE that RD4AD's or TRD's public code wrote.",
        fit_only=True,
    )  # fmt: skip
    schedule: Literal["quick", "published"] = option(
        "quick", "Schedule of the students; the published one takes many times as long.",
        fit_only=True, in_rows=True,
    )  # fmt: skip
    epochs: int | None = option(
        None, "Passes over the training scans; default: the schedule's.",
        minimum=1, fit_only=True, in_rows=True,
    )  # fmt: skip
    learning_rate: float | None = option(
        None, "Of Adam, at the start; default: the schedule's.", above=0, fit_only=True
    )
    batch_scans: int | None = option(
        None, "Scans of a training step; default: the schedule's.", minimum=1, fit_only=True
    )
    map_means: tuple[float, ...] = constant(())
    map_stds: tuple[float, ...] = constant((), minimum=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.prototypes) not in (1, NUM_LEVELS):
            raise InvalidInputError(
                f"prototypes is {self.prototypes}; it must be one number, or {NUM_LEVELS}: of each "
                "level"
            )
        if self.distillation == "forward" and self.is_transformer:
            raise InvalidInputError(
                f"rgb_backbone is {self.rgb_backbone!r}, and forward distillation trains a network "
                "like the teacher; choose a wide ResNet"
            )
        if self.distillation == "trd" and len(self.auxiliary_pictures) != 1:
            raise InvalidInputError(
                f"auxiliary is {self.auxiliary!r}, and TRD has students of two modalities; choose "
                "'depth' or 'normals'"
            )

    @property
    def is_exact(self) -> bool:
        """The detector is of the published size and gives the published pipeline's answer, up to
        rounding."""
        return super().is_exact and self.student_width == 1.0

    @property
    def score_offset(self) -> float:
        """See MethodOptions: of TRD's scores."""
        return -sum(
            mean / std for mean, std in zip(self.map_means, self.map_stds, strict=True) if std
        )

    @property
    def auxiliary_pictures(self) -> tuple[str, ...]:
        """Which pictures are read beside RGB, in the order of PreparedScan.auxiliary."""
        return () if self.modalities == "rgb" else super().auxiliary_pictures

    @property
    def modality_names(self) -> tuple[str, ...]:
        """What the modalities are called in graphs: "rgb", "aux", and "aux2" beside it."""
        auxiliary = ("aux", "aux2")[: len(self.auxiliary_pictures)]
        return auxiliary if self.modalities == "aux" else ("rgb", *auxiliary)

    @property
    def adapted_modalities(self) -> tuple[str, ...]:
        """Those with BatchNorm statistics of their own."""
        names = self.modality_names
        return {
            "both": names,
            "rgb": tuple(name for name in names if name == "rgb"),
            "auxiliary": tuple(name for name in names if name != "rgb"),
            "none": (),
        }[self.adapts]

    @property
    def teacher_graphs(self) -> tuple[str, ...]:
        """Per modality the name of the teacher's graph: one of its own where BatchNorm statistics
        differ, else the first one's."""
        adapted = self.adapted_modalities
        # Those that keep the official statistics share the graph of the first of them.
        official = [name for name in self.modality_names if name not in adapted]
        return tuple(name if name in adapted else official[0] for name in self.modality_names)

    @property
    def student_graphs(self) -> tuple[str, ...]:
        """The students, each with a comparison of its own: of TRD one per modality."""
        if self.distillation == "trd":
            return tuple(f"student_{name}" for name in self.modality_names)
        return ("student",)

    @property
    def trains_students(self) -> bool:
        """A fit trains the students on its own scans."""
        return self.student_weights == "train"

    @property
    def fuses(self) -> bool:
        """The students restore maps that several modalities became."""
        return self.distillation != "trd" and len(self.modality_names) > 1

    @property
    def reads_pictures(self) -> bool:
        """The students read the pictures, not only the teacher's maps."""
        return self.distillation == "forward"

    @property
    def student_inputs(self) -> dict[str, tuple[int, ...]]:
        """Shape of each input of a student's graph by name, in the order of its module: pictures
        "rgb_image", then the teacher's maps "rgb_1" to "rgb_3", modality by modality."""
        image = (1, 3, self.rgb_size, self.rgb_size)
        names = self.modality_names
        inputs: dict[str, tuple[int, ...]] = {
            f"{name}_image": image for name in names if self.reads_pictures
        }
        if self.fuses or not self.reads_pictures:
            inputs |= {
                level_name(level, name): (1, *shape)
                for name in names
                for level, shape in enumerate(self.level_shapes)
            }
        return inputs

    @property
    def student_outputs(self) -> dict[str, tuple[int, ...]]:
        """Shape of each output of a student's graph by name: "restored_1" to "restored_3", then
        "target_1" to "target_3" where these are not maps of the teacher."""
        kinds = ("restored", "target") if self.fuses else ("restored",)
        return {
            level_name(level, kind): (1, *shape)
            for kind in kinds
            for level, shape in enumerate(self.level_shapes)
        }

    def without_effect(self) -> Mapping[str, str]:
        """See MethodOptions."""
        idle = dict(super().without_effect())
        priors = ("prototypes", "prototype_init", "prior_weight")
        fusion = ("fusion", "bottleneck_input", "interaction", "attention_reduction")
        if self.distillation != "mmrd":
            idle.update(dict.fromkeys(priors, "only MMRD's student has prototypes"))
            idle.update(dict.fromkeys(fusion, "only MMRD fuses the modalities so"))
            if self.distillation == "forward" and self.modalities == "both":
                del idle["fusion"]
        elif self.modalities != "both":
            idle.update(dict.fromkeys(fusion, "there is one modality"))
        elif not any(self.prototypes):
            idle.update(dict.fromkeys(priors[1:], "there are no prototypes"))
            idle.update(dict.fromkeys(fusion[2:], "there are no priors"))
        elif not self.interaction:
            idle["attention_reduction"] = "interaction is false"
        if self.fusion == "se" and "fusion" not in idle:  # it has such a layer, too
            idle.pop("attention_reduction", None)
        if self.distillation not in ("rd", "trd"):
            idle["student_weights"] = "no public code trains such students"
        if not self.trains_students:
            training = ("schedule", "epochs", "learning_rate", "batch_scans")
            idle.update(dict.fromkeys(training, "student_weights is a file"))
        if self.adapts == "none":
            idle["adaptation_passes"] = "adapts is 'none'"
        return idle

    def with_constants(self: Options) -> Options:
        """With a number of prototypes per level."""
        options = super().with_constants()
        repeat = NUM_LEVELS // len(options.prototypes)
        return replace(options, prototypes=options.prototypes * repeat)
