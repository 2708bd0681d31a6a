"""Mixtures made while training: levels, rooms, repetition, sources and the errors about them."""

import shutil

import numpy as np
import pytest
import scipy.signal
import soundfile

from i2srf_kd.data import mixing
from i2srf_kd.data.chunk_dataset import ParallelFiles, SeededChunk
from i2srf_kd.data.chunks import Chunk
from i2srf_kd.data.mixing import MixedSource, MixingOptions
from i2srf_kd.data.mixture_sources import find_audio
from i2srf_kd.system.errors import UserError

RATE = 8000
CHUNK = 8000


def write(path, wave, fs=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, fs, subtype="FLOAT" if path.suffix == ".wav" else None)
    return path


def talk(random, samples):
    """Noise that is switched on and off."""
    wave = random.normal(0, 0.1, samples)
    wave[samples // 3 : samples // 2] = 0
    return wave


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """12 speakers with two utterances each, noise, more speech and responses."""
    folder, random = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    tables = {"wav": [], "spk1": []}
    lengths = {}
    for speaker in range(12):
        for number in range(2):
            utt_id, length = f"p{speaker:02d}_{number}", int(random.integers(4000, 16000))
            clean, lengths[utt_id] = talk(random, length), length
            noise = 0.05 * np.sin(2 * np.pi * 1000 * np.arange(length) / RATE)
            for name, wave in (("spk1", clean), ("wav", clean + noise)):
                tables[name].append(f"{utt_id} {write(folder / name / f'{utt_id}.wav', wave)}")
    for name, lines in tables.items():
        (folder / f"{name}.scp").write_text("\n".join(lines) + "\n")
    for number in range(3):
        write(folder / "noise" / "deep" / "down" / f"n{number}.wav", random.normal(0, 0.05, 3000 + 9000 * number))
        write(folder / "more" / f"extra{number}.flac", talk(random, 20000))
        response = random.normal(0, 0.1, 3000) * np.exp(-np.arange(3000) / 500)
        response[100] = 0.8
        write(folder / "rooms" / f"r{number}.wav", response)
    return folder, lengths


def pairs(corpus):
    folder, lengths = corpus
    return ParallelFiles({"speech_mix": folder / "wav.scp", "speech_ref1": folder / "spk1.scp"}, lengths)


def source(corpus, **options):
    options = {"noise": [str(corpus[0] / "noise")], **options}
    return MixedSource(pairs(corpus), MixingOptions.from_section(options), CHUNK)


def chunk(seed, utt_id="p03_1", start=0):
    return SeededChunk(Chunk(utt_id, start, CHUNK), (1, 2, seed))


def examples(mixed, count=60):
    ids = sorted(mixed.lengths)
    return [mixed.make(chunk(seed, ids[seed % len(ids)])) for seed in range(count)]


def level(wave):
    """Power in dB of the frames of 20 ms in which somebody speaks, frame by frame."""
    power = [np.mean(wave[i : i + 160] ** 2) for i in range(0, len(wave) - 159, 160)]
    return 10 * np.log10(np.mean([p for p in power if p >= max(power) / 1000]))


def test_the_ratio_of_active_speech_to_noise_is_the_one_drawn(corpus):
    ratios = []
    for example in examples(source(corpus, snr_db=[-2, 18])):
        noise = example.mixture - example.reference
        ratio = level(example.reference) - 10 * np.log10(np.mean(noise**2))
        assert ratio == pytest.approx(example.made_of["snr_db"], abs=0.2)
        ratios.append(ratio)
    assert -2.2 < min(ratios) < 2 and 14 < max(ratios) < 18.2
    assert all(example.mixture.shape == example.reference.shape == (CHUNK,) for example in examples(source(corpus), 3))


def test_an_example_depends_on_its_chunk_and_seed_alone(corpus):
    everything = dict(
        speech=[str(corpus[0] / "more")], responses=[str(corpus[0] / "rooms")], reverberation=0.5, second_noise=0.5,
        babble=0.3, speech_shaped=0.3, residual=0.2, gain_db=[-10, 5], equalisation_db=3, band_limit=0.3, low_pass=0.3,
        clipping=0.3, noise_only=0.1, speech_only=0.1, as_recorded=0.1,
    )  # fmt: skip
    first, second = source(corpus, **everything), source(corpus, **everything)
    kept = examples(first)
    np.random.seed(3)
    for seed in (59, 3, 17):
        again = second.make(chunk(seed, sorted(second.lengths)[seed % 24]))
        np.testing.assert_array_equal(again.mixture, kept[seed].mixture)
        np.testing.assert_array_equal(again.reference, kept[seed].reference)
        assert again.made_of == kept[seed].made_of
    mixed = [e for e in kept if e.made_of["noise"] != "as recorded"]
    assert len({example.mixture.tobytes() for example in mixed}) == len(mixed) > 40
    assert all(np.isfinite(e.mixture).all() and np.abs(e.mixture).max() <= 1.000001 for e in kept)
    assert all(e.mixture.dtype == e.reference.dtype == np.float32 for e in kept)


def test_an_option_more_does_not_change_what_the_others_draw(corpus):
    more = {"gain_db": [6, 6], "clipping": 1, "equalisation_db": 3}
    for before, after in zip(examples(source(corpus), 10), examples(source(corpus, **more), 10), strict=True):
        assert before.made_of["snr_db"] == after.made_of["snr_db"] and before.made_of["noise"] == after.made_of["noise"]


def test_kinds_of_noise_come_in_their_shares_and_babble_is_of_other_speakers(corpus):
    made = [e.made_of for e in examples(source(corpus, babble=0.4, speech_shaped=0.3, second_noise=0.5), 200)]
    kinds = [m["noise"].split(" + ")[0].split(":")[0] for m in made]
    assert 0.3 < kinds.count("babble") / 200 < 0.5 and 0.2 < kinds.count("speech-shaped") / 200 < 0.4
    assert 0.4 < sum(" + " in m["noise"] for m in made) / 200 < 0.6
    counts = set()
    for m in made:
        for part in m["noise"].split(" + "):
            if part.startswith("babble: "):
                speakers = [name[:3] for name in part.removeprefix("babble: ").split()]
                assert len(set(speakers)) == len(speakers) and m["speech"][:3] not in speakers
                counts.add(len(speakers))
    assert counts == {5, 6, 7, 8}


def test_without_noise_that_of_other_utterances_is_taken(corpus):
    for example in examples(source(corpus, noise=[]), 20):
        assert example.made_of["noise"].startswith("residual: ")
        assert example.made_of["noise"] != f"residual: {example.made_of['speech']}"
        noise = example.mixture - example.reference
        spectrum = np.abs(np.fft.rfft(noise))
        assert spectrum.argmax() == pytest.approx(1000, abs=2)  # the tone of the training set's mixtures


def test_shares_without_speech_without_noise_and_as_recorded(corpus):
    made = examples(source(corpus, noise_only=0.3, speech_only=0.3, as_recorded=0.3), 200)
    silent = [e for e in made if not e.reference.any()]
    clean = [e for e in made if np.array_equal(e.mixture, e.reference)]
    recorded = [e for e in made if e.made_of["noise"] == "as recorded"]
    assert all(0.2 < len(part) / 200 < 0.4 for part in (silent, clean, recorded))
    assert all(e.mixture.any() and e.made_of["speech"] == "none" for e in silent)
    wave, _ = soundfile.read(corpus[0] / "wav" / f"{recorded[0].made_of['speech']}.wav", dtype="float32")
    np.testing.assert_array_equal(recorded[0].mixture[: len(wave[:CHUNK])], wave[:CHUNK])


def test_more_speech_is_drawn_in_proportion_to_its_hours(corpus):
    mixed = source(corpus, speech=[str(corpus[0] / "more")])
    share = np.mean([e.made_of["speech"].startswith("extra") for e in examples(mixed, 200)])
    assert share == pytest.approx(60000 / (60000 + sum(corpus[1].values())), abs=0.1)


@pytest.mark.parametrize("target, early", [("dry", 1), ("early", 400)])
def test_rooms_keep_the_reference_in_time(target, early):
    random = np.random.default_rng(1)
    dry, response = random.normal(0, 0.1, 4000), random.normal(0, 0.05, 2000)
    response[150] = -0.5
    wet, reference = mixing.reverberated(dry, response, early)
    np.testing.assert_allclose(wet, np.convolve(dry, response[150:] / -0.5)[:4000], atol=1e-5)
    np.testing.assert_allclose(reference, np.convolve(dry, response[150 : 150 + early] / -0.5)[:4000], atol=1e-5)
    if target == "dry":
        np.testing.assert_allclose(reference, dry, atol=1e-5)


def test_rooms_are_heard_in_the_mixture(corpus):
    mixed = source(corpus, responses=[str(corpus[0] / "rooms")], reverberation=1, speech_only=1)
    for example in examples(mixed, 5):
        assert example.made_of["room"].startswith("r")
        assert 0 < np.mean((example.mixture - example.reference) ** 2)
        assert np.corrcoef(example.mixture, example.reference)[0, 1] > 0.3


def test_speech_shaped_noise_has_the_spectrum_of_speech():
    random = np.random.default_rng(0)
    speech = scipy.signal.lfilter([1], [1, -0.9], random.normal(0, 0.1, 40000)).astype(np.float32)
    noise = mixing.speech_shaped(speech, random)
    frequency, wanted = scipy.signal.welch(speech, RATE)
    _, found = scipy.signal.welch(noise, RATE)
    ratio = 10 * np.log10(found / wanted)
    assert np.ptp(ratio[2:-2]) < 3
    assert abs(np.corrcoef(speech, noise)[0, 1]) < 0.05


def test_device_effects(corpus):
    limited = examples(source(corpus, band_limit=1), 5)
    for example in limited:
        for wave in (example.mixture, example.reference):
            _, power = scipy.signal.welch(wave, RATE)
            assert power[0] < 0.05 * power[20:60].mean()
    for example in examples(source(corpus, low_pass=1), 5):
        high = [scipy.signal.welch(wave, RATE)[1][-3:].mean() for wave in (example.mixture, example.reference)]
        assert high[1] > 1e-9
    for example in examples(source(corpus, clipping=1), 5):
        peak = np.abs(example.mixture).max()
        assert (np.abs(example.mixture) > 0.9999 * peak).sum() > 5
    gains = [
        float(e.made_of["effects"].split("gain ")[1].split()[0]) for e in examples(source(corpus, gain_db=[-9, 3]))
    ]
    assert -9.1 <= min(gains) < -6 and 0 < max(gains) <= 3.1


def test_equalisation_stays_within_its_range(corpus):
    flat, bent = (examples(source(corpus, speech_only=1, equalisation_db=db), 5) for db in (0, 6))
    for before, after in zip(flat, bent, strict=True):
        spectra = [np.abs(np.fft.rfft(e.reference)) for e in (before, after)]
        ratio = 20 * np.log10(spectra[1][10:-10] / np.maximum(spectra[0][10:-10], 1e-9))
        assert -6.2 < np.percentile(ratio, 1) and np.percentile(ratio, 99) < 6.2 and np.ptp(ratio) > 3


def test_sources_may_be_folders_tables_archives_and_files(corpus, tmp_path):
    folder, _ = corpus
    files = sorted((folder / "noise").rglob("*.wav"))
    table = tmp_path / "noise.scp"
    table.write_text(f"first {files[0]}\nsecond {files[1]}\n")
    assert list(find_audio([str(table)], "x")) == ["first", "second"]
    assert list(find_audio([str(files[0])], "x")) == ["n0"]
    assert list(find_audio([str(folder / "noise")], "x")) == [f"deep/down/n{i}" for i in range(3)]
    assert len(find_audio([str(folder / "noise"), str(folder / "noise" / "deep")], "x")) == 6
    assert len(source(corpus, noise=[str(table), str(files[2])]).noises) == 3


def test_sources_in_linked_folders_are_found_and_what_is_passed_over_is_told(corpus, tmp_path, caplog):
    folder, _ = corpus
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "linked").symlink_to(folder / "noise")
    (tmp_path / "in" / "gone.wav").symlink_to("nowhere")
    for name in ("n.m4a", ".hidden.wav"):
        (tmp_path / "in" / name).write_bytes(b"")
    for suffix in (".wav", ".flac"):
        (tmp_path / "in" / "same").with_suffix(suffix).write_bytes(b"")
    found = find_audio([str(tmp_path / "in")], "x")
    assert list(found) == [*(f"linked/deep/down/n{i}" for i in range(3)), "same", "same.wav"]
    assert "gone.wav: a link to nothing" in caplog.text and "1 .m4a file(s), which cannot be read" in caplog.text


