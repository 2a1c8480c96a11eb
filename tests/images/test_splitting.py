import hashlib
import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultrasound.errors import InputError
from ultrasound.images import splitting

CLASSES = ("benign", "malignant", "normal", "other")
BUSI = {  # class -> size of the groups -> number of groups of BUSI, conflicts left out
    "benign": {1: 221, 2: 81, 3: 11, 4: 1, 7: 1},
    "malignant": {1: 167, 2: 14, 3: 1, 6: 1},
    "normal": {1: 66, 2: 17, 3: 5, 4: 4},
}

seeds = st.integers(0, 1000)
shuffles = st.integers(0, 1000)
modes = st.sampled_from(["exclude", "keep"])
checked = settings(max_examples=25, deadline=None)
NONE_KEPT = pd.DataFrame({name: pd.Series(dtype="str") for name in splitting.TEST_SET_COLUMNS})


@st.composite
def structures(draw, fewest=14, conflicts=5):
    """Labels of the images of each group: 2 to 4 classes of at least `fewest` groups, and groups of several labels."""
    labels = CLASSES[: draw(st.integers(2, 4))]
    sizes = st.lists(st.integers(1, 8), min_size=fewest, max_size=max(fewest, 24))
    clean = [[label] * size for label in labels for size in draw(sizes)]
    mixed = st.lists(st.sampled_from(labels), min_size=2, max_size=8).filter(lambda group: len(set(group)) > 1)
    return clean + draw(st.lists(mixed, max_size=conflicts))


def images(groups, shuffle=0):
    """Catalogue and group of each image, in any order; an image's pixels belong to its place in `groups`."""
    rows = [
        (f"{label}/{label} ({group}.{member})", label, pixels_of(group, member), group)
        for group, labels in enumerate(groups)
        for member, label in enumerate(labels)
    ]
    rows = [rows[position] for position in np.random.default_rng(shuffle).permutation(len(rows))]
    table = pd.DataFrame(rows, columns=["image_id", "label", "pixels", "group"])
    return table.drop(columns="group"), table["group"].to_numpy()


def pixels_of(group, member):
    return hashlib.sha256(f"{group}, {member}".encode()).hexdigest()


def ones(number=20, labels=CLASSES[:3]):
    return images([[label] for label in labels for _ in range(number)])


def busi():
    return images([[label] * size for label, sizes in BUSI.items() for size, number in sizes.items()
                   for _ in range(number)])  # fmt: skip


def split(catalog, groups, *, kept=(), test_share=0.2, folds=5, conflicts="exclude", seed=0):
    return splitting.split(catalog, groups, kept, test_share, folds, conflicts, seed)


def hashes(table, catalog, where="test"):
    return set(catalog.loc[(table["split"] == where).to_numpy(), "pixels"])


def by_pixels(table, catalog):
    places = table[["label", "split", "fold", "status"]].assign(pixels=catalog["pixels"].to_numpy())
    return places.sort_values("pixels", ignore_index=True)


def farthest_share(table):
    """Largest difference, over parts and classes, between a class's share of the part's images and of all."""
    used = table[table["split"] != "excluded"]
    whole = used["label"].value_counts(normalize=True)
    parts = used.groupby(used["fold"].astype("string").fillna("test"))["label"]
    shares = parts.value_counts(normalize=True).unstack(fill_value=0)
    return (shares - whole).abs().max(axis=None)


# --- groups


@checked
@given(structures(), st.sets(st.integers(0, 27), max_size=6), modes, seeds, shuffles)
def test_every_image_has_one_place_and_no_group_is_divided(structure, locked, mode, seed, shuffle):
    catalog, groups = images(structure, shuffle)
    kept = {pixels_of(group, 0) for group in locked}
    table = split(catalog, groups, kept=kept, conflicts=mode, seed=seed)
    assert table.columns.tolist() == splitting.COLUMNS
    assert table["image_id"].tolist() == catalog["image_id"].tolist()
    assert table["label"].tolist() == catalog["label"].tolist()
    assert table["group"].tolist() == groups.tolist()
    assert set(table["split"]) <= {"test", "development", "excluded"}
    assert (table["fold"].notna() == (table["split"] == "development")).all()
    places = table.groupby("group")[["split", "fold", "status", "reason"]].nunique(dropna=False)
    assert places.eq(1).all(axis=None)
    labels = len(set(table["label"]))
    assert table.groupby("fold")["label"].nunique().to_dict() == dict.fromkeys(range(5), labels)
    assert table.loc[table["split"] == "test", "label"].nunique() == labels


