"""Open what `--corpus` names: say its format, and give a reader that lists it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from data.corpora.detect import detect_format
from data.corpora.file_listings import FileListings
from data.corpora.imagenet import GROUND_TRUTH_NAME, ImageNetReader, is_imagenet_file, parse_ground_truth
from data.corpora.imagenet_meta import META_NAME, parse_meta
from data.corpora.labels import parse_class_list
from data.corpora.manifest import ManifestReader
from data.corpora.manifest_table import DELIMITERS, ManifestColumns
from data.corpora.options import CorpusFormat, CorpusOptions
from data.corpora.parquet_images import ImageColumns, holds_images, read_schema
from data.corpora.parquet_stage import ParquetReader
from data.corpora.tasks import MapTasks
from data.corpora.webdataset_tars import SampleLabels, WebDatasetReader
from data.errors import InputError
from data.listing import CorpusReader
from data.store import ImageSource, ObjectInfo, ObjectNotFoundError, Store
from infra.store import check_store, open_store

_FILE_EXTENSIONS = (*DELIMITERS, "parquet", "tar")


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A corpus, ready to be listed and then read."""

    uri: str
    origin: Store
    """Where it is."""
    images: ImageSource
    """Where the images of its listing are read: the origin, a manifest's root, or their copies."""
    source: Store | CorpusReader
    """What lists it; a store stands for class folders."""
    staged: ParquetReader | None = None
    """Where images are copied before they are read."""

    def before_reading(self, connect: Callable[[], None]) -> Callable[[], None]:
        """Return what makes images readable, after `connect`."""

        def prepare() -> None:
            connect()
            if self.staged is not None:
                self.staged.stage()

        return prepare

    def finish(self) -> None:
        """Remove the copies of images that stand in a committed snapshot now."""
        if self.staged is not None:
            self.staged.unstage()


@dataclass(frozen=True, kw_only=True)
class CorpusPlace:
    """What a corpus may need of its surroundings."""

    staging: Store
    """Where listings of tars and Parquet files are kept, and images copied that cannot be read one by one."""
    run: MapTasks
    is_dry_run: bool = False
    """Write nothing; sizes may be estimates then."""


def open_corpus(uri: str, corpus_format: CorpusFormat, options: CorpusOptions, place: CorpusPlace) -> Corpus:
    """Open class folders, a manifest, Parquet with images, ImageNet's files or WebDataset tars.

    The format `auto` is what a file's extension, its columns or a folder's first files say. Nothing is
    listed or copied yet. Raises `InputError` for a place that cannot be read, a file that is not
    there, a format that does not fit, and options that mean nothing to the format.
    """
    store, file = _locate(uri)
    if corpus_format == "auto":
        corpus_format = _format_of(store, file)
    options.check(corpus_format)
    _check_kind(uri, file, corpus_format)
    if corpus_format == "class_folders":
        return Corpus(uri=store.uri, origin=store, images=store, source=store)
    if corpus_format == "manifest":
        assert file is not None
        return _open_manifest(store, file, options)
    extension = "parquet" if corpus_format == "parquet" else "tar"
    found = [file] if file else store.scan()
    infos = sorted(_chosen(found, extension, options.files), key=lambda info: info.path)
    if corpus_format == "imagenet":
        infos = [info for info in infos if is_imagenet_file(info.path)]
    if not infos:
        chosen = f" that matches {', '.join(options.files)}" if options.files else ""
        raise InputError(
            f"no .{extension} file{chosen} in {uri} for the format {corpus_format}: correct the "
            "address, the format or the option files"
        )
    return _open_files(store, infos, corpus_format, options, place)


def _open_manifest(folder: Store, manifest: ObjectInfo, options: CorpusOptions) -> Corpus:
    root = folder
    if options.root:
        root = open_store(options.root)
        check_store(root, writable=False)
    columns = ManifestColumns(
        uri=options.uri_column, label=options.label_column, split=options.split_column,
        label_separator=options.label_separator, class_names=_class_names(options),
    )  # fmt: skip
    reader = ManifestReader(folder=folder, manifest=manifest, root=root, columns=columns)
    return Corpus(uri=reader.uri, origin=folder, images=root, source=reader)


