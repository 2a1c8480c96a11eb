import gzip
import hashlib
import random
import socket
import struct
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ultrasound.errors import InputError
from ultrasound.images import archive

CONTENT = random.Random(0).randbytes(2_500_000)
PIN = hashlib.sha256(CONTENT).hexdigest()


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.close_connection = True
        mirror = self.server
        wanted = self.headers.get("Range")
        mirror.asked.append(wanted)
        if mirror.silent:
            mirror.closing.wait(30)
            return
        if mirror.status != 200:
            self.send_error(mirror.status)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and mirror.ranges else 0
        if start >= len(mirror.content):
            self.send_error(416)
            return
        body = mirror.content[start:]
        self.send_response(206 if start else 200)
        if mirror.compresses and "gzip" in self.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body)
            self.send_header("Content-Encoding", "gzip")
        if mirror.unended:  # one chunk, and not the empty one that ends the answer
            self.send_header("Transfer-Encoding", "chunked")
            body = f"{len(body):x}\r\n".encode() + body + b"\r\n"
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: mirror.cuts.pop(0)] if mirror.cuts else body)
        if mirror.stalls:
            mirror.closing.wait(30)

    def log_message(self, *args):
        pass


class Mirror(ThreadingHTTPServer):
    def __init__(self, cuts=(), ranges=True, status=200, **habits):
        super().__init__(("127.0.0.1", 0), Answer)
        self.content, self.cuts, self.ranges, self.status = CONTENT, list(cuts), ranges, status
        self.silent, self.stalls, self.compresses, self.unended = (
            habits.get(habit, False) for habit in ("silent", "stalls", "compresses", "unended")
        )
        self.asked, self.closing = [], threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/Dataset_BUSI.zip"


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running = []

    def start(**behaviour):
        mirror = Mirror(**behaviour)
        threading.Thread(target=mirror.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        running.append(mirror)
        return mirror

    yield start
    for mirror in running:
        mirror.closing.set()
        mirror.shutdown()
        mirror.server_close()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "archive.zip"


def test_a_download_is_complete(serve, file):
    mirror = serve()
    archive.download(mirror.url, file, 5)
    assert file.read_bytes() == CONTENT
    assert mirror.asked == [None]


def test_a_broken_download_is_resumed_where_it_broke(serve, file):
    mirror = serve(cuts=[1_500_000])
    archive.download(mirror.url, file, 5)
    assert file.read_bytes() == CONTENT
    first, second = mirror.asked
    assert first is None
    assert 1_000_000 <= int(second.removeprefix("bytes=").removesuffix("-")) <= 1_500_000


def test_a_download_that_breaks_early_is_tried_again(serve, file):
    mirror = serve(cuts=[300_000])
    archive.download(mirror.url, file, 5)
    assert file.read_bytes() == CONTENT
    assert len(mirror.asked) == 2


def test_a_server_without_ranges_starts_again_cleanly(serve, file):
    mirror = serve(cuts=[1_500_000], ranges=False)
    archive.download(mirror.url, file, 5)
    assert file.read_bytes() == CONTENT
    assert len(mirror.asked) == 2


def test_a_download_that_breaks_after_its_last_byte_is_complete(serve, file):
    mirror = serve(unended=True)
    archive.download(mirror.url, file, 5)
    assert file.read_bytes() == CONTENT
    assert mirror.asked == [None, f"bytes={len(CONTENT)}-"]


def test_a_download_that_breaks_every_time_is_given_up_and_leaves_nothing(serve, file, monkeypatch):
    monkeypatch.setattr(archive, "ATTEMPTS", 2)
    mirror = serve(cuts=[1_200_000] * 9, ranges=False)
    with pytest.raises(InputError, match="broke"):
        archive.download(mirror.url, file, 5)
    assert len(mirror.asked) == 2
    assert not file.exists()


@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_refusal_is_told_with_its_status_and_not_repeated(serve, file, status):
    mirror = serve(status=status)
    with pytest.raises(InputError, match=f"answered {status}"):
        archive.download(mirror.url, file, 5)
    assert mirror.asked == [None]
    assert not file.exists()


def test_a_silent_server_is_left_after_the_timeout(serve, file):
    mirror = serve(silent=True)
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"no answer within 0\.4 s"):
        archive.download(mirror.url, file, 0.4)
    assert 0.3 < time.monotonic() - begun < 10
    assert len(mirror.asked) == 1
    assert not file.exists()


