from data.split import assign_split


def test_split_is_stable_across_versions_and_machines() -> None:
    # Written down once: a changed hash would move eval images into train at the next append.
    found = [assign_split(f"cat/{i}.png", 0.5, 7) for i in range(12)]
    assert "".join(split[0] for split in found) == "ttteeteettte"


def test_fraction_is_met_and_the_ends_are_exact() -> None:
    keys = [f"a/{i}.jpg" for i in range(4000)]
    share = sum(assign_split(key, 0.1, 0) == "eval" for key in keys) / len(keys)
    assert 0.085 < share < 0.115
    assert {assign_split(key, 0.0, 0) for key in keys} == {"train"}


def test_another_seed_gives_another_split() -> None:
    splits = [[assign_split(f"a/{i}.jpg", 0.5, seed) for i in range(64)] for seed in (0, 1)]
    assert splits[0] != splits[1]
