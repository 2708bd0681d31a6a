"""A data set through a model: in parts, in processes, and on from where an earlier run ended.

torch is not imported before a model is: it is needed in the worker processes alone.
"""

import json
import logging
import math
import os
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from i2srf_kd.audio.ark import file_of
from i2srf_kd.audio.io import read_audio, write_audio
from i2srf_kd.data.kaldi_dir import Table, describe, raise_problems, read_audio_table, write_table
from i2srf_kd.system.errors import NotWritten, UserError, writing
from i2srf_kd.system.files import remove_temporaries, write_text
from i2srf_kd.system.fingerprints import fingerprint, fingerprint_of_text
from i2srf_kd.system.pool import process_map
from i2srf_kd.system.progress import progress

logger = logging.getLogger(__name__)

Record = Dict[str, Any]
SCPS = ("spk1.scp", "wav.scp")
_RECORDED = {"utt", "source", "seconds", "compute_seconds", "samples", "clipped"}


class Options(NamedTuple):
    """How utterances are enhanced; goes to the worker processes."""

    model: str
    model_file: Optional[str]
    device: str
    max_window_seconds: float
    num_threads: int
    runtime: str = "auto"


def read_mixtures(data_dir: str) -> Table:
    """Audio file per utterance from ``wav.scp``.

    Raises:
        UserError: it is absent or malformed, has commands in place of files, or ids that cannot be file names.
    """
    table = read_audio_table(Path(data_dir) / "wav.scp")
    bad = [utt for utt in table if "/" in utt or utt.startswith(".")]
    if bad:
        raise UserError(f"{data_dir}/wav.scp: {describe(bad)} cannot be names of files; rename them")
    return table


def outputs_fingerprint(options: Options) -> str:
    """Text that changes when the outputs could: weights, configuration and window."""
    from i2srf_kd.export.bundle import WEIGHTS, is_bundle
    from i2srf_kd.export.runtimes import INT8_ONNX, WHOLE, onnx_file
    from i2srf_kd.inference.experiment import CONFIG, Experiment, split_model_path

    folder, name = split_model_path(options.model)
    onnx_file(folder, options.runtime, options.device, options.model_file, WHOLE)
    if is_bundle(folder):
        files = [folder / CONFIG, folder / WEIGHTS]
    else:
        experiment = Experiment(folder)
        files = [experiment.config_file, experiment.weights(options.model_file or name)]
    int8 = [folder / INT8_ONNX] if options.runtime == "int8" else []
    return fingerprint_of_text(f"{options.max_window_seconds!r} {fingerprint((*files, *int8))}")


_worker: Dict[str, Any] = {}


def _start_worker(options: Options) -> None:
    """Load the model once per process."""
    import torch

    from i2srf_kd.inference.loading import load_enhancer

    torch.set_num_threads(options.num_threads)
    _worker["enhancer"] = load_enhancer(options.model, options.device, options.model_file, options.runtime)
    _worker["options"] = options


def _enhance(task: Tuple[str, str, str]) -> Record:
    """Enhance one utterance and write it: what is recorded about it, or its ``problem``."""
    utt, source, target = task
    enhancer, options = _worker["enhancer"], _worker["options"]
    try:
        before = source_state(source)
        wave, fs = read_audio(source)
        start = time.perf_counter()
        overlap = min(1.0, options.max_window_seconds / 2)
        enhanced = enhancer(wave, fs, options.max_window_seconds, overlap)
        compute_seconds = time.perf_counter() - start
        clipped = write_audio(target, enhanced, fs, "PCM_16")
    except NotWritten:  # not the fault of this utterance
        raise
    except UserError as error:
        return {"utt": utt, "problem": str(error)}
    except RuntimeError as error:  # torch's, such as a lack of memory
        return {"utt": utt, "problem": f"{source}: {error}; a lower --max_window_seconds needs less memory"}
    return {
        "utt": utt,
        "source": before,
        "unused_channels": wave[0].size - enhancer.num_mics,
        "seconds": len(wave) / fs,
        "compute_seconds": compute_seconds,
        "samples": len(wave),
        "clipped": clipped,
    }


