"""What egs/l3das23/run.sh makes of its options, with the stand-in of test_pipeline_options for all commands."""

import shutil

import pytest
from egs.test_pipeline_options import Recipe, option
from places import REPOSITORY


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    recipe = Recipe(tmp_path)
    shutil.copy(REPOSITORY / "egs" / "l3das23" / "run.sh", recipe.folder / "run.sh")
    return recipe


def folders(calls, command="data.py", name="--data_dir"):
    return [option(arguments, name) for called, arguments, _ in calls if called == command]


@pytest.mark.slow
def test_mini_runs_both_numbers_of_microphones_on_one_corpus(recipe):
    words = ("--mini", "true", "--nj", "1", "--inference_nj", "1")
    models = ("teacher", "student", "student_kd")
    for name in ("mics1/noisy", *(f"mics{mics}/{model}" for mics in (1, 2) for model in models)):
        (recipe.folder / "mini" / "exp" / name / "scored_test").mkdir(parents=True)
    output = recipe.run(*words).stdout
    calls = recipe.calls()
    assert [name for name, _, _ in calls[:2]] == ["mini_corpus", "data.py"]
    assert calls[0][1][:3] == ["mini/data/corpus", "--layout", "l3das23"]
    prepared = [arguments for name, arguments, _ in calls if name == "data.py"]
    assert [option(a, "--num_mics") for a in prepared] == ["1", "2"]
    assert [option(a, "--corpus_dir") for a in prepared] == ["mini/data/corpus"] * 2
    assert folders(calls) == ["mini/data/mics1", "mini/data/mics2"]
    trained = [(option(a, "--output_dir"), option(a, "--separator_conf")) for n, a, _ in calls if n == "train"]
    assert trained == [(f"mini/exp/mics{m}/{model}", f"num_mics={4 * m}") for m in (1, 2) for model in models]
    common = [arguments for name, arguments, _ in calls if name == "results"][-1]
    assert option(common, "--out") == "mini/exp/RESULTS.md"
    rows = [common[i + 1].partition("=")[0] for i, word in enumerate(common) if word == "--system"]
    assert rows == ["noisy", *(f"{model}_{mics}" for mics in ("A", "AB") for model in models)]
    assert "table of both: mini/exp/RESULTS.md" in output
    output = recipe.run(*words).stdout
    assert recipe.names() == ["mini_corpus"]  # which keeps a complete corpus itself
    assert "already finished, skipped: mini/exp (mini/exp/.done_results)" in output


def test_published_corpus_with_options_of_both_kinds(recipe):
    recipe.run(
        *("--num_mics=1", "--train_part", "both", "--corpus_dir", "/a corpus", "--expdir", "my exp", "--stop_stage"),
        *("4", "--train_args", "--max_epoch 3", "--local_data_opts=--split_seed 2", "--nj", "1"),
    )
    calls = recipe.calls()
    (data,) = [arguments for name, arguments, _ in calls if name == "data.py"]
    assert data[-8:] == ["--corpus_dir", "/a corpus", "--num_mics", "1", "--train_part", "both", "--split_seed", "2"]
    (teacher,) = [arguments for name, arguments, _ in calls if name == "train"]
    assert teacher[-4:] == ["--separator_conf", "num_mics=4", "--max_epoch", "3"]
    assert option(teacher, "--output_dir") == "my exp/mics1/teacher"
    assert not {"mini_corpus", "simulate_rooms", "results"} & {name for name, _, _ in calls}


def test_two_microphones_are_the_default(recipe):
    recipe.run("--stop_stage", "1")
    calls = recipe.calls()
    assert folders(calls) == ["data/mics2"] and "--corpus_dir" not in calls[0][1]  # which downloads


def test_speech_and_noise_become_a_corpus_in_stage_1_alone(recipe):
    words = ("--speech_dir", "/my speech", "--noise_dir", "/noise", "--rooms_args", "--rooms 9", "--nj", "1")
    recipe.run(*words, "--stop_stage", "2")
    calls = recipe.calls()
    assert calls[0][0] == "simulate_rooms"
    assert calls[0][1] == [
        *("--speech_dir", "/my speech", "--noise_dir", "/noise", "--out", "data/corpus", "--nj", "1", "--rooms", "9")
    ]
    assert folders(calls, name="--corpus_dir") == ["data/corpus"]
    recipe.run(*words, "--stage", "2", "--stop_stage", "2")
    assert recipe.names() == []


@pytest.mark.parametrize(
    "options, message",
    [
        (("--num_mics", "3"), '--num_mics 3: must be 1, 2 or "1 2"'),
        (("--num_mics",), "option --num_mics needs a value"),
        (("--speech_dir", "x"), "--speech_dir and --noise_dir go together"),
        (("--speech_dir", "x", "--noise_dir", "y", "--corpus_dir", "z"), "give one of them"),
        (("--mini", "true", "--stop-stage", "3"), "did you mean --stop_stage?"),
    ],
)
def test_wrong_options(recipe, options, message):
    assert message in recipe.run(*options, code=2).stderr
    assert recipe.calls() == []


def test_help_shows_the_recipes_options_and_the_pipelines(recipe):
    output = recipe.run("--help").stdout
    assert "  --num_mics " in output and "  --speech_dir " in output and "  --student_tag " in output


def test_recipes_share_their_scripts_by_links():
    """What two recipes need lies in TEMPLATE or in the package: no file of one is a copy of the other's."""
    first, second = (REPOSITORY / "egs" / name for name in ("voicebank", "l3das23"))
    for name in ("cmd.sh", "path.sh"):
        for folder in (first, second):
            assert (folder / name).resolve() == REPOSITORY / "egs" / "TEMPLATE" / name
    for path in first.rglob("*"):
        twin = second / path.relative_to(first)
        if path.is_file() and twin.is_file() and not path.is_relative_to(first / "mini"):
            assert path.samefile(twin) or path.read_bytes() != twin.read_bytes(), twin
