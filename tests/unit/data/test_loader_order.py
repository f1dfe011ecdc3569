"""The loader keeps the order's promises on real shards, of one snapshot and of a mixture."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.augment import Augment, AugmentConfig
from data.crop import DecodeConfig
from data.errors import InputError
from data.loader import TrainLoader
from data.mixture import WeightsFrom
from data.order import OrderConfig
from data.shard_cache import ShardCache
from data.sources import Mixture, Source
from data.types import Batch
from tests.small_dataset import small_dataset

DECODE = DecodeConfig(image_size_px=8)
AUGMENT = AugmentConfig(mixup_alpha=0.8, color_jitter=0.3, randaugment_num_ops=1, randaugment_magnitude=9.0)
NUM_TRAIN = 60
SCHEDULE = (
    WeightsFrom(from_epoch=0, weights=(0.5, 0.3, 0.2)),
    WeightsFrom(from_epoch=1, weights=(0.2, 0.0, 0.8)),
)
CPU = torch.device("cpu")
Row = tuple[str, int, int, bytes]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ShardCache:
    return ShardCache(tmp_path_factory.mktemp("cache"), 10**9)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    """Three snapshots: of all classes, of the last two, and one with the first one's names."""
    folder = tmp_path_factory.mktemp("sources")
    made = [
        small_dataset(folder / str(number), num_train=num_train, classes=classes, first_seed=1000 * number)
        for number, (num_train, classes) in enumerate(((NUM_TRAIN, "abc"), (25, "bc"), (17, "abc")))
    ]
    return [Source(store=store, snapshot=snapshot) for store, snapshot in made]


def open_loader(sources: list[Source], order: OrderConfig, **choices: object) -> TrainLoader:
    """Open a loader over the first source, the others mixed in."""
    first, *others = sources
    mixture = Mixture(sources=tuple(others), schedule=SCHEDULE) if others else None
    usual = {"split": "train", "decode": DECODE, "rank": 0, "world_size": 1, "num_threads": 0, "cache": None}
    given = {"store": first.store, "snapshot": first.snapshot, "order": order, "mixture": mixture}
    return TrainLoader(**{**usual, **given, **choices})  # type: ignore[arg-type]


def real_rows(batch: Batch, augment: Augment, order: OrderConfig) -> list[Row]:
    """Key, label, position and augmented pixels of each row that counts."""
    pixels = augment(batch, lane_size=order.lane_size, device=CPU).images_BCHW
    labels, positions = batch.labels_B.tolist(), batch.positions_B.tolist()
    return [
        (batch.keys[i], labels[i], positions[i], pixels[i].numpy().tobytes())
        for i in batch.weights_B.nonzero().flatten().tolist()
    ]


def global_batches(
    sources: list[Source],
    order: OrderConfig,
    cache: ShardCache,
    *,
    epoch: int,
    world_size: int = 1,
    num_threads: int = 0,
    start_step: int = 0,
) -> list[list[Row]]:
    augment = Augment(AUGMENT, num_classes=3, seed=order.seed)
    ranks = [
        open_loader(
            sources, order, rank=rank, world_size=world_size, num_threads=num_threads, cache=cache
        ).batches(epoch, start_step)
        for rank in range(world_size)
    ]
    return [[r for b in step for r in real_rows(b, augment, order)] for step in zip(*ranks, strict=True)]


@st.composite
def orders(draw: st.DrawFn) -> OrderConfig:
    num_lanes = draw(st.sampled_from([1, 2, 3, 8]))
    return OrderConfig(
        global_batch_size=num_lanes * draw(st.integers(2, 4)),
        num_lanes=num_lanes,
        shuffle_window=draw(st.integers(1, 90)),
        seed=draw(st.integers(0, 2**32)),
    )


@settings(deadline=None, max_examples=15)
@given(order=orders(), is_mixture=st.booleans(), epoch=st.integers(0, 2), data=st.data())
def test_same_samples_and_pixels_for_any_ranks_threads_and_start(
    sources: list[Source],
    cache: ShardCache,
    order: OrderConfig,
    is_mixture: bool,
    epoch: int,
    data: st.DataObject,
) -> None:
    used = sources if is_mixture else sources[:1]
    expected = global_batches(used, order, cache, epoch=epoch)
    start = data.draw(st.integers(0, len(expected)))
    world_size = data.draw(st.sampled_from([size for size in (1, 2, 3, 8) if size <= order.num_lanes]))
    num_threads = data.draw(st.integers(0, 4))
    found = global_batches(
        used, order, cache, epoch=epoch, world_size=world_size, num_threads=num_threads, start_step=start
    )
    assert found == expected[start:]
    if not is_mixture:
        keys = [row[0] for batch in expected for row in batch]
        assert len(keys) == len(set(keys)) == NUM_TRAIN - NUM_TRAIN % order.global_batch_size


def test_a_mixture_names_the_source_and_maps_the_class(sources: list[Source], cache: ShardCache) -> None:
    """The second source's class 0 is b, the first one's is a; the third has the first one's names."""
    order = OrderConfig(global_batch_size=8, num_lanes=4)
    loader = open_loader(sources, order, cache=cache)
    assert loader.steps_per_epoch == (NUM_TRAIN + 25 + 17) // 8
    ids = [source.snapshot.id for source in sources]
    assert (loader.identity.snapshot_id, *loader.identity.mixture) == tuple(ids)
    assert loader.identity.weights == SCHEDULE
    shares = dict.fromkeys(ids, 0)
    for batch in loader.batches(0):
        for key, label in zip(batch.keys, batch.labels_B.tolist(), strict=True):
            snapshot_id, _, name = key.partition(":")
            shares[snapshot_id] += 1
            assert "abc"[label] == name.split("/")[-2]
    assert [round(count / sum(shares.values()), 1) for count in shares.values()] == [0.5, 0.3, 0.2]
    later = {key.partition(":")[0] for batch in loader.batches(1) for key in batch.keys}
    assert later == {ids[0], ids[2]}  # the second one has weight 0 from epoch 1 on


def test_mixtures_that_do_not_fit_are_refused(sources: list[Source]) -> None:
    order = OrderConfig(global_batch_size=8, num_lanes=4)
    first, second, _ = sources
    ids = [source.snapshot.id for source in sources]
    with pytest.raises(InputError, match=rf"snapshot {ids[0]} .* has class 'a', which snapshot {ids[1]} has"):
        Mixture(sources=(first,), schedule=HALVES).check(second.snapshot)
    with pytest.raises(InputError, match=f"snapshot {ids[0]} is named twice in the mixture"):
        open_loader([first], order, mixture=Mixture(sources=(first,), schedule=HALVES))
    with pytest.raises(InputError, match="are 2; there are 3 sources"):
        Mixture(sources=(first, second), schedule=HALVES)
    with pytest.raises(InputError, match="source 2 of the mixture has 17 samples, fewer than num_lanes 24"):
        open_loader(sources, OrderConfig(global_batch_size=24, num_lanes=24))


HALVES = (WeightsFrom(from_epoch=0, weights=(0.5, 0.5)),)