def test_a_server_that_falls_silent_midway_is_told_apart_from_one_that_cannot_be_reached(serve, file, monkeypatch):
    monkeypatch.setattr(archive, "ATTEMPTS", 2)
    mirror = serve(cuts=[1_200_000] * 9, ranges=False, stalls=True)
    with pytest.raises(InputError) as error:
        archive.download(mirror.url, file, 0.3)
    assert len(mirror.asked) == 2
    assert not file.exists()
    assert "0.3 s" in str(error.value)
    assert "no connection" not in str(error.value)


def test_a_closed_port_is_no_connection(file):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(InputError, match="no connection"):
        archive.download(f"http://127.0.0.1:{port}/x.zip", file, 5)
    assert not file.exists()


def test_the_pinned_content_passes(serve, file):
    archive.download(f"{serve().url}#sha256={PIN}", file, 5)
    assert archive.sha256(file) == PIN


def test_other_content_than_the_pinned_is_refused_with_both_hashes(serve, file):
    wrong = PIN[::-1]
    with pytest.raises(InputError) as error:
        archive.download(f"{serve().url}#sha256={wrong}", file, 5)
    assert f"expected SHA-256 {wrong}" in str(error.value)
    assert f"found {PIN}" in str(error.value)
    assert not file.exists()


def test_a_server_that_compresses_on_the_way_does_not_change_the_content(serve, file):
    mirror = serve(compresses=True)
    archive.download(mirror.url, file, 5)
    assert file.read_bytes() == CONTENT
    assert mirror.asked == [None]


def test_a_server_that_sends_without_end_is_stopped(serve, file, monkeypatch):
    monkeypatch.setattr(archive, "MAX_BYTES", 1_000_000)
    with pytest.raises(InputError, match="sends more than"):
        archive.download(serve().url, file, 5)
    assert not file.exists()


