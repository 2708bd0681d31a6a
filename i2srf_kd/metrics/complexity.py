"""Parameters and multiply-accumulates (MACs) per second of audio.

Products in convolutions, linear layers, matrix products and attention are counted as they run; norms, activations and
sums are not, as is usual. Recurrent layers are counted by formula and kept apart, because many counting tools miss
them and published figures differ in whether they are in.
"""

from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Sequence, Union

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import PackedSequence
from torch.utils.flop_counter import FlopCounterMode


class Complexity(NamedTuple):
    """What a model costs. The field names are the keys of ``complexity.json``."""

    parameters: int
    gmacs_per_second: float
    """Without recurrent layers."""
    gmacs_per_second_with_recurrent: float
    seconds: float
    """Length of the measured input: attention over time costs more per second the longer it is."""


def count_parameters(module: nn.Module) -> int:
    """Number of parameters; shared ones count once."""
    return sum(p.numel() for p in module.parameters())


def recurrent_macs(layer: Union[nn.RNNBase, nn.RNNCellBase], steps: int) -> int:
    """MACs of the matrix products of a recurrent layer over ``steps`` frames (summed over the batch)."""
    weights = [p for name, p in layer.named_parameters() if name.startswith("weight")]
    return steps * sum(weight.numel() for weight in weights)


def _steps(layer: nn.Module, data: Any) -> int:
    if isinstance(data, PackedSequence):
        return len(data.data)
    return data[..., 0].numel()


@contextmanager
def _countable_attention() -> Iterator[None]:
    """Switch fused attention kernels off, which the counter does not see on every device."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


def count_macs(module: nn.Module, *arguments: Any) -> Dict[str, int]:
    """MACs of one forward pass.

    Args:
        module: run in evaluation mode without gradient; its mode is put back.
        arguments: of ``module.forward``.

    Returns:
        ``{"feedforward": ..., "recurrent": ...}``.
    """
    counter = FlopCounterMode(display=False)
    recurrent: List[int] = []
    already_counted: List[int] = []
    before: List[int] = []

    def enter(layer: nn.Module, inputs: Sequence[Any]) -> None:
        before.append(counter.get_total_flops())

    def leave(layer: Any, inputs: Sequence[Any], output: Any) -> None:
        # Whether the counter sees inside depends on layer, device and torch version: take out what it saw.
        already_counted.append(counter.get_total_flops() - before.pop())
        recurrent.append(recurrent_macs(layer, _steps(layer, inputs[0])))

    modes = [(child, child.training) for child in module.modules()]
    with ExitStack() as stack:
        for child in module.modules():
            if isinstance(child, (nn.RNNBase, nn.RNNCellBase)):
                stack.callback(child.register_forward_pre_hook(enter).remove)
                stack.callback(child.register_forward_hook(leave).remove)
        try:
            module.eval()
            with torch.no_grad(), _countable_attention(), counter:
                module(*arguments)
        finally:
            for child, training in modes:
                child.training = training
    return {"feedforward": (counter.get_total_flops() - sum(already_counted)) // 2, "recurrent": sum(recurrent)}


def macs_per_second(
    module: nn.Module, make_input: Callable[[float], Sequence[Any]], seconds: float = 4.0
) -> Complexity:
    """Measure a model on one input of ``seconds``.

    Args:
        module: the model.
        make_input: gives the arguments of ``module.forward`` for so many seconds of one recording, e.g.
            ``lambda seconds: (torch.zeros(1, 2, 1 + int(seconds * 16000) // 256, 257),)``.
        seconds: length of the input. Some of the cost (padding, attention over time) is not proportional to it.

    Returns:
        Giga-MACs per second of audio and the number of parameters.

    Raises:
        ValueError: ``seconds`` is not positive.
    """
    if not seconds > 0:
        raise ValueError(f"seconds is {seconds}, expected a positive length")
    macs = count_macs(module, *make_input(seconds))
    return Complexity(
        parameters=count_parameters(module),
        gmacs_per_second=macs["feedforward"] / seconds / 1e9,
        gmacs_per_second_with_recurrent=(macs["feedforward"] + macs["recurrent"]) / seconds / 1e9,
        seconds=float(seconds),
    )
