"""Whether a distillation can be built, found out before anything trains."""

from typing import Any, Mapping

import torch

from i2srf_kd.distill.catalogue import network_layout
from i2srf_kd.distill.distiller import Distiller
from i2srf_kd.nets import DPDCRN


def check_distill(distill: Mapping[str, Any]) -> None:
    """Build a distillation for a small pair of networks and throw it away.

    With taps of its own (another kind of network) the layer sets are those of the taps; their shapes are made up.

    Raises:
        ValueError: an unknown key, method or option, or a value that is refused.
        TypeError: a value of the wrong type.
    """
    with torch.random.fork_rng(devices=[]):
        # A small student and teacher of this package, whose layer sets every shipped configuration names.
        student, teacher = (network_layout(DPDCRN(channels, blocks)) for channels, blocks in ((8, 1), (16, 2)))
    tapped = {**(distill.get("student_taps") or {}), **(distill.get("teacher_taps") or {})}
    if tapped:
        student, teacher = (
            {name: sides.get(name, sides["dual_path"]) for name in tapped} for sides in (student, teacher)
        )
    with torch.random.fork_rng(devices=[]):
        Distiller(distill, student, teacher)
