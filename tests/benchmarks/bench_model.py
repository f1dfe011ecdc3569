"""Our CoAtNet against timm's, with equal weights and inputs: forward, and a whole training step.

The same logits are asserted first. timm runs in both memory layouts, and in each with the attention
(fused or in single operations) that a small sweep finds the faster; ours runs as it is. float32 on the
CPU; on a GPU the same rows run under bfloat16 autocast, timed by CUDA events (it has not run on one yet).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import timm
import torch
from timm.models.maxxvit import MaxxVit
from torch import Tensor, nn
from torch.nn import functional as F

from coatnet import CoAtNet, model_config
from coatnet.interop import timm_config
from coatnet.step import autocast
from coatnet.timm_weights import model_from_timm
from tests.benchmarks.device import clock, peak_memory_mb, pick_device
from tests.benchmarks.measure import side_by_side
from tests.benchmarks.report import single_row
from tests.benchmarks.session import Session
from tests.benchmarks.timm_twin import TIMM_CHOICES, set_fused_attention, twin

_TOLERANCE = 1e-4
"""Largest difference of logits, in units of their standard deviation."""
_SWEEP_SHARE = 4
"""The sweep of the peer's attention takes a batch this many times smaller."""
_LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
_PEER_VERSION = f"timm {timm.__version__}"
_DEVICE = pick_device()


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One model at one image size."""

    ours: str
    timm: str | None
    """A name of timm's table; None: the same shape built of timm's blocks."""
    image_size_px: int
    batch_size: int
    repeats: int
    compiled: bool = False
    """Whether to compare both compiled, too."""

    def __str__(self) -> str:
        return f"{self.ours} {self.image_size_px} px, batch {self.batch_size}"


WORKLOADS = (
    Workload(
        ours="coatnet_0", timm="coatnet_0_224", image_size_px=224, batch_size=8, repeats=9, compiled=True
    ),
    Workload(
        ours="coatnet_0", timm="coatnet_0_224", image_size_px=64, batch_size=8, repeats=9, compiled=True
    ),
    Workload(ours="coatnet_nano", timm=None, image_size_px=32, batch_size=64, repeats=9),
)


@dataclass(frozen=True, kw_only=True)
class Twins:
    """The two models with the same weights."""

    ours: CoAtNet
    peer: MaxxVit


Call = Callable[[], object]
MakeCall = Callable[[nn.Module, Tensor, Tensor], Call]


def main() -> None:
    session = Session.from_arguments("bench_model", ("torch", "torchvision", "timm"))
    torch.set_num_threads(session.num_threads)
    for work in WORKLOADS:
        compare(session, work)
    session.write()


def compare(session: Session, work: Workload) -> None:
    """Add the rows of one workload."""
    twins = make_twins(work)
    images = torch.randn(work.batch_size, 3, work.image_size_px, work.image_size_px, device=_DEVICE)
    labels = torch.randint(0, twins.ours.config.num_classes, (work.batch_size,), device=_DEVICE)
    session.note(f"{work}: largest difference of logits", check_same(twins, images[:2]))
    for kind, make_call in (("forward", forward_call), ("training step", step_call)):
        best: dict[str, float] = {}
        for layout in _LAYOUTS:
            best |= sweep_attention(twins.peer, layout, make_call, images, labels)
            fastest = min((name for name in best if name.startswith(layout)), key=lambda name: best[name])
            compare_speed(session, work, f"{kind}, timm {layout}", make_call, twins, fastest, images, labels)
        session.note(f"{work}, {kind}: timm's settings, ms", best)
        fastest = min(best, key=lambda name: best[name])
        if work.compiled:
            compiled = Twins(ours=_compile(twins.ours), peer=_compile(twins.peer))
            apply_settings(twins.peer, fastest)
            compare_speed(session, work, f"{kind}, compiled", make_call, compiled, fastest, images, labels)
    compare_memory(session, work, twins, fastest, images, labels)


def compare_speed(
    session: Session,
    work: Workload,
    row: str,
    make_call: MakeCall,
    twins: Twins,
    settings: str,
    images: Tensor,
    labels: Tensor,
) -> None:
    """Add a row of images a second."""
    apply_settings(twins.peer, settings)
    session.compare(
        f"{work}, {row}",
        make_call(twins.ours, images, labels),
        make_call(twins.peer, images.contiguous(memory_format=_layout(settings)), labels),
        num_items=work.batch_size,
        unit="images/s",
        peer_version=_PEER_VERSION,
        repeats=work.repeats,
        clock=clock(_DEVICE),
    )


def compare_memory(
    session: Session, work: Workload, twins: Twins, settings: str, images: Tensor, labels: Tensor
) -> None:
    """Add a row of the most memory that a training step takes beside weights and optimizer state."""
    apply_settings(twins.peer, settings)
    peer_images = images.contiguous(memory_format=_layout(settings))
    ours = peak_memory_mb(step_call(twins.ours, images, labels), _DEVICE)
    peer = peak_memory_mb(step_call(twins.peer, peer_images, labels), _DEVICE)
    session.rows.append(
        single_row(f"{work}, training step, peak memory", ours, peer, unit="MB", peer_version=_PEER_VERSION)
    )


def make_twins(work: Workload) -> Twins:
    """Build timm's model, and ours with its choices and its weights."""
    torch.manual_seed(0)
    if work.timm:
        peer = timm.create_model(work.timm, img_size=work.image_size_px)
        config = replace(timm_config(work.timm), pretrain_image_size_px=work.image_size_px)
        assert isinstance(peer, MaxxVit)
    else:
        config = model_config(work.ours, **TIMM_CHOICES)
        peer = twin(config)
    ours = model_from_timm(config, peer.state_dict())
    return Twins(ours=ours.to(_DEVICE), peer=peer.to(_DEVICE))


