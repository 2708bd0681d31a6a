"""Networks, pure PyTorch."""

from i2srf_kd.nets.dpdcrn import DPDCRN, DPDCRNOutput
from i2srf_kd.nets.presets import PRESETS, build_dpdcrn
from i2srf_kd.nets.stft import STFT

__all__ = ["DPDCRN", "DPDCRNOutput", "PRESETS", "STFT", "build_dpdcrn"]
