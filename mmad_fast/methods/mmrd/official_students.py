"""Students that the public code of RD4AD or TRD trained, from its files.

Source: method facts 8.1 and 8.3.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmad_fast.backbones.checkpoint import fit_to_network, read_networks
from mmad_fast.errors import WeightsError
from mmad_fast.methods.mmrd.options import MmrdOptions
from mmad_fast.methods.mmrd.student import Student, build_student
from mmad_fast.whole_folder import fingerprint

_UNUSED_OF_RD = ("bn.conv4.", "bn.bn4.")
"""Layers that RD4AD's bottleneck has and its forward does not run."""

_TRD_AUXILIARY = ("student_depth", "student_normals")
"""What TRD's code calls its second student, by the data set rather than by what it reads."""


def load_official_students(options: MmrdOptions) -> tuple[Student, dict[str, Any]]:
    """(the students, where they came from) of the file options.student_weights.

    Raises:
        WeightsError: the file is missing, damaged, or holds other networks than the options name.
    """
    path = Path(options.student_weights).expanduser()
    if not path.is_file():
        raise WeightsError(
            f"student_weights: {path} is not a file; give the path of a checkpoint of RD4AD's or "
            "TRD's public code, or 'train'"
        )
    networks = read_networks(path)
    if options.distillation == "rd":
        names = {"bn": "bn.", "decoder": "decoder."}
    else:
        second = next((name for name in _TRD_AUXILIARY if name in networks), _TRD_AUXILIARY[0])
        names = {"student_rgb": "students.rgb.", second: "students.aux."}
    if networks.keys() != names.keys():
        raise WeightsError(
            f"{path} holds the networks {', '.join(networks)}, and {options.distillation} needs "
            f"{', '.join(names)}; give a checkpoint of its public code"
        )
    student = build_student(options)
    state = fit_to_network(
        {names[name] + key: tensor for name in names for key, tensor in networks[name].items()},
        {key: tuple(tensor.shape) for key, tensor in student.state_dict().items()},
        is_ignored=lambda key: options.distillation == "rd" and key.startswith(_UNUSED_OF_RD),
        network=f"the students of {options.distillation}",
        path=path,
        advice="Give a checkpoint of its public code, with student_width=1",
    )
    student.load_state_dict(state)
    sha256 = fingerprint(path)["sha256"]
    source = {"name": "student", "kind": "file", "detail": path.name, "sha256": sha256}
    return student.eval(), source
