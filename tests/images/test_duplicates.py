import itertools
import subprocess
import sys
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.cluster.hierarchy import DisjointSet

from scripts import bench_duplicates as bench
from tests.conftest import PROJECT, environment
from ultrasound import params
from ultrasound.errors import InputError
from ultrasound.images import duplicates, matching
from ultrasound.images.duplicates import COLUMNS, COPY, IDENTICAL, LARGEST, SAME_VIEW
from ultrasound.images.preparation import pixel_hash
from ultrasound.images.sources import phantom

SPLIT = params.load().split
NAMES = [f"image {number}" for number in range(12)]


EASY = ["crop", "rescale", "mirror", "contrast", "calipers", "JPEG"]


def search(catalog, inliers=SPLIT.inliers, correlation=SPLIT.correlation):
    return duplicates.near_duplicates(catalog, inliers, correlation)


def catalog_of(folder, images):
    rows = []
    for name, image in images.items():
        image.save(folder / f"{name}.png")
        rows.append({"image_id": name, "image": str(folder / f"{name}.png"), "pixels": pixel_hash(image)})
    return pd.DataFrame(rows)


def evidence(first, second, method=COPY, joined=True):
    return {"first": first, "second": second, "method": method, "joined": joined}


def joined_of(pairs):
    table = pd.DataFrame(pairs, columns=["first", "second", "method", "joined"])
    return table.assign(joined=np.array(duplicates._joined(table), dtype=bool))


def unordered(pairs):
    return {frozenset(ends) for ends in zip(pairs["first"], pairs["second"], strict=True)}


def by_ends(pairs):
    ends = [" and ".join(sorted(ends)) for ends in zip(pairs["first"], pairs["second"], strict=True)]
    return pairs.drop(columns=["first", "second"]).set_index(pd.Index(ends)).sort_index()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return bench.draw(tmp_path_factory.mktemp("copies"), scans=50, seed=1, kinds=EASY)


@pytest.fixture(scope="module")
def pairs(images):
    return duplicates.near_duplicates(images, SPLIT.inliers, SPLIT.correlation)


@pytest.fixture(scope="module")
def few(images):
    return images[images["scan"].lt(6) & images["kind"].isin([bench.ORIGINAL, "crop", "mirror", "calipers"])]


@pytest.fixture(scope="module")
def pairs_of_few(few):
    return search(few)


def test_copies_are_found_and_different_scans_are_not_joined(images, pairs, capsys):
    scores = bench.score(images, pairs)
    with capsys.disabled():
        print(f"\n{bench.report(images, scores)}")
    assert scores["pairs"].to_dict() == dict.fromkeys(EASY, 50) | {"all": 300}
    assert (scores["recall"] >= 98).all()
    assert scores.loc["all", "false pairs"] <= 0.001 * bench.different(images)
    assert (scores["precision"] >= 95).all()


def test_the_pairs_tell_which_copies_are_mirrored(images, pairs):
    kinds = images.set_index("image_id")["kind"]
    copies = pairs[pairs["method"] == COPY]
    turned = (kinds[copies["first"]].to_numpy() == "mirror") != (kinds[copies["second"]].to_numpy() == "mirror")
    assert len(copies) > 900
    assert (copies["mirrored"].to_numpy() == turned).all()


def test_scans_with_the_same_lettering_and_copies_changed_in_every_way_at_once(tmp_path, capsys):
    images = bench.draw(tmp_path, scans=15, seed=1, kinds=["lettering", "all at once"])
    scores = bench.score(images, search(images))
    with capsys.disabled():
        print(f"\n{bench.report(images, scores)}")
    assert (scores["recall"] >= 90).all()
    assert scores.loc["lettering", "false pairs"] == 0


