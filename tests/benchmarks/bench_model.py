"""Our CoAtNet against timm's, with equal weights and inputs: forward, and a whole training step.

The same logits are asserted first. timm runs at the best of its settings (channels_last or not, fused
attention or not), which a small sweep finds for each row; ours runs as it is, and for inference also with
its BatchNorm folded, as it is served. float32, eager.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
from timm.models.maxxvit import MaxxVit
from torch import Tensor, nn
from torch.nn import functional as F

from coatnet import CoAtNet, model_config
from coatnet.interop import timm_config
from coatnet.timm_weights import model_from_timm
from tests.benchmarks.measure import side_by_side
from tests.benchmarks.session import Session
from tests.benchmarks.timm_twin import TIMM_CHOICES, set_fused_attention, twin

_TOLERANCE = 1e-4
"""Largest difference of logits, in units of their standard deviation."""
_SWEEP_SHARE = 4
"""The sweep of the peer's settings takes a batch this many times smaller."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One model at one image size."""

    ours: str
    timm: str | None
    """A name of timm's table; None: the same shape built of timm's blocks."""
    image_size_px: int
    batch_size: int
    repeats: int


WORKLOADS = (
    Workload(ours="coatnet_0", timm="coatnet_0_224", image_size_px=224, batch_size=8, repeats=5),
    Workload(ours="coatnet_nano", timm=None, image_size_px=32, batch_size=64, repeats=9),
)


@dataclass(frozen=True, kw_only=True)
class Twins:
    """The two models with the same weights."""

    ours: CoAtNet
    peer: MaxxVit


def main() -> None:
    session = Session.from_arguments("bench_model", ("torch", "torchvision", "timm"))
    torch.set_num_threads(session.num_threads)
    peer_version = f"timm {timm.__version__}"
    for work in WORKLOADS:
        twins = make_twins(work)
        images = torch.randn(work.batch_size, 3, work.image_size_px, work.image_size_px)
        labels = torch.randint(0, twins.ours.config.num_classes, (work.batch_size,))
        difference = check_same(twins, images[:2])
        session.note(f"{work.ours} largest difference of logits", difference)
        for kind, make_call, ours in (
            ("forward", forward_call, twins.ours),
            ("training step", step_call, twins.ours),
        ):
            row = f"{work.ours} {work.image_size_px} px, batch {work.batch_size}, {kind}"
            small = max(2, work.batch_size // _SWEEP_SHARE)
            sweep = sweep_peer(twins.peer, make_call, images[:small], labels[:small])
            session.note(f"timm's settings, ms: {row}", sweep)
            best = min(sweep, key=lambda name: sweep[name])
            apply_settings(twins.peer, best)
            session.compare(
                row,
                make_call(ours, images, labels),
                make_call(twins.peer, images.contiguous(memory_format=_format(best)), labels),
                num_items=work.batch_size,
                unit="images/s",
                peer_version=peer_version,
                repeats=work.repeats,
            )
    session.write()


def make_twins(work: Workload) -> Twins:
    """Build timm's model, and ours with its choices and its weights."""
    torch.manual_seed(0)
    if work.timm:
        config, peer = timm_config(work.timm), timm.create_model(work.timm)
        assert isinstance(peer, MaxxVit)
    else:
        config = model_config(work.ours, **TIMM_CHOICES)
        peer = twin(config)
    return Twins(ours=model_from_timm(config, peer.state_dict()), peer=peer)


def check_same(twins: Twins, images: Tensor) -> float:
    """Assert equal logits in eval and in train mode; return the largest difference."""
    largest = 0.0
    for mode in (False, True):
        with torch.no_grad():
            ours, peer = (model.train(mode)(images) for model in (twins.ours, twins.peer))
        difference = float((ours - peer).abs().max() / peer.std())
        assert difference < _TOLERANCE, f"logits differ by {difference:.2g} standard deviations, train={mode}"
        largest = max(largest, difference)
    return largest


def forward_call(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], object]:
    """Return inference on the batch."""
    del labels

    def call() -> Tensor:
        with torch.inference_mode():
            return model(images)

    model.eval()
    return call


def step_call(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], object]:
    """Return a training step: forward, loss, backward, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def call() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    model.train()
    return call


def sweep_peer(
    model: MaxxVit,
    make_call: Callable[[nn.Module, Tensor, Tensor], Callable[[], object]],
    images: Tensor,
    labels: Tensor,
) -> dict[str, float]:
    """Return milliseconds a call for each combination of the peer's settings."""
    found: dict[str, float] = {}
    for layout, attention in itertools.product(("contiguous", "channels_last"), ("fused", "single ops")):
        name = f"{layout}, {attention}"
        apply_settings(model, name)
        call = make_call(model, images.contiguous(memory_format=_format(name)), labels)
        timings = side_by_side(call, call, repeats=1)
        found[name] = round(1000 * min(*timings.ours_s, *timings.peer_s), 2)
    return found


def apply_settings(model: MaxxVit, name: str) -> None:
    """Set memory layout and attention as a name of the sweep says."""
    model.to(memory_format=_format(name))  # pyright: ignore[reportCallIssue]
    set_fused_attention(model, name.endswith("fused"))


def _format(name: str) -> torch.memory_format:
    return torch.channels_last if name.startswith("channels_last") else torch.contiguous_format


if __name__ == "__main__":
    main()
