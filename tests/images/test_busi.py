import hashlib
import os
import re
import shutil
import socket
import tempfile
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from ultrasound.errors import InputError, ParameterError
from ultrasound.images.sources import busi, phantom
from ultrasound.sections import Data, Download

CLASSES = ("benign", "malignant", "normal")
CHANGED = "malignant/malignant (1).png"


def pixels_of(file):
    with Image.open(file) as image:
        rgb = image.convert("RGB")
    return hashlib.sha256(f"{rgb.width}x{rgb.height}:".encode() + rgb.tobytes()).hexdigest()


def files_in(folder):
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    for label in CLASSES:
        (folder / label).mkdir()
        for number in (1, 2):
            scan, mask = phantom.phantom(label, number, seed=3)
            scan.convert("RGB").save(folder / label / f"{label} ({number}).png")
            mask.save(folder / label / f"{label} ({number})_mask.png")
    return folder


@pytest.fixture(scope="module")
def manifest(published, tmp_path_factory):
    rows = []
    for path in files_in(published):
        file = published / path
        with Image.open(file) as image:
            kind = "mask" if "_mask" in path else "image"
            rows.append((path, path.partition("/")[0], kind, image.width, image.height, image.mode))
        rows[-1] += (file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest(), pixels_of(file))
    columns = ["path", "class", "kind", "width", "height", "mode", "bytes", "sha256", "rgb_sha256"]
    file = tmp_path_factory.mktemp("manifest") / "busi.csv"
    pd.DataFrame(rows, columns=columns).to_csv(file, index=False)
    return file