@checked
@given(structures(), st.sets(st.integers(0, 27), max_size=6), modes, seeds)
def test_groups_of_several_labels_are_conflicts_with_the_reason_and_no_others(structure, locked, mode, seed):
    catalog, groups = images(structure)
    kept = {pixels_of(group, 0) for group in locked}
    table = split(catalog, groups, kept=kept, conflicts=mode, seed=seed)
    is_conflict = table.groupby("group")["label"].transform("nunique") > 1
    assert ((table["status"] == "conflict") == is_conflict).all()
    assert set(table["status"]) <= {"clean", "conflict"}
    assert ((table["split"] == "excluded") == (is_conflict & (mode == "exclude"))).all()
    assert (table.loc[~is_conflict, "reason"] == "").all()
    for _, rows in table[is_conflict].groupby("group"):
        labels = sorted(set(rows["label"]))
        reason = rows["reason"].iloc[0]
        assert f"labelled {' and '.join(labels)}:" in reason
        named = rows[[image_id in reason for image_id in rows["image_id"]]]
        assert len(named) == min(len(rows), 6)
        assert sorted(set(named["label"])) == labels
        assert ("and 2 more" in reason) == (len(rows) == 8)


def test_the_reason_tells_who_disagrees():
    groups = [["benign"]] * 20 + [["malignant"]] * 20 + [["malignant", "benign"]]
    table = split(*images(groups))
    assert (
        table.loc[table["status"] == "conflict", "reason"].tolist()
        == ["near-duplicates are labelled benign and malignant: benign/benign (40.1), malignant/malignant (40.0)"] * 2
    )


def test_a_conflict_that_is_kept_counts_under_its_most_frequent_label():
    clean = [["benign"]] * 20 + [["malignant"]] * 20
    table = split(*images(clean + [["normal", "normal", "benign"]] * 7), conflicts="keep")
    assert table[table["label"] == "normal"].groupby("split")["group"].nunique().to_dict() == {
        "development": 5,
        "test": 2,  # 1.4 rounded up, because 20 % of 47 groups is 9.4
    }


def test_of_labels_equally_frequent_the_first_by_name_counts():
    clean = [["benign"]] * 20 + [["malignant"]] * 20
    with pytest.raises(InputError, match=r"benign has 27 groups.*normal has 0 groups"):
        split(*images(clean + [["normal", "benign"]] * 7), conflicts="keep")


# --- shares


@checked
@given(structures(fewest=8, conflicts=0), st.floats(0.1, 0.3), seeds)
def test_the_test_set_is_the_share_of_the_groups_of_each_class_and_of_each_size(structure, share, seed):
    table = split(*images(structure), test_share=share, folds=2, seed=seed)
    groups = table.groupby("group").agg(label=("label", "first"), size=("label", "size"), split=("split", "first"))
    groups["test"] = groups["split"] == "test"
    assert groups["test"].sum() == math.ceil(share * len(groups) - 1e-9)
    for _, rows in groups.groupby("label"):
        drawn = rows["test"].sum()
        assert math.floor(share * len(rows)) <= drawn <= math.ceil(share * len(rows))
        for size in range(1, 9):  # systematic sampling takes its part of every range of sizes, rounded down or up
            at_least = rows[rows["size"] >= size]
            assert abs(at_least["test"].sum() - len(at_least) * drawn / len(rows)) < 1


def test_a_fifth_of_50_groups_is_10_whatever_the_rounding_of_floating_point_numbers():
    table = split(*images([["benign"]] * 9 + [["malignant"]] * 41))  # 0.2 * 9 + 0.2 * 41 = 10.000000000000002
    assert table[table["split"] == "test"]["label"].value_counts().to_dict() == {"malignant": 8, "benign": 2}


