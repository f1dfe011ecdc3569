"""Our conversion against what timm 1.0.31 answered; `tests/benchmarks/timm_fixtures.py` asked it."""

import json
import re
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

from coatnet import CoAtNet, ModelConfig, create_model, model_config
from coatnet.interop import from_timm, timm_config, to_timm
from coatnet.layers import ACTIVATIONS
from coatnet.timm_variants import TIMM_VARIANTS
from coatnet.timm_weights import model_from_timm
from data.errors import InputError
from tests.known_weights import count_eps, digest, known_images, known_state

FIXTURES = Path(__file__).parent / "timm_fixtures"
SMALL_SIZE_PX = 64
# Rounding makes 5e-7 here; GELU's approximation by tanh, which some code takes for GELU, makes 7e-5.
TOLERANCE = 1e-5


@cache
def fixture(name: str) -> dict[str, Any]:
    return json.loads((FIXTURES / f"{name}.json").read_text())


def small_config(name: str) -> ModelConfig:
    overrides = fixture(name)["overrides"]
    return ModelConfig.from_dict({**timm_config(name).to_dict(), **overrides})


def small_logits(config: ModelConfig, name: str) -> torch.Tensor:
    model = model_from_timm(config, known_state(fixture(name)["shapes"]))
    with torch.no_grad():
        return model(known_images(2, SMALL_SIZE_PX))


def test_every_variant_has_a_fixture() -> None:
    assert {path.stem for path in FIXTURES.glob("*.json")} == set(TIMM_VARIANTS)
    assert len(TIMM_VARIANTS) == 21


@pytest.mark.parametrize("name", TIMM_VARIANTS)
def test_logits_are_timms(name: str) -> None:
    expected = torch.tensor(fixture(name)["logits"])
    torch.testing.assert_close(small_logits(small_config(name), name), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", TIMM_VARIANTS)
def test_there_and_back_gives_the_same_weights(name: str) -> None:
    state = known_state(fixture(name)["shapes"])
    back = to_timm(model_from_timm(small_config(name), state))
    assert back.keys() == state.keys()
    for key, tensor in state.items():
        assert back[key].dtype == tensor.dtype, key
        assert back[key].is_contiguous(), key
        assert torch.equal(back[key], tensor), key


@pytest.mark.parametrize("name", TIMM_VARIANTS)
def test_full_size_has_timms_names_shapes_and_count(name: str) -> None:
    with torch.device("meta"):
        model = CoAtNet(timm_config(name))
    full = fixture(name)["full"]
    assert sum(parameter.numel() for parameter in model.parameters()) == full["parameters"]
    shapes = {key: tuple(tensor.shape) for key, tensor in to_timm(model).items()}
    assert digest(shapes) == full["digest"]


@pytest.mark.parametrize("name", TIMM_VARIANTS)
def test_epsilons_are_timms(name: str) -> None:
    assert count_eps(CoAtNet(small_config(name))) == fixture(name)["eps"]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("coatnet_0_rw_224", {"conv_activation": "gelu"}),
        ("coatnet_0_rw_224", {"pre_norm_activation": False}),
        ("coatnet_0_rw_224", {"se_activation": "silu"}),
        ("coatnet_0_rw_224", {"downsample_on": "depthwise"}),
        ("coatnet_0_224", {"downsample_on": "conv1x1"}),
        ("coatnet_0_224", {"pool": "max"}),
        ("coatnet_rmlp_1_rw_224", {"pool": "max"}),
        ("coatnet_0_224", {"relative_attention": "post"}),
    ],
)
def test_fixtures_notice_a_choice_that_shapes_do_not_show(name: str, change: dict[str, Any]) -> None:
    wrong = small_logits(replace(small_config(name), **change), name)
    assert (wrong - torch.tensor(fixture(name)["logits"])).abs().max() > 1e-2


def test_fixtures_notice_gelus_approximation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ACTIVATIONS, "gelu", partial(torch.nn.GELU, "tanh"))
    name = "coatnet_0_224"
    wrong = small_logits(small_config(name), name)
    assert (wrong - torch.tensor(fixture(name)["logits"])).abs().max() > 4 * TOLERANCE


