"""The students' networks as ONNX graphs, which the run half reads."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from mmad_fast.export.onnx_graph import export_graph
from mmad_fast.methods.branches.feature_levels.options import NUM_LEVELS
from mmad_fast.methods.mmrd.options import MmrdOptions
from mmad_fast.methods.mmrd.trd_student import TrdStudent, TrdStudents


class ComparisonGraph(nn.Module):
    """One comparison of the students, with the tensors of options.student_inputs as arguments and
    those of options.student_outputs as result."""

    def __init__(self, student: nn.Module, index: int, options: MmrdOptions) -> None:
        super().__init__()
        # Of TRD's students alone the one that is compared: the other has as many weights.
        self.student = (
            list(student.students.values())[index] if isinstance(student, TrdStudents) else student
        )
        self.index = index
        self.options = options

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The restored maps, then the targets where these are none of the teacher's maps."""
        num_pictures = len(self.options.modality_names) if self.options.reads_pictures else 0
        maps = tensors[num_pictures:]
        levels = [maps[at : at + NUM_LEVELS] for at in range(0, len(maps), NUM_LEVELS)]
        if isinstance(self.student, TrdStudent):
            return tuple(next(self.student(levels[self.index], levels[1 - self.index])))
        arguments = (levels, tensors[:num_pictures]) if num_pictures else (levels,)
        ((targets, restored),) = self.student(*arguments)
        return (*restored, *targets) if self.options.fuses else tuple(restored)


def export_students(student: nn.Module, options: MmrdOptions, folder: Path) -> dict[str, Path]:
    """The float32 graph of each comparison by name, written to the folder and checked against
    torch.

    Args:
        student: As student.build_student makes it.
        options: Say the shapes.
        folder: Where to write.

    Raises:
        InvalidInputError: a graph has weights of over 2 GiB.
        MmadFastError: a graph does not give what torch gives, or cannot be written.
    """
    generator = torch.Generator().manual_seed(0)
    # The teacher's maps come from a ReLU, or from a block without one: absolute values are both.
    inputs = {
        name: torch.randn(shape, generator=generator).abs()
        for name, shape in options.student_inputs.items()
    }
    return {
        name: export_graph(
            ComparisonGraph(student, index, options).eval(),
            inputs,
            folder / f"{name}.onnx",
            output_name=tuple(options.student_outputs),
        )
        for index, name in enumerate(options.student_graphs)
    }
