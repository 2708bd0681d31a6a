"""Looking for audio in folders: what is found, and what is said of the rest."""

from typing import List

from plain_user import plain_user

from i2srf_kd.audio.folders import find_audio, walk


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def test_links_are_followed_once(tmp_path):
    touch(tmp_path, "in/a/x.wav", "other/y.wav")
    (tmp_path / "in" / "b").symlink_to("../other")
    (tmp_path / "in" / "b_again").symlink_to("../other")
    (tmp_path / "other" / "loop").symlink_to("../in")
    said: List[str] = []
    found = find_audio(tmp_path / "in", {".wav"}, said.append)
    assert [str(path.relative_to(tmp_path)) for path in found] == ["in/a/x.wav", "in/b/y.wav"] and not said


def test_everything_passed_over_is_said(tmp_path):
    touch(
        tmp_path, "a.WAV", "b.m4a", "c/d.m4a", "c/e.wma", "notes.txt", ".hidden.wav", "__MACOSX/f.wav", "closed/g.wav"
    )
    (tmp_path / "gone.wav").symlink_to("nowhere.wav")
    (tmp_path / "closed").chmod(0)
    said: List[str] = []
    try:
        with plain_user():
            found = find_audio(tmp_path, {".wav"}, said.append)
    finally:
        (tmp_path / "closed").chmod(0o755)
    assert found == [tmp_path / "a.WAV"]
    assert sorted(said) == sorted(
        [
            f"{tmp_path}/closed: cannot be read (Permission denied)",
            f"{tmp_path}/gone.wav: a link to nothing",
            f"{tmp_path}: 2 .m4a file(s), which cannot be read: convert them to wav or flac",
            f"{tmp_path}: 1 .wma file(s), which cannot be read: convert them to wav or flac",
        ]
    )


def test_depth_and_folders_that_are_not_entered(tmp_path):
    touch(tmp_path, "a/b/c/x.wav", "skip/y.wav")
    places = []
    for folder, subfolders, _ in walk(tmp_path, lambda text: None, depth=2):
        places.append(str(folder.relative_to(tmp_path)))
        if "skip" in subfolders:
            subfolders.remove("skip")
    assert places == [".", "a", "a/b"]