def test_the_score_counts_what_is_missed_and_what_is_false():
    rows = [(scan, kind) for scan in (0, 1) for kind in (bench.ORIGINAL, *bench.KINDS)]
    images = pd.DataFrame(rows, columns=["scan", "kind"]).assign(image_id=[f"{scan}/{kind}" for scan, kind in rows])
    found = [("0/original", "0/crop"), ("0/crop", "0/mirror"), ("1/mirror", "0/original"), ("0/original", "1/original")]
    scores = bench.score(images, pd.DataFrame(found, columns=["first", "second"]))
    assert scores.loc["crop"].tolist() == [2, 1, 50, 0, 100]
    assert scores.loc["mirror"].tolist() == [2, 0, 0, 1, 50]
    assert scores.loc["JPEG", "recall"] == 0 and np.isnan(scores.loc["JPEG", "precision"])
    assert scores.loc["all"].tolist() == [16, 1, 100 / 16, 2, 50]
    assert bench.different(images) == 81


def test_every_pair_stands_once_with_its_evidence_the_surest_first(few, pairs_of_few):
    assert pairs_of_few.columns.tolist() == COLUMNS
    assert pairs_of_few.index.tolist() == list(range(len(pairs_of_few)))
    assert len(unordered(pairs_of_few)) == len(pairs_of_few) >= 6 * 3
    order = few["image_id"].tolist()
    assert all(order.index(pair.first) < order.index(pair.second) for pair in pairs_of_few.itertuples())
    rank = [[IDENTICAL, COPY, SAME_VIEW].index(method) for method in pairs_of_few["method"]]
    assert rank == sorted(rank)
    for _, rows in pairs_of_few.groupby("method"):
        assert rows["correlation"].is_monotonic_decreasing
    assert (pairs_of_few["inliers"] >= SPLIT.inliers).all()
    assert pairs_of_few["correlation"].between(SPLIT.correlation, 1).all()
    assert pairs_of_few["overlap"].between(0, 1).all() and pairs_of_few["speckle"].between(-1, 1).all()
    assert (pairs_of_few["speckle"] >= duplicates.SPECKLE).equals(pairs_of_few["method"] == COPY)


def test_the_search_repeats_itself(few, pairs_of_few):
    pd.testing.assert_frame_equal(search(few), pairs_of_few)


def test_another_processor_finds_the_same(few, pairs_of_few, tmp_path):
    few.to_pickle(tmp_path / "few.pickle")
    code = (
        "import sys, pandas; from numpy._core._multiarray_umath import __cpu_features__ as known; "
        "assert not known['X86_V3']; from tests.images.test_duplicates import search; "
        "search(pandas.read_pickle(sys.argv[1])).to_pickle(sys.argv[2])"
    )
    found = tmp_path / "found.pickle"
    older = environment(
        OPENCV_CPU_DISABLE="SSE4.1,SSE4.2,AVX,FP16,AVX2,FMA3,AVX512-SKX", OPENCV_IPP="disabled",
        OPENBLAS_CORETYPE="Nehalem", NPY_DISABLE_CPU_FEATURES="X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
        GLIBC_TUNABLES="glibc.cpu.hwcaps=-AVX2,-FMA,-AVX512F",
    )  # fmt: skip
    subprocess.run([sys.executable, "-c", code, tmp_path / "few.pickle", found], cwd=PROJECT, env=older, check=True)
    pd.testing.assert_frame_equal(pd.read_pickle(found), pairs_of_few, check_exact=True)


def test_the_order_of_the_catalogue_is_no_matter(few, pairs_of_few):
    shuffled = few.sample(frac=1, random_state=3)
    again = search(shuffled)
    one, other = (by_ends(pairs) for pairs in (pairs_of_few, again))
    pd.testing.assert_frame_equal(one, other, check_exact=False, rtol=0, atol=0.0011)  # the last digit may turn
    scans = few.set_index("image_id")["scan"]
    groups = duplicates.groups(shuffled["image_id"].tolist(), again)
    assert (groups == pd.factorize(scans[shuffled["image_id"]])[0]).all()


