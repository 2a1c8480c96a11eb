import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ultrasound.errors import InputError
from ultrasound.images import splitting

CLASSES = ("benign", "malignant", "normal")

structures = st.fixed_dictionaries(
    {label: st.lists(st.integers(1, 5), min_size=7, max_size=40) for label in CLASSES}
)  # the sizes of the groups of each class
conflicts = st.lists(st.lists(st.sampled_from(CLASSES), min_size=2, max_size=4), max_size=4)
checked = settings(max_examples=40, deadline=None)


def images(structure, mixed=(), seed=0):
    labelled = [[label] * size for label, sizes in structure.items() for size in sizes] + [list(one) for one in mixed]
    rows = [(label, group) for group, labels in enumerate(labelled) for label in labels]
    rows = [rows[position] for position in np.random.default_rng(seed).permutation(len(rows))]
    catalog = pd.DataFrame(
        [(f"{label}/{label} ({number})", label) for number, (label, _) in enumerate(rows)],
        columns=["image_id", "label"],
    )
    return catalog, np.array([group for _, group in rows])


def ones(number=20):
    return images(dict.fromkeys(CLASSES, [1] * number))


@checked
@given(structures, conflicts, st.integers(0, 1000))
def test_every_image_has_one_place_and_no_group_is_divided(structure, mixed, seed):
    catalog, groups = images(structure, mixed, seed)
    table = splitting.split(catalog, groups, 0.2, 5, seed)
    assert table.columns.tolist() == splitting.COLUMNS
    assert table["image_id"].tolist() == catalog["image_id"].tolist()
    assert table["label"].tolist() == catalog["label"].tolist()
    assert table["group"].tolist() == groups.tolist()
    assert set(table["split"]) <= {"test", "development", "excluded"}
    assert (table["fold"].notna() == (table["split"] == "development")).all()
    assert table.groupby("group")["split"].nunique().eq(1).all()
    assert table.groupby("group")["fold"].nunique(dropna=False).eq(1).all()


@checked
@given(structures, conflicts, st.integers(0, 1000))
def test_groups_of_several_labels_are_excluded_with_the_reason_and_no_others(structure, mixed, seed):
    catalog, groups = images(structure, mixed, seed)
    table = splitting.split(catalog, groups, 0.2, 5, seed)
    for _, rows in table.groupby("group"):
        labels = sorted(set(rows["label"]))
        if len(labels) == 1:
            assert "excluded" not in set(rows["split"])
            assert set(rows["reason"]) == {""}
        else:
            assert set(rows["split"]) == {"excluded"}
            assert all("conflict" in reason and " and ".join(labels) in reason for reason in rows["reason"])


@checked
@given(structures, st.integers(0, 1000))
def test_a_fifth_of_the_groups_of_each_class_is_the_test_set_and_every_fold_holds_every_class(structure, seed):
    table = splitting.split(*images(structure, seed=seed), 0.2, 5, seed)
    tested = table[table["split"] == "test"].groupby("label")["group"].nunique()
    number = sum(map(len, structure.values()))
    assert tested.sum() == math.ceil(number / 5)
    assert all(abs(tested[label] - len(sizes) * tested.sum() / number) < 1 for label, sizes in structure.items())
    assert table.groupby("fold")["label"].nunique().to_dict() == dict.fromkeys(range(5), 3)


@checked
@given(structures, st.floats(0.001, 0.89), st.integers(2, 20), st.integers(0, 1000))
def test_any_share_and_number_of_folds_gives_whole_folds_or_says_that_there_are_too_few(structure, share, folds, seed):
    try:
        table = splitting.split(*images(structure, seed=seed), share, folds, seed)
    except InputError as error:
        assert "too few" in str(error)  # noqa: PT017
        return
    assert table.groupby("fold")["label"].nunique().to_dict() == dict.fromkeys(range(folds), 3)
    assert set(table.loc[table["split"] == "test", "label"]) == set(CLASSES)


