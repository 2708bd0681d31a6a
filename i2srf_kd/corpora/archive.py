"""Downloading, verifying and unpacking archives such that an interruption never leaves something that looks complete.

pooch is no help here: it begins again where a connection breaks, and the archives have up to 2.5 GB.

path = download(["https://a.org/x.zip", "https://b.org/x.zip"], "downloads/x.zip", md5="...")
folder = unzip(path, "downloads/x")
"""

import hashlib
import http.client
import json
import logging
import os
import shutil
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Dict, Iterator, List, Optional, Sequence, Union

from i2srf_kd.system.errors import UserError, disk_full, writing
from i2srf_kd.system.files import PathLike, write_text
from i2srf_kd.system.progress import progress

logger = logging.getLogger(__name__)

UNPACKED_MARKER = ".unpacked.json"
_BLOCK = 1 << 20
_SMALL, _HIGHEST_RATIO = 1 << 30, 100  # bytes that any archive may unpack to, and how many times its own size
_NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


class DownloadError(UserError):
    """None of the addresses gave the file."""


class _NotTheFile(Exception):
    """The server answered with something else than the file; asking again would not help."""


def download(
    urls: Union[str, Sequence[str]],
    path: PathLike,
    md5: Optional[str] = None,
    retries: int = 3,
    timeout: float = 60.0,
    wait: float = 2.0,
) -> Path:
    """Download a file; go on where an earlier, interrupted call stopped.

    Bytes are collected in ``<path>.part``, which is renamed when the file is complete and verified. A file that is
    already there is verified and kept.

    Args:
        urls: addresses of the same file, tried in order.
        path: where to put it.
        md5: expected sum in hexadecimal; ``None``: not verified.
        retries: further attempts per address after a broken connection.
        timeout: seconds without an answer after which a connection counts as broken.
        wait: seconds before the first retry, doubled before each further one.

    Returns:
        ``path``.

    Raises:
        DownloadError: no address gave the file; the message tells why for each.
        UserError: the sum differs, or the disk is full.
    """
    path = Path(path)
    addresses = [urls] if isinstance(urls, str) else list(urls)
    if path.is_file():
        verify(path, md5)
        return path
    part = path.with_name(path.name + ".part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        reasons: List[str] = []
        for url in addresses:
            reason = _download_from(url, part, retries, timeout, wait)
            if reason is None:
                break
            logger.warning("%s: %s", url, reason)
            reasons.append(f"  {url}: {reason}")
        else:
            raise DownloadError(
                f"{path.name} could not be downloaded:\n" + "\n".join(reasons) + f"\nget it by hand and put it into "
                f"{path.parent}, or give the folder where it lies with --corpus_dir"
            )
    try:
        verify(part, md5, name=str(path))
    except UserError:
        part.unlink()  # going on from wrong bytes would never end well
        raise
    os.replace(part, path)
    return path


def _download_from(url: str, part: Path, retries: int, timeout: float, wait: float) -> Optional[str]:
    """Complete ``part``; returns why it failed, ``None`` on success."""
    reason = ""
    for attempt in range(retries + 1):
        if attempt:
            time.sleep(wait * 2 ** (attempt - 1))
        try:
            _fetch(url, part, timeout)
            return None
        except _NotTheFile as error:
            return str(error)
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code} {error.reason}"
            if error.code < 500 and error.code not in (408, 429):
                return reason
        except _NETWORK_ERRORS as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
    return f"{reason} ({retries + 1} attempts)"


