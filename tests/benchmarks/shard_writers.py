"""The writers that `bench_shard` compares, each in a process of its own: `python -m ... NAME`.

Every writer takes the same files, CLASS/NAME.jpg below one folder, and makes shards of about 16 MB with
image bytes and a class index. Each imports its own library alone; one has an environment of its own.
"""

import csv
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

from tests.benchmarks.contender import serve, timed
from tests.benchmarks.shard_contents import digest, read_litdata, read_mds, read_tars

SHARD_BYTES = 16 * 2**20
"""Small, so that as many shards fall to each core."""
Settings = Mapping[str, Any]
Write = Callable[[str, str, Settings], None]
"""corpus folder, target folder or s3://, settings."""
Read = Callable[[str], Iterable[bytes]]
"""Target folder -> the images in it."""
Item = tuple[str, int]
"""Path, class index."""


@dataclass(frozen=True, kw_only=True)
class Writer:
    """One contender."""

    write: Write
    read: Read | None = None
    """None: it writes no data set."""
    start: Callable[[], None] | None = None
    """What must not be timed, such as Ray's own start."""


def corpus_items(corpus: str) -> list[Item]:
    """Return every file with its class, in the order of the names."""
    classes = sorted(path for path in Path(corpus).iterdir() if path.is_dir())
    return [(str(path), label) for label, folder in enumerate(classes) for path in sorted(folder.iterdir())]


def write_ours(corpus: str, out: str, settings: Settings) -> None:
    """Run `pipelines/shard.py create`, with the options in `settings`."""
    from pipelines import shard

    options = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    places = ["--corpus", corpus, "--dataset", out]
    fixed = ["--eval_fraction", "0.0", "--shard_size_bytes", str(SHARD_BYTES)]
    fixed += ["--runtime.num_workers", str(num_cores())]
    code = shard.main(["create", *places, *fixed, *options])
    assert code == 0, f"create ended with {code}"


def _start_ours() -> None:
    from pipelines.job import connect_to_ray

    connect_to_ray()


def write_webdataset(corpus: str, out: str, settings: Settings) -> None:
    """Stock `ShardWriter` in one process; to S3 by its hook for finished shards, as its users do."""
    import webdataset

    def sample(path: str, label: int) -> dict[str, Any]:
        return {"__key__": Path(path).stem, "jpg": Path(path).read_bytes(), "cls": label}

    local = out if not out.startswith("s3://") else settings["scratch"]
    Path(local).mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {"maxsize": SHARD_BYTES, "maxcount": 10**9, "verbose": 0}
    if out.startswith("s3://"):
        options["post"] = lambda path: _upload(path, out)
    with webdataset.ShardWriter(f"{local}/%06d.tar", **options) as sink:
        for path, label in corpus_items(corpus):
            sink.write(sample(path, label))


def _upload(path: str, out: str) -> None:
    import boto3

    bucket, _, prefix = out.removeprefix("s3://").partition("/")
    boto3.client("s3").upload_file(path, bucket, f"{prefix}/{Path(path).name}")
    os.unlink(path)


def _start_ray_data() -> None:
    import ray

    ray.init(num_cpus=num_cores(), include_dashboard=False, logging_level="ERROR")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False


def _ray_images(corpus: str, settings: Settings) -> Any:
    """Decode; Ray Data's `write_webdataset` encodes the arrays anew."""
    import ray

    images = ray.data.read_images(
        corpus, include_paths=True, mode="RGB", override_num_blocks=settings["num_blocks"]
    )
    return images.map(_image_row)


def _ray_bytes(corpus: str, settings: Settings) -> Any:
    """Take the files as they are."""
    import ray

    files = ray.data.read_binary_files(corpus, include_paths=True, override_num_blocks=settings["num_blocks"])
    return files.map(_bytes_row)


def _image_row(row: dict[str, Any]) -> dict[str, Any]:
    names = _names(row["path"])
    return {**names, "cls": names["cls"].decode(), "jpg": row["image"]}


def _bytes_row(row: dict[str, Any]) -> dict[str, Any]:
    return {**_names(row["path"]), "jpg": row["bytes"]}


def _names(path: str) -> dict[str, Any]:
    label = Path(path).parent.name.removeprefix("class")
    return {"__key__": Path(path).stem, "cls": label.encode()}


def _write_ray(dataset: Callable[[str, Settings], Any], *, encoder: bool) -> Write:
    def write(corpus: str, out: str, settings: Settings) -> None:
        options: dict[str, Any] = {} if encoder else {"encoder": None}
        if not out.startswith("s3://"):
            dataset(corpus, settings).write_webdataset(out, **options)
            return
        from pyarrow.fs import S3FileSystem

        store = S3FileSystem(
            endpoint_override=os.environ["AWS_ENDPOINT_URL_S3"], scheme="http", force_virtual_addressing=False
        )
        dataset(corpus, settings).write_webdataset(out.removeprefix("s3://"), filesystem=store, **options)

    return write


def write_mds(corpus: str, out: str, settings: Settings) -> None:
    """Mosaic's `MDSWriter`, a part for each process, and one index over all: its documented parallel way."""
    from streaming.base.util import merge_index

    items, num_parts = corpus_items(corpus), settings["num_processes"]
    if num_parts == 1:
        write_mds_part((items, out))
        return
    parts = [(items[part::num_parts], f"{out}/{part}") for part in range(num_parts)]
    _pool().map(write_mds_part, parts, chunksize=1)
    merge_index(out, keep_local=True)


