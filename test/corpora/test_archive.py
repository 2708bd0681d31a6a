"""Downloads from a local server and unpacking, with interruptions of every kind."""

import errno
import functools
import hashlib
import http.server
import os
import threading
import zipfile

import numpy as np
import pytest

from i2srf_kd.corpora import archive
from i2srf_kd.corpora.archive import DownloadError, download, md5_of, unzip
from i2srf_kd.system.errors import DiskFull, UserError

CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server:
    """Serves CONTENT; attributes say how well it behaves."""

    def __init__(self):
        self.ranges = True
        self.cut_after = []  # answers that end early, after so many bytes
        self.page = False
        self.status = 200
        self.requests = []  # Range headers

        handler = type("Handler", (Handler,), {"server_state": self})
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/x.zip"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    server_state: Server

    def do_GET(self):
        state = self.server_state
        wanted = self.headers.get("Range")
        state.requests.append(wanted)
        if state.status != 200:
            self.send_error(state.status)
            return
        if state.page:
            body = b"<html>moved</html>"
            self.send_response(200)
            self.send_header("Content-Type", state.page)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        start = int(wanted[len("bytes=") : -1]) if wanted and state.ranges else 0
        if start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Type", "application/zip")
        self.send_header("Content-Length", str(len(CONTENT) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.end_headers()
        end = start + state.cut_after.pop(0) if state.cut_after else len(CONTENT)
        self.wfile.write(CONTENT[start:end])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


fetch = functools.partial(download, wait=0.01, timeout=5)


def test_plain_download(server, tmp_path):
    path = fetch(server.url, tmp_path / "new" / "x.zip", md5=MD5.upper())
    assert path.read_bytes() == CONTENT and os.listdir(path.parent) == ["x.zip"]
    fetch(server.url, path, md5=MD5)
    assert len(server.requests) == 1, "a complete file is not asked for again"


def test_broken_connection_continues_where_it_ended(server, tmp_path):
    server.cut_after = [100_000, 50_000]
    assert fetch(server.url, tmp_path / "x.zip", md5=MD5).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=100000-", "bytes=150000-"]


def test_part_of_an_earlier_call_is_continued(server, tmp_path):
    (tmp_path / "x.zip.part").write_bytes(CONTENT[:1234])
    assert fetch(server.url, tmp_path / "x.zip", md5=MD5).read_bytes() == CONTENT
    assert server.requests == ["bytes=1234-"]


def test_complete_part_is_accepted(server, tmp_path):
    (tmp_path / "x.zip.part").write_bytes(CONTENT)
    assert fetch(server.url, tmp_path / "x.zip", md5=MD5).read_bytes() == CONTENT


def test_part_longer_than_the_file_starts_anew(server, tmp_path):
    (tmp_path / "x.zip.part").write_bytes(CONTENT + b"more")
    assert fetch(server.url, tmp_path / "x.zip", md5=MD5).read_bytes() == CONTENT


def test_server_without_ranges_starts_anew(server, tmp_path):
    server.ranges = False
    server.cut_after = [100_000]
    assert fetch(server.url, tmp_path / "x.zip", md5=MD5).read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_connection_that_always_breaks(server, tmp_path):
    server.ranges = False
    server.cut_after = [1000] * 9
    with pytest.raises(DownloadError, match="x.zip could not be downloaded(.|\n)*1000 of 300000 bytes .3 attempts"):
        fetch(server.url, tmp_path / "x.zip", retries=2)
    assert not (tmp_path / "x.zip").exists()


@pytest.mark.parametrize("content_type", ["text/html; charset=utf-8", "application/zip"])
def test_page_instead_of_archive(server, tmp_path, content_type):
    server.page = content_type
    with pytest.raises(DownloadError, match="HTML page(.|\n)*--corpus_dir"):
        fetch(server.url, tmp_path / "x.zip", md5=MD5)
    assert len(server.requests) == 1 and not (tmp_path / "x.zip").exists()


def test_page_saved_under_the_name_of_the_archive(tmp_path):
    (tmp_path / "x.zip").write_text("\n<!DOCTYPE html>")
    with pytest.raises(UserError, match="x.zip: an HTML page"):
        fetch("http://127.0.0.1:9/x.zip", tmp_path / "x.zip")
    with pytest.raises(UserError, match="x.zip: an HTML page"):
        unzip(tmp_path / "x.zip", tmp_path / "x")


def test_next_address_is_tried(server, tmp_path):
    dead = Server()
    dead.status = 404
    nobody = "http://127.0.0.1:9/x.zip"
    assert fetch([dead.url, nobody, server.url], tmp_path / "x.zip", md5=MD5, retries=1).read_bytes() == CONTENT
    assert len(dead.requests) == 1, "an answer of 404 is not asked for again"
    with pytest.raises(DownloadError, match="HTTP 404(.|\n)*127.0.0.1:9"):
        fetch([dead.url, nobody], tmp_path / "y.zip", retries=0)
    dead.http.shutdown()
    dead.http.server_close()


def test_busy_server_is_asked_again(server, tmp_path):
    server.status = 503
    with pytest.raises(DownloadError, match="HTTP 503 .*3 attempts"):
        fetch(server.url, tmp_path / "x.zip", retries=2)
    assert len(server.requests) == 3


def test_wrong_sum(server, tmp_path):
    with pytest.raises(UserError, match=f"x.zip: MD5 is {MD5}, expected {'0' * 32}.*--check_md5 false"):
        fetch(server.url, tmp_path / "x.zip", md5="0" * 32)
    assert os.listdir(tmp_path) == [], "wrong bytes are not continued later"


def test_full_disk_while_downloading(server, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archive, "_copy", full)
    with pytest.raises(UserError, match=r"cannot write .*down ü/x.zip: No space left"):
        fetch(server.url, tmp_path / "down ü" / "x.zip")
    assert len(server.requests) == 1


def test_md5_of_a_file(tmp_path):
    (tmp_path / "x").write_bytes(CONTENT)
    assert md5_of(tmp_path / "x") == MD5


# ---------------------------------------------------------------------------------------------------------------------


def make_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, contents in members.items():
            file.writestr(name, contents)
    return path


def test_unpacking_is_done_once(tmp_path):
    source = make_zip(tmp_path / "x.zip", {"x/a b.wav": "one", "x/sub/ü.wav": "two", "__MACOSX/x/._a": "junk"})
    folder = unzip(source, tmp_path / "out" / "x")
    assert (folder / "a b.wav").read_text() == "one" and (folder / "sub" / "ü.wav").read_text() == "two"
    assert os.listdir(tmp_path / "out") == ["x"]
    (folder / "a b.wav").write_text("changed")
    assert (unzip(source, folder) / "a b.wav").read_text() == "changed", "it was unpacked again"
    source.unlink()
    assert unzip(source, folder) == folder, "the archive is not needed any more"


def test_archive_without_a_folder_of_its_name(tmp_path):
    folder = unzip(make_zip(tmp_path / "x.zip", {"a.wav": "one", "y/b.wav": "two"}), tmp_path / "x")
    assert (folder / "a.wav").exists() and (folder / "y" / "b.wav").exists()


def test_folder_of_another_archive_is_not_taken(tmp_path):
    source = make_zip(tmp_path / "x.zip", {"a.wav": "one"})
    unzip(source, tmp_path / "x")
    make_zip(source, {"a.wav": "two"})
    with pytest.raises(UserError, match="was unpacked from another x.zip"):
        unzip(source, tmp_path / "x")


def test_half_unpacked_folder_is_never_taken_for_complete(tmp_path, monkeypatch):
    source = make_zip(tmp_path / "x.zip", {f"x/{i}.wav": str(i) for i in range(5)})
    extract = archive._extract

    def interrupted(zip_file, member, *args):
        if member.filename == "x/3.wav":
            raise KeyboardInterrupt
        extract(zip_file, member, *args)

    monkeypatch.setattr(archive, "_extract", interrupted)
    with pytest.raises(KeyboardInterrupt):
        unzip(source, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    monkeypatch.undo()
    (tmp_path / ".x.unpacking" / "x").mkdir(parents=True)  # what kill -9 leaves behind
    (tmp_path / ".x.unpacking" / "x" / "old").write_text("old")
    assert len(list(unzip(source, tmp_path / "x").glob("*"))) == 6
    assert not (tmp_path / "x" / "old").exists()

    (tmp_path / "y").mkdir()
    with pytest.raises(UserError, match="y exists but was not completely unpacked"):
        unzip(source, tmp_path / "y")


def test_a_member_without_a_name_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("q", b"x")
    content = bytearray((tmp_path / "x.zip").read_bytes())
    entry, end = content.index(b"PK\1\2"), content.index(b"PK\5\6")
    content[entry + 28], content[end + 12] = 0, content[end + 12] - 1
    del content[entry + 46]
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(UserError, match="x.zip: member '' points outside"):
        unzip(tmp_path / "x.zip", tmp_path / "out")


@pytest.mark.parametrize("name", ["../evil.txt", "x/../../evil.txt", "/evil.txt", "..\\evil.txt", "C:/evil.txt"])
def test_members_outside_the_archive_are_refused(tmp_path, name):
    source = make_zip(tmp_path / "x.zip", {"a": "fine", name: "evil"})
    with pytest.raises(UserError, match="points outside"):
        unzip(source, tmp_path / "out" / "x")
    assert not list(tmp_path.rglob("evil*")) and not (tmp_path / "out").exists()


def test_links_in_archives_lead_nowhere(tmp_path):
    link = zipfile.ZipInfo("x/link")
    link.external_attr = 0o120777 << 16
    source = make_zip(tmp_path / "x.zip", {"x/a": "fine", link: "/etc/passwd"})
    folder = unzip(source, tmp_path / "x")
    assert not (folder / "link").is_symlink() and (folder / "link").read_text() == "/etc/passwd"


def test_archives_that_grow_beyond_all_measure_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "_SMALL", 1000)
    with pytest.raises(UserError, match=r"x.zip: 0.10 MB would become 0.1 GB; do not trust this file"):
        unzip(make_zip(tmp_path / "x.zip", {"a": bytes(100_000_000)}), tmp_path / "x")
    assert os.listdir(tmp_path) == ["x.zip"]


def test_an_archive_that_the_disk_cannot_hold_is_not_begun(tmp_path, monkeypatch):
    usage = archive.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(archive.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DiskFull, match="too little space for what the archive holds .* 0.30 MB are needed"):
        unzip(make_zip(tmp_path / "x.zip", {"a": CONTENT}), tmp_path / "out" / "x")
    assert os.listdir(tmp_path) == ["x.zip"]


def test_bad_archives(tmp_path):
    with pytest.raises(UserError, match="gone.zip: no such archive"):
        unzip(tmp_path / "gone.zip", tmp_path / "x")
    source = make_zip(tmp_path / "x.zip", {"a": CONTENT})
    whole = source.read_bytes()
    source.write_bytes(whole[:-1000])
    with pytest.raises(UserError, match="x.zip: truncated"):
        unzip(source, tmp_path / "x")
    source.write_bytes(whole[:1000] + b"\0" * 1000 + whole[2000:])
    with pytest.raises(UserError, match="x.zip: member a is damaged"):
        unzip(source, tmp_path / "x")
    make_zip(source, {})
    with pytest.raises(UserError, match="holds no files"):
        unzip(source, tmp_path / "x")
    assert os.listdir(tmp_path) == ["x.zip"]


def test_full_disk_while_unpacking(tmp_path, monkeypatch):
    source = make_zip(tmp_path / "x.zip", {"a": CONTENT})

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archive.shutil, "copyfileobj", full)
    with pytest.raises(UserError, match=r"cannot write .*x: No space left.* 0.30 MB are needed"):
        unzip(source, tmp_path / "x")
    assert os.listdir(tmp_path) == ["x.zip"]
