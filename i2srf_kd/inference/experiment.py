"""An experiment folder: what training leaves behind and what using a model needs of it. ESPnet is not imported.

experiment = Experiment("exp/student")
network = experiment.network()  # DPDCRN with the averaged weights
"""

import logging
import os
from functools import cached_property
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple

from i2srf_kd import models
from i2srf_kd.nets.dpdcrn import DPDCRN
from i2srf_kd.nets.presets import network_from_options
from i2srf_kd.system.config import read_yaml
from i2srf_kd.system.errors import UserError
from i2srf_kd.system.files import PathLike
from i2srf_kd.system.packed import CONFIG_KEY, WEIGHTS_KEY, inside, is_packed
from i2srf_kd.training.checkpoint import check_key_coverage, load_weights

CONFIG = "config.yaml"
NETWORK_PREFIX = "separator.net."
# What an exported folder is known by, and its file of weights.
EXPORTED, EXPORTED_WEIGHTS = "i2srf_kd-bundle", "weights.pth"
# Training keeps the distillation's parameters in the same files; a trained model does not need them.
TRAINING_ONLY_PREFIX = "distillation."
# ESPnet's defaults, for configurations that do not spell them out.
_STFT_DEFAULTS = {"n_fft": 512, "win_length": None, "hop_length": 128, "window": "hann", "center": True}
_STFT_DEFAULTS.update({"normalized": False, "onesided": True, "spec_transform_type": None})
DEFAULT_FS = 16000
# What ESPnet writes where nobody gave a rate; its own training does not use it.
_ESPNET_DEFAULT_FS = 8000

logger = logging.getLogger(__name__)


def for_use(weights: Mapping[str, Any]) -> Dict[str, Any]:
    """Weights without what only the training needs."""
    return {key: value for key, value in weights.items() if not key.startswith(TRAINING_ONLY_PREFIX)}


def training_options(config: Mapping[str, Any]) -> Dict[str, Any]:
    """Options of a training; those of an exported folder are brought into the same words.

    Raises:
        UserError: an exported folder's configuration lacks something.
    """
    if config.get("format") != EXPORTED:
        return dict(config)
    try:
        network = dict(config["network"])
        sizes = {"n_fft": network.pop("n_fft"), "hop_length": config["hop_length"]}
        network["num_mics"] = network.pop("input_channels") // 2
        return {
            **{part: "stft" for part in ("encoder", "decoder")},
            **{f"{part}_conf": dict(sizes) for part in ("encoder", "decoder")},
            "separator": "dpdcrn",
            "separator_conf": network,
            "model_conf": {"normalize_variance": config["normalize_variance"]},
            "sample_rate": config["fs"],
            "distill": {},
        }
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{CONFIG} of an exported model was altered ({error!r}): copy its folder again") from None


def training_names(weights: Mapping[str, Any]) -> Dict[str, Any]:
    """Weights under the names that a training gives them; an exported folder has those of the network alone."""
    prefix = "" if any(key.startswith("separator.") for key in weights) else NETWORK_PREFIX
    return {prefix + key: value for key, value in weights.items()}


def stated_rate(config: Mapping[str, Any]) -> Optional[int]:
    """Sampling rate in Hz of the data that a model was trained on; None where its configuration leaves that open.

    Trainings of this package, which have an option ``distill``, compare ``sample_rate`` with their data. Others do not:
    of them the encoder's ``default_fs`` is believed first, and a ``sample_rate`` of 8000, ESPnet's default, tells
    nothing.
    """
    rate = config.get("sample_rate")
    if "distill" in config and rate:
        return int(rate)
    default_fs = (config.get("encoder_conf") or {}).get("default_fs")
    if default_fs:
        return int(default_fs)
    return int(rate) if rate not in (None, _ESPNET_DEFAULT_FS) else None