def test_fingerprint_notices_other_audio_and_not_another_place(corpus, tmp_path):
    def fingerprint(folder):
        return MixingOptions.from_section({"noise": [str(folder)]}).fingerprint()

    write(tmp_path / "a" / "x.wav", np.ones(100))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b")
    write(tmp_path / "b" / "x.wav", np.ones(100) / 2)
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")
    write(tmp_path / "a" / "y.wav", np.ones(100))
    assert fingerprint(tmp_path / "a") != fingerprint(corpus[0] / "noise")


@pytest.mark.parametrize(
    "options, words",
    [
        ({"snr": [0, 5]}, "mixing has no option snr: .*did you mean snr_db"),
        ({"snr_db": [18, -2]}, r"snr_db must be \[lowest, highest\] in dB, not \[18.0, -2.0\]"),
        ({"snr_db": 5}, "snr_db must be a list of numbers"),
        ({"babble": 1.5}, "babble is a share from 0 to 1, not 1.5"),
        ({"babble": 0.8, "speech_shaped": 0.3}, "their sum is above 1"),
        ({"reverberation": 0.5}, "responses and reverberation go together"),
        ({"speakers": "["}, "no regular expression"),
        ({"speakers": "^p"}, "needs a group"),
        ({"noise": ["/nowhere"]}, "mixing: noise: there is no /nowhere"),
        ({"babble": 0.5, "speakers": "^(p)"}, r"babble needs 9 speakers, and speakers: '\^\(p\)' tells 1 apart \(p\)"),
        ({"equalisation_db": 50}, "equalisation_db must be 0 to 40"),
    ],
)
def test_bad_options_are_named(corpus, options, words):
    with pytest.raises(UserError, match=words):
        source(corpus, **options)


