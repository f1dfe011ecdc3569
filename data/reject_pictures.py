"""Small pictures of rejected images, read from the corpus again."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from data.image_check import ImageLimits, quiet_pillow
from data.small_picture import small_picture
from data.store import ImageSource, ObjectNotFoundError
from data.types import Reject

MAX_PICTURES = 300
_NUM_FETCH_THREADS = 8


def picture_rejects(corpus: ImageSource, rejects: Iterable[Reject], limits: ImageLimits) -> dict[str, bytes]:
    """Return pictures (JPEG) of the first `MAX_PICTURES` rejects that can be drawn, by key.

    Their files are read again: a writer on another machine would have to send its pictures here.
    """
    readable = (reject for reject in rejects if 0 < (reject.size_bytes or 0) <= limits.max_bytes)
    chosen = [reject for _, reject in zip(range(MAX_PICTURES), readable, strict=False)]
    with quiet_pillow(), ThreadPoolExecutor(_NUM_FETCH_THREADS) as pool:
        contents = _in_order(pool, corpus, chosen)
        drawn = ((reject.key, small_picture(content, limits.max_pixels)) for reject, content in contents)
        return {key: picture for key, picture in drawn if picture is not None}


def _in_order(
    pool: ThreadPoolExecutor, corpus: ImageSource, rejects: list[Reject]
) -> Iterator[tuple[Reject, bytes]]:
    """Read a few files at a time, and yield those that are still there."""

    def read(reject: Reject) -> bytes:
        try:
            if reject.offset is None:
                return corpus.get(reject.path)
            return corpus.get_range(reject.path, reject.offset, reject.size_bytes or 0)
        except ObjectNotFoundError:
            return b""

    for start in range(0, len(rejects), _NUM_FETCH_THREADS):
        group = rejects[start : start + _NUM_FETCH_THREADS]
        yield from zip(group, pool.map(read, group), strict=True)
