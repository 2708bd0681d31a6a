"""Checkpoints survive kills and damage; averages are means; weights must fit by name."""

import errno
import os

import numpy as np
import pytest
import torch

from i2srf_kd.system.errors import UserError
from i2srf_kd.training import checkpoint
from i2srf_kd.training.best_epochs import BestEpochs


def state(value):
    return {"model": {"w": torch.full((4, 3), float(value))}, "numbers": np.float64(value), "random": (1, [2, 3], None)}


def test_state_round_trip_and_previous(tmp_path):
    assert checkpoint.load_training_state(tmp_path) is None
    for value in (1, 2, 3):
        checkpoint.save_training_state(tmp_path, state(value))
    assert checkpoint.load_training_state(tmp_path)["model"]["w"][0, 0] == 3
    assert torch.load(tmp_path / checkpoint.PREVIOUS, weights_only=True)["numbers"] == 2.0
    assert sorted(p.name for p in tmp_path.iterdir()) == [checkpoint.PREVIOUS, checkpoint.CHECKPOINT]


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped"])
def test_damaged_checkpoint_falls_back_and_says_so(tmp_path, caplog, damage):
    checkpoint.save_training_state(tmp_path, state(1))
    checkpoint.save_training_state(tmp_path, state(2))
    path = tmp_path / checkpoint.CHECKPOINT
    content = bytearray(path.read_bytes())
    if damage == "flipped":  # inside of the weights, where nothing but a checksum can tell
        place = content.index(torch.full((4,), 2.0).numpy().tobytes())
        content[place] ^= 1
    path.write_bytes(bytes(content[: {"truncated": len(content) // 2, "empty": 0}.get(damage, len(content))]))
    assert checkpoint.load_training_state(tmp_path)["numbers"] == 1.0
    assert "checkpoint.previous.pth" in caplog.text
    # The damaged file must not become the previous one of the next save.
    checkpoint.save_training_state(tmp_path, state(3))
    assert torch.load(tmp_path / checkpoint.PREVIOUS, weights_only=True)["numbers"] == 1.0


def test_only_the_previous_is_left(tmp_path):
    checkpoint.save_training_state(tmp_path, state(1))
    os.rename(tmp_path / checkpoint.CHECKPOINT, tmp_path / checkpoint.PREVIOUS)
    assert checkpoint.load_training_state(tmp_path)["numbers"] == 1.0


def test_both_damaged(tmp_path):
    for name in (checkpoint.CHECKPOINT, checkpoint.PREVIOUS):
        (tmp_path / name).write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(UserError, match="--overwrite true"):
        checkpoint.load_training_state(tmp_path)


def test_works_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no hard links here")

    monkeypatch.setattr(os, "link", refuse)
    for value in (1, 2):
        checkpoint.save_training_state(tmp_path, state(value))
    assert checkpoint.load_training_state(tmp_path)["numbers"] == 2.0
    assert torch.load(tmp_path / checkpoint.PREVIOUS, weights_only=True)["numbers"] == 1.0


def test_links_are_replaced(tmp_path):
    link = tmp_path / "best.pth"
    for target in ("1epoch.pth", "2epoch.pth", "2epoch.pth"):
        checkpoint.replace_link(link, target)
        assert os.readlink(link) == target
    assert [p.name for p in tmp_path.iterdir()] == ["best.pth"]


def write_models(folder, count, seed=0):
    random = np.random.default_rng(seed)
    models = []
    for i in range(1, count + 1):
        arrays = {
            "w": random.normal(size=(5, 7)).astype(np.float32),
            "c": (random.normal(size=3) + 1j * random.normal(size=3)).astype(np.complex64),
            "steps": np.array(i * 10),
        }
        torch.save({k: torch.from_numpy(np.asarray(v)) for k, v in arrays.items()}, folder / f"{i}epoch.pth")
        models.append(arrays)
    return models


def test_average_is_numpys_mean(tmp_path):
    models = write_models(tmp_path, 3)
    average = checkpoint.average_models([tmp_path / f"{i}epoch.pth" for i in (2, 1, 3)])
    for key in ("w", "c"):
        expected = np.mean([m[key].astype(np.complex128 if key == "c" else np.float64) for m in models], axis=0)
        np.testing.assert_array_equal(average[key].numpy(), expected.astype(models[0][key].dtype))
    assert average["steps"] == 20  # the best model's, not a sum
    assert average["w"].dtype == torch.float32


def test_averages_of_several_criteria_and_sizes_do_not_mix(tmp_path):
    models = write_models(tmp_path, 4)
    rankings = {"valid.loss": [4, 2, 1, 3], "valid.pesq": [3, 4, 2, 1], "valid.none": []}
    checkpoint.write_averages(tmp_path, rankings, [1, 2, 3, 9])
    for criterion, epochs in list(rankings.items())[:2]:
        for n in (1, 2, 3):
            stored = torch.load(tmp_path / f"{criterion}.ave_{n}best.pth", weights_only=True)
            expected = np.mean([models[e - 1]["w"].astype(np.float64) for e in epochs[:n]], axis=0)
            np.testing.assert_array_equal(stored["w"].numpy(), expected.astype(np.float32))
        assert os.readlink(tmp_path / f"{criterion}.ave.pth") == f"{criterion}.ave_3best.pth"
        assert os.readlink(tmp_path / f"{criterion}.ave_1best.pth") == f"{epochs[0]}epoch.pth"
    assert not list(tmp_path.glob("valid.none*"))


def test_an_average_by_the_name_that_enh_sh_expects(tmp_path):
    write_models(tmp_path, 2)
    stats = {epoch: {"valid": {"loss": 1.0 / epoch, "pesq": 1.0 / epoch}} for epoch in (1, 2)}
    BestEpochs(tmp_path, [("valid", "pesq", "max")], [1]).write_averages(stats)
    assert os.readlink(tmp_path / "valid.loss.ave.pth") == "valid.pesq.ave.pth"
    (tmp_path / "valid.loss.ave.pth").unlink()
    BestEpochs(tmp_path, [("valid", "pesq", "max"), ("valid", "loss", "min")], [1]).write_averages(stats)
    assert (tmp_path / "valid.loss.ave.pth").resolve().name == "2epoch.pth"


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("[enforce fail at inline_container.cc:1]")]
)
def test_full_disk_names_the_file_and_keeps_the_last_state(tmp_path, monkeypatch, error):
    checkpoint.save_training_state(tmp_path, state(1))
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(UserError, match="cannot write .*checkpoint.pth: .*; free space and run the same command again"):
        checkpoint.save_training_state(tmp_path, state(2))
    with pytest.raises(UserError, match="cannot write .*1epoch.pth"):
        checkpoint.save_file(state(2), tmp_path / "1epoch.pth")
    assert checkpoint.load_training_state(tmp_path)["numbers"] == 1
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.CHECKPOINT]


def test_other_errors_of_a_save_are_not_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(RuntimeError("CUDA error")))
    with pytest.raises(RuntimeError, match="CUDA error"):
        checkpoint.save_file(state(1), tmp_path / "1epoch.pth")


