"""Downloads that resume, and ZIP archives that are not trusted."""

from __future__ import annotations

import hashlib
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import requests
from tqdm import tqdm

from ultrasound.errors import InputError

MAX_MEMBERS = 10_000
MAX_MEMBER_BYTES = 50_000_000
MAX_BYTES = 2_000_000_000
MAX_RATIO = 200  # PNG files hardly shrink in a ZIP; a ratio like this is a decompression bomb
ATTEMPTS = 3


def download(url: str, file: Path, timeout: float) -> None:
    """Fetch `url` into `file`; a connection that breaks is resumed, up to `ATTEMPTS` connections.

    A fragment `#sha256=...`, as pip writes it, pins the content. On failure no file is left.

    Args:
        timeout: seconds to wait for the connection and for each next piece.

    Raises:
        InputError: the server does not answer, refuses, breaks off, sends too much, or the hash differs.
    """
    address, _, pin = url.partition("#sha256=")
    try:
        for attempt in range(1, ATTEMPTS + 1):
            before = file.stat().st_size if file.exists() else 0
            try:
                _fetch(address, file, timeout)
                break
            except requests.RequestException as error:
                progress = file.exists() and file.stat().st_size > before
                if attempt == ATTEMPTS or not progress:  # a server that sent nothing is not asked again
                    raise InputError(_why(error, timeout)) from None
                time.sleep(attempt)
        if pin and (found := sha256(file)) != pin:
            raise InputError(f"wrong content: expected SHA-256 {pin}, found {found}")
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def members(archive: zipfile.ZipFile, name: str) -> dict[str, zipfile.ZipInfo]:
    """Path -> member of an archive whose paths, number, sizes and compression ratios are within bounds.

    Raises:
        InputError: one of them is not.
    """
    infos = [info for info in archive.infolist() if not info.is_dir() and not is_litter(info.filename)]
    if len(infos) > MAX_MEMBERS:
        raise InputError(f"{name} holds {len(infos)} files, more than {MAX_MEMBERS}")
    if sum(info.file_size for info in infos) > MAX_BYTES:
        raise InputError(f"{name} unpacks to more than {MAX_BYTES // 10**9} GB")
    found: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        path = PurePosixPath(info.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in info.filename or ":" in info.filename:
            raise InputError(f"{name} holds a path that leaves the archive: {info.filename!r}")
        if info.filename in found:
            raise InputError(f"{name} holds {info.filename!r} twice")
        if info.file_size > MAX_MEMBER_BYTES or info.file_size > MAX_RATIO * max(info.compress_size, 1):
            raise InputError(f"{name}: {info.filename!r} unpacks to {info.file_size} bytes, which is implausible")
        found[info.filename] = info
    return found


def extract(archive: zipfile.ZipFile, wanted: Iterable[tuple[zipfile.ZipInfo, Path]], name: str) -> None:
    """Unpack members to the given files.

    Raises:
        InputError: a member is damaged, encrypted or longer than its header says.
    """
    for info, file in wanted:
        try:
            content = archive.read(info)
        except Exception as error:  # BadZipFile, zlib.error, EOFError, RuntimeError: they have no common base
            raise InputError(f"{name}: {info.filename!r} is damaged: {error}") from None
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def sha256(file: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fetch(address: str, file: Path, timeout: float) -> None:
    begun = file.stat().st_size if file.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={begun}-"} if begun else {})
    with requests.get(address, headers=headers, stream=True, timeout=timeout) as answer:
        if begun and answer.status_code == requests.codes.requested_range_not_satisfiable:
            return  # nothing is missing; the hash will tell
        answer.raise_for_status()
        if answer.status_code != requests.codes.partial_content:
            begun = 0  # the server starts again, and so do we
        total = begun + int(answer.headers.get("Content-Length", 0))
        with (
            file.open("ab" if begun else "wb") as out,
            tqdm(desc="download", total=total or None, initial=begun, unit="B", unit_scale=True, disable=None) as bar,
        ):
            for piece in answer.iter_content(1 << 16):
                out.write(piece)
                bar.update(len(piece))
                if out.tell() > MAX_BYTES:
                    raise InputError(f"sends more than {MAX_BYTES // 10**9} GB")
        if total and file.stat().st_size < total:
            raise requests.ConnectionError("broken off")


def _why(error: requests.RequestException, timeout: float) -> str:
    if error.response is not None:
        return f"answered {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return f"no answer within {timeout:g} s"
    if isinstance(error, requests.exceptions.SSLError):
        return "its TLS certificate is not accepted"
    return "broke off" if "broken" in str(error).lower() else "no connection"


def is_litter(path: str) -> bool:
    """Whether a file is one that an operating system leaves in folders."""
    return path.startswith("__MACOSX/") or PurePosixPath(path).name in {".DS_Store", "Thumbs.db"}
