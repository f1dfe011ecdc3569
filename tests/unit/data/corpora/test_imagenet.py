from dataclasses import replace
from pathlib import Path

import pytest

from data.build import build_snapshot
from data.corpora.file_listings import FileListings
from data.corpora.imagenet import ImageNetReader, is_imagenet_file, parse_ground_truth
from data.corpora.tasks import map_here
from data.errors import InputError
from data.shard_write import write_shards_here
from data.sharding_config import ShardingConfig
from infra.folder_store import FolderStore
from tests.corpus_listing import content_of, listed
from tests.image_samples import fill, png
from tests.reading_store import ReadingStore
from tests.tar_samples import tar_bytes

FISH, DOG = "n01440764", "n02085620"


def synset_tar(synset: str, count: int = 2) -> bytes:
    return tar_bytes({f"{synset}_{i}.JPEG": f"{synset} {i}".encode() for i in range(count)})


def reader(
    folder: Path, files: dict[str, bytes], ground_truth: tuple[str, ...] | None = None
) -> ImageNetReader:
    store = fill(folder, files)
    tars = tuple(info for info in store.list() if is_imagenet_file(info.path))
    listings = FileListings(folder=FolderStore(root=folder.parent / "staging"))
    return ImageNetReader(store=store, tars=tars, run=map_here, listings=listings, ground_truth=ground_truth)


def test_ilsvrc2012(tmp_path: Path) -> None:
    """A tar of tars for training, a flat one and a list for validation; nothing is unpacked."""
    made = reader(
        tmp_path / "c",
        {
            "ILSVRC2012_img_train.tar": tar_bytes({f"{s}.tar": synset_tar(s) for s in (FISH, DOG)}),
            "ILSVRC2012_img_val.tar": tar_bytes({
                "ILSVRC2012_val_00000002.JPEG": b"second", "ILSVRC2012_val_00000001.JPEG": b"first",
            }),
            "ILSVRC2012_img_test.tar": b"not looked at",
            "ILSVRC2012_devkit_t12.tar.gz": b"not looked at",
        },
        (DOG, FISH),
    )  # fmt: skip
    rows = listed(made)
    assert [(row["key"], row["labels"], row["split"], content_of(made.store, row)) for row in rows] == [
        (f"{FISH}/{FISH}_0.JPEG", [FISH], "train", f"{FISH} 0".encode()),
        (f"{FISH}/{FISH}_1.JPEG", [FISH], "train", f"{FISH} 1".encode()),
        (f"{DOG}/{DOG}_0.JPEG", [DOG], "train", f"{DOG} 0".encode()),
        (f"{DOG}/{DOG}_1.JPEG", [DOG], "train", f"{DOG} 1".encode()),
        ("val/ILSVRC2012_val_00000001.JPEG", [DOG], "eval", b"first"),
        ("val/ILSVRC2012_val_00000002.JPEG", [FISH], "eval", b"second"),
    ]
    assert rows[0]["path"] == "ILSVRC2012_img_train.tar"


def test_imagenet_21k(tmp_path: Path) -> None:
    """One tar a synset, alone or in `winter21_whole.tar`; the splits are made by us."""
    alone = reader(tmp_path / "alone", {f"some/{s}.tar": synset_tar(s) for s in (FISH, DOG)})
    whole = tar_bytes({f"winter21_whole/{s}.tar": synset_tar(s) for s in (FISH, DOG)})
    together = reader(tmp_path / "together", {"winter21_whole.tar": whole})
    for made in (alone, together):
        rows = listed(made)
        assert [(row["labels"], row["split"]) for row in rows] == [([FISH], None)] * 2 + [([DOG], None)] * 2
        assert content_of(made.store, rows[3]) == f"{DOG} 1".encode()
    assert [row["key"] for row in listed(alone)] == [row["key"] for row in listed(together)]


def test_hidden_and_other_files_are_skipped(tmp_path: Path) -> None:
    content = tar_bytes({"a.JPEG": b"x", "._a.JPEG": b"x", "list.txt": b"x"})
    assert len(listed(reader(tmp_path / "c", {f"{FISH}.tar": content}))) == 1


