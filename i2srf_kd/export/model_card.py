"""The README.md of an exported model."""

from typing import Any, Dict, Mapping, Optional

from i2srf_kd import __version__
from i2srf_kd.metrics.complexity import Complexity
from i2srf_kd.metrics.table import METRICS, in_order

_CARD = """# Speech enhancement: {name}

DPDCRN (dual-path dilated convolutional recurrent network, arXiv 2506.13127) that removes noise from speech.

| | |
|---|---|
| input | {num_mics} microphone(s), {fs} Hz (other rates are resampled) |
| output | the enhanced speech of microphone {ref_channel}, as long as the input |
| network | {channels} channels, {blocks} dual-path block(s), {heads} attention heads |
| STFT | {n_fft} samples, hop {hop_length} |
| look-ahead | {look_ahead} |
| parameters | {parameters:,} |
| MACs per second | {gmacs_per_second:.2f} G without the GRUs, {gmacs_per_second_with_recurrent:.2f} G with them |
| training data | {training_data} |
| licence of the weights | {licence} |
| exported from | `{source}` with i2srf_kd {version} |
| SHA-256 of `weights.pth` | `{weights_sha256}` |
{scores}
## Use

With the package `i2srf_kd` (PyTorch), in Python or on files of any length:

```python
from i2srf_kd import load_enhancer
enhancer = load_enhancer("path/to/this/folder")
enhanced = enhancer(noisy, fs)  # noisy: (samples,), floating point
```

```bash
python -m i2srf_kd.bin.enhance path/to/this/folder noisy.wav -o enhanced
```
{onnx}"""
_CARD_SCORES = """
## Scores

Means over {utterances} utterances of `{test_set}`, measured with `python -m i2srf_kd.bin.score`.

| {names} |
|{rule}|
| {values} |
"""
_CARD_ONNX = """
Without PyTorch and without the package, with numpy and onnxruntime (run in this folder):

```python
from onnx_enhancer import OnnxEnhancer
enhancer = OnnxEnhancer("model.onnx")
enhanced = enhancer(noisy, {fs})  # noisy: (samples,) at {fs} Hz, up to about half a minute
```

With the package, files and arrays go through onnxruntime too where it is installed (`--runtime`).

`model.onnx` maps spectrum planes (B, {planes}, T, {bins}) to (B, 2, T, {bins}). Its largest difference from PyTorch,
on noise of several lengths, is {error:.1e} of the output's peak.
"""
_CARD_STREAM = """
For a stream (run in this folder): blocks of any size in, what is ready out. Algorithmic latency: {latency} samples
({latency_ms:.0f} ms).

```python
from onnx_stream import OnnxStreamingEnhancer
stream = OnnxStreamingEnhancer("model_stream.onnx")
enhanced = stream(block)  # then stream.flush() at the end
```

`model_stream.onnx` has a `state_*` input for every `next_state_*` output; before the first frame they are zero.
"""


def scores_section(test_set: str, summary: Mapping[str, Any]) -> str:
    """Scores on the card.

    Args:
        test_set: name of the data.
        summary: content of a scored folder's ``summary.json``.
    """
    means = {name: entry["mean"] for name, entry in summary["metrics"].items()}
    shown = in_order(name for name in means if name in METRICS)
    return _CARD_SCORES.format(
        utterances=summary["utterances"],
        test_set=test_set,
        names=" | ".join(METRICS[name].label for name in shown),
        rule="---|" * (len(shown) - 1) + "---",
        values=" | ".join(METRICS[name].text(means[name]) for name in shown),
    )


def model_card(
    config: Dict[str, Any], complexity: Complexity, onnx_error: Optional[float], streams: bool, facts: Dict[str, str]
) -> str:
    """README.md of the exported folder."""
    network = config["network"]
    latency_ms = 1000 * network["n_fft"] / config["fs"]
    look_ahead = "not causal: works on a whole recording, or on windows of a long one"
    if network.get("causal"):
        look_ahead = f"causal: {network['n_fft']} samples ({latency_ms:.0f} ms), the window of the STFT"
    onnx = ""
    if onnx_error is not None:
        bins, planes = network["n_fft"] // 2 + 1, network["input_channels"]
        onnx = _CARD_ONNX.format(fs=config["fs"], planes=planes, bins=bins, error=onnx_error)
        if streams:
            onnx += _CARD_STREAM.format(latency=network["n_fft"], latency_ms=latency_ms)
    return _CARD.format(
        name=facts["source"].split("/")[0],
        num_mics=network["input_channels"] // 2,
        version=__version__,
        onnx=onnx,
        look_ahead=look_ahead,
        **{key: value for key, value in network.items() if key != "input_channels"},
        **{key: config[key] for key in ("fs", "hop_length", "weights_sha256")},
        **complexity._asdict(),
        **facts,
    )