@st.composite
def large_structures(draw):
    """2 to 4 classes of groups of 1 to 8 images, enough for the largest to be at most 2 % of a test set or fold."""
    largest = draw(st.integers(1, 8))
    numbers = st.lists(st.integers(0, 40), min_size=largest, max_size=largest)
    classes = {label: draw(numbers) for label in CLASSES[: draw(st.integers(2, 4))]}
    for counts in classes.values():
        counts[0] += max(16 - sum(counts), 0)
    total = sum(size * count for counts in classes.values() for size, count in enumerate(counts, 1))
    times = math.ceil(largest / 0.02 / 0.155 / total)  # a test set or fold is about 16 to 20 % of the images
    filled = draw(st.sampled_from([*classes, None]))  # one class may be far larger than the others
    for label, counts in classes.items():
        if filled is None:
            classes[label] = [count * times for count in counts]
        elif label == filled:
            own = sum(size * count for size, count in enumerate(counts, 1))
            factor = 1 + math.ceil((times - 1) * total / own)
            classes[label] = [count * factor for count in counts]
    return [[label] * size for label, counts in classes.items() for size, count in enumerate(counts, 1)
            for _ in range(count)]  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(large_structures(), st.booleans(), seeds)
def test_class_shares_are_within_3_points_of_the_whole_if_no_group_is_above_2_percent_of_a_part(
    structure, has_grown, seed
):
    catalog, groups = images(structure)
    kept = set()
    if has_grown:  # the test set of every second group is locked already
        early = groups % 2 == 0
        kept = hashes(split(catalog[early], groups[early], seed=seed), catalog[early])
    table = split(catalog, groups, kept=kept, seed=seed)
    smallest = table["fold"].astype("string").fillna("test").value_counts().min()
    assert table["group"].value_counts().max() <= 0.02 * smallest  # what the strategy promises
    assert farthest_share(table) <= 0.03


def test_class_shares_of_busi_are_within_a_point_of_the_whole_although_its_largest_group_is_5_percent_of_a_part():
    catalog, groups = busi()
    assert max(farthest_share(split(catalog, groups, seed=seed)) for seed in range(12)) < 0.01


def test_folds_are_of_like_size_and_composition():
    groups = [[label] for label, number in {"benign": 200, "malignant": 100, "normal": 60}.items()
              for _ in range(number)]  # fmt: skip
    table = split(*images(groups))
    counts = table.groupby(["fold", "label"]).size().unstack()
    assert counts["benign"].eq(32).all()
    assert counts["malignant"].eq(16).all()
    assert counts["normal"].between(9, 10).all()


@checked
@given(structures(fewest=7), st.floats(0.001, 0.89), st.integers(2, 20), modes, seeds)
def test_any_share_and_number_of_folds_gives_whole_folds_or_says_that_there_are_too_few(
    structure, share, folds, mode, seed
):
    catalog, groups = images(structure)
    clean = pd.Series([labels[0] for labels in structure if len(set(labels)) == 1]).value_counts()
    try:
        table = split(catalog, groups, test_share=share, folds=folds, conflicts=mode, seed=seed)
    except InputError as error:
        assert "too few" in str(error)  # noqa: PT017
        wanted = share * clean
        assert wanted.min() < 1 or (clean - np.ceil(wanted)).min() < folds
        return
    labels = len(set(catalog["label"]))
    assert table.groupby("fold")["label"].nunique().to_dict() == dict.fromkeys(range(folds), labels)
    assert table.loc[table["split"] == "test", "label"].nunique() == labels


def test_too_few_groups_of_a_class_are_told_with_the_numbers():
    groups = [["benign"]] * 30 + [["malignant"] * 9] * 3 + [["normal"]] * 30
    with pytest.raises(InputError, match=r"5 folds.*malignant has 3 groups, 1 of them for the test"):
        split(*images(groups))


def test_a_class_of_which_only_conflicts_are_left_is_told():
    with pytest.raises(InputError, match="normal has 0 groups"):
        split(*images([["benign"]] * 30 + [["malignant"]] * 30 + [["benign", "normal"]] * 3))


