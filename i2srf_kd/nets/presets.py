"""Sizes of DPDCRN with a name.

``dpdcrn_teacher`` and ``dpdcrn_student`` are the published pair (3,218,118 and 595,494 parameters for one
microphone); the smaller students are ours. So are the causal variants, which have as many parameters.
"""

from dataclasses import fields
from typing import Any, Dict, Optional

from i2srf_kd.nets.dpdcrn import DPDCRN
from i2srf_kd.nets.options import DPDCRNOptions
from i2srf_kd.system.config import parse_section, refuse_unknown

PRESETS: Dict[str, Dict[str, Any]] = {
    "dpdcrn_teacher": {"channels": 128, "blocks": 4},
    "dpdcrn_student": {"channels": 64, "blocks": 1},
    "dpdcrn_small": {"channels": 32, "blocks": 1},
    "dpdcrn_tiny": {"channels": 16, "blocks": 1},
    "dpdcrn_student_causal": {"channels": 64, "blocks": 1, "causal": True},
    "dpdcrn_small_causal": {"channels": 32, "blocks": 1, "causal": True},
    "dpdcrn_tiny_causal": {"channels": 16, "blocks": 1, "causal": True},
}


def preset_options(name: str) -> Dict[str, Any]:
    """Options of a preset; ValueError with the known names for any other."""
    if name not in PRESETS:
        raise ValueError(f"no preset {name!r}: choose one of {', '.join(PRESETS)}")
    return dict(PRESETS[name])


def build_dpdcrn(preset: str, **overrides: Any) -> DPDCRN:
    """Build a preset, with any option of :class:`DPDCRNOptions` overridden (for instance ``input_channels=8``)."""
    return DPDCRN(**{**preset_options(preset), **overrides})


def network_from_options(
    bins: int, preset: Optional[str] = None, num_mics: int = 1, num_spk: int = 1, **options: Any
) -> DPDCRN:
    """Build the network that the ``separator_conf`` of a training configuration describes.

    Args:
        bins: frequency bins, ``n_fft // 2 + 1``.
        preset: a name of ``PRESETS``; the options override it.
        num_mics: channels of the mixture (4 for each first-order Ambisonics microphone).
        num_spk: must be 1: the network enhances one speaker.
        options: those of :class:`DPDCRNOptions` that are not given by the above; None stands for the default.

    Raises:
        ValueError: an option or its value is not one of these.
    """
    if num_spk != 1:
        raise ValueError(f"DPDCRN enhances one speaker, not {num_spk}: set num_spk to 1")
    sizes = {"input_channels": 2 * num_mics, "n_fft": 2 * (bins - 1)}
    own = [field.name for field in fields(DPDCRNOptions) if field.name not in sizes]
    refuse_unknown(options, ["preset", "num_mics", "num_spk", *own], "separator_conf")
    given = {name: value for name, value in options.items() if value is not None}
    chosen = {**(preset_options(preset) if preset else {}), **given, **sizes}
    return DPDCRN(**vars(parse_section(DPDCRNOptions, chosen, "separator_conf")))
