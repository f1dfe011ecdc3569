"""Record batches in a file of the temporary folder (TMPDIR) that goes with the process, however it ends."""

import os
import tempfile
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from data.arrow import RecordBatch, Schema
from data.temporary_folder import naming_full_folder


def write_scratch(schema: Schema, batches: Iterable[RecordBatch]) -> Any:
    """Write batches and return a `pyarrow.RecordBatchFileReader` over them; the file has no name any more.

    A long listing needs about 200 bytes an image. Raises `TemporaryFolderFullError`.
    """
    with naming_full_folder():
        descriptor, path = tempfile.mkstemp(prefix="coatnet-scratch-")
        os.close(descriptor)
        try:
            with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                for batch in batches:
                    writer.write_batch(batch)
            return pa.ipc.open_file(pa.OSFile(path, "rb"))
        finally:
            os.unlink(path)
