"""The one list of DPDCRN's options: for the network, presets, training configurations and exported models."""

from dataclasses import dataclass
from typing import Any, Dict, Optional

ATTENTION_WINDOW = 126


@dataclass(frozen=True)
class DPDCRNOptions:
    """What describes a DPDCRN.

    Args:
        channels: width C of encoder and decoder; the dual-path blocks run at C/2. Published: teacher 128, student 64.
        blocks: dual-path blocks L. Published: teacher 4, student 1.
        heads: attention heads.
        input_channels: input planes, two for each microphone: real, imaginary, real, imaginary, ...
        n_fft: STFT size; the network sees ``n_fft // 2 + 1`` bins.
        ref_channel: microphone whose spectrum the mask is applied to.
        front: name of what stands before the encoder (:mod:`i2srf_kd.nets.front`); published: None.
        front_conf: its options.
        causal: use no frame after the one that is computed (ours; published: False).
        attention_window: frames that a causal network's attention over time sees, its own included (126 frames are
            2 s at the published STFT); without meaning for one that is not causal.

    Raises:
        ValueError: for sizes the network cannot be built with.
    """

    channels: int = 64
    blocks: int = 1
    heads: int = 4
    input_channels: int = 2
    n_fft: int = 512
    ref_channel: int = 0
    front: Optional[str] = None
    front_conf: Optional[Dict[str, Any]] = None
    causal: bool = False
    attention_window: int = ATTENTION_WINDOW

    def __post_init__(self) -> None:
        if self.channels < 2 or self.channels % 2:
            raise ValueError(f"channels must be even and positive, not {self.channels}")
        if self.blocks < 1:
            raise ValueError(f"blocks must be at least 1, not {self.blocks}")
        if self.input_channels < 2 or self.input_channels % 2:
            raise ValueError(f"input_channels must be 2 for each microphone, not {self.input_channels}")
        if self.n_fft < 16 or self.n_fft % 2:
            raise ValueError(f"n_fft must be even and at least 16, not {self.n_fft}")
        if not 0 <= self.ref_channel < self.input_channels // 2:
            raise ValueError(f"ref_channel {self.ref_channel} is not one of {self.input_channels // 2} microphones")
        if self.attention_window < 2:
            raise ValueError(f"attention_window must be at least 2 frames, not {self.attention_window}")

    def description(self) -> Dict[str, Any]:
        """The options for a file.

        Those of front and causal networks are left out where they mean nothing, so that older versions of this package
        can read the descriptions of published networks.
        """
        options = {**vars(self), "front_conf": dict(self.front_conf or {})}
        for name in () if self.front else ("front", "front_conf"):
            del options[name]
        for name in () if self.causal else ("causal", "attention_window"):
            del options[name]
        return options