def test_ground_truth() -> None:
    assert parse_ground_truth(f"{DOG}\n{FISH}\n", "truth.txt", ()) == (DOG, FISH)
    assert parse_ground_truth("2\n1\n2\n", "truth.txt", (DOG, FISH)) == (FISH, DOG, FISH)
    for text, synsets, message in (
        ("490\n361", (), "truth.txt has class numbers .*meta.mat beside it, or give classes_file"),
        ("1\n0", (DOG, FISH), "line 2 of truth.txt is '0': .* class number of 1 to 2"),
        ("1\n3", (DOG, FISH), "line 2 of truth.txt is '3'"),
        (f"{DOG}\ncat", (DOG, FISH), "line 1 of truth.txt is 'n02085620'"),
        ("1", ("n1", "n2", "n3"), "alphabetical order, .* every label would be wrong"),
    ):
        with pytest.raises(InputError, match=message):
            parse_ground_truth(text, "truth.txt", synsets)


def test_bad_files_are_one_clear_line(tmp_path: Path) -> None:
    validation = {"ILSVRC2012_img_val.tar": tar_bytes({"ILSVRC2012_val_00000001.JPEG": b"x"})}
    other = {"ILSVRC2012_img_train.tar": tar_bytes({"a.jpg": b"x"})}
    damaged = {"ILSVRC2012_img_train.tar": tar_bytes({f"{FISH}.tar": b"x" * 512})}
    for files, truth, message in (
        (validation, None, "comes without labels: put ILSVRC2012_validation_ground_truth.txt beside it"),
        (validation, (DOG, FISH), "has 1 images, its list of labels 2 lines"),
        (other, None, r"has a member 'a.jpg'; one tar a synset .* is allowed"),
        (damaged, None, f"tar 'ILSVRC2012_img_train.tar/{FISH}.tar' is not a tar"),
    ):
        with pytest.raises(InputError, match=message):
            listed(reader(tmp_path / str(hash(message)), files, truth))


def test_a_second_create_reads_no_tar(tmp_path: Path) -> None:
    """The headers of ILSVRC's 138 GB were read again by every rerun of a finished create."""
    fish, dog = (
        tar_bytes({f"{synset}_{i}.JPEG": png(first + i) for i in range(2)})
        for synset, first in ((FISH, 0), (DOG, 10))
    )
    files = {
        "ILSVRC2012_img_train.tar": tar_bytes({f"{FISH}.tar": fish}),
        f"{DOG}.tar": dog,
        "ILSVRC2012_img_val.tar": tar_bytes({"ILSVRC2012_val_00000001.JPEG": png(99)}),
    }
    corpus, dataset = ReadingStore(root=tmp_path / "c"), FolderStore(root=tmp_path / "dataset")

    def create() -> str:
        made = replace(reader(tmp_path / "c", {}, (DOG,)), store=corpus)
        write = write_shards_here(corpus, dataset, ShardingConfig().limits)
        return build_snapshot(made, dataset, ShardingConfig(), write).id

    fill(tmp_path / "c", files)
    first = create()
    assert set(corpus.read) == set(files)
    corpus.read.clear()
    assert create() == first
    assert corpus.read == []


def test_only_a_changed_tar_is_read_again(tmp_path: Path) -> None:
    files = {f"{s}.tar": synset_tar(s) for s in (FISH, DOG)}
    listed(reader(tmp_path / "c", files))
    corpus = ReadingStore(root=tmp_path / "c")
    fill(tmp_path / "c", {f"{DOG}.tar": synset_tar(DOG, 40)})
    assert len(listed(replace(reader(tmp_path / "c", {}), store=corpus))) == 42
    assert set(corpus.read) == {f"{DOG}.tar"}


def test_what_other_files_say_makes_no_tar_be_read_again(tmp_path: Path) -> None:
    """A validation tar decides the others' split, a list of labels its own: neither is kept with the rows."""
    listed(reader(tmp_path / "c", {f"{FISH}.tar": synset_tar(FISH)}))
    validation = "ILSVRC2012_img_val.tar"
    fill(tmp_path / "c", {validation: tar_bytes({"ILSVRC2012_val_00000001.JPEG": b"x"})})
    corpus = ReadingStore(root=tmp_path / "c")

    def label_of_validation(label: str) -> tuple[list[str], list[str]]:
        rows = listed(replace(reader(tmp_path / "c", {}, (label,)), store=corpus))
        return [row["split"] for row in rows], rows[-1]["labels"]

    assert label_of_validation(FISH) == (["train", "train", "eval"], [FISH])
    assert set(corpus.read) == {validation}
    corpus.read.clear()
    assert label_of_validation(DOG) == (["train", "train", "eval"], [DOG])
    assert corpus.read == []