def check_same(twins: Twins, images: Tensor) -> float:
    """Assert equal logits in eval and in train mode; return the largest difference."""
    largest = 0.0
    # A GPU's TF32 would round timm's 1x1 convolutions, which are linear layers of ours.
    for mode in (False, True):
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            ours, peer = (model.train(mode)(images) for model in (twins.ours, twins.peer))
        difference = float((ours - peer).abs().max() / peer.std())
        assert difference < _TOLERANCE, f"logits differ by {difference:.2g} standard deviations, train={mode}"
        largest = max(largest, difference)
    return largest


def forward_call(model: nn.Module, images: Tensor, labels: Tensor) -> Call:
    """Return inference on the batch."""
    del labels

    def call() -> Tensor:
        with torch.inference_mode(), _autocast():
            return model(images)

    model.eval()
    return call


def step_call(model: nn.Module, images: Tensor, labels: Tensor) -> Call:
    """Return a training step: forward, loss, backward, AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def call() -> None:
        optimizer.zero_grad()
        with _autocast():
            loss = F.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()

    model.train()
    return call


def sweep_attention(
    model: MaxxVit, layout: str, make_call: MakeCall, images: Tensor, labels: Tensor
) -> dict[str, float]:
    """Return milliseconds a call for each attention of the peer, by the settings' names."""
    count = max(2, len(images) // _SWEEP_SHARE)
    found: dict[str, float] = {}
    for name in (f"{layout}, fused attention", f"{layout}, single operations"):
        apply_settings(model, name)
        call = make_call(model, images[:count].contiguous(memory_format=_layout(name)), labels[:count])
        timings = side_by_side(call, call, repeats=2, clock=clock(_DEVICE))
        found[name] = round(1000 * min(*timings.ours_s, *timings.peer_s), 2)
    return found


def apply_settings(model: nn.Module, name: str) -> None:
    """Set memory layout and attention as a name of the sweep says."""
    model.to(memory_format=_layout(name))  # pyright: ignore[reportCallIssue]
    set_fused_attention(model, name.endswith("fused attention"))


def _compile(model: nn.Module) -> Any:
    torch.compiler.reset()
    return torch.compile(model)


def _autocast() -> torch.autocast:
    return autocast("bf16" if _DEVICE.type == "cuda" else "float32", _DEVICE)


def _layout(settings: str) -> torch.memory_format:
    return _LAYOUTS[settings.partition(",")[0]]


if __name__ == "__main__":
    main()
