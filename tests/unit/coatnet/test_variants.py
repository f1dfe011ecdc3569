import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from coatnet import create_model, list_models, model_config
from data.errors import InputError

# The reading of Tables 3, 11 and 12 in which the published counts come out right; 1000 classes.
PARAMETERS = {
    "coatnet_0": 25_036_948,
    "coatnet_1": 42_225_904,
    "coatnet_2": 74_685_000,
    "coatnet_3": 166_966_648,
    "coatnet_4": 275_425_672,
    "coatnet_5": 687_053_336,
    "coatnet_6": 1_471_125_616,
    "coatnet_7": 2_441_973_112,
}
# GMACs by image size, with the stride on the first 1x1 and on the depthwise convolution (Table 9).
GMACS = {
    ("coatnet_0", 224): (4.14, 4.55),
    ("coatnet_0", 384): (13.05, 14.24),
    ("coatnet_1", 224): (8.24, 8.64),
    ("coatnet_1", 384): (26.60, 27.79),
    ("coatnet_2", 224): (15.50, 16.43),
    ("coatnet_2", 384): (48.75, 51.46),
    ("coatnet_2", 512): (93.35, 98.18),
    ("coatnet_3", 224): (34.37, 36.45),
    ("coatnet_3", 384): (105.8, 111.9),
    ("coatnet_3", 512): (198.1, 209.0),
    ("coatnet_4", 224): (60.24, 62.32),
    ("coatnet_4", 384): (186.5, 192.6),
    ("coatnet_4", 512): (351.5, 362.3),
    ("coatnet_5", 224): (142.2, 145.3),
    ("coatnet_5", 384): (433.6, 442.7),
    ("coatnet_5", 512): (804.0, 820.1),
    ("coatnet_7", 512): (2539, 2561),
}


def count_parameters(name: str, **overrides: object) -> int:
    with torch.device("meta"):
        model = create_model(name, **overrides)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameter_count_is_the_papers(name: str, count: int) -> None:
    assert count_parameters(name) == count


def test_coatnet_6_with_table_12s_last_width_misses_the_published_size() -> None:
    """Table 12 prints a last stage of 2048; that gives 1.35B where the same table says 1.47B."""
    assert count_parameters("coatnet_6", widths=(192, 384, 768, 1536, 2048)) == 1_348_435_424


@pytest.mark.parametrize(("name", "image_size_px"), GMACS)
@pytest.mark.parametrize(("column", "downsample_on"), [(0, "conv1x1"), (1, "depthwise")])
def test_multiply_adds(name: str, image_size_px: int, column: int, downsample_on: str) -> None:
    with torch.device("meta"):
        model = create_model(name, downsample_on=downsample_on).eval()
        images = torch.empty(1, 3, image_size_px, image_size_px)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    expected = GMACS[name, image_size_px][column]
    assert counter.get_total_flops() / 2e9 == pytest.approx(expected, rel=0.01)


def test_sizes_of_our_own_variants() -> None:
    assert 0.9e6 < count_parameters("coatnet_tiny", num_classes=10) < 1.2e6
    assert count_parameters("vit_rel_0") == pytest.approx(PARAMETERS["coatnet_0"], rel=0.04)


@pytest.mark.parametrize("layout", ["CCCC", "CCCT", "CCTT", "CTTT"])
def test_the_papers_layouts_are_an_override(layout: str) -> None:
    """Section 2.2 compares them."""
    with torch.device("meta"):
        model = create_model("coatnet_0", layout=layout).eval()
        assert model(torch.empty(1, 3, 224, 224)).shape == (1, 1000)


@pytest.mark.parametrize("depths", [(2, 2, 6, 14, 2), (2, 2, 2, 18, 2), (2, 2, 8, 12, 2)])
def test_the_papers_depths_are_an_override(depths: tuple[int, ...]) -> None:
    """Table 7: V0, V1 and V2 move blocks between S2 and S3 of CoAtNet-2; the first number is the stem's."""
    with torch.device("meta"):
        model = create_model("coatnet_2", stem_depth=depths[0], depths=depths[1:])
    assert [len(stage) for stage in model.stages] == list(depths[1:])  # pyright: ignore[reportArgumentType]


def test_every_listed_model_can_be_built() -> None:
    for name in list_models():
        assert count_parameters(name) > 0


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown model 'coatnet_O'.*did you mean 'coatnet_"):
        create_model("coatnet_O")


def test_unknown_override_names_the_options() -> None:
    with pytest.raises(InputError, match=r"unknown model option 'droppath'.*stochastic_depth_rate"):
        model_config("coatnet_0", droppath=0.1)
