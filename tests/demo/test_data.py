"""Splits never share an example, and every method sees the same batches in the same order."""

import pytest

pytest.importorskip("tqdm")

from demo.data import Split, collate, deduplicate, read_csv, split, training_order  # noqa: E402


def test_duplicates_go_before_the_split():
    rows = [("Fine film", "1"), ("fine  film ", "1"), ("torn", "0"), ("Torn", "1"), ("dull", "0")]
    assert deduplicate(rows) == [("Fine film", "1"), ("dull", "0")]


def test_parts_are_disjoint_and_complete_and_fixed():
    rows = [(f"text {i}", str(i % 2)) for i in range(400)]
    train, validation, test = split(rows)
    assert len(validation) == len(test) == 50
    assert sorted(train + validation + test) == sorted(rows)
    assert split(rows) == (train, validation, test)


def test_order_visits_every_example_once_an_epoch():
    order = training_order(count=10, steps=4, batch_size=5, seed=3)
    assert sorted(order[0] + order[1]) == sorted(order[2] + order[3]) == list(range(10))
    assert order == training_order(count=10, steps=4, batch_size=5, seed=3)
    assert order != training_order(count=10, steps=4, batch_size=5, seed=4)


def test_batches_are_padded_to_their_longest():
    batch = collate(Split([[5, 6, 7], [8]], [1, 0]), [1, 0], pad_id=9)
    assert batch["input_ids"].tolist() == [[8, 9, 9], [5, 6, 7]]
    assert batch["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert batch["labels"].tolist() == [0, 1]


def test_csv_keeps_only_complete_rows(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text('\ufefflabel,text,more\nyes,"a, b",1\nno,,2\n no ,c,3\n', encoding="utf-8")
    assert read_csv(path) == [("a, b", "yes"), ("c", "no")]
