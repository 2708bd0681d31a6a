"""The report in a real browser, opened from disk: nothing is fetched, nothing fails, sound plays, tables sort."""

import os
import warnings
from pathlib import Path
from typing import Any, Iterator, List

import pytest
from results import synthetic
from results.browser import Browser, find_browser

from i2srf_kd.bin import report

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report of an ablation")
    data = synthetic.write_data(folder / "data" / "test")
    ablation = synthetic.write_ablation(folder / "exp" / "grid", data)
    assert report.main([str(ablation), "-o", str(folder / "report.html"), "--pictures", str(folder / "pictures")]) == 0
    names = {path.name for path in (folder / "pictures").iterdir()}
    assert {"learning_curves.png", "gradient_share.png", "calibration_i2srf.png", "forest_pesq_wb.png"} <= names
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        reason = "no Chromium: install it (apt-get install chromium) or name it in CHROMIUM"
        warnings.warn(f"tests SKIPPED: {reason}", stacklevel=2)
        pytest.skip(reason)
    started = Browser(program, tmp_path_factory.mktemp("profile"))
    try:
        # The file alone: whatever it was made of is out of reach.
        moved = page.parent / "elsewhere" / "report.html"
        moved.parent.mkdir()
        os.rename(page, moved)
        os.rename(page.parent / "exp", page.parent / "exp.away")
        os.rename(page.parent / "data", page.parent / "data.away")
        started.open(moved.as_uri())
        yield started
    finally:
        started.close()


def test_nothing_is_fetched_and_nothing_fails(browser: Browser) -> None:
    events = browser.events
    requested = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert sum(url.startswith("file://") for url in requested) == 1  # the page itself
    assert {url.split(":")[0] for url in requested} <= {"file", "data", "blob"}
    failed = [e for e in events if e["method"] in ("Network.loadingFailed", "Runtime.exceptionThrown")]
    # A player that has read enough for the moment cancels the rest of its data.
    assert [e for e in failed if not e["params"].get("canceled")] == []
    said = [e["params"] for e in events if e["method"] in ("Log.entryAdded", "Runtime.consoleAPICalled")]
    assert said == []


def test_every_picture_is_there(browser: Browser) -> None:
    sizes = browser.run("[...document.images].map(i => [i.complete, i.naturalWidth, i.alt.length > 10])")
    assert len(sizes) == 3 * 5  # utterances; mixture, teacher, two students, reference
    assert all(complete and width > 500 and has_text for complete, width, has_text in sizes)
    drawings = browser.run(
        "[...document.querySelectorAll('.drawing svg')].map(s => [s.getAttribute('role'), s.ariaLabel.length > 20,"
        " s.querySelectorAll('text').length])"
    )
    assert len(drawings) >= 8
    assert all(role == "img" and has_text and texts > 3 for role, has_text, texts in drawings)
    ids = browser.run("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_sound_plays_and_goes_on_in_another_version(browser: Browser) -> None:
    browser.wait("[...document.querySelectorAll('audio')].every(a => a.readyState >= 1)")
    lengths = browser.run("[...document.querySelectorAll('audio')].map(a => a.duration)")
    assert len(lengths) == 15 and all(abs(length - 1.0) < 0.15 for length in lengths)
    browser.run("window.players = document.querySelector('.example').querySelectorAll('audio'); players[0].loop = true")
    browser.run("players[0].play()")
    browser.wait("players[0].currentTime > 0.2")
    browser.run("players[1].play()")
    browser.wait("players[0].paused")
    browser.run("window.head = players[1].parentElement.querySelector('.head')")
    browser.wait("head.style.display === 'block' && parseFloat(head.style.left) > 0")
    # It began where the other one was, so it ends without having been at its start.
    browser.wait("players[1].ended && players[1].played.start(0) > 0.1")


def column(browser: Browser, table: str, number: int) -> List[Any]:
    return browser.run(
        f"[...document.querySelectorAll('#{table} tbody tr')].map(r => r.cells[{number}].firstChild.data)"
    )


def test_tables_sort_by_number_and_by_name(browser: Browser) -> None:
    click = "document.querySelectorAll('#scores thead button')[{}].click()"
    before = column(browser, "scores", 0)
    browser.run(click.format(1))
    values = [float(text) for text in column(browser, "scores", 1)]
    assert values == sorted(values, reverse=True) and len(values) == 5
    browser.run(click.format(1))
    assert [float(text) for text in column(browser, "scores", 1)] == values[::-1]
    assert browser.run("document.querySelectorAll('#scores th')[1].ariaSort") == "ascending"
    browser.run(click.format(4))  # the share of the gap, which not all have: those come last
    assert [text.strip() for text in column(browser, "scores", 4)][2:] == ["–", "–", "–"]
    browser.run(click.format(0))
    names = [name.strip() for name in column(browser, "scores", 0)]
    assert names == sorted(names) and sorted(before, key=str.strip) != before


def test_colours_and_a_phone(browser: Browser) -> None:
    def ground() -> str:
        return browser.run("getComputedStyle(document.body).backgroundColor")

    light = ground()
    press = "document.getElementById('theme').click()"
    browser.run(f"{press}; {press}")
    assert browser.run("document.documentElement.dataset.theme") == "dark" and ground() != light
    browser.run(press)
    assert ground() == light
    browser.resize(360, 740)
    assert browser.run("document.documentElement.scrollWidth") <= 360  # wide tables scroll in themselves
