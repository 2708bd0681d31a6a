"""Knowledge distillation for speech enhancement: I2SRF-TFCKD on the DPDCRN network.

from i2srf_kd import load_enhancer
enhancer = load_enhancer("exp/student/export")
enhanced = enhancer(noisy, fs)
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "load_enhancer"]


def __getattr__(name: str) -> Any:  # keeps `import i2srf_kd` free of torch
    if name == "load_enhancer":
        try:
            return import_module("i2srf_kd.inference.loading").load_enhancer
        except ModuleNotFoundError as error:
            if error.name not in ("torch", "scipy"):
                raise
            raise ImportError(
                'load_enhancer needs PyTorch: pip install "i2srf_kd[torch]". Without it there are i2srf enhance, and '
                "OnnxEnhancer of i2srf_kd.export.onnx_runtime"
            ) from None
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