@pytest.fixture
def clone(tmp_path, manifest, monkeypatch):
    monkeypatch.setattr(busi, "MANIFEST", manifest)
    monkeypatch.delenv("BUSI_ARCHIVE", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "clone"
    folder.mkdir()
    return folder


@pytest.fixture
def copy(published, tmp_path):
    return Path(shutil.copytree(published, tmp_path / "copy"))


@pytest.fixture
def offer(tmp_path, monkeypatch):
    def give(folder, top="Dataset_BUSI_with_GT/"):
        file = pack(folder, tmp_path / "Dataset_BUSI.zip", top)
        monkeypatch.setenv("BUSI_ARCHIVE", str(file))
        return file

    return give


@pytest.fixture
def web(tmp_path):
    folder = tmp_path / "web"
    folder.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def do_GET(self):
            assert "Range" not in self.headers  # what another mirror sent is no beginning of this one's
            super().do_GET()

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def silent():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/Dataset_BUSI.zip"


def pack(folder, file, top="Dataset_BUSI_with_GT/"):
    with zipfile.ZipFile(file, "w") as zipped:
        for path in files_in(folder):
            zipped.write(folder / path, top + path)
    return file


def change_one_pixel(folder, path=CHANGED):
    with Image.open(folder / path) as image:
        changed = image.copy()
    red, green, blue = changed.getpixel((20, 10))
    changed.putpixel((20, 10), (red, green, blue ^ 1))
    changed.save(folder / path)


def fetch(clone, *mirrors, classes=CLASSES):
    data = Data(source="busi", classes=classes, path=None, count=1, seed=0)
    download = Download(mirrors=mirrors, timeout=0.5)
    return busi.fetch(data, download, clone / "data", clone / "build")


def assert_complete(clone, published, release):
    home = clone / "data" / "Dataset_BUSI_with_GT"
    assert release.folder == home
    assert files_in(home) == files_in(published)
    assert {file.path: file.pixels for file in release.files} == {
        path: pixels_of(published / path) for path in files_in(published)
    }
    assert os.listdir(clone) == ["data"]  # noqa: PTH208
    assert [folder.name for folder in (clone / "data").iterdir()] == ["Dataset_BUSI_with_GT"]


def assert_untouched(clone):
    assert list(clone.iterdir()) == []


@pytest.mark.parametrize("top", ["Dataset_BUSI_with_GT/", "Breast Cancer/Images/", ""])
def test_the_archive_that_busi_archive_names_is_used_whatever_its_top_folder(clone, published, offer, top):
    offer(published, top)
    assert_complete(clone, published, fetch(clone))


def test_the_files_come_in_the_order_of_the_manifest(clone, published, manifest, offer):
    offer(published)
    assert [file.path for file in fetch(clone).files] == pd.read_csv(manifest)["path"].tolist()


def test_empty_data_folders_are_filled(clone, published, offer):
    (clone / "data" / "Dataset_BUSI_with_GT").mkdir(parents=True)
    offer(published)
    assert_complete(clone, published, fetch(clone))


def test_the_fetched_folder_is_open_to_other_users(clone, published, offer):
    offer(published)
    home = fetch(clone).folder
    (clone / "fresh").mkdir()
    assert home.stat().st_mode == (clone / "fresh").stat().st_mode
    assert (home / "benign").stat().st_mode == (clone / "fresh").stat().st_mode


def test_the_first_mirror_that_has_it_is_used(clone, published, web):
    folder, address = web
    (folder / "page.zip").write_text("<html>please log in</html>")
    pack(published, folder / "Dataset_BUSI.zip")
    release = fetch(clone, f"{address}/gone.zip", f"{address}/page.zip", f"{address}/Dataset_BUSI.zip")
    assert_complete(clone, published, release)


def test_a_mirror_with_a_changed_file_is_passed_over(clone, published, copy, web):
    folder, address = web
    change_one_pixel(copy)
    pack(copy, folder / "changed.zip")
    pack(published, folder / "Dataset_BUSI.zip")
    assert_complete(clone, published, fetch(clone, f"{address}/changed.zip", f"{address}/Dataset_BUSI.zip"))


def test_a_pinned_mirror_must_send_the_pinned_archive(clone, published, web):
    folder, address = web
    pin = hashlib.sha256(pack(published, folder / "a.zip").read_bytes()).hexdigest()
    with pytest.raises(InputError, match=f"expected SHA-256 {pin[::-1]}, found {pin}"):
        fetch(clone, f"{address}/a.zip#sha256={pin[::-1]}")
    assert_untouched(clone)
    assert_complete(clone, published, fetch(clone, f"{address}/a.zip#sha256={pin}"))


def test_a_filled_data_folder_comes_first(clone, published, monkeypatch):
    shutil.copytree(published, clone / "data" / "Dataset_BUSI_with_GT")
    monkeypatch.setenv("BUSI_ARCHIVE", "/nowhere/Dataset_BUSI.zip")
    assert_complete(clone, published, fetch(clone))


def test_the_archive_comes_before_the_mirrors(clone, web, monkeypatch, published):
    folder, address = web
    pack(published, folder / "Dataset_BUSI.zip")
    monkeypatch.setenv("BUSI_ARCHIVE", "/nowhere/Dataset_BUSI.zip")
    with pytest.raises(InputError, match=r"BUSI_ARCHIVE=/nowhere/Dataset_BUSI\.zip"):
        fetch(clone, f"{address}/Dataset_BUSI.zip")
    assert_untouched(clone)


def test_a_copy_that_was_compressed_anew_passes(clone, published, copy, offer):
    for path in files_in(copy):
        with Image.open(copy / path) as image:
            image.convert("L").save(copy / path, compress_level=1)
    assert (copy / CHANGED).read_bytes() != (published / CHANGED).read_bytes()
    offer(copy)
    assert_complete(clone, published, fetch(clone))


def test_one_changed_pixel_is_refused_by_name_with_both_hashes(clone, published, copy, offer):
    change_one_pixel(copy)
    file = offer(copy)
    with pytest.raises(InputError) as error:
        fetch(clone)
    for part in (str(file), CHANGED, pixels_of(published / CHANGED), pixels_of(copy / CHANGED)):
        assert part in str(error.value)
    assert_untouched(clone)


def test_a_changed_mask_is_refused_by_name(clone, copy, offer):
    path = "benign/benign (2)_mask.png"
    with Image.open(copy / path) as image:
        Image.new("1", image.size).save(copy / path)
    offer(copy)
    with pytest.raises(InputError, match=re.escape(path)):
        fetch(clone)
    assert_untouched(clone)


def test_one_changed_pixel_in_the_data_folder_is_refused_and_nothing_is_deleted(clone, copy):
    change_one_pixel(copy)
    home = clone / "data" / "Dataset_BUSI_with_GT"
    shutil.copytree(copy, home)
    with pytest.raises(InputError) as error:
        fetch(clone)
    assert CHANGED in str(error.value)
    assert pixels_of(copy / CHANGED) in str(error.value)
    assert files_in(home) == files_in(copy)


@pytest.mark.parametrize("keep", [0.3, 0.99])
def test_a_truncated_archive_is_named_with_its_hash(clone, published, offer, keep):
    file = offer(published)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(InputError) as error:
        fetch(clone)
    assert str(file) in str(error.value)
    assert hashlib.sha256(file.read_bytes()).hexdigest() in str(error.value)
    assert_untouched(clone)


@pytest.mark.parametrize("at", [6, 46], ids=["version", "name"])
def test_an_archive_with_a_damaged_table_of_contents_is_named(clone, published, offer, at):
    file = offer(published, top="Göttingen/")  # a name in UTF-8
    content = bytearray(file.read_bytes())
    content[content.index(b"PK\x01\x02") + at] = 0xFF
    file.write_bytes(content)
    with pytest.raises(InputError) as error:
        fetch(clone)
    assert str(file) in str(error.value)
    assert_untouched(clone)


def test_a_damaged_file_in_the_archive_is_named(clone, published, offer):
    file = offer(published)
    content = bytearray(file.read_bytes())
    content[content.index(CHANGED.encode()) + 5000] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(InputError) as error:
        fetch(clone)
    assert str(file) in str(error.value)
    assert CHANGED in str(error.value)
    assert_untouched(clone)


def test_a_text_file_named_png_is_refused_by_name(clone, copy, offer):
    (copy / CHANGED).write_text("no image")
    file = offer(copy)
    with pytest.raises(InputError, match="is not a PNG or JPEG image") as error:
        fetch(clone)
    assert f"{file}/{CHANGED}" in str(error.value)
    assert_untouched(clone)


def test_a_missing_file_is_named(clone, copy, offer):
    (copy / CHANGED).unlink()
    offer(copy)
    with pytest.raises(InputError) as error:
        fetch(clone)
    assert CHANGED in str(error.value)
    assert "it lacks" in str(error.value)
    assert_untouched(clone)


def test_an_unknown_file_is_named(clone, copy, offer):
    shutil.copy(copy / CHANGED, copy / "benign/benign (3).png")
    offer(copy)
    with pytest.raises(InputError, match=r"unknown.*benign/benign \(3\)\.png"):
        fetch(clone)
    assert_untouched(clone)


def test_missing_and_unknown_files_of_the_data_folder_are_named(clone, copy):
    home = clone / "data" / "Dataset_BUSI_with_GT"
    shutil.copytree(copy, home)
    (home / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"unknown.*notes\.txt"):
        fetch(clone)
    (home / "notes.txt").unlink()
    (home / CHANGED).unlink()
    with pytest.raises(InputError, match=rf"lacks.*{re.escape(CHANGED)}"):
        fetch(clone)
    assert len(files_in(home)) == 11


def test_a_path_that_leaves_the_archive_is_refused(clone, published, offer, tmp_path):
    file = offer(published)
    with zipfile.ZipFile(file, "a") as zipped:
        zipped.writestr("../../evil.png", b"evil")
    with pytest.raises(InputError, match=r"\.\./\.\./evil\.png"):
        fetch(clone)
    assert_untouched(clone)
    assert not list(tmp_path.rglob("evil.png"))


def test_nothing_anywhere_is_one_message_with_every_place_its_reason_and_the_remedies(clone, web, silent):
    folder, address = web
    (folder / "page.zip").write_text("<html>please log in</html>")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{unused.getsockname()[1]}/x.zip"
    with pytest.raises(InputError) as error:
        fetch(clone, closed, f"{address}/gone.zip", f"{address}/page.zip", f"{silent}#sha256=00")
    message = str(error.value)
    places = [
        f"{clone / 'data' / 'Dataset_BUSI_with_GT'}: not there",
        "BUSI_ARCHIVE: not set",
        f"{closed}: no connection",
        f"{address}/gone.zip: answered 404",
        f"{address}/page.zip: ",
        f"{silent}: no answer within 0.5 s",
    ]
    positions = [message.index(place) for place in places]
    assert positions == sorted(positions)
    assert "not a whole ZIP archive" in message[positions[4] : positions[5]]
    for remedy in ("set BUSI_ARCHIVE=", "unpack it to", "dvc pull", "data.source: phantom"):
        assert message.index(remedy) > positions[-1]
    assert_untouched(clone)


def test_the_leftover_of_a_killed_process_is_cleaned(clone, published, offer):
    leftover = clone / ".incoming-killed"
    leftover.mkdir()
    (leftover / "archive.zip").write_bytes(b"half of it")
    offer(published)
    assert_complete(clone, published, fetch(clone))


def test_a_data_folder_on_another_disk_is_filled(clone, published, offer):
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == clone.stat().st_dev:
        pytest.skip("this machine has no second file system to write to")
    offer(published)
    with tempfile.TemporaryDirectory(dir=other) as disk:
        (clone / "data").symlink_to(disk)
        release = fetch(clone)
        assert len(release.files) == 12
        assert files_in(Path(disk, "Dataset_BUSI_with_GT")) == files_in(published)
        assert [path.name for path in Path(disk).iterdir()] == ["Dataset_BUSI_with_GT"]
    assert [path.name for path in clone.iterdir()] == ["data"]


def test_other_classes_than_those_of_busi_are_a_parameter_error(clone):
    with pytest.raises(ParameterError, match="BUSI has"):
        fetch(clone, classes=("benign", "malignant"))
    assert_untouched(clone)


def test_the_committed_manifest_lists_the_whole_release():
    table = pd.read_csv(busi.MANIFEST)
    images = table[table["kind"] == "image"]
    assert len(table) == table["path"].nunique() == 1578
    assert images["class"].value_counts().to_dict() == {"benign": 437, "malignant": 210, "normal": 133}
    assert table["rgb_sha256"].str.fullmatch("[0-9a-f]{64}").all()
