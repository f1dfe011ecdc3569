"""From a reader's batches to a listing: check, choose the classes, assign splits, cap."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.arrow import RecordBatch, compute
from data.corpora.class_folders import ClassFolderReader
from data.corpora.manifest import ManifestReader
from data.corpus_listing import LEFT_OUT, CorpusListing
from data.errors import InputError
from data.listing import LISTING_SCHEMA, CorpusReader
from data.sharding_config import ShardingConfig
from data.split import SPLITS, is_eval
from data.spool import Spool
from data.stable_hash import stable_hash
from data.store import Store

_CAP_SCHEMA: Any = LISTING_SCHEMA.append(pa.field("cap", pa.uint64()))
_NAMED_CLASSES = 20


def list_for_build(corpus: Store | CorpusReader, config: ShardingConfig) -> CorpusListing:
    """List what a build takes; a store is read as class folders.

    Raises `InputError` for what the format does not allow, two images with one key, an image that cannot
    be taken by `unknown_labels`, no image at all, and a name in `config.classes` without one.
    """
    reader = corpus
    if not isinstance(reader, CorpusReader):
        reader = ClassFolderReader(corpus=reader, classes=config.classes)
    listing = list_corpus(reader, config)
    if absent := [name for name in listing.classes if not any(listing.counts[s, name] for s in SPLITS)]:
        there = sorted(listing.labels_seen)
        more = f" and {len(there) - _NAMED_CLASSES} more" if len(there) > _NAMED_CLASSES else ""
        raise InputError(
            f"class {absent[0]!r} has no image in {reader.uri}: the classes there are "
            f"{', '.join(there[:_NAMED_CLASSES]) or 'none'}{more}"
        )
    if not listing.num_images:
        raise InputError(f"no images in {reader.uri}")
    return listing


def list_for_append(corpus: Store | CorpusReader, config: ShardingConfig) -> CorpusListing:
    """List what an append looks at; the corpus may be empty, and classes may have no image."""
    if not isinstance(corpus, CorpusReader):
        corpus = ClassFolderReader(corpus=corpus, classes=config.classes, allow_empty=True)
    return list_corpus(corpus, config)


def local_folder(corpus: Store | CorpusReader) -> str:
    """Return the uri of what is listed if it is in local folders, else "".

    A folder's etag is only a time, so equal paths, sizes and etags of two folders may be different files.
    """
    uri = corpus.root.uri if isinstance(corpus, ManifestReader) else corpus.uri
    return uri if uri.startswith("file:") else ""


def list_corpus(reader: CorpusReader, config: ShardingConfig) -> CorpusListing:
    """Read a corpus's listing to its end; no more than a batch of it is held as it comes."""
    listing = CorpusListing(config.seed)
    batches = _with_splits(_checked(reader), config, listing.labels_seen)
    if config.max_train_per_class is not None:
        batches = _capped(batches, config.max_train_per_class, config.seed)
    return collect(listing, batches, config.classes)


def collect(
    listing: CorpusListing, batches: Iterable[RecordBatch], classes: Iterable[str] | None
) -> CorpusListing:
    """Fill a listing with batches whose splits are assigned, and return it; `InputError` for equal keys."""
    for batch in batches:
        listing.add(batch)
    listing.check_keys()
    present = {name for split, name in listing.counts if split != LEFT_OUT}
    listing.classes = tuple(classes if classes is not None else sorted(present))
    return listing


def _checked(reader: CorpusReader) -> Iterator[RecordBatch]:
    """Refuse rows that no reader may yield: they come from a corpus, so the user hears of them."""
    for batch in reader.record_batches():
        split = batch.column("split")
        wrong = {
            "an empty key": compute.equal(compute.fill_null(batch.column("key"), ""), ""),
            "no label": compute.equal(
                compute.fill_null(compute.list_value_length(batch.column("labels")), 0), 0
            ),
            "a split other than train and eval": compute.invert(
                compute.or_(compute.is_null(split), compute.is_in(split, value_set=pa.array(SPLITS)))
            ),
        }
        for what, mask in wrong.items():
            if compute.any(mask).as_py():
                row = batch.filter(mask).slice(0, 1).to_pylist()[0]
                raise InputError(
                    f"image {row['key']!r} of {reader.uri} (at {row['path']!r}) has {what}, split "
                    f"{row['split']!r}, labels {row['labels']!r}: correct it, or leave it out of the corpus"
                )
        yield batch