def test_a_test_set_that_leaves_too_little_for_the_folds_is_told():
    catalog, groups = ones(20)
    with pytest.raises(InputError, match="benign has 20 groups, 17 of them for the test"):
        split(catalog, groups, kept=set(catalog["pixels"][catalog["label"] == "benign"][:17]))


# --- stability


@st.composite
def additions(draw):
    """(label, groups of the first images that it resembles): alone, a near-duplicate of one, or a bridge of two."""
    place = st.integers(0, 39)
    one = st.tuples(st.sampled_from(CLASSES[:2]), st.lists(place, max_size=2))
    return draw(st.lists(one, max_size=6)) + [("newcomer", [])] * draw(st.sampled_from([0, 10]))


def add(structure, added):
    """Groups of the grown data set: for each of the first images and each newcomer the group it belongs to now."""
    joined = list(range(len(structure)))
    own = []
    for _, resembled in added:
        targets = {joined[group] for group in resembled}
        group = min(targets, default=len(structure) + len(own))
        joined = [group if other in targets else other for other in joined]
        own = [group if other in targets else other for other in own] + [group]
    return np.array(joined), np.array(own, dtype=np.int64)


@checked
@given(structures(fewest=20, conflicts=3), additions(), modes, seeds, seeds, shuffles)
def test_added_images_move_no_test_image_unless_they_contradict_its_label(
    structure, added, mode, seed, other_seed, shuffle
):
    catalog, groups = images(structure)
    first = split(catalog, groups, conflicts=mode, seed=seed)
    locked = hashes(first, catalog)
    joined, own = add(structure, added)
    newcomers = pd.DataFrame(
        [(f"new/{n}", label, pixels_of("new", n)) for n, (label, _) in enumerate(added)], columns=catalog.columns
    )
    grown = pd.concat([catalog, newcomers], ignore_index=True)
    new_groups = np.concatenate([joined[groups], own])
    order = np.random.default_rng(shuffle).permutation(len(grown))
    grown, new_groups = grown.iloc[order].reset_index(drop=True), new_groups[order]

    table = split(grown, new_groups, kept=locked, conflicts=mode, seed=other_seed)
    was_test = grown["pixels"].isin(locked)
    is_contradicted = table.groupby("group")["label"].transform("nunique") > 1
    stays = was_test & ~(is_contradicted & (mode == "exclude"))
    assert (table.loc[stays, "split"] == "test").all()
    assert (table.loc[was_test & ~stays, "split"] == "excluded").all()  # and not development
    touched = table["group"].isin(table.loc[stays, "group"])
    assert (table.loc[touched, "split"] == "test").all()
    for label, rows in table[table["split"] == "test"].groupby("label"):  # nothing drawn above the share
        if mode == "exclude":
            used = table[(table["label"] == label) & (table["split"] != "excluded")]
            limit = math.ceil(0.2 * used["group"].nunique())
            assert rows["group"].nunique() <= max(limit, rows.loc[was_test[rows.index], "group"].nunique())


def test_a_bridge_to_a_test_image_takes_development_images_to_the_test_set():
    catalog, groups = ones()
    first = split(catalog, groups)
    tested, developed = (
        catalog.index[(first["split"] == where) & (first["label"] == "benign")][0] for where in ("test", "development")
    )
    grown = pd.concat([catalog, pd.DataFrame([("new", "benign", "f" * 64)], columns=catalog.columns)])
    joined = np.where(groups == groups[developed], groups[tested], groups)
    table = split(grown, np.append(joined, groups[tested]), kept=hashes(first, catalog))
    assert table["split"].to_numpy()[[tested, developed, -1]].tolist() == ["test"] * 3


def test_a_kept_image_that_a_newcomer_contradicts_is_excluded_and_comes_back_when_conflicts_are_kept():
    catalog, groups = ones()
    locked = hashes(split(catalog, groups), catalog)
    tested = catalog.index[catalog["pixels"].isin(locked) & (catalog["label"] == "benign")][0]
    grown = pd.concat([catalog, pd.DataFrame([("new", "malignant", "f" * 64)], columns=catalog.columns)])
    new_groups = np.append(groups, groups[tested])
    for mode, place in {"exclude": "excluded", "keep": "test"}.items():
        table = split(grown, new_groups, kept=locked, conflicts=mode)
        assert table["split"].to_numpy()[[tested, -1]].tolist() == [place] * 2
        assert table["status"].to_numpy()[[tested, -1]].tolist() == ["conflict"] * 2


