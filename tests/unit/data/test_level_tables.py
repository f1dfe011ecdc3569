"""Tables of 256 levels: look-ups and counts."""

import torch

from data.level_tables import apply_tables, bin_counts, histograms, scattered_counts


def test_each_channel_is_looked_up_in_its_table() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 70, 80), dtype=torch.uint8, generator=generator)
    tables = torch.randint(0, 256, (2, 3, 256), dtype=torch.uint8, generator=generator)
    looked_up = apply_tables(images, tables)
    expected = [[tables[r, c][images[r, c].long()] for c in range(3)] for r in range(2)]
    assert torch.equal(looked_up, torch.stack([torch.stack(channels) for channels in expected]))


def test_levels_are_counted_by_channel() -> None:
    images = torch.tensor([[[[0, 0, 5]], [[255, 255, 255]], [[1, 2, 3]]]], dtype=torch.uint8)
    counts = histograms(images)
    assert counts.shape == (1, 3, 256)
    assert counts.sum().item() == 9
    assert [counts[0, 0, 0], counts[0, 0, 5], counts[0, 1, 255], counts[0, 2, 2]] == [2, 1, 3, 1]


def test_both_ways_to_count_agree() -> None:
    images = torch.randint(0, 256, (4, 3, 30, 40), dtype=torch.uint8, generator=torch.manual_seed(0))
    assert torch.equal(bin_counts(images), scattered_counts(images))