def _fetch(url: str, part: Path, timeout: float) -> None:
    """One connection: append what is missing to ``part``, or start anew where the server cannot continue."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "i2srf-kd", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        error.close()
        total = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        if total == str(have):  # nothing is missing
            return
        part.unlink()
        raise ConnectionError("the server refused to continue, starting anew") from None
    with response:
        continues = response.status == 206 and _range_start(response) == have
        first = response.read(_BLOCK)
        _refuse_page(response.headers.get("Content-Type", ""), first, checked=not continues)
        left = response.headers.get("Content-Length")
        expected = (have if continues else 0) + int(left) if left else None
        with part.open("ab" if continues else "wb") as out:
            _copy(response, first, out, part, expected)
    if expected is not None and part.stat().st_size < expected:
        raise ConnectionError(f"the connection ended after {part.stat().st_size} of {expected} bytes")


def _copy(response: BinaryIO, first: bytes, out: BinaryIO, part: Path, expected: Optional[int]) -> None:
    def blocks() -> Iterator[bytes]:
        block = first
        while block:
            yield block
            block = response.read(_BLOCK)

    missing = None if expected is None else -(-(expected - out.tell()) // _BLOCK)
    for block in progress(blocks(), total=missing, desc=f"download {part.name[:-5]}", unit="MiB"):
        out.write(block)


def _range_start(response: http.client.HTTPResponse) -> int:
    """First byte of a partial answer, -1 where the header cannot be read."""
    unit, _, span = (response.headers.get("Content-Range") or "").partition(" ")
    start = span.partition("-")[0]
    return int(start) if unit == "bytes" and start.isdigit() else -1


def _refuse_page(content_type: str, first: bytes, checked: bool) -> None:
    """Dead links are often answered with a page and the status of success."""
    looks_like_page = checked and first[:512].lstrip()[:1] == b"<"
    if looks_like_page or content_type.split(";")[0].strip().lower() in ("text/html", "application/xhtml+xml"):
        raise _NotTheFile("the server answered with an HTML page instead of the file; the link is dead or has moved")


def md5_of(path: PathLike) -> str:
    """MD5 sum of a file in hexadecimal."""
    digest = hashlib.md5(usedforsecurity=False)
    n_blocks = -(-Path(path).stat().st_size // (8 * _BLOCK))
    with Path(path).open("rb") as file:
        blocks = iter(lambda: file.read(8 * _BLOCK), b"")
        for block in progress(blocks, total=n_blocks, desc=f"MD5 of {Path(path).name}", unit="block"):
            digest.update(block)
    return digest.hexdigest()


def verify(path: PathLike, md5: Optional[str] = None, name: Optional[str] = None) -> None:
    """Check an archive that was downloaded.

    Raises:
        UserError: it has not the expected sum, or is an HTML page.
    """
    path, name = Path(path), name or str(path)
    with path.open("rb") as file:
        if file.read(512).lstrip()[:1] == b"<":
            raise UserError(f"{name}: an HTML page instead of an archive; delete it and download it anew")
    if md5 is not None:
        found = md5_of(path)
        if found != md5.lower():
            raise UserError(
                f"{name}: MD5 is {found}, expected {md5.lower()}: the file is damaged or another version. "
                "Delete it and download it anew, or accept it with --check_md5 false"
            )


def unzip(archive: PathLike, folder: PathLike) -> Path:
    """Unpack a zip archive; a folder with a done marker is kept, so calling again costs nothing.

    Everything goes to a temporary folder beside ``folder`` that is renamed at the end: ``folder`` is either absent or
    complete. Where all members lie in one folder that is called like ``folder``, its contents are used.

    Args:
        archive: zip file.
        folder: the folder to be made.

    Returns:
        ``folder``.

    Raises:
        UserError: the archive is missing, truncated, no zip file or has members outside its folder; ``folder`` exists
            without marker or was unpacked from another archive; or the disk is full.
    """
    archive, folder = Path(archive), Path(folder)
    if (folder / UNPACKED_MARKER).is_file():
        _check_origin(archive, folder)
        return folder
    if folder.exists():
        raise UserError(
            f"{folder} exists but was not completely unpacked by this program: remove it, or, if it is complete, give "
            f"--corpus_dir {folder.parent}"
        )
    temporary = folder.with_name(f".{folder.name}.unpacking")
    with _open_zip(archive) as zip_file:
        members = [member for member in zip_file.infolist() if not member.filename.endswith("/")]
        _check_members(archive, members)
        total = _check_size(archive, members, folder)
        with writing(folder, total):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            try:
                for member in progress(members, desc=f"unpack {archive.name}", unit="file"):
                    _extract(zip_file, member, temporary, archive)
                _install(temporary, folder, {"archive": archive.name, "contents": _fingerprint(zip_file)})
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _check_origin(archive: Path, folder: Path) -> None:
    """Refuse a folder that was unpacked from other contents; an archive deleted since is fine."""
    if not archive.is_file():
        return
    try:
        marker = json.loads((folder / UNPACKED_MARKER).read_text(encoding="utf-8"))
    except ValueError:
        marker = {}
    with _open_zip(archive) as zip_file:
        if marker.get("contents") != _fingerprint(zip_file):
            raise UserError(f"{folder} was unpacked from another {archive.name} than {archive}: remove the folder")


def _fingerprint(zip_file: zipfile.ZipFile) -> str:
    """Sum over names, sizes and checksums of all members; reads the directory of the archive only."""
    members = [(member.filename, member.file_size, member.CRC) for member in zip_file.infolist()]
    return hashlib.md5(repr(members).encode(), usedforsecurity=False).hexdigest()


def _open_zip(archive: Path) -> zipfile.ZipFile:
    if not archive.is_file():
        raise UserError(f"{archive}: no such archive")
    try:
        return zipfile.ZipFile(archive)
    except zipfile.BadZipFile:
        verify(archive)  # names a page as such
        raise UserError(f"{archive}: truncated or no zip archive; delete it and get it anew") from None


def _check_members(archive: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    if not members:
        raise UserError(f"{archive}: holds no files; delete it and get it anew")
    for member in members:
        name = member.filename.replace("\\", "/")
        if not name or name.startswith("/") or ":" in name.split("/")[0] or ".." in PurePosixPath(name).parts:
            raise UserError(f"{archive}: member {member.filename!r} points outside the archive; do not trust this file")


def _check_size(archive: Path, members: Sequence[zipfile.ZipInfo], folder: Path) -> int:
    """Bytes of all members, which Python's zipfile does not let grow beyond what the archive says.

    Raises:
        UserError: it is a zip bomb: far more than audio can be compressed by.
        DiskFull: there is not enough space for them.
    """
    total, size = sum(member.file_size for member in members), archive.stat().st_size
    if total > max(_SMALL, _HIGHEST_RATIO * size):
        raise UserError(f"{archive}: {size / 1e6:.2f} MB would become {total / 1e9:.1f} GB; do not trust this file")
    there = next(parent for parent in folder.absolute().parents if parent.is_dir())
    if total > shutil.disk_usage(there).free:
        raise disk_full(folder, "too little space for what the archive holds", total)
    return total


def _extract(zip_file: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path, archive: Path) -> None:
    target = folder / PurePosixPath(member.filename.replace("\\", "/"))
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        # written as a plain file, so that a symbolic link in the archive cannot lead elsewhere
        with zip_file.open(member) as source, target.open("wb") as out:
            shutil.copyfileobj(source, out, _BLOCK)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{archive}: member {member.filename} is damaged ({error}); get the archive anew") from None


def _install(temporary: Path, folder: Path, marker: Dict[str, str]) -> None:
    """Mark the unpacked files as complete and give them their final name."""
    entries = [entry for entry in temporary.iterdir() if entry.name != "__MACOSX"]
    lone = len(entries) == 1 and entries[0].is_dir() and entries[0].name == folder.name
    unpacked = entries[0] if lone else temporary
    write_text(unpacked / UNPACKED_MARKER, json.dumps(marker) + "\n")
    os.replace(unpacked, folder)
