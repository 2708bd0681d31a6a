"""Distillation methods, pure PyTorch. Importing the package registers all of them."""

from i2srf_kd.distill.method import (
    DistillMethod,
    LayerShape,
    Side,
    build_method,
    layout_of,
    method_class,
    method_names,
    register_method,
)

__all__ = [
    "DistillMethod",
    "LayerShape",
    "Side",
    "build_method",
    "layout_of",
    "method_class",
    "method_names",
    "register_method",
]

from i2srf_kd.distill import methods as _methods  # noqa: E402,F401  after the names that methods import
