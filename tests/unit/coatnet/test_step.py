import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from coatnet.step import NonFiniteLossError, make_train_state, train_step
from coatnet.train_config import TrainConfig
from coatnet.worker import LocalWorker
from data.order import EpochOrder, OrderConfig
from tests.tiny_training import NUM_CLASSES, TinyNet, spawn_ranks

CPU = torch.device("cpu")
SGD_LIKE = TrainConfig(epochs=1, warmup_epochs=0, label_smoothing=0.0, clip_norm=None, weight_decay=0.0)


class Plain(nn.Module):
    """Without BatchNorm and dropout, so that a batch may be cut anywhere."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.GELU(), nn.Linear(16, NUM_CLASSES))

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return self.layers(images_BCHW)


def make_batch(num: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(num, 3, 4, 4, generator=generator)
    return images, torch.eye(NUM_CLASSES)[torch.arange(num) % NUM_CLASSES]


def expected_gradients(images: Tensor, targets: Tensor) -> list[Tensor]:
    model = Plain()
    F.cross_entropy(model(images), targets).backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def _unequal_ranks(worker: LocalWorker, parts: int) -> dict[str, Any]:
    """Rank 0 has 6 samples, rank 1 has 3 and padding of anything but NaN."""
    images, targets = make_batch(9)
    weights = torch.ones(6)
    if worker.rank == 0:
        images, targets = images[:6], targets[:6]
    else:
        images = torch.cat([images[6:], torch.full((3, 3, 4, 4), 9.0)])
        targets = torch.cat([targets[6:], targets[:3]])
        weights[3:] = 0
    config = TrainConfig(
        epochs=1, warmup_epochs=0, label_smoothing=0.0, clip_norm=None, gradient_accumulation_steps=parts
    )
    state = make_train_state(Plain(), config, worker)
    arguments = (state, images, targets, weights)
    for _ in range(3):  # a rebuild would come with the second
        pending = train_step(*arguments, config=config, worker=worker, learning_rate=0.0)
    gradients = [p.grad.numpy() for p in state.model.parameters() if p.grad is not None]
    assert isinstance(state.forward, DistributedDataParallel)
    rebuilt = state.forward._get_ddp_logging_data()["has_rebuilt_buckets"]
    return {"gradients": gradients, "loss": pending.read(0).loss, "rebuilt": rebuilt}


@pytest.mark.parametrize("parts", [1, 3])
def test_ranks_of_unequal_weight_give_the_global_mean(parts: int) -> None:
    """DDP's mean over ranks counted the samples of a rank with less weight more."""
    images, targets = make_batch(9)
    ranks = spawn_ranks(_unequal_ranks, parts, 2)
    expected = expected_gradients(images, targets)
    loss = F.cross_entropy(Plain()(images), targets).item()
    for rank in ranks:
        assert rank["loss"] == pytest.approx(loss, rel=1e-5)
        assert not rank["rebuilt"], "DDP's buckets must stay as they are, or a resumed run sums otherwise"
        for found, gradient in zip(rank["gradients"], expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(found), gradient)


_LANES = OrderConfig(global_batch_size=16, num_lanes=8, shuffle_window=16)


def _lanes_of_an_order(worker: LocalWorker, parts: int) -> dict[str, Any]:
    """Take a step on this rank's lanes of the first batch of an epoch over 20 samples."""
    rows = EpochOrder([20], _LANES, 0).batch(0, worker.rank, worker.world_size)
    images, targets = make_batch(20)
    kept = torch.from_numpy(rows.row_B).clamp_min(0)  # padding repeats a real image, as in the loader
    config = replace(SGD_LIKE, gradient_accumulation_steps=parts)
    state = make_train_state(Plain(), config, worker)
    weights = torch.from_numpy(rows.weights_B)
    pending = train_step(
        state, images[kept], targets[kept], weights, config=config, worker=worker, learning_rate=0.0
    )
    gradients = [p.grad.numpy() for p in state.model.parameters() if p.grad is not None]
    return {"gradients": gradients, "loss": pending.read(0).loss, "weight": float(weights.sum())}