def _open_files(
    store: Store, infos: Sequence[ObjectInfo], corpus_format: CorpusFormat, options: CorpusOptions,
    place: CorpusPlace,
) -> Corpus:  # fmt: skip
    files = tuple(infos)
    if not place.is_dry_run:
        check_store(place.staging)
    listings = FileListings(folder=place.staging, is_read_only=place.is_dry_run)
    if corpus_format == "imagenet":
        truth = _ground_truth(store, options)
        imagenet = ImageNetReader(
            store=store, tars=files, run=place.run, listings=listings, ground_truth=truth
        )
        return Corpus(uri=store.uri, origin=store, images=store, source=imagenet)
    class_names = _class_names(options)
    if corpus_format == "webdataset":
        labels = SampleLabels(source=options.label, class_names=class_names)
        tars = WebDatasetReader(
            store=store, tars=files, run=place.run, listings=listings, labels=labels,
            image_extension=options.image_extension,
        )  # fmt: skip
        return Corpus(uri=store.uri, origin=store, images=store, source=tars)
    columns = ImageColumns(image=options.image_column, label=options.label_column, class_names=class_names)
    parquet = ParquetReader(corpus=store, files=files, listings=listings, run=place.run, columns=columns)
    return Corpus(uri=store.uri, origin=store, images=parquet.images, source=parquet, staged=parquet)


def _locate(uri: str) -> tuple[Store, ObjectInfo | None]:
    """Return the store of a folder, or that of a file's folder and the file."""
    is_file = uri.rpartition(".")[2].lower() in _FILE_EXTENSIONS
    if "://" not in uri:
        is_file = is_file and not Path(uri).expanduser().is_dir()
    if not is_file:
        store = open_store(uri)
        check_store(store, writable=False)
        return store, None
    store, name = _folder_of(uri)
    for info in store.scan():
        if info.path == name:
            return store, info
    raise InputError(f"corpus {uri!r} does not exist: correct the name")


def _folder_of(uri: str) -> tuple[Store, str]:
    """Return the readable store of a file's folder, and the file's name in it."""
    folder, _, name = uri.rpartition("/")
    store = open_store(folder or ("/" if uri.startswith("/") else "."))
    check_store(store, writable=False)
    return store, name


def _format_of(store: Store, file: ObjectInfo | None) -> CorpusFormat:
    if file is None:
        return detect_format(store.scan())
    extension = file.path.rpartition(".")[2].lower()
    if extension == "tar":
        return "imagenet" if is_imagenet_file(file.path) else "webdataset"
    if extension == "parquet" and holds_images(read_schema(store, file)):
        return "parquet"
    return "manifest"


def _check_kind(uri: str, file: ObjectInfo | None, corpus_format: CorpusFormat) -> None:
    is_table = file is not None and file.path.rpartition(".")[2].lower() in (*DELIMITERS, "parquet")
    if corpus_format == "manifest" and not is_table:
        raise InputError(f"corpus {uri!r} is no manifest: name a .csv, .tsv or .parquet file")
    if corpus_format == "class_folders" and file is not None:
        raise InputError(f"corpus {uri!r} is a file: the format class_folders is for a folder or prefix")


def _chosen(infos: Iterable[ObjectInfo], extension: str, patterns: Sequence[str]) -> Iterator[ObjectInfo]:
    """Yield the visible files with an extension, of these those that match a pattern if there are any."""
    for info in infos:
        is_hidden = any(part.startswith(".") for part in info.path.split("/"))
        if is_hidden or not info.path.lower().endswith(f".{extension}"):
            continue
        if not patterns or any(fnmatchcase(info.path, pattern) for pattern in patterns):
            yield info


def _class_names(options: CorpusOptions) -> tuple[str, ...]:
    if not options.classes_file:
        return ()
    return parse_class_list(_read_text(options.classes_file), options.classes_file)


def _ground_truth(store: Store, options: CorpusOptions) -> tuple[str, ...] | None:
    name = options.ground_truth_file
    if name:
        return parse_ground_truth(_read_text(name), name, _synsets(store, options))
    if not store.exists(GROUND_TRUTH_NAME):
        return None
    text = store.get(GROUND_TRUTH_NAME).decode()
    return parse_ground_truth(text, GROUND_TRUTH_NAME, _synsets(store, options))


def _synsets(store: Store, options: CorpusOptions) -> tuple[str, ...]:
    """Return the synset ids in the order of ILSVRC's class numbers; none where no file tells."""
    name = options.classes_file
    if name.endswith(".mat"):
        return parse_meta(_read(name), name)
    if name:
        return parse_class_list(_read_text(name), name)
    return parse_meta(store.get(META_NAME), META_NAME) if store.exists(META_NAME) else ()


def _read(uri: str) -> bytes:
    store, name = _folder_of(uri)
    try:
        return store.get(name)
    except ObjectNotFoundError:
        raise InputError(f"{uri} does not exist: correct the name") from None


def _read_text(uri: str) -> str:
    try:
        return _read(uri).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{uri} is not UTF-8 text: {error}") from None
