"""What makes a training step faster, as one section of the training's configuration.

speed:
  amp_dtype: bfloat16            # student and loss under autocast, without a gradient scaler
  teacher_dtype: bfloat16        # the teacher under autocast; float32: never; null: as the student
  teacher_inference_mode: true   # instead of no_grad
  channels_last: true            # memory order of the convolutions of student and teacher
  dense_buffer: true             # dense blocks of the teacher without a copy per layer
  fused_optimizer: true          # the optimiser's update as one kernel
  compile: [student, teacher, loss]  # their dense blocks, convolutions, attention; calibration and fusion
  cuda_graphs: true              # with compile, on a GPU

All are off by default, and then nothing changes. Names of weights never change: checkpoints fit with and without.
Validation and inference are as without, apart from memory order and the teacher.
"""

import functools
import os
import shutil
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Callable, Iterator, List, Literal, Mapping, Optional, Sequence, Tuple

import torch
from torch import nn

from i2srf_kd.distill.calibration import CalibratedSetLoss
from i2srf_kd.distill.fusion import RecursiveFusion
from i2srf_kd.nets.blocks import ConvNormAct, DilatedDenseBlock, SelfAttention
from i2srf_kd.nets.dpdcrn import DPDCRN
from i2srf_kd.system.config import parse_section
from i2srf_kd.system.errors import UserError

Dtype = Literal["float32", "bfloat16"]
Part = Literal["student", "teacher", "loss"]
# Outermost first; what is inside of one is compiled with it. GRUs stay as they are: torch.compile leaves them out.
_REGIONS = (DilatedDenseBlock, ConvNormAct, SelfAttention, CalibratedSetLoss, RecursiveFusion)


@dataclass(frozen=True)
class SpeedOptions:
    """The section ``speed``; see the module's docstring."""

    amp_dtype: Optional[Dtype] = None
    teacher_dtype: Optional[Dtype] = None
    teacher_inference_mode: bool = False
    channels_last: bool = False
    dense_buffer: bool = False
    fused_optimizer: bool = False
    compile: Tuple[Part, ...] = ()
    compile_backend: str = "inductor"
    cuda_graphs: bool = False

    @contextmanager
    def teacher_context(self, device_type: str) -> Iterator[None]:
        """Precision and gradient mode in which a teacher runs."""
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode() if self.teacher_inference_mode else torch.no_grad())
            if self.teacher_dtype is not None:
                dtype = torch.bfloat16
                stack.enter_context(torch.autocast(device_type, dtype, enabled=self.teacher_dtype != "float32"))
            yield


def parse_speed(section: Optional[Mapping[str, Any]], on_gpu: bool) -> SpeedOptions:
    """Read and check the section ``speed``.

    Raises:
        UserError: an unknown option, a value that it does not take, or something that this machine lacks.
    """
    section = dict(section or {})
    parts = section.get("compile")
    section["compile"] = [parts] if isinstance(parts, str) else parts or []
    options = parse_section(SpeedOptions, section, "speed")
    if options.cuda_graphs and not on_gpu:
        raise UserError("speed: cuda_graphs needs a GPU: set it to false, or --ngpu 1")
    if options.cuda_graphs and not options.compile:
        raise UserError("speed: cuda_graphs records what is compiled: name the parts, such as compile: [student, loss]")
    if options.compile_backend != SpeedOptions.compile_backend:  # to list them torch imports them all, for a second
        known = torch.compiler.list_backends(exclude_tags=())
        if options.compile_backend not in known:
            raise UserError(
                f"speed: compile_backend must be one of {', '.join(known)}, not {options.compile_backend!r}"
            )
    compiler = os.environ.get("CXX", "g++")
    if options.compile and options.compile_backend == "inductor" and not (on_gpu or shutil.which(compiler)):
        raise UserError(f"speed: compile needs a C++ compiler, and there is no {compiler}: install one, or set CXX")
    return options


def speed_up_network(network: nn.Module, options: SpeedOptions, role: str) -> None:
    """Apply the options to a network, in place.

    Args:
        network: a DPDCRN, or a model that contains one.
        options: what is on.
        role: ``student`` or ``teacher``.

    Raises:
        UserError: an option knows the blocks of DPDCRN only, and the network has none.
    """
    if options.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    buffered = options.dense_buffer and role == "teacher"
    wanted = [name for name, on in (("dense_buffer", buffered), ("compile", role in options.compile)) if on]
    if wanted and not any(isinstance(module, DPDCRN) for module in network.modules()):
        raise UserError(f"speed: {wanted[0]} knows the blocks of a dpdcrn, and the {role} is another network")
    for module in network.modules():
        if buffered and isinstance(module, DilatedDenseBlock):
            module.buffered = True
    if role in options.compile:
        compile_regions(network, options, always=role == "teacher")


def compile_regions(root: nn.Module, options: SpeedOptions, always: bool = False) -> None:
    """Compile the blocks inside of ``root``, in place; names of parameters stay.

    Args:
        root: a network or a distillation.
        options: backend and CUDA graphs.
        always: in evaluation mode as well, where sizes vary from batch to batch.
    """
    mode = "reduce-overhead" if options.cuda_graphs else None
    for region in _outermost(root):
        compiled = torch.compile(region.forward, backend=options.compile_backend, mode=mode)
        region.forward = _chosen(region, region.forward, compiled, always)  # type: ignore[method-assign]


def _chosen(module: nn.Module, plain: Callable[..., Any], compiled: Callable[..., Any], always: bool) -> Any:
    @functools.wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return (compiled if always or module.training else plain)(*args, **kwargs)

    return forward


def _outermost(root: nn.Module) -> List[nn.Module]:
    if isinstance(root, _REGIONS):
        return [root]
    return [region for child in root.children() for region in _outermost(child)]


def speed_up_model(model: nn.Module, options: SpeedOptions, device_type: str, method: str = "forward") -> None:
    """Let a model's training steps run under autocast and as CUDA graphs, in place; validation stays as it is.

    Args:
        model: the model.
        options: what is on.
        device_type: where the model runs.
        method: name of the method that does the work of a step.
    """
    dtype = None if options.amp_dtype in (None, "float32") else getattr(torch, str(options.amp_dtype))
    if dtype is None and not options.cuda_graphs:
        return
    plain = getattr(model, method)

    @functools.wraps(plain)
    def step(*args: Any, **kwargs: Any) -> Any:
        if options.cuda_graphs:
            torch.compiler.cudagraph_mark_step_begin()
        if dtype is None or not model.training:
            return plain(*args, **kwargs)
        with torch.autocast(device_type, dtype):
            return plain(*args, **kwargs)

    setattr(model, method, step)


def ordinary(tensors: Sequence[torch.Tensor]) -> List[torch.Tensor]:
    """Tensors that autograd can keep: copies of those that were made in inference mode."""
    return [tensor.clone() if tensor.is_inference() else tensor for tensor in tensors]