def test_folds_are_of_like_size_and_composition():
    table = splitting.split(*images({"benign": [1] * 200, "malignant": [1] * 100, "normal": [1] * 60}), 0.2, 5, 0)
    counts = table.groupby(["fold", "label"]).size().unstack()
    assert counts["benign"].between(31, 33).all()
    assert counts["malignant"].between(15, 17).all()
    assert counts["normal"].between(9, 10).all()


def test_the_same_seed_gives_the_same_split_and_another_one_another():
    first, again, other = (splitting.split(*ones(), 0.2, 5, seed) for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(first, again)
    assert splitting.digest(first) == splitting.digest(again) != splitting.digest(other)
    assert (first["split"] != other["split"]).any()


def test_the_tables_passed_in_are_not_changed():
    catalog, groups = ones()
    before = catalog.copy(), groups.copy()
    splitting.split(catalog, groups, 0.2, 5, 0)
    pd.testing.assert_frame_equal(catalog, before[0])
    assert np.array_equal(groups, before[1])


def test_too_few_groups_of_a_class_are_told_with_the_numbers():
    catalog, groups = images({"benign": [1] * 30, "malignant": [9] * 3, "normal": [1] * 30})
    with pytest.raises(InputError, match=r"5 folds.*malignant has 3 groups"):
        splitting.split(catalog, groups, 0.2, 5, 0)


def test_a_class_of_which_only_conflicts_are_left_is_told():
    catalog, groups = images({"benign": [1] * 30, "malignant": [1] * 30}, [["benign", "normal"]] * 3)
    with pytest.raises(InputError, match="normal has 0 groups"):
        splitting.split(catalog, groups, 0.2, 5, 0)


def test_the_digest_does_not_depend_on_the_order_of_the_rows_or_the_numbers_of_the_groups():
    table = splitting.split(*ones(), 0.2, 5, 0)
    renumbered = table.assign(group=table["group"].max() - table["group"])
    assert splitting.digest(table[::-1]) == splitting.digest(renumbered) == splitting.digest(table)


@pytest.mark.parametrize("move", ["to the test set", "to another fold", "out"])
def test_the_digest_changes_when_one_image_moves(move):
    table = splitting.split(*ones(), 0.2, 5, 0)
    before = splitting.digest(table)
    image = table.index[table["split"] == "development"][0]
    if move == "to another fold":
        table.loc[image, "fold"] = (table.loc[image, "fold"] + 1) % 5
    else:
        table.loc[image, "split"] = "test" if move == "to the test set" else "excluded"
        table.loc[image, "fold"] = pd.NA
    assert splitting.digest(table) != before


def test_the_table_survives_its_file(tmp_path):
    catalog, groups = images(dict.fromkeys(CLASSES, [2] * 8), [["benign", "malignant"]])
    table = splitting.split(catalog, groups, 0.2, 5, 0)
    table.to_csv(tmp_path / "splits.csv", index=False)
    again = splitting.read(tmp_path / "splits.csv")
    assert again["fold"].dtype == pd.Int64Dtype()
    pd.testing.assert_frame_equal(again, table)
    assert splitting.digest(again) == splitting.digest(table)


def test_classes_that_are_numbers_survive_the_file(tmp_path):
    catalog, groups = images(dict.fromkeys(("0", "1"), [1] * 8))
    splitting.split(catalog, groups, 0.2, 5, 0).to_csv(tmp_path / "splits.csv", index=False)
    assert splitting.read(tmp_path / "splits.csv")["label"].tolist() == catalog["label"].tolist()


def test_a_missing_table_says_how_to_make_it(tmp_path):
    with pytest.raises(InputError, match=r"splits\.csv is missing: run `dvc repro`"):
        splitting.read(tmp_path / "splits.csv")


def test_the_summary_counts_every_image_once():
    catalog, groups = images(dict.fromkeys(CLASSES, [1] * 20), [["benign", "malignant"]])
    summary = splitting.summary(splitting.split(catalog, groups, 0.2, 5, 0))
    assert summary.index.tolist() == ["excluded", *(f"fold {fold}" for fold in range(5)), "test", "all"]
    assert summary.loc["test"].tolist() == [4, 4, 4, 12]
    assert summary.loc["excluded"].tolist() == [1, 1, 0, 2]
    assert summary.loc["all"].tolist() == [21, 21, 20, 62]