def test_dangling_links_are_removed(tmp_path):
    (tmp_path / "1epoch.pth").write_bytes(b"")
    links = {"a.best": "1epoch", "b.best": "2epoch", "a.ave": "a.best", "b.ave": "c.ave", "c.ave": "2epoch"}
    for name, target in links.items():
        checkpoint.replace_link(tmp_path / f"{name}.pth", f"{target}.pth")
    checkpoint.remove_dangling_links(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1epoch.pth", "a.ave.pth", "a.best.pth"]


def test_different_models_are_not_averaged(tmp_path):
    write_models(tmp_path, 2)
    torch.save({"w": torch.zeros(5, 7)}, tmp_path / "2epoch.pth")
    with pytest.raises(UserError, match="2epoch.pth.*c, steps"):
        checkpoint.average_models([tmp_path / "1epoch.pth", tmp_path / "2epoch.pth"])


def test_load_weights(tmp_path):
    write_models(tmp_path, 1)
    assert set(checkpoint.load_weights(tmp_path / "1epoch.pth")) == {"w", "c", "steps"}
    checkpoint.save_training_state(tmp_path, state(5))
    assert checkpoint.load_weights(tmp_path / checkpoint.CHECKPOINT)["w"][0, 0] == 5
    torch.save({"a": print}, tmp_path / "code.pth")
    torch.save({"a": 1}, tmp_path / "number.pth")
    failures = {"code.pth": "no file of weights", "number.pth": "no named tensors", "gone": "cannot read"}
    for name, words in failures.items():
        with pytest.raises(UserError, match=words):
            checkpoint.load_weights(tmp_path / name)


def test_key_coverage():
    checkpoint.check_key_coverage(["a.w", "kd.w"], ["a.w", "old.w"], allow_prefixes=["kd.", "old."])
    with pytest.raises(UserError, match=r"1 missing \(a.w\), 1 unexpected \(b.w\)"):
        checkpoint.check_key_coverage(["a.w"], ["b.w"])