def test_bad_sources_are_named_before_anything_is_mixed(corpus, tmp_path):
    write(tmp_path / "silent" / "s.wav", np.zeros(9000))
    write(tmp_path / "fast" / "f.wav", np.ones(9000) / 2, 16000)
    write(tmp_path / "long" / "l.wav", np.ones(CHUNK + 1) / 2)
    (tmp_path / "empty").mkdir()
    for name, words in (("silent", "s.wav is silent"), ("fast", "f.wav has 16000 Hz"), ("empty", "has no audio files")):
        for option in ("noise", "speech"):
            with pytest.raises(UserError, match=f"mixing: {option}: .*{words}"):
                source(corpus, **{option: [str(tmp_path / name)]})
    (tmp_path / "gone.scp").write_text(f"gone {tmp_path}/gone.wav\n")
    with pytest.raises(UserError, match="gone.wav"):
        source(corpus, noise=[str(tmp_path / "gone.scp")])
    with pytest.raises(UserError, match="mixing: noise: cannot read .*gone.wav"):
        MixingOptions.from_section({"noise": [str(tmp_path / "gone.scp")]}).fingerprint()
    with pytest.raises(UserError, match="l.wav has 8001 samples, more than --chunk_length 8000"):
        source(corpus, responses=[str(tmp_path / "long")], reverberation=1)


def test_a_set_without_noise_of_its_own_needs_some(corpus):
    folder, lengths = corpus
    clean = ParallelFiles({"speech_mix": folder / "spk1.scp", "speech_ref1": folder / "spk1.scp"}, lengths)
    with pytest.raises(UserError, match="hold nothing but speech: name folders as noise"):
        MixedSource(clean, MixingOptions(), CHUNK)
    one = ParallelFiles({"speech_mix": folder / "wav.scp", "speech_ref1": folder / "spk1.scp"}, {"p00_0": 14207})
    with pytest.raises(UserError, match="at least two"):
        MixedSource(one, MixingOptions(), CHUNK)