def test_kept_images_are_known_by_their_pixels_and_those_of_other_data_sets_are_no_matter():
    catalog, groups = ones()
    locked = hashes(split(catalog, groups), catalog)
    renamed = catalog.assign(image_id=[f"x/{number}" for number in range(len(catalog))])
    assert hashes(split(renamed, groups, kept=locked | {"0" * 64}, seed=9), renamed) == locked


def test_a_test_set_above_its_share_gets_no_more():
    catalog, groups = ones()
    benign = set(catalog["pixels"][catalog["label"] == "benign"][:9])
    table = split(catalog, groups, kept=benign)
    assert table[table["split"] == "test"]["label"].value_counts().to_dict() == {
        "benign": 9,
        "malignant": 4,
        "normal": 4,
    }


def test_what_is_drawn_beside_large_locked_groups_is_small():
    large = [["benign"] * 8] * 6
    catalog, groups = images([*large, *[["benign"]] * 40, *[["malignant"]] * 30])
    kept = {pixels_of(group, 0) for group in range(3)}
    for seed in range(10):
        table = split(catalog, groups, kept=kept, seed=seed)
        tested = table[(table["split"] == "test") & (table["label"] == "benign")]
        assert tested["group"].nunique() == 10  # 20 % of 76 groups is 15.2, of 46 is 9.2
        assert len(tested) == 3 * 8 + 7  # 20 % of the 88 images is less than what is locked


# --- determinism


@checked
@given(structures(), modes, seeds, st.randoms(use_true_random=False), shuffles)
def test_neither_names_nor_the_order_of_rows_nor_the_numbers_of_groups_matter(structure, mode, seed, random, shuffle):
    catalog, groups = images(structure)
    kept = {pixels_of(0, 0), pixels_of(20, 0)}
    first = split(catalog, groups, kept=kept, conflicts=mode, seed=seed)
    numbers = random.sample(range(1000), len(structure))
    again, same_groups = images(structure, shuffle)
    again["image_id"] = [f"scan {number}" for number in random.sample(range(1000), len(again))]
    other = split(again, np.array(numbers)[same_groups], kept=kept, conflicts=mode, seed=seed)
    pd.testing.assert_frame_equal(by_pixels(first, catalog), by_pixels(other, again))


def test_the_same_seed_gives_the_same_split_and_other_seeds_others():
    first, again = split(*busi(), seed=3), split(*busi(), seed=3)
    pd.testing.assert_frame_equal(first, again)
    assert splitting.digest(first) == splitting.digest(again)
    several = [split(*ones(), seed=seed) for seed in range(10)]
    assert len({frozenset(table.index[table["split"] == "test"]) for table in several}) == 10
    assert len({splitting.digest(table) for table in several}) == 10


def test_with_the_test_set_kept_the_seed_still_changes_the_folds():
    catalog, groups = ones()
    locked = hashes(split(catalog, groups), catalog)
    first, other = (split(catalog, groups, kept=locked, seed=seed) for seed in (0, 1))
    assert first["split"].tolist() == other["split"].tolist()
    assert splitting.digest(first) != splitting.digest(other)


def test_the_tables_passed_in_are_not_changed():
    catalog, groups = ones()
    before = catalog.copy(), groups.copy()
    split(catalog, groups)
    pd.testing.assert_frame_equal(catalog, before[0])
    assert np.array_equal(groups, before[1])


# --- folds


def test_random_folds_are_stratified_and_divide_groups():
    catalog, groups = busi()
    labels = catalog["label"].tolist()
    random, grouped = splitting.folds(labels, None, 5, 0), splitting.folds(labels, groups, 5, 0)
    assert random.dtype == grouped.dtype == np.int64
    counts = pd.crosstab(random, catalog["label"])
    assert counts.shape == (5, 3) and (counts.max() - counts.min()).max() <= 1
    assert (pd.Series(random).groupby(groups).nunique() > 1).sum() > 50
    assert (pd.Series(grouped).groupby(groups).nunique() == 1).all()
    assert not np.array_equal(random, splitting.folds(labels, None, 5, 1))


