"""Reading, writing and resampling audio files, good and bad ones."""

import logging
import os
import struct
import unicodedata

import numpy as np
import pytest
import scipy.signal
import soundfile
from plain_user import plain_user

from i2srf_kd.audio.io import as_samples, check_written, count_clipped, probe, read_audio, write_audio
from i2srf_kd.audio.level import active_frames, active_power
from i2srf_kd.audio.resample import resample, resampled_length
from i2srf_kd.system.errors import FULL, DiskFull, UserError

FS = 16000


def tone(seconds: float = 0.5, fs: int = FS, frequency: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * fs)) / fs)


@pytest.mark.parametrize("name", ["plain.wav", "with space.wav", "größe 語.flac"])
@pytest.mark.parametrize("shape", [(4000,), (4000, 1), (4000, 2)])
def test_16_bit_audio_survives_writing_and_reading_bit_by_bit(tmp_path, name, shape):
    values = np.random.default_rng(0).integers(-32768, 32768, size=shape).astype(np.int16)
    path = tmp_path / name
    assert write_audio(path, values.astype(np.float32) / 32768, FS) == 0
    assert np.array_equal(soundfile.read(path, dtype="int16", always_2d=len(shape) == 2)[0], values)
    wave, fs = read_audio(path)
    assert fs == FS and wave.dtype == np.float32
    assert wave.ndim == (2 if shape[1:] == (2,) else 1)
    assert np.array_equal(wave.reshape(shape) * 32768, values)


def test_24_bit_and_float_keep_their_precision(tmp_path):
    wave = np.random.default_rng(1).uniform(-1, 1, 1000).astype(np.float32)
    write_audio(tmp_path / "x.wav", wave, FS, subtype="PCM_24")
    assert probe(tmp_path / "x.wav").subtype == "PCM_24"
    assert np.abs(read_audio(tmp_path / "x.wav")[0] - wave).max() <= 2.0**-23
    write_audio(tmp_path / "y.wav", 3 * wave, FS, subtype="FLOAT")
    assert np.array_equal(read_audio(tmp_path / "y.wav")[0], 3 * wave)


def test_probe_reads_the_header(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.zeros((7, 3)), 48000, subtype="PCM_16")
    assert probe(tmp_path / "x.wav") == (7, 48000, 3, "PCM_16")


def test_8_bit_and_clipped_files_are_read(tmp_path):
    soundfile.write(tmp_path / "8bit.wav", tone(), FS, subtype="PCM_U8")
    assert np.abs(read_audio(tmp_path / "8bit.wav")[0] - tone()).max() <= 1 / 128
    soundfile.write(tmp_path / "clipped.wav", 4 * tone(), FS)
    assert read_audio(tmp_path / "clipped.wav")[0].min() == -1.0


def test_parts_mono_and_resampling(tmp_path):
    wave = np.stack([tone(), np.zeros(8000)], axis=1)
    write_audio(tmp_path / "x.wav", wave, FS)
    whole = read_audio(tmp_path / "x.wav")[0]
    part, fs = read_audio(tmp_path / "x.wav", start=100, frames=50)
    assert fs == FS and np.array_equal(part, whole[100:150])
    assert np.array_equal(read_audio(tmp_path / "x.wav", start=7990)[0], whole[7990:])
    assert np.allclose(read_audio(tmp_path / "x.wav", mono=True)[0], whole.mean(axis=1))
    resampled, fs = read_audio(tmp_path / "x.wav", fs=8000)
    assert fs == 8000 and resampled.shape == (4000, 2)
    for start, frames in [(-1, 5), (8000, -1), (7999, 2), (0, 0)]:
        with pytest.raises(UserError, match="x.wav: has 8000 samples"):
            read_audio(tmp_path / "x.wav", start=start, frames=frames)


@pytest.mark.parametrize(
    "contents, reason",
    [
        (None, "no such file"),
        (b"", "empty file"),
        (b"<!DOCTYPE html><html>not found</html>", "HTML"),
        ("plain text, grüße".encode(), "text file"),
        (bytes(range(256)) * 4, "not a readable audio file"),
    ],
)
def test_files_that_are_not_audio(tmp_path, contents, reason):
    path = tmp_path / "bad ü.wav"
    if contents is not None:
        path.write_bytes(contents)
    for function in (probe, read_audio):
        with pytest.raises(UserError, match=f"bad ü.wav: .*{reason}"):
            function(path)