def _with_splits(
    batches: Iterable[RecordBatch], config: ShardingConfig, labels_seen: set[str]
) -> Iterator[RecordBatch]:
    """Choose by class and assign the split where the corpus does not; unknown labels go to `LEFT_OUT`."""
    for batch in batches:
        evaluated = is_eval(batch.column("key"), config.eval_fraction, config.seed)
        split = compute.coalesce(batch.column("split"), pa.array(np.where(evaluated, "eval", "train")))
        if config.classes is not None:
            unknown = _has_unknown_label(batch, config.classes)
            labels_seen.update(batch.column("labels").flatten().unique().to_pylist())
            if config.unknown_labels == "error" and unknown.any():
                row = batch.slice(int(np.argmax(unknown)), 1).to_pylist()[0]
                raise InputError(
                    f"image {row['key']!r} has the labels {row['labels']!r}, not all of them in classes: "
                    "add them, or set unknown_labels to skip or reject"
                )
            split = compute.if_else(pa.array(unknown), LEFT_OUT, split)
        chosen = batch.set_column(batch.schema.get_field_index("split"), "split", split)
        if config.unknown_labels == "skip":
            chosen = chosen.filter(compute.not_equal(split, LEFT_OUT))
        yield chosen


def _has_unknown_label(batch: RecordBatch, classes: Iterable[str]) -> NDArray[np.bool_]:
    labels = batch.column("labels")
    unknown = compute.invert(compute.is_in(labels.flatten(), value_set=pa.array(list(classes), pa.string())))
    rows = compute.list_parent_indices(labels).filter(unknown).to_numpy()
    found = np.zeros(batch.num_rows, dtype=np.bool_)
    found[rows] = True
    return found


def _capped(batches: Iterable[RecordBatch], max_per_class: int, seed: int) -> Iterator[RecordBatch]:
    """Keep, of each class's training images, those with the lowest hashes; of others all.

    Rows come by that hash, so the first ones of a class are the ones to keep. It is not the hash of the
    order, or the images of large classes would all lie in the first shards.
    """
    spool = Spool(_CAP_SCHEMA, ("cap", "key"))
    for batch in batches:
        train = compute.equal(batch.column("split"), "train")
        yield batch.filter(compute.invert(train))
        capped = batch.filter(train)
        hashes = stable_hash(capped.column("key"), seed=seed, purpose="cap")
        spool.add(pa.RecordBatch.from_arrays([*capped.columns, pa.array(hashes)], schema=_CAP_SCHEMA))
    taken: dict[str, int] = {}
    for part in spool.parts():
        groups = compute.binary_join(part.column("labels").combine_chunks(), "\0").dictionary_encode()
        ranks = _ranks(groups.indices.to_numpy(), groups.dictionary.to_pylist(), taken)
        kept = part.select(LISTING_SCHEMA.names).filter(pa.array(ranks < max_per_class))
        yield from kept.combine_chunks().to_batches()


def _ranks(codes: NDArray[np.int32], names: list[str], taken: dict[str, int]) -> NDArray[np.int64]:
    """Return how many rows of its own group came before each row, here and (`taken`) earlier."""
    order = np.argsort(codes, kind="stable")
    sizes = np.bincount(codes, minlength=len(names))
    starts = np.cumsum(sizes) - sizes
    earlier = np.array([taken.get(name, 0) for name in names], dtype=np.int64)
    ranks = np.empty(len(codes), dtype=np.int64)
    ranks[order] = np.arange(len(codes)) + (earlier - starts)[codes[order]]
    taken.update({name: int(count) for name, count in zip(names, earlier + sizes, strict=True)})
    return ranks