def source_state(path: str) -> List[Any]:
    """What tells whether a file is still the same: path, size, time of change.

    Raises:
        UserError: there is no such file.
    """
    try:
        state = os.stat(file_of(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return [path, state.st_size, state.st_mtime_ns]


def _is_unchanged(record: Record, path: str) -> bool:
    try:
        return record["source"] == source_state(path)
    except UserError:  # reported with the utterance's name when it is enhanced
        return False


def _shard_file(out_dir: Path, index: int, count: int) -> Path:
    return out_dir / "shards" / f"{index}-of-{count}.json"


def _journals(out_dir: Path, mark: str) -> List[Path]:
    return sorted((out_dir / "shards").glob(f"journal.{mark}.*.jsonl"))


def read_done(out_dir: Path, mark: str) -> Dict[str, Record]:
    """What was enhanced before with the fingerprint ``mark``, by whatever shard, and is still there."""
    done: Dict[str, Record] = {}
    for journal in _journals(out_dir, mark):
        for line in journal.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # the last line of a run that was killed
                continue
            if isinstance(record, dict) and _RECORDED <= record.keys():
                done[record["utt"]] = record
    return {utt: record for utt, record in done.items() if _wav(out_dir, utt).is_file()}


def _wav(out_dir: Path, utt: str) -> Path:
    return out_dir / "wav" / f"{utt}.wav"


def enhance_shard(
    table: Table, options: Options, out_dir: Path, shard: Tuple[int, int], nj: int, overwrite: bool
) -> None:
    """Enhance every N-th utterance. Each finished one is noted at once, so that a killed run loses none.

    Raises:
        UserError: some cannot be enhanced, which are all named after the others are done; or nothing can be written.
    """
    index, count = shard
    target = _shard_file(out_dir, index, count)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)  # a shard that fails must not leave an older one to be collected
    for scp in SCPS:
        (out_dir / scp).unlink(missing_ok=True)  # they stand for a complete set
    mark = outputs_fingerprint(options)
    for journal in _journals(out_dir, "*"):
        if journal.name.split(".")[1] != mark:  # its audio is about to be replaced
            journal.unlink(missing_ok=True)
    chosen = sorted(table)[index - 1 :: count]
    known = {} if overwrite else read_done(out_dir, mark)
    records = {utt: known[utt] for utt in chosen if utt in known and _is_unchanged(known[utt], table[utt])}
    tasks = [(utt, table[utt], str(_wav(out_dir, utt))) for utt in chosen if utt not in records]
    if records:
        print(f"{len(records)} of {len(chosen)} utterances were enhanced before", flush=True)
    journal = target.parent / f"journal.{mark}.{index}-of-{count}.jsonl"
    problems: List[str] = []
    with (
        process_map(_enhance, tasks, nj, chunksize=1, initializer=_start_worker, initargs=(options,)) as enhanced,
        writing(journal),
        open(journal, "a", encoding="utf-8") as file,
    ):
        for record in progress(enhanced, len(tasks), desc="enhancing"):
            if "problem" in record:
                problems.append(f"utterance {record['utt']}: {record['problem']}")
                continue
            # the line break comes first, in case a killed run left half a line
            file.write("\n" + json.dumps(record))
            file.flush()
            records[record["utt"]] = record
    rich = [utt for utt, record in records.items() if record.get("unused_channels")]
    if rich:
        logger.warning("of more channels than the model has microphones the first are enhanced: %s", describe(rich))
    raise_problems(f"{len(problems)} of {len(chosen)} utterances cannot be enhanced", problems)
    summary = {"fingerprint": mark, **summarise(list(records.values())), "records": list(records.values())}
    write_text(target, json.dumps(summary, indent=1) + "\n")


def summarise(records: Sequence[Record]) -> Dict[str, Any]:
    """Totals over utterances; the real-time factor is computing time over length, without reading and writing."""
    seconds = math.fsum(record["seconds"] for record in records)
    compute_seconds = math.fsum(record["compute_seconds"] for record in records)
    return {
        "utterances": len(records),
        "seconds": seconds,
        "compute_seconds": compute_seconds,
        "real_time_factor": compute_seconds / seconds if seconds else None,
        "clipped_samples": sum(record["clipped"] for record in records),
        "clipped_utterances": sum(record["clipped"] > 0 for record in records),
    }


def collect(table: Table, options: Options, out_dir: Path, count: int) -> Dict[str, Any]:
    """Check that the shards cover the set, and write spk1.scp, wav.scp, enhance.json and complexity.json.

    Raises:
        UserError: shards or utterances are missing, or were made by different models.
    """
    from i2srf_kd.inference.loading import write_complexity

    files = [_shard_file(out_dir, index, count) for index in range(1, count + 1)]
    absent = [str(file) for file in files if not file.is_file()]
    if absent:
        raise UserError(f"{len(absent)} of {count} shards are not there: {', '.join(absent[:5])}; run them again")
    shards = [_read_shard(file) for file in files]
    mark = outputs_fingerprint(options)
    other = [str(file) for file, shard in zip(files, shards, strict=True) if shard["fingerprint"] != mark]
    if other:
        raise UserError(f"made by another model or with other options: {', '.join(other[:5])}; run those shards again")
    records = [record for shard in shards for record in shard["records"]]
    names = sorted(record["utt"] for record in records)
    if names != sorted(table):
        wrong = sorted(set(names) ^ set(table)) or sorted({name for name in names if names.count(name) > 1})
        raise UserError(f"{out_dir}/shards do not hold each utterance once ({describe(wrong)}); run all shards again")
    lost = [utt for utt in names if not _wav(out_dir, utt).is_file()]
    if lost:
        raise UserError(f"{out_dir}/wav lacks {describe(lost)}; run the shards again")
    result = {
        **summarise(records),
        "model": options.model,
        "fingerprint": mark,
        "device": _device_name(options.device),
        "num_threads": options.num_threads,
        "max_window_seconds": options.max_window_seconds,
    }
    write_text(out_dir / "enhance.json", json.dumps(result, indent=2) + "\n")
    # Into the experiment's folder where the pipeline enhances: a model from elsewhere is read and never written to.
    write_complexity(options.model, Path(os.path.abspath(out_dir)).parent)
    for folder in (out_dir, out_dir / "wav", out_dir / "shards"):
        remove_temporaries(folder)  # of runs that were killed; all shards are finished
    for scp in SCPS:
        write_table(out_dir / scp, {utt: _wav(out_dir, utt) for utt in names})
    return result


def _read_shard(file: Path) -> Dict[str, Any]:
    try:
        shard: Dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if all(_RECORDED <= record.keys() for record in shard["records"]) and "fingerprint" in shard:
            return shard
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise UserError(f"{file} is damaged: run that shard again")


def _device_name(device: str) -> str:
    import torch

    if device.startswith("cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name(device)
    return device
