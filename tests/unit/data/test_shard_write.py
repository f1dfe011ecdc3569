import hashlib
import io
import json
import tarfile
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import google_crc32c
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from data import shard_index
from data.arrow import Table
from data.image_check import ImageLimits
from data.list_corpus import list_for_build
from data.listing import batch_of
from data.shard_index import INDEX_SCHEMA, read_index
from data.shard_plan import ShardPlan, ShardPlans
from data.shard_write import ShardResult, rewrite_shard, write_shard
from data.sharding_config import ShardingConfig
from data.store import ObjectNotFoundError, Store, StoreError
from data.types import Record
from infra.store import open_store
from tests.image_samples import fill, jpeg, photos, png
from tests.listings import listing_of, records_in

ODD_NAMES = {
    "cat/a.b.c.png": png(1),
    "cat/with space.png": png(2),
    "cat/été 日本.jpg": jpeg(3),
    "dog/a.b.c.png": png(4),
    "dog/a.b.c.jpg": jpeg(5),
    "dog/__x__.png": png(6),
    "__meta__/y.png": png(7),
    "dog/100%2E.png": png(8),
    f"dog/{'long' * 40}.png": png(9),
}


def plan_of(corpus: Store, split: str = "train") -> ShardPlan:
    listing = list_for_build(corpus, ShardingConfig(eval_fraction=0.0))
    plans = ShardPlans(listing, classes=listing.classes, shard_size_bytes=2**30)
    (plan,) = (plan for plan in plans if plan.split == split)
    return plan


def written(corpus: Store, dataset: Store, **limits: int) -> ShardResult:
    return write_shard(plan_of(corpus), corpus=corpus, dataset=dataset, limits=ImageLimits(**limits))


def objects(store: Store, folder: str) -> dict[str, bytes]:
    return {info.path: store.get(info.path) for info in store.list(folder)}


