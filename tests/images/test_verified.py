import os

from ultrasound.images import verified


def test_untouched_files_keep_their_hash_and_touched_ones_do_not(tmp_path):
    files = [tmp_path / name for name in "abcd"]
    for file in files:
        file.write_text("pixels")
    notes, hashes = tmp_path / "notes.json", dict(zip(map(str, files), "1234", strict=True))
    assert verified.untouched(notes) == {}
    verified.note(hashes, notes)
    assert verified.untouched(notes) == hashes
    files[0].write_text("PIXELS")  # of the same size
    os.utime(files[1], ns=(5, 5))
    files[2].unlink()
    assert verified.untouched(notes) == {str(files[3]): "4"}
