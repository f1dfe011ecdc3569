"""Record batches in a file of the temporary folder (TMPDIR) that goes with the process, however it ends."""

import errno
import os
import tempfile
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from data.arrow import RecordBatch, Schema
from data.errors import InputError


def write_scratch(schema: Schema, batches: Iterable[RecordBatch]) -> Any:
    """Write batches and return a `pyarrow.RecordBatchFileReader` over them; the file has no name any more.

    Raises `InputError` where the disk is full.
    """
    descriptor, path = tempfile.mkstemp(prefix="coatnet-scratch-")
    os.close(descriptor)
    try:
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
        return pa.ipc.open_file(pa.OSFile(path, "rb"))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(
            f"no space left in the temporary folder {tempfile.gettempdir()}, which a long listing needs "
            "(about 200 bytes an image): free some, or set TMPDIR to a folder with more"
        ) from error
    finally:
        os.unlink(path)