def member_names(tar: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        return opened.getnames()


# webdataset leaves the tar open until it is collected.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_stock_webdataset_reads_odd_names(tmp_path: Path) -> None:
    """webdataset cuts a member's name at its first dot and skips names below a `__x__` folder."""
    corpus = fill(tmp_path / "corpus", ODD_NAMES)
    dataset = open_store(str(tmp_path / "dataset"))
    info = written(corpus, dataset).info
    pipeline = webdataset.WebDataset(str(tmp_path / "dataset" / info.path), shardshuffle=False)
    samples = {json.loads(sample["json"])["name"]: sample for sample in pipeline}
    assert samples.keys() == ODD_NAMES.keys()
    for name, content in ODD_NAMES.items():
        assert samples[name][name.rpartition(".")[2]] == content
    classes = ["__meta__", "cat", "dog"]
    assert {name: classes[int(sample["cls"])] for name, sample in samples.items()} == {
        name: name.partition("/")[0] for name in ODD_NAMES
    }


def test_index_finds_every_image_in_the_tar(tmp_path: Path) -> None:
    corpus = fill(tmp_path / "corpus", ODD_NAMES)
    dataset = open_store(str(tmp_path / "dataset"))
    info = written(corpus, dataset).info
    table = read_index(dataset, info)
    assert table.schema.equals(INDEX_SCHEMA)
    assert info.num_samples == table.num_rows == len(ODD_NAMES)
    tar = dataset.get(info.path)
    assert (hashlib.sha256(tar).hexdigest(), google_crc32c.value(tar)) == (info.sha256, info.crc32c)
    assert info.path == f"shards/train-{info.sha256[:16]}.tar"
    for row in table.to_pylist():
        image = tar[row["offset"] : row["offset"] + row["size"]]
        assert image == ODD_NAMES[row["name"]]
        assert (row["crc32c"], row["sha256"]) == (
            google_crc32c.value(image),
            hashlib.sha256(image).hexdigest(),
        )
        assert (row["path"], row["width"], row["height"], row["reencoded"]) == (row["name"], 8, 8, False)
    members = member_names(tar)
    assert [name.rpartition(".")[0] for name in members[::3]] == table.column("key").to_pylist()


def test_an_index_of_another_pyarrow_leaves_the_first_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index had its tar's name: a `create` after an upgrade of pyarrow, even a refused one, wrote other
    bytes over the index that a live snapshot names by its sha256, and every reader found it damaged.
    """
    corpus = fill(tmp_path / "corpus", photos("a", 3, 0))
    dataset = open_store(str(tmp_path / "dataset"))
    first = written(corpus, dataset).info
    for path in objects(dataset, "receipts"):
        dataset.delete(path)

    def as_another_version(table: Table) -> bytes:
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="snappy")
        return sink.getvalue()

    monkeypatch.setattr(shard_index, "_table_bytes", as_another_version)
    second = written(corpus, dataset).info
    assert (second.path, second.sha256) == (first.path, first.sha256)
    assert second.index_sha256 != first.index_sha256
    assert read_index(dataset, first).equals(read_index(dataset, second))


@pytest.mark.parametrize("content", [b"", b"\xff", b"{}", b"[]", b'{"info": null, "rejects": [1]}'])
def test_a_damaged_receipt_is_none(tmp_path: Path, content: bytes) -> None:
    """An empty one, as a full disk leaves it, ended every later run in a traceback."""
    corpus = fill(tmp_path / "corpus", photos("a", 3, 0))
    dataset = open_store(str(tmp_path / "dataset"))
    first = written(corpus, dataset)
    (path,) = objects(dataset, "receipts")
    whole = dataset.get(path)
    dataset.put(path, content)
    assert written(corpus, dataset) == first
    assert dataset.get(path) == whole


def test_damaged_index_is_a_store_error(tmp_path: Path) -> None:
    corpus = fill(tmp_path / "corpus", photos("a", 1, 0))
    dataset = open_store(str(tmp_path / "dataset"))
    info = written(corpus, dataset).info
    dataset.put(info.index_path, dataset.get(info.index_path) + b"x")
    with pytest.raises(StoreError, match="is damaged"):
        read_index(dataset, info)


def test_broken_images_are_rejects_and_the_rest_goes_on(tmp_path: Path) -> None:
    good = photos("a", 20, 0)
    bad = {
        "a/zero.png": b"",
        "a/half.png": png(50, height=64)[:-500],
        "a/text.jpg": b"hello",
        "a/wide.png": png(51, width=30),
    }
    corpus = fill(tmp_path / "corpus", good | bad)
    dataset = open_store(str(tmp_path / "dataset"))
    result = written(corpus, dataset, max_pixels=200 * 64)
    reasons = {reject.path: reject.reason for reject in result.rejects}
    assert reasons == {"a/zero.png": "empty", "a/half.png": "unreadable", "a/text.jpg": "unreadable"}
    assert result.info.num_samples == 21
    small = written(corpus, dataset, max_pixels=100)
    assert {r.path: r.reason for r in small.rejects}["a/wide.png"] == "too_large"


def test_oversized_file_is_not_even_fetched(tmp_path: Path) -> None:
    corpus = fill(tmp_path / "corpus", {"a/big.png": png(1, height=40), "a/small.png": png(2)})
    plan = plan_of(corpus)
    (tmp_path / "corpus/a/big.png").unlink()
    result = write_shard(
        plan, corpus=corpus, dataset=open_store(str(tmp_path / "d")), limits=ImageLimits(max_bytes=500)
    )
    assert [reject.reason for reject in result.rejects] == ["too_large"]


def test_a_key_that_no_store_here_reads_is_a_reject(tmp_path: Path) -> None:
    """S3 may list `a//1.png`: it stopped the build, and every append after it, in the middle of its work."""
    corpus = fill(tmp_path / "corpus", photos("a", 3, 0))
    plan = plan_of(corpus)
    odd = Record(key="a//1.png", path="a//1.png", size_bytes=9, etag="", labels=("a",), split="train")
    listing = listing_of([*plan.records, odd])
    (plan,) = ShardPlans(listing, classes=("a",), shard_size_bytes=2**30)
    result = write_shard(
        plan, corpus=corpus, dataset=open_store(str(tmp_path / "dataset")), limits=ImageLimits()
    )
    assert [(reject.path, reject.reason) for reject in result.rejects] == [("a//1.png", "bad_path")]
    assert result.info.num_samples == 3


def test_vanished_image_is_a_reject_but_a_short_read_is_a_fault(tmp_path: Path) -> None:
    """A read cut short by the store looks like a truncated image; it must not be quarantined."""
    corpus = fill(tmp_path / "corpus", photos("a", 3, 0))
    dataset = open_store(str(tmp_path / "dataset"))
    plan = plan_of(corpus)
    (tmp_path / "corpus/a/001.png").unlink()
    result = write_shard(plan, corpus=corpus, dataset=dataset, limits=ImageLimits())
    assert [(reject.path, reject.reason) for reject in result.rejects] == [("a/001.png", "missing")]
    plan = plan_of(corpus)
    corpus.put("a/002.png", png(2)[:-1])
    with pytest.raises(StoreError, match=r"a/002.png: \d+ bytes read, \d+ listed"):
        write_shard(plan, corpus=corpus, dataset=open_store(str(tmp_path / "other")), limits=ImageLimits())


def test_a_tar_that_is_gone_is_a_fault_not_thousands_of_rejects(tmp_path: Path) -> None:
    corpus = fill(tmp_path / "corpus", {"a/one.png": png(1)})
    plan = plan_of(corpus)
    record = replace(plan.records[0], path="gone.tar", offset=512)
    with pytest.raises(ObjectNotFoundError, match=r"gone.tar does not exist"):
        write_shard(
            replace(plan, rows=batch_of([record])), corpus=corpus, dataset=open_store(str(tmp_path / "d")),
            limits=ImageLimits(),
        )  # fmt: skip


def test_nothing_usable_gives_no_shard(tmp_path: Path) -> None:
    corpus = fill(tmp_path / "corpus", {"a/x.png": b"no"})
    dataset = open_store(str(tmp_path / "dataset"))
    assert written(corpus, dataset).info is None
    assert not objects(dataset, "shards")


def test_finished_plan_is_not_read_again(tmp_path: Path) -> None:
    corpus = fill(tmp_path / "corpus", photos("a", 5, 0) | {"a/bad.png": b"no"})
    dataset = open_store(str(tmp_path / "dataset"))
    plan = plan_of(corpus)
    first = write_shard(plan, corpus=corpus, dataset=dataset, limits=ImageLimits())
    for path in (tmp_path / "corpus/a").iterdir():
        path.unlink()
    assert write_shard(plan, corpus=corpus, dataset=dataset, limits=ImageLimits()) == first
    dataset.delete(first.info.path)
    again = write_shard(plan, corpus=corpus, dataset=dataset, limits=ImageLimits())
    assert {reject.reason for reject in again.rejects} == {"missing"}
    fill(tmp_path / "corpus", photos("a", 5, 0) | {"a/bad.png": b"no"})
    back = write_shard(plan, corpus=corpus, dataset=dataset, limits=ImageLimits())
    assert back == first, "files that were missing are looked for again"


@pytest.mark.parametrize(
    "change",
    [
        {"key": "a/other.png"},
        {"labels": ("b",)},
        {"etag": "changed"},
        {"size_bytes": 7},
        {"offset": 512},
        {"path": "a/moved.png"},
        {"split": "eval"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_plan_with_a_changed_record_is_another_plan(tmp_path: Path, change: dict[str, Any]) -> None:
    """A receipt found for it would name a shard of what the corpus held before."""
    corpus = fill(tmp_path / "corpus", photos("a", 3, 0))
    dataset = open_store(str(tmp_path / "dataset"))
    first, *rest = plan_of(corpus).records

    def receipts(*records: Record) -> set[str]:
        plan = ShardPlan(split="train", rows=batch_of(records), classes=("a", "b"))
        write_shard(plan, corpus=corpus, dataset=dataset, limits=ImageLimits(max_bytes=1))
        return set(objects(dataset, "receipts"))

    before = receipts(first, *rest)
    assert len(before) == 1
    assert receipts(first, *rest) == before
    assert len(receipts(replace(first, **change), *rest)) == 2
    assert len(receipts(*rest, first)) == 3, "the order of the samples is the order in the tar"


def test_rewriting_drops_samples_and_keeps_the_rest_readable(tmp_path: Path) -> None:
    corpus = fill(tmp_path / "corpus", ODD_NAMES)
    dataset = open_store(str(tmp_path / "dataset"))
    old = written(corpus, dataset).info
    dropped = {"cat/a.b.c.png", "dog/100%2E.png"}
    new = rewrite_shard(dataset, old, "train", dropped)
    tar = dataset.get(new.path)
    rows = read_index(dataset, new).to_pylist()
    assert {row["name"] for row in rows} == ODD_NAMES.keys() - dropped
    assert all(tar[r["offset"] : r["offset"] + r["size"]] == ODD_NAMES[r["name"]] for r in rows)
    assert len(member_names(tar)) == 3 * len(rows)
    assert rewrite_shard(dataset, old, "train", set()) == old
    assert rewrite_shard(dataset, old, "train", ODD_NAMES.keys()) is None


name_strategy = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12
).filter(lambda name: not name.startswith("."))


@settings(deadline=None, max_examples=12)
@given(
    st.dictionaries(
        st.tuples(st.sampled_from("ab"), name_strategy), st.integers(0, 2), min_size=1, max_size=6
    ),
    st.permutations(range(6)),
    st.integers(1, 4000),
)
def test_same_corpus_same_bytes(
    names: dict[tuple[str, str], int], order: list[int], shard_size_bytes: int
) -> None:
    """Listing order, time, folder and run must not show in any byte of tars and indexes."""
    kinds = [png, jpeg, lambda _: b"broken"]
    files = {f"{c}/{name}.png": kinds[kind](i) for i, ((c, name), kind) in enumerate(names.items())}
    with TemporaryDirectory() as folder:
        outcomes = []
        for run, keys in enumerate((list(files), sorted(files, key=lambda k: order[len(k) % 6]))):
            corpus = fill(Path(folder) / f"corpus {run}", {key: files[key] for key in keys})
            dataset = open_store(f"{folder}/dataset{run}")
            config = ShardingConfig(seed=1, eval_fraction=0.3)
            listing = list_for_build(corpus, config)
            if run:
                listing = listing_of(records_in(listing)[::-1], listing.classes, seed=1)
            plans = ShardPlans(listing, classes=listing.classes, shard_size_bytes=shard_size_bytes)
            results = [write_shard(p, corpus=corpus, dataset=dataset, limits=ImageLimits()) for p in plans]
            rejects = {(r.key, r.reason, r.detail) for result in results for r in result.rejects}
            outcomes.append(
                (objects(dataset, "shards"), [asdict(r.info) for r in results if r.info], rejects)
            )
    assert outcomes[0] == outcomes[1]