def test_public_weights_carry_their_normalisation() -> None:
    """ImageNet's mean and std cost models trained with 0.5 four points of top-1."""
    for name in TIMM_VARIANTS:
        config = timm_config(name)
        if name == "coatnet_bn_0_rw_224":
            assert config.mean == (0.485, 0.456, 0.406)
        else:
            assert (config.mean, config.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_from_timm_takes_a_tag_and_any_number_of_classes() -> None:
    with torch.device("meta"):
        shapes = {
            key: tensor.shape for key, tensor in to_timm(CoAtNet(timm_config("coatnet_pico_rw_224"))).items()
        }
    shapes |= {"head.fc.weight": torch.Size((7, 512)), "head.fc.bias": torch.Size((7,))}
    state = known_state(shapes)
    model = from_timm("coatnet_pico_rw_224.in12k", state)
    assert not model.training
    assert model.config == replace(timm_config("coatnet_pico_rw_224"), num_classes=7)
    assert model.config.variant == "coatnet_pico_rw_224"
    assert torch.equal(model.head.classifier.bias, state["head.fc.bias"])


@pytest.mark.parametrize("name", ["coatnet_0_rw_244", "coatnet_rw_0_224"])
def test_unknown_name_suggests_the_nearest(name: str) -> None:
    with pytest.raises(InputError, match=rf"unknown timm model '{name}'.*did you mean 'coatnet_\w+_224'"):
        from_timm(name, {})


def test_weights_that_do_not_fit_are_named() -> None:
    name = "coatnet_0_rw_224"
    state = known_state(fixture(name)["shapes"])
    table = "stages.2.blocks.0.attn.rel_pos.relative_position_bias_table"
    state[table] = torch.zeros(9, 1)
    state["extra"] = state.pop("norm.bias")
    with pytest.raises(InputError) as error:
        model_from_timm(small_config(name), state)
    assert str(error.value) == (
        "the weights are not those of timm's coatnet_0_rw_224; missing: norm.bias; not wanted: extra; "
        f"of another shape: {table} [9, 1] instead of [49, 1]"
    )


def test_weights_of_another_variant_show_the_first_names_only() -> None:
    name = "coatnet_0_rw_224"
    state = known_state(fixture("coatnet_rmlp_0_rw_224")["shapes"])
    with pytest.raises(InputError) as error:
        model_from_timm(small_config(name), state)
    first = [f"stages.0.blocks.0.{{}}.{leaf}" for leaf in ("fc1.weight", "fc1.bias", "fc2.weight")]
    missing, unwanted = (", ".join(first).format(*[owner] * 3) for owner in ("se_early", "se"))
    pattern = rf"; missing: {missing} and \d+ more; not wanted: {unwanted} and \d+ more$"
    assert re.search(pattern, str(error.value))


@pytest.mark.parametrize(
    ("model_options", "reason"),
    [
        ({"relative_attention": "post"}, "relative_attention = 'post'"),
        ({"stem_depth": 1}, r"stem_depth = 1 \(only 2\)"),
        ({"stem_stride": 1}, r"stem_stride = 1 \(only 2\)"),
        ({"strides": (1, 2, 2, 2)}, "a first stage without stride"),
        ({"strides": (2, 2, 2, 1)}, "another width without stride"),
        ({"widths": (33, 192, 384, 768)}, r"a hidden width of \[132, 768\] that is not a multiple of 8"),
        ({"se_ratio_of": "hidden"}, "se_ratio_of that does not go with conv_expand_from"),
        ({"head_hidden": False}, "head_norm that does not go with head_hidden"),
    ],
)
def test_what_timm_cannot_express_is_refused(model_options: dict[str, Any], reason: str) -> None:
    with torch.device("meta"):
        model = create_model("coatnet_0", **model_options)
    with pytest.raises(InputError, match=f"timm cannot express this model: {reason}"):
        to_timm(model)


def test_the_default_reading_keeps_its_stem_biases() -> None:
    """They load into a `MaxxVit` with `stem_bias=True`; timm's own `coatnet_0_224` has none."""
    with torch.device("meta"):
        ours, timms = (to_timm(CoAtNet(c)) for c in (model_config("coatnet_0"), timm_config("coatnet_0_224")))
    assert ours.keys() - timms.keys() == {"stem.conv1.bias", "stem.conv2.bias"}
    assert timms.keys() <= ours.keys()
