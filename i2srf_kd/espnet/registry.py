"""Adds this project's classes to ESPnet's choices, without editing ESPnet.

ESPnet's choices hold a plain dictionary; adding to it skips ESPnet's own type check, so it is done here.
"""

from typing import Dict

from espnet2.tasks.enh import criterion_choices, loss_wrapper_choices, separator_choices
from espnet2.train.class_choices import ClassChoices

from i2srf_kd.espnet.criteria import (
    CompressedSpectrumCriterion,
    CompressedSpectrumTDCriterion,
    MultiResolutionCriterion,
    PESQCriterion,
    RelativeL1Criterion,
    SISDRCriterion,
)
from i2srf_kd.espnet.distill_criterion import DistillCriterion, DistillWrapper
from i2srf_kd.espnet.separator import DPDCRNSeparator

_ENTRIES: Dict[str, tuple] = {
    "dpdcrn": (separator_choices, DPDCRNSeparator),
    "compressed_spectrum": (criterion_choices, CompressedSpectrumCriterion),
    "compressed_spectrum_td": (criterion_choices, CompressedSpectrumTDCriterion),
    "relative_l1": (criterion_choices, RelativeL1Criterion),
    "si_sdr": (criterion_choices, SISDRCriterion),
    "multi_resolution": (criterion_choices, MultiResolutionCriterion),
    "pesq": (criterion_choices, PESQCriterion),
    "distill": (criterion_choices, DistillCriterion),
    "distill_wrapper": (loss_wrapper_choices, DistillWrapper),
}


def register(choices: ClassChoices, name: str, cls: type) -> None:
    """Make ``cls`` selectable by ``name``; registering the same class again changes nothing.

    Raises:
        TypeError: when the class is not of the kind that the option takes.
        ValueError: when the name is not lower case or belongs to another class.
    """
    if not issubclass(cls, choices.base_type):
        raise TypeError(f"{cls.__name__} is no {choices.base_type.__name__}: it cannot be a {choices.name}")
    if name != name.lower():
        raise ValueError(f"ESPnet lowers option values: register {name!r} in lower case")
    present = choices.classes.get(name, cls)
    if present is not cls:
        raise ValueError(f"{choices.name} {name!r} is already {present.__module__}.{present.__name__}")
    choices.classes[name] = cls


for _name, (_choices, _cls) in _ENTRIES.items():
    register(_choices, _name, _cls)