@pytest.mark.parametrize("groups", [None, range(24)])
def test_folds_of_which_one_would_lack_a_class_are_refused(groups):
    with pytest.raises(InputError, match=r"too few.*5 folds.*malignant has 4 groups"):
        splitting.folds(["benign"] * 20 + ["malignant"] * 4, groups, 5, 0)


@pytest.mark.parametrize("groups", [None, range(8)])
def test_folds_of_which_all_would_lack_a_class_are_refused(groups):
    with pytest.raises(InputError, match=r"benign has 4 groups, malignant has 4 groups"):
        splitting.folds(["benign"] * 4 + ["malignant"] * 4, groups, 5, 0)


def test_a_class_that_stands_only_in_few_mixed_groups_is_refused():
    labels = ["benign"] * 20 + ["malignant"] * 6
    groups = [*range(20), *[0, 0, 1, 2, 3, 3]]  # 6 malignant images in 4 groups
    with pytest.raises(InputError, match="malignant has 4 groups"):
        splitting.folds(labels, groups, 5, 0)


# --- the kept file


def test_the_test_set_survives_its_file(tmp_path):
    catalog, groups = busi()
    table = split(catalog, groups)
    tested = splitting.test_set(table, catalog, NONE_KEPT)
    assert tested.columns.tolist() == ["image_id", "label", "pixels"]
    assert tested["image_id"].tolist() == sorted(table.loc[table["split"] == "test", "image_id"])
    tested.to_csv(tmp_path / "test_set.csv", index=False)
    kept = splitting.read_test_set(tmp_path / "test_set.csv")
    assert set(kept["pixels"]) == hashes(table, catalog)
    again = split(catalog, groups, kept=set(kept["pixels"]), seed=5)
    assert again["split"].tolist() == table["split"].tolist()


def test_a_test_set_of_the_header_alone_keeps_none(tmp_path):
    file = tmp_path / "test_set.csv"
    file.write_text("image_id,label,pixels\n")
    pd.testing.assert_frame_equal(splitting.read_test_set(file), NONE_KEPT)


def test_a_kept_image_stays_in_the_list_when_it_is_excluded_or_gone():
    catalog, groups = busi()
    table = split(catalog, groups)
    kept = splitting.test_set(table, catalog, NONE_KEPT)
    gone, contradicted = kept["pixels"][0], kept["pixels"][1]
    rest = table.assign(split=table["split"].where(catalog["pixels"] != contradicted, "excluded"))
    without = catalog["pixels"] != gone
    again = splitting.test_set(rest[without], catalog[without], kept)
    pd.testing.assert_frame_equal(again, kept)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "is missing"),
        (b"", "is no CSV table with the columns image_id, label, pixels"),
        (b"image_id,label\na,b\n", "is no CSV table with the columns image_id, label, pixels"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "is no CSV table with the columns image_id, label, pixels"),
        (b'image_id,label,pixels\n"a,b,c\n', "is no CSV table with the columns image_id, label, pixels"),
        (b"image_id,label,pixels\na,b,\n", "holds '' in column pixels"),
        (b"image_id,label,pixels\na,b,1.2E+10\n", "holds '1.2E\\+10' in column pixels"),
        (b"image_id,label,pixels\na,b\n", "holds .* in column pixels"),
    ],
)
def test_a_test_set_that_cannot_be_read_is_told_with_the_remedy(tmp_path, content, problem):
    file = tmp_path / "test_set.csv"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(
        InputError, match=rf"test_set\.csv \(split\.test_set\) {problem}.*one line image_id,label,pixels"
    ):
        splitting.read_test_set(file)


# --- nnU-Net


@checked
@given(structures(), modes, seeds)
def test_nnunet_gets_the_development_folds(structure, mode, seed):
    table = split(*images(structure), conflicts=mode, seed=seed)
    written = json.loads(json.dumps(splitting.nnunet(table)))
    # As `images` names them, benign/benign (3.1) -> benign_3_1
    cases = {f"{row.label}_{row.image_id.split('(')[1][:-1].replace('.', '_')}": row for row in table.itertuples()}
    development = {case for case, row in cases.items() if row.split == "development"}
    assert len(written) == 5
    for number, fold in enumerate(written):
        assert set(fold) == {"train", "val"}
        assert len(set(fold["train"] + fold["val"])) == len(fold["train"]) + len(fold["val"])
        assert set(fold["train"]) | set(fold["val"]) == development
        assert {cases[case].fold for case in fold["val"]} == {number}
        assert not {cases[case].group for case in fold["val"]} & {cases[case].group for case in fold["train"]}


