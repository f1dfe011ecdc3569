"""Evaluate saved weights on the eval split of a snapshot, as Ray tasks that each take a slice.

Shape letters: N samples, K classes.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from coatnet.evaluate import evaluate
from coatnet.interop import load_model
from coatnet.model import CoAtNet
from coatnet.worker import LocalWorker
from data.crop import DecodeConfig
from data.loader import EvalLoader
from data.normalize import normalize
from data.shard_cache import ShardCache
from data.snapshot import load_snapshot
from data.types import Batch
from infra.ray_runtime import run_tasks
from infra.store import open_store
from infra.transfer import download_folder
from pipelines.config import Runtime
from pipelines.evaluation import EvalReport, build_report

_BATCH_SIZE = 250
_LATENCY_REPEATS = 30


@dataclass(frozen=True, kw_only=True)
class EvalPlan:
    """One evaluation, described; picklable."""

    root_uri: str
    model_path: str
    """A folder written by `save_model`, below the root."""
    dataset_path: str
    snapshot_id: str
    decode: DecodeConfig
    runtime: Runtime


@dataclass(frozen=True, kw_only=True)
class _Slice:
    """What one task found."""

    keys: list[str]
    labels_N: NDArray[np.int64]
    probabilities_NK: NDArray[np.float32]
    latency_ms: float


def evaluate_model(plan: EvalPlan, announce: Callable[[str], None]) -> EvalReport:
    """Return the report of every sample of the eval split, each exactly once."""
    snapshot = load_snapshot(open_store(plan.root_uri).sub(plan.dataset_path), plan.snapshot_id)
    num_tasks = plan.runtime.num_workers
    slices = run_tasks(
        partial(_evaluate_slice, plan, num_tasks),
        list(range(num_tasks)),
        max_in_flight=num_tasks,
        num_cpus_per_task=plan.runtime.cpus_per_worker,
        on_done=lambda index, found: announce(
            f"evaluate  slice {index + 1}/{num_tasks}  {len(found.keys):,} images"
        ),
    )
    return build_report(
        snapshot_id=plan.snapshot_id,
        split="eval",
        classes=snapshot.classes,
        keys=[key for found in slices for key in found.keys],
        labels_N=np.concatenate([found.labels_N for found in slices]),
        probabilities_NK=np.concatenate([found.probabilities_NK for found in slices]),
        latency_ms_per_image=statistics.median(found.latency_ms for found in slices),
    )


def _evaluate_slice(plan: EvalPlan, num_tasks: int, index: int) -> _Slice:
    torch.set_num_threads(plan.runtime.cpus_per_worker)
    root = open_store(plan.root_uri)
    dataset = root.sub(plan.dataset_path)
    snapshot = load_snapshot(dataset, plan.snapshot_id)
    with tempfile.TemporaryDirectory() as folder:
        download_folder(root.sub(plan.model_path), Path(folder))
        model = load_model(Path(folder))
    loader = EvalLoader(
        store=dataset,
        snapshot=snapshot,
        split="eval",
        decode=plan.decode,
        batch_size=_BATCH_SIZE,
        rank=index,
        world_size=num_tasks,
        cache=ShardCache(Path(plan.runtime.cache_dir), plan.runtime.cache_size_bytes),
        num_threads=plan.runtime.decode_threads,
    )
    keys: list[str] = []
    labels: list[NDArray[np.int64]] = []
    probabilities: list[NDArray[np.float32]] = []

    def keep(batch: Batch, logits_BK: torch.Tensor) -> None:
        real_B = np.array([key != "" for key in batch.keys])
        keys.extend(key for key in batch.keys if key)
        labels.append(batch.labels_B.numpy()[real_B])
        probabilities.append(logits_BK.float().softmax(-1).cpu().numpy()[real_B])

    # A task of its own, outside any process group: world_size is 1 here.
    worker = LocalWorker(device=_device(plan.runtime))
    model.to(worker.device)
    to_input = partial(normalize, mean=model.config.mean, std=model.config.std)  # pyright: ignore[reportArgumentType]
    evaluate(worker, model, loader, normalize=to_input, on_batch=keep)
    return _Slice(
        keys=keys,
        labels_N=np.concatenate(labels),
        probabilities_NK=np.concatenate(probabilities),
        latency_ms=_latency_ms(model, plan.decode.image_size_px, worker.device),
    )


def _latency_ms(model: CoAtNet, image_size_px: int, device: torch.device) -> float:
    """Return the median time of one forward pass of one image, decoding left out."""
    image = torch.zeros(1, model.config.in_channels, image_size_px, image_size_px, device=device)
    seconds: list[float] = []
    with torch.inference_mode():
        for _ in range(_LATENCY_REPEATS):
            started = time.perf_counter()
            model(image).cpu()
            seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds)


def _device(runtime: Runtime) -> torch.device:
    return torch.device("cuda" if runtime.use_gpu and torch.cuda.is_available() else "cpu")