def test_other_images_do_not_change_the_evidence_of_a_pair(few, pairs_of_few):
    fewer = few[few["scan"] < 2]
    both = pairs_of_few["first"].isin(fewer["image_id"]) & pairs_of_few["second"].isin(fewer["image_id"])
    pd.testing.assert_frame_equal(search(fewer), pairs_of_few[both].reset_index(drop=True))


def test_stricter_thresholds_leave_fewer_pairs(few, pairs_of_few):
    most = int(pairs_of_few["inliers"].median())
    assert unordered(search(few, inliers=most)) == unordered(pairs_of_few[pairs_of_few["inliers"] >= most])
    sure = pairs_of_few[pairs_of_few["correlation"] >= 0.991]  # rounded there
    assert 0 < len(sure) < len(pairs_of_few)
    assert unordered(search(few, correlation=0.9905)) == unordered(sure)


@pytest.mark.parametrize("label", phantom.CLASSES)
def test_a_scan_that_returns_among_the_phantoms_is_found(tmp_path, label):
    scans = {f"{number}": phantom.phantom(label, number, seed=0)[0] for number in (8, 9, 10)}  # 10 shows 9 again
    found = search(catalog_of(tmp_path, scans))
    assert found[["first", "second", "method", "mirrored", "joined"]].values.tolist() == [
        ["9", "10", COPY, False, True]
    ]


def test_identical_pixels_are_always_found(tmp_path):
    blank, other = Image.new("L", (300, 200)), Image.new("L", (300, 201))
    scan = phantom.phantom("benign", 1, seed=0)[0]
    in_colour = {"scan": scan, "in colour": scan.convert("RGB")}  # the same pixels, as grey and as RGB
    table = catalog_of(tmp_path, {"a": blank, "b": blank, "other": other, "c": blank, **in_colour})
    found = search(table, inliers=10_000, correlation=1.0)
    assert unordered(found) == {frozenset(ends) for ends in ("ab", "ac", "bc")} | {frozenset(in_colour)}
    assert set(found["method"]) == {IDENTICAL} and found["joined"].all() and (found["correlation"] == 1).all()
    assert duplicates.groups(table["image_id"].tolist(), found).tolist() == [0, 0, 1, 0, 2, 2]


def test_of_the_two_ways_around_the_better_is_told(tmp_path):
    half = np.asarray(phantom.phantom("benign", 1, seed=0)[0])
    whole = np.hstack([half, half[:, ::-1]])
    whole[:150, :300] //= 2  # now not quite as its mirror image
    copies = {"a": Image.fromarray(whole), "b": Image.fromarray(whole[:, 30:-5]), "c": Image.fromarray(whole[:, ::-1])}
    table = catalog_of(tmp_path, copies)
    signatures = [duplicates._signature(file) for file in table["image"]]
    for other in signatures[1:]:  # both ways around they are a pair
        ways = [matching.compare(signatures[0], other, SPLIT.inliers, mirrored=mirrored) for mirrored in (False, True)]
        assert all(match.correlation > SPLIT.correlation for match in ways)
    found = {f"{pair.first}{pair.second}": pair.mirrored for pair in search(table).itertuples()}
    assert found == {"ab": False, "ac": True, "bc": True}


def test_of_identical_scans_the_keypoints_are_counted(tmp_path):
    scan = phantom.phantom("benign", 1, seed=0)[0]
    (found,) = search(catalog_of(tmp_path, {"a": scan, "b": scan})).to_dict("records")
    assert found["method"] == IDENTICAL and found["inliers"] > 50 and not found["mirrored"]


@pytest.mark.parametrize("blank", [False, True])
def test_without_pairs_the_table_is_empty_but_whole(tmp_path, pairs_of_few, blank):
    scans = [phantom.phantom("benign", 1, seed=0)[0], phantom.phantom("benign", 2, seed=0)[0]]
    chosen = [Image.new("L", (90, 80)), Image.new("L", (90, 81))] if blank else scans
    found = search(catalog_of(tmp_path, {"a": chosen[0], "b": chosen[1]}))
    assert len(found) == 0 and found.columns.tolist() == COLUMNS
    pd.testing.assert_series_equal(found.dtypes, pairs_of_few.dtypes)
    assert found[found["joined"]].columns.tolist() == COLUMNS and (~found["joined"]).sum() == 0
    assert duplicates.groups(["a", "b"], found).tolist() == [0, 1]


