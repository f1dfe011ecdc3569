from data.corpus_listing import LEFT_OUT
from data.left_out import left_out_rows, num_left_out
from data.types import Record
from tests.listings import listing_of


def test_each_row_says_its_own_labels() -> None:
    """A line is made for a set of labels, not for a row: rows must not get each other's."""
    some = [("eel",), ("cat", "eel"), ("eel",), ("eel", "cat")]
    records = [
        Record(key=f"{n}.png", path=f"p/{n}", labels=labels, split=LEFT_OUT, size_bytes=n, etag="e", offset=n)
        for n, labels in enumerate(some)
    ]
    taken = Record(key="t.png", path="t", labels=("cat",), split="train", size_bytes=1, etag="e")
    listing = listing_of([*records, taken])
    assert num_left_out(listing) == 4
    rows = {row["key"]: row for row in left_out_rows(listing).to_pylist()}
    assert rows["1.png"] == {
        "key": "1.png", "path": "p/1", "reason": "unknown_label", "etag": "e", "size_bytes": 1, "offset": 1,
        "detail": "the labels ['cat', 'eel'] are not all among the given classes",
    }  # fmt: skip
    assert {key: row["detail"].partition("]")[0][11:] for key, row in rows.items()} == {
        f"{n}.png": repr(list(labels))[:-1] for n, labels in enumerate(some)
    }
