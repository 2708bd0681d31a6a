"""Loading trained ESPnet enhancement models, with every key accounted for.

ESPnet's own loader is not strict: a checkpoint whose every key was renamed loads without a word. Here a key that is
missing or left over is an error.
"""

import argparse
import re
from pathlib import Path
from typing import Tuple

from espnet2.enh.espnet_model import ESPnetEnhancementModel
from espnet2.tasks.enh import EnhancementTask
from torch import Tensor, nn

from i2srf_kd.espnet.default_taps import microphones
from i2srf_kd.espnet.inference import enhance_waveform
from i2srf_kd.inference.experiment import (
    DEFAULT_FS,
    TRAINING_ONLY_PREFIX,
    Experiment,
    for_use,
    sampling_rate,
    split_model_path,
    training_names,
    training_options,
)
from i2srf_kd.system.config import read_yaml
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import PathLike
from i2srf_kd.training.checkpoint import check_key_coverage, load_weights


def read_config(path: PathLike) -> argparse.Namespace:
    """Options of an ESPnet ``config.yaml``; UserError when absent or not one."""
    options = training_options(read_yaml(path))
    if "separator" not in options:
        raise UserError(f"{path} is no configuration of an ESPnet enhancement model: it names no separator")
    return argparse.Namespace(**options)


def build_without_criteria(args: argparse.Namespace) -> ESPnetEnhancementModel:
    """The plain enhancement model that the options describe, without losses, teacher or initial weights."""
    options = dict(vars(args), criterions=None, init=None)
    try:
        return EnhancementTask.build_model(argparse.Namespace(**options))
    except (TypeError, ValueError) as error:
        raise UserError(f"cannot build separator {args.separator!r}: {error}") from None


def load_espnet_model(config: PathLike, checkpoint: PathLike) -> Tuple[ESPnetEnhancementModel, argparse.Namespace]:
    """Build the model of a configuration and load a checkpoint that covers all of it.

    Raises:
        UserError: when a file is absent, unreadable, or belongs to another network.
    """
    args = read_config(config)
    model = build_without_criteria(args)
    state = training_names(load_weights(checkpoint))
    try:
        check_key_coverage(model.state_dict().keys(), state.keys(), allow_prefixes=(TRAINING_ONLY_PREFIX,))
        model.load_state_dict(for_use(state))
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{checkpoint} does not fit the network of {config}: {error}") from None
    return model.eval(), args


def local_model(name: str) -> str:
    """A model on this machine; a tag such as ``espnet/some_enh_model`` is downloaded with ``espnet_model_zoo``.

    Raises:
        UserError: it is a tag that cannot be downloaded.
    """
    if Path(name).exists() or Path(name).parent.is_dir() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return name
    try:
        from espnet_model_zoo.downloader import ModelDownloader
    except ImportError:
        raise UserError(
            f"{name}: no such folder. If it is a tag of the hub, install espnet_model_zoo, or download the model and "
            "give its zip or folder"
        ) from None
    try:
        return str(ModelDownloader().download(name))
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{name}: no such folder, and the hub does not give it ({error})") from None


class ESPnetWindowEnhancer(nn.Module):
    """Any ESPnet enhancement model as a function from waveform to waveform.

    Attributes:
        fs: sampling rate in Hz it was trained at.
        num_mics: microphones it expects.
        ref_channel: the one whose speech it estimates.
    """

    def __init__(self, model: ESPnetEnhancementModel, fs: int):
        super().__init__()
        self.model = model
        self.fs = fs
        self.num_mics = microphones(model.separator)
        self.ref_channel = getattr(model, "ref_channel", None) or 0

    def enhance_window(self, speech: Tensor) -> Tensor:
        """Enhance ``(B, samples)`` or ``(B, samples, channels)`` to ``(B, samples)``."""
        return enhance_waveform(self.model, speech)


def load_enhancer_from_experiment(path: PathLike, device: str = "cpu") -> ESPnetWindowEnhancer:
    """Load the model of an experiment folder, of a weights file inside one or of a packed model, of any separator."""
    folder, name = split_model_path(path)
    experiment = Experiment(folder)
    if experiment.separator == "fasnet":
        raise UserError(f"{folder} does not say how many microphones its FaSNet is for: use ESPnet's enh_inference")
    model, _ = load_espnet_model(experiment.config_file, experiment.weights(name))
    return ESPnetWindowEnhancer(model, experiment.fs).to(device).eval()


def build_untrained_enhancer(config: PathLike) -> ESPnetWindowEnhancer:
    """The model that a training configuration describes, with random weights, to measure what it costs.

    Args:
        config: file of options as training takes it with ``--config``; the rest are ESPnet's defaults.

    Raises:
        UserError: the file is absent or describes no model.
    """
    defaults = vars(EnhancementTask.get_parser().parse_args([]))
    options = {**defaults, "sample_rate": DEFAULT_FS, **vars(read_config(config))}
    args = argparse.Namespace(**options)
    return ESPnetWindowEnhancer(build_without_criteria(args), sampling_rate(options, config)).eval()
