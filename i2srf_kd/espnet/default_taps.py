"""Where ESPnet's separators are tapped when a distillation does not say so.

Sets are called as DPDCRN's, so that any of these networks learns from and teaches any other. Modules are regular
expressions over names of modules; of many that match, as in a deep stack, :data:`MOST_LAYERS` are read.
"""

import re
from typing import Any, Dict, List, Optional

from espnet2.enh.encoder.stft_encoder import STFTEncoder
from espnet2.tasks.enh import separator_choices
from torch import nn

MOST_LAYERS = 4
Taps = Dict[str, List[Any]]

# An encoder's representation in the layout of the learned one (BTC); _ENCODED and _ESTIMATE stand for both forms.
_ENCODED = {"module": "encoder", "layout": "BTC", "output": 0}
_ESTIMATE = {"module": "separator", "layout": "BTC", "output": [0, 0]}
_GRIDNET: Taps = {
    "encoder": ["separator.conv"],
    "dual_path": [r"separator\.blocks\.\d+"],
    "decoder": ["separator.deconv"],
}
_BY_SEPARATOR: Dict[str, Taps] = {
    "dccrn": {
        "encoder": [{"module": r"separator\.encoder\.\d+", "layout": "BCFT"}],
        "dual_path": [{"module": "separator.decoder.0", "layout": "BCFT", "input": 0}],
        "decoder": [{"module": r"separator\.decoder\.\d+", "layout": "BCFT"}, _ESTIMATE],
    },
    # What a norm is given is the running feature of the network, and the mask decoder that of the last layer.
    "bsrnn": {
        "encoder": ["separator.bsrnn.band_split"],
        "dual_path": [
            {"module": r"separator\.bsrnn\.norm_time\.[1-9]\d*", "input": 0},
            {"module": "separator.bsrnn.mask_decoder", "input": 0},
        ],
        "decoder": [_ESTIMATE],
    },
    "tfgridnet": _GRIDNET,
    "tfgridnetv2": _GRIDNET,
    "tfgridnetv3": _GRIDNET,
    # Places in a segment stand for bins, segments for frames.
    "dprnn": {
        "encoder": [_ENCODED],
        "dual_path": [{"module": r"separator\.dprnn\.col_norm\.\d+", "layout": "BCFT"}],
        "decoder": [_ESTIMATE],
    },
    "tcn": {
        "encoder": [_ENCODED],
        "dual_path": [{"module": r"separator\.tcn\.network\.2\.\d+\.\d+", "layout": "BCT"}],
        "decoder": [_ESTIMATE],
    },
    # The memory between segments, where there is one, and the last running feature.
    "skim": {
        "encoder": [_ENCODED],
        "dual_path": [
            {"module": r"separator\.skim\.mem_lstms\.\d+\.h_norm", "layout": "BTC"},
            {"module": "separator.skim.output_fc.0", "layout": "BCT", "input": 0},
        ],
        "decoder": [_ESTIMATE],
    },
    # Microphones count as channels: what goes into the filter estimation, its result, and what is resynthesised.
    "fasnet": {
        "encoder": [{"module": r"separator\.fasnet\.(separator|all_BF)", "layout": "BCCT", "input": 0}],
        "dual_path": [
            {"module": r"separator\.fasnet\.(separator|all_BF)\.dprnn_model", "layout": "BCCFT", "input": 0},
            {"module": r"separator\.fasnet\.separator", "layout": "BCCCT"},
        ],
        "decoder": [
            {"module": r"separator\.fasnet\.decoder", "layout": "BCT", "input": 0},
            {"module": r"separator\.fasnet\.all_BF", "layout": "BCCTC"},
        ],
    },
    "ineube": {
        "encoder": [r"separator\.dnn1\.encoder\.\d+"],
        "dual_path": [{"module": r"separator\.dnn1\.tcn\.\d+", "layout": "BCT"}],
        "decoder": [r"separator\.dnn1\.decoder\.\d+"],
    },
}


def default_taps(model: Any) -> Optional[Taps]:
    """Taps of an ESPnet enhancement model; None where its separator is not in the list or announces its sets itself."""
    kinds = [name for name, kind in separator_choices.classes.items() if type(model.separator) is kind]
    spec = _BY_SEPARATOR.get(kinds[0]) if kinds else None
    if spec is None:
        return None
    bins = isinstance(model.encoder, STFTEncoder)  # its channels are bins
    names = [name for name, _ in model.named_modules()]
    return {
        set_name: [tap for entry in entries for tap in _expanded(entry, names, bins)]
        for set_name, entries in spec.items()
    }


def _expanded(entry: Any, names: List[str], bins: bool) -> List[Any]:
    """The taps that an entry of the table stands for in a network of these modules."""
    tap = dict(entry) if isinstance(entry, dict) else {"module": entry}
    if bins and tap in (_ENCODED, _ESTIMATE):
        tap["layout"] = "BTF"
    found = [name for name in names if re.fullmatch(tap["module"], name)]
    if len(found) > MOST_LAYERS:
        found = [found[(place + 1) * len(found) // MOST_LAYERS - 1] for place in range(MOST_LAYERS)]
    return [{**tap, "module": name} for name in found]


def microphones(separator: nn.Module) -> int:
    """Channels of the mixture that a separator takes; two for those that take any number of several."""
    if type(separator).__name__ == "iNeuBe":
        return int(separator.dnn1.encoder[0][0].in_channels) // 2  # type: ignore[union-attr, index, arg-type]
    if type(separator).__name__ == "FaSNetSeparator":
        return 2
    return int(getattr(separator, "num_mics", getattr(separator, "n_imics", 1)))
