"""Say which format a folder of files is in."""

from collections.abc import Iterable
from itertools import islice

from data.corpora.class_folders import IMAGE_EXTENSIONS
from data.corpora.imagenet import is_imagenet_file
from data.corpora.options import CorpusFormat
from data.store import ObjectInfo

_NUM_LOOKED_AT = 1000


def detect_format(objects: Iterable[ObjectInfo]) -> CorpusFormat:
    """Return the format that the first visible files of a folder are in.

    Images anywhere mean class folders; else tars, then Parquet files decide. Never `auto` or `manifest`.
    """
    visible = (info.path for info in objects if not any(p.startswith(".") for p in info.path.split("/")))
    paths = list(islice(visible, _NUM_LOOKED_AT))
    extensions = {path.rpartition(".")[2].lower() for path in paths}
    if extensions & IMAGE_EXTENSIONS:
        return "class_folders"
    if any(is_imagenet_file(path) for path in paths):
        return "imagenet"
    if "tar" in extensions:
        return "webdataset"
    return "parquet" if "parquet" in extensions else "class_folders"