@pytest.mark.parametrize(("world_size", "weights"), [(2, [8, 8]), (3, [6, 6, 4])])
def test_any_number_of_ranks_gives_the_gradient_of_one(world_size: int, weights: list[int]) -> None:
    """8 lanes on 3 ranks: the last one has a lane less, and padding of weight 0 in its place."""
    alone = _lanes_of_an_order(LocalWorker(device=CPU), 1)
    ranks = spawn_ranks(_lanes_of_an_order, 2, world_size)
    assert [rank["weight"] for rank in ranks] == weights
    for rank in ranks:
        assert rank["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        for found, gradient in zip(rank["gradients"], alone["gradients"], strict=True):
            np.testing.assert_allclose(found, gradient, rtol=1e-4, atol=1e-6)


def test_clipping_bounds_the_norm_and_reports_the_unclipped_one() -> None:
    images, targets = make_batch(8)
    norm = torch.stack([gradient.norm() for gradient in expected_gradients(images, targets)]).norm().item()
    config = TrainConfig(epochs=1, warmup_epochs=0, label_smoothing=0.0, clip_norm=norm / 10)
    worker = LocalWorker(device=CPU)
    state = make_train_state(Plain(), config, worker)
    pending = train_step(
        state, images, targets, torch.ones(8), config=config, worker=worker, learning_rate=0.0
    )
    assert pending.read(0).gradient_norm == pytest.approx(norm, rel=1e-5)
    gradients = [parameter.grad for parameter in state.model.parameters() if parameter.grad is not None]
    assert nn.utils.get_total_norm(gradients).item() == pytest.approx(norm / 10, rel=1e-4)


def test_a_step_is_adamw_of_the_given_learning_rate() -> None:
    images, targets = make_batch(8)
    worker = LocalWorker(device=CPU)
    reference = Plain()
    optimizer = torch.optim.AdamW(reference.parameters(), lr=1e-2, weight_decay=0.0)
    state = make_train_state(Plain(), SGD_LIKE, worker)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(reference(images), targets).backward()
        optimizer.step()
        weights = torch.ones(8)
        train_step(state, images, targets, weights, config=SGD_LIKE, worker=worker, learning_rate=1e-2)
    torch.testing.assert_close(state.model.state_dict(), reference.state_dict())
    assert state.num_steps == 3


def test_a_batch_without_weight_changes_nothing() -> None:
    worker = LocalWorker(device=CPU)
    state = make_train_state(Plain(), SGD_LIKE, worker)
    before = copy.deepcopy(state.model.state_dict())
    images, targets = make_batch(4)
    pending = train_step(
        state, images, targets, torch.zeros(4), config=SGD_LIKE, worker=worker, learning_rate=1e-2
    )
    assert pending.read(0).loss == 0.0
    torch.testing.assert_close(state.model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_both_precisions_learn(precision: Any) -> None:
    config = TrainConfig(epochs=1, warmup_epochs=0, label_smoothing=0.0, precision=precision)
    worker = LocalWorker(device=CPU)
    state = make_train_state(TinyNet(), config, worker)
    images, targets = make_batch(24)
    losses = [
        train_step(state, images, targets, torch.ones(24), config=config, worker=worker, learning_rate=1e-2)
        .read(step)
        .loss
        for step in range(30)
    ]
    assert losses[-1] < 0.8 * losses[0]
    assert all(parameter.dtype == torch.float32 for parameter in state.model.parameters())


@pytest.mark.parametrize(("scale", "quantity"), [(float("nan"), "loss"), (3e38, "loss|gradient norm")])
def test_a_non_finite_step_names_quantity_and_step(scale: float, quantity: str) -> None:
    worker = LocalWorker(device=CPU)
    state = make_train_state(Plain(), SGD_LIKE, worker)
    images, targets = make_batch(4)
    pending = train_step(
        state, images * scale, targets, torch.ones(4), config=SGD_LIKE, worker=worker, learning_rate=1e-2
    )
    with pytest.raises(NonFiniteLossError, match=rf"the ({quantity}) is (nan|inf) at step 17 "):
        pending.read(17)
