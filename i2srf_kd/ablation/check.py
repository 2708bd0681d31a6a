"""Whether a distillation can be built, found out before anything trains."""

from functools import lru_cache
from typing import Any, Dict, List, Mapping, Tuple

import torch

from i2srf_kd.distill import layout_of
from i2srf_kd.distill.distiller import Distiller
from i2srf_kd.distill.method import LayerShape
from i2srf_kd.nets import DPDCRN


@lru_cache(maxsize=1)
def _layouts() -> Tuple[Dict[str, List[LayerShape]], Dict[str, List[LayerShape]]]:
    """Layouts of a small student and teacher of this package, whose layer sets every shipped configuration names."""
    layouts = []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for channels, blocks in ((8, 1), (16, 2)):
            network = DPDCRN(channels=channels, blocks=blocks, n_fft=512).eval()
            features = network(torch.zeros(1, 2, 4, 257), return_features=True).features
            layouts.append(layout_of(features or {}))
    return layouts[0], layouts[1]


def check_distill(distill: Mapping[str, Any]) -> None:
    """Build a distillation for a small pair of networks and throw it away.

    With taps of its own (another kind of network) the layer sets are those of the taps; their shapes are made up.

    Raises:
        ValueError: an unknown key, method or option, or a value that is refused.
        TypeError: a value of the wrong type.
    """
    student, teacher = _layouts()
    tapped = {**(distill.get("student_taps") or {}), **(distill.get("teacher_taps") or {})}
    if tapped:
        student, teacher = ({name: sides[_nearest(name)] for name in tapped} for sides in (student, teacher))
    with torch.random.fork_rng(devices=[]):
        Distiller(distill, student, teacher)


def _nearest(name: str) -> str:
    return name if name in ("encoder", "dual_path", "decoder") else "dual_path"
