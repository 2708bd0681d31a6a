"""Sizes of DPDCRN with a name.

``dpdcrn_teacher`` and ``dpdcrn_student`` are the published pair (3,218,118 and 595,494 parameters for one
microphone); the smaller students are ours. So are the causal variants, which have as many parameters.
"""

from typing import Any, Dict, Optional

from i2srf_kd.nets.dpdcrn import DPDCRN

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
    """Build a preset, with any option of :class:`DPDCRN` overridden (for instance ``input_channels=8``)."""
    return DPDCRN(**{**preset_options(preset), **overrides})


def network_from_options(
    bins: int,
    preset: Optional[str] = None,
    channels: Optional[int] = None,
    blocks: Optional[int] = None,
    heads: Optional[int] = None,
    num_mics: int = 1,
    ref_channel: int = 0,
    front: Optional[str] = None,
    front_conf: Optional[Dict[str, Any]] = None,
    causal: Optional[bool] = None,
    attention_window: Optional[int] = None,
) -> DPDCRN:
    """Build the network that the options of a configuration file describe.

    Args:
        bins: frequency bins, ``n_fft // 2 + 1``.
        preset: a name of ``PRESETS``; the options that are not None override it.
        num_mics: channels of the mixture (4 for each first-order Ambisonics microphone).
        ref_channel, front, front_conf, causal, attention_window: see :class:`DPDCRN`.
    """
    options = preset_options(preset) if preset else {}
    given = {"channels": channels, "blocks": blocks, "heads": heads}
    given.update(causal=causal, attention_window=attention_window)
    options.update({name: value for name, value in given.items() if value is not None})
    options.update(input_channels=2 * num_mics, n_fft=2 * (bins - 1), ref_channel=ref_channel)
    return DPDCRN(**options, front=front, front_conf=front_conf)