def sampling_rate(config: Mapping[str, Any], source: PathLike) -> int:
    """Sampling rate in Hz to run a model at; one that is in doubt is taken as written, with a warning.

    Args:
        config: content of its ``config.yaml``.
        source: that file, for the warning.
    """
    rate = stated_rate(config)
    if rate is None:
        rate = int(config.get("sample_rate") or DEFAULT_FS)
        reason = "which is also what ESPnet writes where no rate was given" if "sample_rate" in config else "by default"
        logger.warning(
            f"{source}: the model is taken to be for {rate} Hz, {reason}; if it was trained on another rate, write "
            "that one as sample_rate there"
        )
    return rate


class Experiment:
    """A folder written by training: ``config.yaml`` and weights. Or an exported folder, or a model that ESPnet packed.

    Args:
        path: the folder or the zip.

    Raises:
        UserError: there is no such folder, or it holds no configuration of an enhancement model.
    """

    def __init__(self, path: PathLike):
        self.path = Path(path)
        if is_packed(path):
            self.config_file = self._packed(CONFIG_KEY)
        else:
            if not self.path.is_dir():
                raise UserError(f"{path}: no such experiment folder")
            self.config_file = self.path / CONFIG
            if not self.config_file.is_file():
                raise UserError(f"{path} has no {CONFIG}: give the folder that training wrote (--output_dir)")
        written = read_yaml(self.config_file)
        self._exported = written.get("format") == EXPORTED
        self.config: Dict[str, Any] = training_options(written)
        if "separator" not in self.config:
            raise UserError(f"{self.config_file} names no separator: it is not from training an enhancement model")

    @property
    def separator(self) -> str:
        """Name of the kind of network, ``dpdcrn`` for the one of this package."""
        return str(self.config["separator"])

    @cached_property
    def fs(self) -> int:
        """Sampling rate in Hz that the model was trained at."""
        return sampling_rate(self.config, self.config_file)

    @property
    def normalize_variance(self) -> bool:
        """Whether the mixture is divided by its standard deviation before the network."""
        return bool(self._section("model_conf").get("normalize_variance", False))

    @cached_property
    def stft(self) -> Dict[str, Any]:
        """STFT options, with ESPnet's defaults for those that are not given."""
        return {**_STFT_DEFAULTS, **self._section("encoder_conf")}

    def why_not_portable(self) -> Optional[str]:
        """What keeps the model from running without ESPnet; None when nothing does."""
        stft = self.stft
        decoder = {**_STFT_DEFAULTS, **self._section("decoder_conf")}
        if self.separator != "dpdcrn":
            return f"separator {self.separator!r} is not dpdcrn"
        for part in ("encoder", "decoder"):
            if self.config.get(part, "stft") != "stft":
                return f"{part} {self.config[part]!r} is not stft"
        if stft["win_length"] not in (None, stft["n_fft"]):
            return f"win_length {stft['win_length']} differs from n_fft {stft['n_fft']}"
        for name in ("window", "center", "normalized", "onesided"):
            if stft[name] != _STFT_DEFAULTS[name]:
                return f"encoder_conf {name} {stft[name]!r} is not {_STFT_DEFAULTS[name]!r}"
        if stft["spec_transform_type"] not in (None, "none"):
            return f"spectra are transformed (spec_transform_type {stft['spec_transform_type']!r})"
        for name in ("n_fft", "hop_length"):
            if "decoder_conf" in self.config and decoder[name] != stft[name]:
                return f"encoder and decoder differ in {name} ({stft[name]} and {decoder[name]})"
        if self._section("model_conf").get("normalize_variance_per_ch"):
            return "normalize_variance_per_ch is on"
        return None

    def weights(self, name: Optional[str] = None) -> Path:
        """Choose a file of weights.

        Args:
            name: a file of the folder, with or without ``.pth``, with or without the folder. Default: the average of
                the best epochs by the first ``best_model_criterion`` of the validation (ESPnet's default begins with
                one of the training), else the best epoch, else the latest.

        Returns:
            The file; of a zip the zip, out of which :func:`load_weights` reads it.

        Raises:
            UserError: it is not there; the message lists what is.
        """
        if is_packed(self.path):
            if name is not None:
                raise UserError(f"{self.path} is packed with one file of weights; {name} cannot be chosen")
            return self._packed(WEIGHTS_KEY)
        if name is None:
            candidates = self._default_names()
        else:
            folder, base = os.path.split(name)
            if folder and os.path.realpath(folder) != os.path.realpath(self.path):
                raise UserError(f"{name} is not in {self.path}: take weights and configuration of the same experiment")
            candidates = [base, f"{base}.pth"]
        for candidate in candidates:
            path = self.path / candidate
            if path.is_file():
                return path
        present = sorted(path.name for path in self.path.glob("*.pth") if path.is_file())
        there = f"there are {', '.join(present)}" if present else "there are no .pth files; has training finished?"
        raise UserError(f"{self.path} has no {' or '.join(candidates)}: {there}")

    def network_state(self, name: Optional[str] = None) -> Dict[str, Any]:
        """Weights of the DPDCRN under the network's own names.

        Args:
            name: as for :meth:`weights`.

        Raises:
            UserError: the file is damaged, or its keys are not those of the network in the configuration.
        """
        path = self.weights(name)
        state = training_names(load_weights(path))
        wanted = {NETWORK_PREFIX + key: value for key, value in self.build_network().state_dict().items()}
        check_key_coverage(wanted, state, allow_prefixes=(TRAINING_ONLY_PREFIX,), source=str(path))
        for key, value in wanted.items():
            if state[key].shape != value.shape:
                raise UserError(
                    f"{path} does not fit {self.config_file}: {key} is {tuple(state[key].shape)}, expected "
                    f"{tuple(value.shape)}. Take weights and config.yaml of the same experiment"
                )
        return {key[len(NETWORK_PREFIX) :]: state[key] for key in wanted}

    def build_network(self) -> DPDCRN:
        """The DPDCRN of the configuration with random weights.

        Raises:
            UserError: the model is another one or cannot run without ESPnet, or its options are wrong.
        """
        reason = self.why_not_portable()
        if reason:
            raise UserError(f"{self.config_file} is no DPDCRN that can be used without ESPnet: {reason}")
        try:
            return network_from_options(int(self.stft["n_fft"]) // 2 + 1, **self._section("separator_conf"))
        except (TypeError, ValueError) as error:
            raise UserError(f"{self.config_file}: separator_conf does not describe a DPDCRN ({error})") from None

    def network(self, name: Optional[str] = None) -> DPDCRN:
        """The trained DPDCRN in evaluation mode; arguments and errors as for :meth:`network_state`."""
        network = self.build_network()
        network.load_state_dict(self.network_state(name))
        return network.eval()

    def _packed(self, key: str) -> Path:
        file = inside(self.path, key)
        return file if isinstance(file, Path) else self.path

    def _section(self, name: str) -> Dict[str, Any]:
        return self.config.get(name) or {}

    def _default_names(self) -> List[str]:
        if self._exported:
            return [EXPORTED_WEIGHTS]
        names = []
        criteria = self.config.get("best_model_criterion") or []
        if criteria:
            phase, key = next((criterion for criterion in criteria if criterion[0] == "valid"), criteria[0])[:2]
            names = [f"{phase}.{key}.ave.pth", f"{phase}.{key}.best.pth"]
        return [*names, "latest.pth"]


def split_model_path(path: PathLike) -> Tuple[Path, Optional[str]]:
    """A model as users name it to ``(folder or zip, file name or None)``.

    Args:
        path: a folder, a packed model, a file of weights, or the name of a model that comes with the package.

    Raises:
        UserError: there is no such path.
    """
    path = models.folder_of(path)
    if path.is_dir() or is_packed(path):
        return path, None
    if path.is_file():
        # resolved as text: a link such as latest.pth must not lead into another folder
        return Path(os.path.abspath(path)).parent, path.name
    raise UserError(
        f"{path}: no such model; give an experiment folder, weights in one, an exported folder, or one of "
        f"{', '.join(models.names())}"
    )
