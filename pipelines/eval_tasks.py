"""Evaluate saved weights on the eval split of a snapshot, as Ray tasks that each take a slice.

Shape letters: N samples, K classes.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from coatnet.evaluate import evaluate
from coatnet.interop import load_model
from coatnet.model import CoAtNet
from coatnet.worker import LocalWorker
from data.crop import DecodeConfig
from data.errors import InputError
from data.loader import EvalLoader, TooManyBadSamplesError, name_some
from data.normalize import normalize
from data.shard_cache import ShardCache
from data.snapshot import load_snapshot
from data.types import Batch
from infra.ray_tasks import run_tasks
from infra.store import open_store
from infra.transfer import download_folder
from pipelines.config import Runtime
from pipelines.dataset_ref import open_dataset
from pipelines.evaluation import EvalReport, build_report

_BATCH_SIZE = 250
_LATENCY_REPEATS = 30


@dataclass(frozen=True, kw_only=True)
class EvalPlan:
    """One evaluation, described; picklable."""

    root_uri: str
    model_path: str
    """A folder written by `save_model`, below the root."""
    model_classes: tuple[str, ...]
    """The names of the model's outputs, in order: a champion may be older than some of the classes."""
    dataset_path: str
    snapshot_id: str
    decode: DecodeConfig
    runtime: Runtime


@dataclass(frozen=True, kw_only=True)
class EvalSlice:
    """What one task found."""

    bad_samples: dict[str, str]
    """Key -> why; they are left out of the rest."""
    keys: list[str]
    labels_N: NDArray[np.int64]
    probabilities_NK: NDArray[np.float32]
    latency_ms: float


def evaluate_model(plan: EvalPlan, announce: Callable[[str], None]) -> EvalReport:
    """Return the report of every sample of the eval split that can be decoded, each exactly once.

    Raises `TooManyBadSamplesError` where more than `runtime.max_bad_samples` cannot.
    """
    num_tasks = plan.runtime.num_workers
    slices = run_tasks(
        partial(evaluate_slice, plan, num_tasks),
        list(range(num_tasks)),
        max_in_flight=num_tasks,
        num_cpus_per_task=plan.runtime.cpus_per_worker,
        num_gpus_per_task=1 if plan.runtime.use_gpu else 0,
        on_done=lambda index, found: announce(
            f"evaluate  slice {index + 1}/{num_tasks}  {len(found.keys):,} images"
        ),
    )
    report_bad_samples(
        dict(item for found in slices for item in found.bad_samples.items()),
        plan.runtime.max_bad_samples,
        announce,
    )
    return merge_slices(plan, slices)


def report_bad_samples(reasons: Mapping[str, str], max_allowed: int, announce: Callable[[str], None]) -> None:
    """Name the samples that are not in the report; too many of all tasks together are an error."""
    for key, reason in reasons.items():
        announce(f"evaluate  left out: {key!r} cannot be read or decoded ({reason})")
    if len(reasons) > max_allowed:
        raise TooManyBadSamplesError(
            f"{len(reasons)} samples of the eval split cannot be decoded, runtime.max_bad_samples allows "
            f"{max_allowed}; among them {name_some(reasons)}: build the dataset again or allow more"
        )


def merge_slices(plan: EvalPlan, slices: Sequence[EvalSlice]) -> EvalReport:
    """Put the slices' samples together."""
    dataset = open_dataset(open_store(plan.root_uri), plan.dataset_path)
    classes = load_snapshot(dataset, plan.snapshot_id).classes
    return build_report(
        snapshot_id=plan.snapshot_id,
        split="eval",
        classes=classes,
        unknown_classes=[name for name in classes if name not in plan.model_classes],
        keys=[key for found in slices for key in found.keys],
        labels_N=np.concatenate([found.labels_N for found in slices]),
        probabilities_NK=np.concatenate([found.probabilities_NK for found in slices]),
        latency_ms_per_image=statistics.median(found.latency_ms for found in slices),
    )


def evaluate_slice(plan: EvalPlan, num_tasks: int, index: int) -> EvalSlice:
    """Evaluate the samples of one of `num_tasks` ranks."""
    torch.set_num_threads(plan.runtime.cpus_per_worker)
    root = open_store(plan.root_uri, max_wait_s=plan.runtime.max_store_wait_s)
    dataset = open_dataset(root, plan.dataset_path, max_wait_s=plan.runtime.max_store_wait_s)
    snapshot = load_snapshot(dataset, plan.snapshot_id)
    with tempfile.TemporaryDirectory() as folder:
        download_folder(root.sub(plan.model_path), Path(folder))
        model = load_model(Path(folder))
    aligned = AlignedClasses(model, known=plan.model_classes, wanted=snapshot.classes)
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
        max_bad_samples=plan.runtime.max_bad_samples,
    )
    keys: list[str] = []
    labels: list[NDArray[np.int64]] = []
    probabilities: list[NDArray[np.float32]] = []

    def keep(batch: Batch, logits_BK: Tensor) -> None:
        real_B = batch.weights_B.numpy() > 0  # Neither padding nor a black picture for a bad sample.
        keys.extend(key for key, is_real in zip(batch.keys, real_B, strict=True) if is_real)
        labels.append(batch.labels_B.numpy()[real_B])
        probabilities.append(logits_BK.float().softmax(-1).cpu().numpy()[real_B])

    # A task of its own, outside any process group: world_size is 1 here.
    worker = LocalWorker(device=_device(plan.runtime))
    aligned.to(worker.device)
    to_input = partial(normalize, mean=model.config.mean, std=model.config.std)  # pyright: ignore[reportArgumentType]
    evaluate(worker, aligned, loader, normalize=to_input, on_batch=keep)
    return EvalSlice(
        bad_samples=dict(loader.bad_samples),
        keys=keys,
        labels_N=np.concatenate(labels),
        probabilities_NK=np.concatenate(probabilities),
        latency_ms=_latency_ms(model, plan.decode.image_size_px, worker.device),
    )


class AlignedClasses(nn.Module):
    """A model that answers for the `wanted` classes: its outputs moved by name, unknown classes impossible.

    So a champion that is older than a class meets the challenger on all images, wrong on those it
    cannot know. Raises `InputError` if it knows a class that is not wanted: dropping an output
    would make it look better than it is.
    """

    def __init__(self, model: CoAtNet, *, known: Sequence[str], wanted: Sequence[str]) -> None:
        super().__init__()
        extra = [name for name in known if name not in wanted]
        if extra or len(known) != model.config.num_classes:
            raise InputError(
                f"the model has {model.config.num_classes} outputs and knows the classes {', '.join(known)}; "
                f"the images are of {', '.join(wanted)}: evaluate it on images of all its classes"
            )
        self.model = model
        self._num_wanted = len(wanted)
        self._columns = [wanted.index(name) for name in known]

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return logits_BK of the wanted classes; minus infinity, probability 0, for an unknown one."""
        logits_BC = self.model(images_BCHW)
        logits_BK = logits_BC.new_full((len(logits_BC), self._num_wanted), -torch.inf)
        logits_BK[:, self._columns] = logits_BC
        return logits_BK


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
    # A GPU that was asked for and is not there is an error: the CPU's latencies would mislead the gate.
    return torch.device("cuda" if runtime.use_gpu else "cpu")
