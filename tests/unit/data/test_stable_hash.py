import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from data.randomness import hash_key
from data.stable_hash import digest_rows, stable_hash

_MASK64 = 2**64 - 1


def mix(value: int) -> int:
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def absorb(state: int, word: int) -> int:
    return mix(((state ^ word) + 0x9E3779B97F4A7C15) & _MASK64)


def reference(text: str, seed: int, purpose: str) -> int:
    """The definition, a string at a time in plain integers."""
    content = text.encode()
    state = absorb(hash_key(seed, int.from_bytes(purpose.encode(), "little")), len(content))
    for start in range(0, len(content), 8):
        state = absorb(state, int.from_bytes(content[start : start + 8], "little"))
    return state


@given(st.lists(st.text(max_size=40)), st.integers(0, 2**40), st.sampled_from(["split", "order", ""]))
def test_each_string_has_its_own_hash_whatever_stands_beside_it(
    texts: list[str], seed: int, purpose: str
) -> None:
    column = pa.array(texts, pa.string())
    expected = [reference(text, seed, purpose) for text in texts]
    assert stable_hash(column, seed=seed, purpose=purpose).tolist() == expected
    assert stable_hash(column[1:], seed=seed, purpose=purpose).tolist() == expected[1:]
    chunks = pa.chunked_array([column[:2], column[2:]], pa.string())
    assert stable_hash(chunks, seed=seed, purpose=purpose).tolist() == expected
    large = column.cast(pa.large_string())
    assert stable_hash(large, seed=seed, purpose=purpose).tolist() == expected


def test_long_names_and_nulls() -> None:
    texts = ["x" * 1000, "", "x" * 1001, None]
    found = stable_hash(pa.array(texts), seed=1, purpose="order").tolist()
    assert found == [reference(text or "", 1, "order") for text in texts]
    with pytest.raises(ValueError, match="longer than 8"):
        stable_hash(pa.array(["a"]), seed=0, purpose="too long a word")


def test_purposes_and_seeds_are_independent_and_bits_are_even() -> None:
    """Names that differ in a digit only, as real ones do; 64 cells over two purposes and two seeds."""
    keys = pa.array([f"train/n01440764/n01440764_{number}.JPEG" for number in range(64_000)])
    for (seed, purpose), (other_seed, other) in (
        ((0, "split"), (0, "order")), ((0, "order"), (1, "order")), ((3, "cap"), (3, "split")),
    ):  # fmt: skip
        first = stable_hash(keys, seed=seed, purpose=purpose)
        second = stable_hash(keys, seed=other_seed, purpose=other)
        for shift in (0, 29, 61):  # low, middle and high bits
            cells = ((first >> np.uint64(shift)) & 7) * 8 + ((second >> np.uint64(shift)) & 7)
            assert chisquare(np.bincount(cells.astype(np.int64), minlength=64)).pvalue > 1e-4


def test_a_changed_character_changes_half_of_the_bits() -> None:
    texts = [f"cat/{number:05d}.png" for number in range(2000)]
    changed = [f"{text[:-1]}h" for text in texts]
    hashes = [stable_hash(pa.array(some), seed=0, purpose="order") for some in (texts, changed)]
    flips = [bin(one ^ other).count("1") for one, other in zip(*map(np.ndarray.tolist, hashes), strict=True)]
    assert abs(np.mean(flips) - 32) < 0.5


def test_rows_have_one_digest_only_if_all_columns_agree() -> None:
    rows = [
        ("a", 1, ["x"]), ("a", None, ["x"]), ("a", 1, ["x", "y"]), ("a", 1, ["xy"]), ("a", 1, ["y", "x"]),
        ("a", 1, []), ("", 1, ["x"]), ("b", 1, ["x"]), ("a", 2, ["x"]), ("x", 1, ["a"]),
    ]  # fmt: skip
    keys, numbers, labels = zip(*rows, strict=True)
    columns = [pa.array(keys), pa.array(numbers, pa.int64()), pa.array(labels, pa.list_(pa.string()))]
    high, low = digest_rows(columns)
    assert len(set(high.tolist())) == len(set(low.tolist())) == len(rows)
    assert not set(high.tolist()) & set(low.tolist())
    again = digest_rows([column[3:7] for column in columns])
    assert [lane.tolist() for lane in again] == [high[3:7].tolist(), low[3:7].tolist()]