@pytest.mark.parametrize(
    ("image_id", "case"),
    [
        ("benign/benign (1)", "benign_1"),
        ("benign/scan.7 left", "benign_scan_7_left"),
        ("benign/0001", "benign_0001"),
        ("benign/größe", "benign_größe"),
        ("x/xx (2)", "xx_2"),
    ],
)
def test_cases_of_nnunet_are_safe_file_names(image_id, case):
    table = split(*ones())
    table.loc[table.index[table["fold"] == 0][0], "image_id"] = image_id
    assert case in splitting.nnunet(table)[0]["val"]


@pytest.mark.parametrize("twins", [("a/1 2", "a/1-2"), ("a/B", "A/b"), ("a/a (1)", "a/1")])
def test_images_of_which_nnunet_would_make_one_case_are_told_apart(twins):
    table = split(*ones())
    development = table.index[table["split"] == "development"]
    table.loc[development[:2], "image_id"] = twins
    cases = [case.casefold() for case in splitting.nnunet(table)[0]["train"] + splitting.nnunet(table)[0]["val"]]
    assert len(set(cases)) == len(cases) == len(development)
    assert sum(case.endswith("_again") for case in cases) == 1


# --- the digest and the table's file


def test_the_digest_depends_neither_on_the_order_of_rows_nor_on_numbers_of_groups_nor_on_reasons():
    table = split(*ones())
    renumbered = table.assign(group=table["group"].max() - table["group"], reason="another")
    assert splitting.digest(table[::-1]) == splitting.digest(renumbered) == splitting.digest(table)


@pytest.mark.parametrize("move", ["to the test set", "to another fold", "out"])
def test_the_digest_changes_when_one_image_moves(move):
    table = split(*ones())
    before = splitting.digest(table)
    image = table.index[table["split"] == "development"][0]
    if move == "to another fold":
        table.loc[image, "fold"] = (table.loc[image, "fold"] + 1) % 5
    else:
        table.loc[image, "split"] = "test" if move == "to the test set" else "excluded"
        table.loc[image, "fold"] = pd.NA
    assert splitting.digest(table) != before


def test_the_table_survives_its_file(tmp_path):
    groups = [[label] * 2 for label in CLASSES[:3] for _ in range(8)] + [["benign", "malignant"]]
    table = split(*images(groups))
    table.to_csv(tmp_path / "splits.csv", index=False)
    again = splitting.read(tmp_path / "splits.csv")
    assert again["fold"].dtype == pd.Int64Dtype()
    pd.testing.assert_frame_equal(again, table)
    assert splitting.digest(again) == splitting.digest(table)


def test_classes_that_are_numbers_survive_the_file(tmp_path):
    catalog, groups = ones(8, ("0", "1"))
    split(catalog, groups).to_csv(tmp_path / "splits.csv", index=False)
    assert splitting.read(tmp_path / "splits.csv")["label"].tolist() == catalog["label"].tolist()


def test_a_missing_table_says_how_to_make_it(tmp_path):
    with pytest.raises(InputError, match=r"splits\.csv is missing: run `dvc repro`"):
        splitting.read(tmp_path / "splits.csv")


def test_the_summary_counts_every_image_once():
    groups = [[label] for label in CLASSES[:3] for _ in range(20)] + [["benign", "malignant"]]
    summary = splitting.summary(split(*images(groups)))
    assert summary.index.tolist() == ["excluded", *(f"fold {fold}" for fold in range(5)), "test", "all"]
    assert summary.loc["test"].tolist() == [4, 4, 4, 12]
    assert summary.loc["excluded"].tolist() == [1, 1, 0, 2]
    assert summary.loc["all"].tolist() == [21, 21, 20, 62]
