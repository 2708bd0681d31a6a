"""Where results come from."""

import subprocess

import pytest

from i2srf_kd.system import provenance


@pytest.fixture
def clone(tmp_path):
    """A git repository with one commit."""
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        (tmp_path / "a.py").write_text("")
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path), *words],
            check=True,
            capture_output=True,
        )
    return tmp_path


def test_commit_of_a_clone_and_what_has_changed_since(clone):
    state = provenance.commit(clone)
    assert state is not None and len(state.hash) == 40 and not state.dirty
    (clone / "a.py").write_text("changed")
    assert provenance.commit(clone) == state._replace(dirty=True)


def test_no_commit_outside_of_git(tmp_path):
    assert provenance.commit(tmp_path / "absent") is None


def test_packages_that_are_not_installed_are_said_to_be():
    assert provenance.version("numpy")[0].isdigit() and provenance.version("no-such-package") == "not installed"