def test_an_interrupted_download_leaves_nothing(serve, file, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    mirror = serve(cuts=[1_500_000])
    monkeypatch.setattr(archive.time, "sleep", interrupt)  # Ctrl-C in the pause between two attempts
    with pytest.raises(KeyboardInterrupt):
        archive.download(mirror.url, file, 5)
    assert not file.exists()


def pack(file, *entries):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in entries:
            zipped.writestr(name, content)
    return file


def members(file):
    with zipfile.ZipFile(file) as zipped:
        return archive.members(zipped, "the archive")


def extract_all(file, folder):
    with zipfile.ZipFile(file) as zipped:
        found = archive.members(zipped, "the archive")
        archive.extract(zipped, [(info, folder / name) for name, info in found.items()], "the archive")


def patch(file, position, new):
    content = bytearray(file.read_bytes())
    content[position : position + len(new)] = new
    file.write_bytes(content)


def test_a_sound_archive_is_unpacked(file, tmp_path):
    pack(file, ("benign/", b""), ("benign/a.png", CONTENT[:5000]), ("normal/b.png", CONTENT[5000:5100]))
    assert list(members(file)) == ["benign/a.png", "normal/b.png"]
    extract_all(file, tmp_path / "out")
    assert (tmp_path / "out/benign/a.png").read_bytes() == CONTENT[:5000]
    assert (tmp_path / "out/normal/b.png").read_bytes() == CONTENT[5000:5100]


@pytest.mark.parametrize(
    "path", ["../evil.png", "benign/../../evil.png", "/tmp/evil.png", "benign\\..\\..\\evil.png", "C:/evil.png"]
)
def test_a_path_that_leaves_the_archive_is_refused_by_name(file, path):
    pack(file, ("benign/a.png", b"a"), (path, b"evil"))
    with pytest.raises(InputError) as error:
        members(file)
    assert repr(path) in str(error.value)
    assert "the archive" in str(error.value)


def test_too_many_members_are_refused(file, monkeypatch):
    monkeypatch.setattr(archive, "MAX_MEMBERS", 3)
    assert len(members(pack(file, *((f"{n}.png", b"x") for n in range(3))))) == 3
    with pytest.raises(InputError, match="holds 4 files, more than 3"):
        members(pack(file, *((f"{n}.png", b"x") for n in range(4))))


def test_an_implausible_compression_ratio_is_refused_by_name(file):
    pack(file, ("a.png", CONTENT[:1000]), ("bomb.png", bytes(1_000_000)))
    with pytest.raises(InputError, match=r"'bomb\.png' unpacks to 1000000 bytes"):
        members(file)


def test_a_member_that_is_too_large_is_refused_by_name(file, monkeypatch):
    monkeypatch.setattr(archive, "MAX_MEMBER_BYTES", 900)
    with pytest.raises(InputError, match=r"'large\.png' unpacks to 1000 bytes"):
        members(pack(file, ("small.png", CONTENT[:900]), ("large.png", CONTENT[:1000])))


def test_an_archive_that_is_too_large_in_all_is_refused(file, monkeypatch):
    monkeypatch.setattr(archive, "MAX_BYTES", 1500)
    assert len(members(pack(file, ("a.png", CONTENT[:1500])))) == 1
    with pytest.raises(InputError, match="unpacks to more than"):
        members(pack(file, ("a.png", CONTENT[:1000]), ("b.png", CONTENT[:1000])))


def test_a_member_that_stands_there_twice_is_refused_by_name(file):
    with pytest.warns(UserWarning, match="Duplicate name"):
        pack(file, ("a.png", b"one"), ("b.png", b"two"), ("a.png", b"three"))
    with pytest.raises(InputError, match=r"'a\.png' twice"):
        members(file)


def test_litter_is_ignored(file):
    pack(
        file, ("x/a.png", b"a"), ("__MACOSX/x/._a.png", b"fork"), ("x/.DS_Store", b"finder"), ("x/Thumbs.db", b"thumbs")
    )
    assert list(members(file)) == ["x/a.png"]


@pytest.mark.parametrize("where", [0, 2500, 4990])
def test_a_damaged_member_is_refused_by_name_and_not_written(file, tmp_path, where):
    pack(file, ("benign/a.png", CONTENT[:5000]))
    start = 30 + len("benign/a.png")  # a local header has 30 bytes and the name
    content = file.read_bytes()[start + where : start + where + 4]
    patch(file, start + where, bytes(byte ^ 0xFF for byte in content))
    with pytest.raises(InputError, match=r"the archive: 'benign/a\.png' is damaged"):
        extract_all(file, tmp_path / "out")
    assert not (tmp_path / "out/benign/a.png").exists()


def test_a_member_longer_than_its_header_says_is_refused(file, tmp_path):
    pack(file, ("a.png", CONTENT[:5000]))
    patch(file, file.read_bytes().index(b"PK\x01\x02") + 24, struct.pack("<I", 100))
    with pytest.raises(InputError, match=r"'a\.png' is damaged"):
        extract_all(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_encrypted_member_is_refused(file, tmp_path):
    pack(file, ("a.png", CONTENT[:5000]))
    patch(file, file.read_bytes().index(b"PK\x01\x02") + 8, b"\x01\x00")
    patch(file, 6, b"\x01\x00")
    with pytest.raises(InputError, match=r"'a\.png'.*encrypted"):
        extract_all(file, tmp_path / "out")
