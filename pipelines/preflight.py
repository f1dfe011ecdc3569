"""Find what would fail before anything is written. Every finding is an `InputError` in one line."""

import os
import shutil
from pathlib import Path

from data.errors import InputError
from data.store import Store
from infra.store import check_store, open_store
from infra.tracking import check_tracking
from pipelines.config import Runtime

_MIN_FREE_BYTES = 1024**3


def check_services(runtime: Runtime, corpus: Store | None) -> str:
    """Check the store, the corpus if there is one, MLflow and the disk; return MLflow's URI."""
    if corpus is not None:
        check_store(corpus, writable=False)
    check_store(open_store(runtime.root))
    tracking_uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not tracking_uri:
        raise InputError(
            "MLFLOW_TRACKING_URI is not set: start the local stack (make demo) and source its "
            "credentials.env, or name your MLflow server"
        )
    check_tracking(tracking_uri)
    _check_disk(Path(runtime.cache_dir))
    return tracking_uri


def _check_disk(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"runtime.cache_dir {folder} cannot be made ({error.strerror}): name another folder"
        ) from None
    free = shutil.disk_usage(folder).free
    if free < _MIN_FREE_BYTES:
        raise InputError(
            f"runtime.cache_dir {folder} has {free / 1e6:.0f} MB free, at least "
            f"{_MIN_FREE_BYTES / 1e6:.0f} MB are needed: free some or name another folder"
        )