def test_folder_instead_of_file(tmp_path):
    with pytest.raises(UserError, match="not a file"):
        read_audio(tmp_path)


def test_truncated_files_are_found(tmp_path):
    for name in ("x.wav", "x.flac"):
        path = tmp_path / name
        write_audio(path, np.random.default_rng(2).uniform(-0.5, 0.5, 40000), FS)
        path.write_bytes(path.read_bytes()[:30000])
        with pytest.raises(UserError, match=f"{name}: .*truncated"):
            read_audio(path)
    with pytest.raises(UserError, match="truncated, 50044 bytes are missing"):
        probe(tmp_path / "x.wav")


@pytest.mark.parametrize(
    "data, riff",
    [
        *(
            (length, (length + 36) % 2**32)
            for length in (0x7FFF0000, 0x7FFFF000, 0x7FFFFFD8, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
        ),
        *((0, riff) for riff in (0, 8, 36, 16036, 0x7FFFF024, 0xFFFFFFFF)),
    ],
)
def test_wav_of_unknown_length_from_a_pipe_is_read(tmp_path, data, riff):
    path = tmp_path / "x.wav"
    write_audio(path, tone(), FS)
    contents = bytearray(path.read_bytes())
    position = contents.index(b"data") + 4
    contents[position : position + 4], contents[4:8] = struct.pack("<I", data), struct.pack("<I", riff)
    path.write_bytes(contents)
    assert probe(path).frames == 8000
    assert np.array_equal(read_audio(path, start=5, frames=100)[0], np.float32(np.rint(tone() * 32768) / 32768)[5:105])


def as_flac_from_a_pipe(content: bytearray) -> None:
    """Without the number of samples, the last 36 bits of eight bytes in the first block."""
    content[18:26] = (int.from_bytes(content[18:26], "big") >> 36 << 36).to_bytes(8, "big")


def as_rf64_from_a_pipe(content: bytearray) -> None:
    content[20:44] = bytes(24)


def as_rifx_from_a_pipe(content: bytearray) -> None:
    content[40:44] = bytes(4)


@pytest.mark.parametrize(
    "form, damage",
    [
        ({"format": "FLAC"}, as_flac_from_a_pipe),
        ({"format": "RF64"}, as_rf64_from_a_pipe),
        ({"format": "WAV", "endian": "BIG"}, as_rifx_from_a_pipe),
    ],
    ids=["flac", "rf64", "rifx"],
)
def test_other_files_of_unknown_length_are_read(tmp_path, form, damage):
    soundfile.write(tmp_path / "x", tone(), FS, subtype="PCM_16", **form)
    content = bytearray((tmp_path / "x").read_bytes())
    damage(content)
    (tmp_path / "x").write_bytes(content)
    assert probe(tmp_path / "x").frames == 8000
    assert np.abs(read_audio(tmp_path / "x")[0] - tone()).max() < 1e-4
    assert len(read_audio(tmp_path / "x", start=7000, frames=1000)[0]) == 1000


@pytest.mark.parametrize("form", ["WAVEX", "RF64", "W64", "AIFF", "AU", "NIST"])
def test_truncated_files_of_other_forms_are_found(tmp_path, form):
    soundfile.write(tmp_path / "x", tone(), FS, subtype="PCM_16", format=form)
    assert len(read_audio(tmp_path / "x")[0]) == 8000
    content = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(content[:-1000])
    with pytest.raises(UserError, match="x: truncated, 1[0-9]{3} bytes are missing"):
        probe(tmp_path / "x")


def test_samples_that_the_header_does_not_count_are_told(tmp_path, caplog):
    write_audio(tmp_path / "x.wav", tone(), FS)
    content = bytearray((tmp_path / "x.wav").read_bytes())
    content[40:44] = struct.pack("<I", 6000)
    (tmp_path / "x.wav").write_bytes(content)
    assert probe(tmp_path / "x.wav").frames == len(read_audio(tmp_path / "x.wav")[0]) == 3000
    assert caplog.text.count("x.wav: 10000 bytes after the samples are passed over") == 1


def test_no_samples_before_other_chunks_are_no_placeholder(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.zeros(0), FS)
    contents = bytearray((tmp_path / "x.wav").read_bytes()) + b"LIST" + struct.pack("<I", 4) + b"INFO"
    contents[4:8] = struct.pack("<I", len(contents) - 8)
    (tmp_path / "x.wav").write_bytes(contents)
    assert probe(tmp_path / "x.wav").frames == 0


def test_floating_point_at_the_scale_of_integers_is_refused(tmp_path):
    soundfile.write(tmp_path / "x.wav", 32768 * tone(), FS, subtype="FLOAT")
    with pytest.raises(UserError, match="x.wav: samples of up to 16384 .* divide them by 32768"):
        read_audio(tmp_path / "x.wav")


def test_files_that_may_not_be_read_are_named(tmp_path):
    write_audio(tmp_path / "x.wav", tone(), FS)
    (tmp_path / "x.wav").chmod(0)
    with plain_user(), pytest.raises(UserError, match=r"x.wav: cannot be read \(Permission denied\)"):
        read_audio(tmp_path / "x.wav")


def test_names_that_look_alike_are_told_apart(tmp_path):
    write_audio(tmp_path / unicodedata.normalize("NFD", "café.wav"), tone(), FS)
    with pytest.raises(UserError, match="café.wav: no such file; one whose name looks the same.* NFD, is there"):
        read_audio(tmp_path / unicodedata.normalize("NFC", "café.wav"))


def test_names_that_are_not_utf8_are_written_and_read(tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav")
    write_audio(name, tone(), FS)
    assert len(read_audio(name)[0]) == 8000


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite_values_are_named(tmp_path, value):
    wave = tone()
    wave[123] = value
    soundfile.write(tmp_path / "x.wav", wave, FS, subtype="FLOAT")
    with pytest.raises(UserError, match="x.wav: NaN or infinite values, the first at sample 123"):
        read_audio(tmp_path / "x.wav")
    with pytest.raises(UserError, match="sample 123"):
        read_audio(tmp_path / "x.wav", start=100, frames=100)
    with pytest.raises(UserError, match="y.wav"):
        write_audio(tmp_path / "y.wav", wave, FS)
    assert not (tmp_path / "y.wav").exists()


def test_file_without_samples(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.zeros(0), FS)
    assert probe(tmp_path / "x.wav").frames == 0
    with pytest.raises(UserError, match="x.wav: holds no samples"):
        read_audio(tmp_path / "x.wav")


def test_clipping_is_counted_and_logged(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert write_audio(tmp_path / "x.wav", np.array([0.0, 1.0, -1.0, 1.5, -2.0]), FS) == 2
    assert "x.wav: 2 samples" in caplog.text
    assert soundfile.read(tmp_path / "x.wav", dtype="int16")[0].tolist() == [0, 32767, -32768, 32767, -32768]


@pytest.mark.parametrize("number", FULL)
def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch, number):
    path = tmp_path / "x.wav"
    write_audio(path, tone(), FS)
    before = path.read_bytes()

    def full_disk(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(soundfile, "write", full_disk)
    with pytest.raises(DiskFull, match=f"^cannot write .*x.wav: {os.strerror(number)}.* has .* MB left.*free space"):
        write_audio(path, tone(), FS)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_disk_that_fills_up_while_writing(tmp_path):
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot write .*x.wav: .* MB left"):
            write_audio(tmp_path / "x.wav", tone(10.0), FS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_write_protected_folder_is_not_taken_for_a_full_disk(protected_folder):
    with pytest.raises(UserError, match="cannot write .*x.wav: Permission denied; mend that"):
        write_audio(protected_folder / "x.wav", tone(), FS)


def test_formats_that_cannot_be_written(tmp_path):
    write_audio(tmp_path / "x.wav", np.zeros((10, 16)), FS)
    assert probe(tmp_path / "x.wav").channels == 16
    with pytest.raises(UserError, match="FLAC holds at most 8 channels, not 9"):
        write_audio(tmp_path / "x.flac", np.zeros((10, 9)), FS)
    with pytest.raises(UserError, match="x.xyz"):
        write_audio(tmp_path / "x.xyz", np.zeros(10), FS)


@pytest.mark.parametrize("fs_in, fs_out", [(48000, 16000), (44100, 16000), (22050, 16000), (8000, 16000)])
def test_resampled_tone_is_the_tone_at_the_new_rate(fs_in, fs_out):
    wave = resample(tone(1.0, fs_in, 1000.0), fs_in, fs_out)
    assert len(wave) == fs_out and wave.dtype == np.float32
    edge = fs_out // 20
    assert np.abs(wave - tone(1.0, fs_out, 1000.0))[edge:-edge].max() < 1e-4


def test_resampling_removes_what_would_alias():
    wave = resample(tone(1.0, 48000, 10000.0), 48000, 16000)
    assert np.abs(wave[1000:-1000]).max() < 1e-4


@pytest.mark.parametrize("n_samples", [1, 2, 47, 48, 49, 1000, 44101])
def test_resampled_length_is_exact(n_samples):
    for fs_in, fs_out in [(48000, 16000), (44100, 16000), (16000, 22050)]:
        expected = len(scipy.signal.resample_poly(np.zeros(n_samples), fs_out // 50, fs_in // 50))
        assert resampled_length(n_samples, fs_in, fs_out) == expected
        assert resample(np.zeros((n_samples, 2)), fs_in, fs_out).shape == (expected, 2)


def test_resampling_keeps_channels_apart():
    left, right = tone(0.2, 48000, 500.0), tone(0.2, 48000, 900.0)
    both = resample(np.stack([left, right], axis=1), 48000, 16000)
    assert np.allclose(both[:, 0], resample(left, 48000, 16000), atol=1e-6)
    assert np.allclose(both[:, 1], resample(right, 48000, 16000), atol=1e-6)


def test_equal_rates_change_nothing_and_bad_ones_are_refused():
    wave = tone().astype(np.float32)
    assert resample(wave, FS, FS) is wave
    assert resample(np.zeros(0), 48000, 16000).shape == (0,)
    with pytest.raises(UserError, match="must be positive"):
        resample(wave, FS, 0)


def test_active_level_ignores_pauses():
    speech = np.concatenate([np.zeros(FS), tone(1.0), 1e-4 * tone(1.0)])
    assert active_power(speech, FS) == pytest.approx(0.125, rel=1e-3)
    assert active_frames(speech, FS).sum() == 50
    assert active_power(np.zeros(100), FS) == 0.0 and not active_frames(np.zeros(100), FS).any()


def test_real_recordings_are_read(audio_dir):
    path = sorted((audio_dir / "clean").glob("*.flac"))[0]
    wave, fs = read_audio(path)
    expected, expected_fs = soundfile.read(path, dtype="float32")
    assert fs == expected_fs == probe(path).fs and np.array_equal(wave, expected)


def test_values_between_two_steps_are_rounded(tmp_path):
    write_audio(tmp_path / "x.wav", np.array([0.4, 0.6, -0.4, -0.6, 100.9]) / 32768, FS)
    assert soundfile.read(tmp_path / "x.wav", dtype="int16")[0].tolist() == [0, 1, 0, -1, 101]


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_U8", "FLOAT"])
def test_samples_are_what_reading_gives_back(tmp_path, subtype):
    wave = np.array([0.0, 0.5, -0.25, -1.0, 2.0])
    soundfile.write(tmp_path / "x.wav", as_samples(wave, subtype), 16000, subtype=subtype)
    expected = wave if subtype == "FLOAT" else np.minimum(wave, 1.0)
    np.testing.assert_allclose(soundfile.read(tmp_path / "x.wav")[0], expected, atol=1 / 127)
    assert count_clipped(wave, subtype) == (0 if subtype == "FLOAT" else 1)


def test_integers_are_written_as_they_are():
    wave = np.array([-32768, 7, 32767], dtype=np.int16)
    assert as_samples(wave, "PCM_16") is wave and count_clipped(wave, "PCM_16") == 0


@pytest.mark.parametrize("frames, complete", [(4000, True), (4001, False)])
def test_files_that_lost_their_end_on_closing_are_noticed(tmp_path, frames, complete):
    soundfile.write(tmp_path / "temporary.ogg", np.zeros(4000), FS)
    if complete:
        check_written(tmp_path / "temporary.ogg", frames, "x.ogg")
    else:
        with pytest.raises(UserError, match="x.ogg: .*is the disk full"):
            check_written(tmp_path / "temporary.ogg", frames, "x.ogg")