def test_a_single_image_has_no_pair(tmp_path):
    assert len(search(catalog_of(tmp_path, {"a": phantom.phantom("benign", 1, seed=0)[0]}))) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [("no image", r"damaged\.png is not a PNG or JPEG image"), (None, r"damaged\.png is missing")],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, content, message):
    table = catalog_of(tmp_path, {"whole": Image.new("L", (90, 80)), "damaged": Image.new("L", (90, 80))})
    file = tmp_path / "damaged.png"
    file.write_text(content) if content else file.unlink()
    with pytest.raises(InputError, match=message):
        search(table)


def test_a_chain_of_views_ends_before_it_makes_a_giant_group():
    names = [f"{number}" for number in range(50)]
    pairs = joined_of([evidence(*ends, SAME_VIEW) for ends in itertools.pairwise(names)])
    sizes = np.bincount(duplicates.groups(names, pairs))
    assert sizes.tolist() == [LARGEST, LARGEST, 10]
    assert pairs.loc[~pairs["joined"], "first"].tolist() == ["19", "39"]


def test_a_chain_of_copies_does_not_end():
    names = [f"{number}" for number in range(50)]
    methods = [IDENTICAL, *[COPY] * 48]
    pairs = joined_of(
        [evidence(*ends, method) for ends, method in zip(itertools.pairwise(names), methods, strict=True)]
    )
    assert pairs["joined"].all() and set(duplicates.groups(names, pairs)) == {0}


def test_a_view_does_not_join_two_groups_of_copies_to_a_giant_one():
    names = [f"{number}" for number in range(30)]
    copies = [evidence("0", name) for name in names[1:15]] + [evidence("15", name) for name in names[16:]]
    views = [evidence("0", "15", SAME_VIEW), evidence("3", "4", SAME_VIEW)]  # the second is within a group already
    pairs = joined_of(copies + views)
    assert pairs["joined"].tolist() == [*[True] * len(copies), False, True]
    assert np.bincount(duplicates.groups(names, pairs)).tolist() == [15, 15]


drawn_pairs = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES), st.sampled_from([COPY, SAME_VIEW])).filter(
        lambda pair: pair[0] != pair[1]
    ),
    max_size=25,
)


@given(drawn_pairs)
def test_only_copies_make_a_group_larger_than_the_largest(drawn):
    ordered = sorted(drawn, key=lambda pair: [IDENTICAL, COPY, SAME_VIEW].index(pair[2]))
    with mock.patch.object(duplicates, "LARGEST", 4):
        pairs = joined_of([evidence(*pair) for pair in ordered])
    groups = dict(zip(NAMES, duplicates.groups(NAMES, pairs), strict=True))
    copies = DisjointSet(NAMES)
    for pair in pairs[pairs["method"] == COPY].itertuples():
        assert pair.joined
        copies.merge(pair.first, pair.second)
    for name in NAMES:
        group = {other for other in NAMES if groups[other] == groups[name]}
        assert len(group) <= 4 or group == copies.subset(name)
    for pair in pairs[~pairs["joined"]].itertuples():
        assert groups[pair.first] != groups[pair.second]


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES), st.booleans()), max_size=25))
def test_groups_are_the_connected_components_numbered_by_their_first_image(drawn):
    pairs = pd.DataFrame(drawn, columns=["first", "second", "joined"]).astype({"joined": bool})
    expected = list(range(len(NAMES)))
    for first, second, joined in drawn:
        into, gone = sorted((expected[NAMES.index(first)], expected[NAMES.index(second)]))
        expected = [into if label == gone and joined else label for label in expected]
    order = sorted(set(expected))
    assert duplicates.groups(NAMES, pairs).tolist() == [order.index(label) for label in expected]