def write_mds_part(part: tuple[list[Item], str]) -> None:
    from streaming import MDSWriter

    items, out = part
    columns = {"image": "bytes", "label": "int"}
    with MDSWriter(out=out, columns=columns, size_limit=SHARD_BYTES) as sink:
        for path, label in items:
            sink.write({"image": Path(path).read_bytes(), "label": label})


def write_litdata(corpus: str, out: str, settings: Settings) -> None:
    """LitData's `optimize`; it starts its processes at each call."""
    from litdata import optimize

    options: dict[str, Any] = {}
    if out.startswith("s3://"):
        from litdata.streaming import downloader

        # It uploads over https alone, and has no option for a store on this machine.
        downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = "true"
        options["storage_options"] = {"endpoint_url": os.environ["AWS_ENDPOINT_URL_S3"]}
    optimize(
        fn=litdata_sample,
        inputs=corpus_items(corpus),
        output_dir=out,
        chunk_bytes=SHARD_BYTES,
        num_workers=settings["num_processes"],
        start_method="fork",
        verbose=False,
        **options,
    )


def litdata_sample(item: Item) -> dict[str, Any]:
    path, label = item
    return {"image": Path(path).read_bytes(), "label": label}


def write_img2dataset(corpus: str, out: str, settings: Settings) -> None:
    """img2dataset over file:// URLs, without decoding or encoding anew."""
    from img2dataset import download

    items = corpus_items(corpus)
    Path(out).mkdir(parents=True, exist_ok=True)
    urls = f"{out}/urls.csv"
    with open(urls, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["url", "caption"])
        rows.writerows((Path(path).as_uri(), label) for path, label in items)
    download(
        url_list=urls,
        input_format="csv",
        url_col="url",
        caption_col="caption",
        output_folder=f"{out}/shards",
        output_format="webdataset",
        processes_count=settings["num_processes"],
        thread_count=settings["num_threads"],
        number_sample_per_shard=-(-len(items) // 8),
        resize_mode="no",
        disable_all_reencoding=True,
        compute_hash=None,
        enable_wandb=False,
    )


def decode_alone(corpus: str, out: str, settings: Settings) -> None:
    """Decode every file whole, and keep nothing."""
    part = (settings["decoder"], [path for path, _ in corpus_items(corpus)])
    parts = [(part[0], part[1][number :: num_cores()]) for number in range(num_cores())]
    _pool().map(decode_part, parts, chunksize=1)


def decode_part(part: tuple[str, list[str]]) -> None:
    import io

    import simplejpeg
    from PIL import Image

    decoder, paths = part
    for path in paths:
        content = Path(path).read_bytes()
        if decoder == "simplejpeg":
            simplejpeg.decode_jpeg(content, "RGB")
        else:
            Image.open(io.BytesIO(content)).load()


def copy_raw(corpus: str, out: str, settings: Settings) -> None:
    """Read every file, hash it as ours does, and append it to one file for each process."""
    Path(out).mkdir(parents=True, exist_ok=True)
    paths = [path for path, _ in corpus_items(corpus)]
    parts = [(paths[number :: num_cores()], f"{out}/{number}") for number in range(num_cores())]
    _pool().map(copy_part, parts, chunksize=1)


def copy_part(part: tuple[list[str], str]) -> None:
    import google_crc32c

    paths, out = part
    with open(out, "wb") as target:
        for path in paths:
            content = Path(path).read_bytes()
            hashlib.sha256(content).digest()
            google_crc32c.value(content)
            target.write(content)


WRITERS: dict[str, Writer] = {
    "ours": Writer(write=write_ours, read=read_tars, start=_start_ours),
    "webdataset": Writer(write=write_webdataset, read=read_tars),
    "ray_images": Writer(write=_write_ray(_ray_images, encoder=True), read=read_tars, start=_start_ray_data),
    "ray_bytes": Writer(write=_write_ray(_ray_bytes, encoder=False), read=read_tars, start=_start_ray_data),
    "mds": Writer(write=write_mds, read=read_mds),
    "litdata": Writer(write=write_litdata, read=read_litdata),
    "img2dataset": Writer(write=write_img2dataset, read=read_tars),
    "decode": Writer(write=decode_alone),
    "copy": Writer(write=copy_raw),
}

_pools: list[Pool] = []


def _pool() -> Pool:
    """Return the processes of this contender, one a core, started once."""
    if not _pools:
        _pools.append(get_context("fork").Pool(num_cores()))
    return _pools[0]


def num_cores() -> int:
    return len(os.sched_getaffinity(0))


def main() -> None:
    writer = WRITERS[sys.argv[1]]

    def start() -> dict[str, Any]:
        if writer.start is not None:
            writer.start()
        return {}

    def write(corpus: str, out: str, settings: dict[str, Any]) -> dict[str, Any]:
        def work() -> dict[str, Any]:
            writer.write(corpus, out, settings)
            return {}

        return timed(work)

    def check(out: str) -> dict[str, Any]:
        assert writer.read is not None
        return digest(writer.read(out))

    serve({"start": start, "write": write, "check": check})


if __name__ == "__main__":
    main()
