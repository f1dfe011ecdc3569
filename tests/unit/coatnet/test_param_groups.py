from typing import Any

from coatnet.config import ModelConfig
from coatnet.model import CoAtNet
from coatnet.param_groups import make_optimizer, make_param_groups
from coatnet.train_config import TrainConfig


def make_model(**overrides: Any) -> CoAtNet:
    config = ModelConfig(
        stem_width=8,
        widths=(8, 8, 32, 32),
        depths=(1, 1, 1, 1),
        num_classes=4,
        pretrain_image_size_px=32,
        **overrides,
    )
    return CoAtNet(config)


def test_biases_norms_and_relative_tables_do_not_decay() -> None:
    model = make_model()
    decayed, kept = make_param_groups(model, 0.05)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    kept_names = {names[id(parameter)] for parameter in kept["params"]}
    decayed_names = {names[id(parameter)] for parameter in decayed["params"]}
    assert not kept_names & decayed_names
    assert kept_names | decayed_names == set(names.values())
    tables = {name for name in names.values() if name.endswith("bias.table")}
    assert len(tables) == 2, "one relative-bias table for each transformer block"
    assert tables <= kept_names
    assert all(name.endswith("weight") for name in decayed_names)
    assert all(parameter.ndim == 1 for parameter in kept["params"] if names[id(parameter)] not in tables)


def test_relative_mlps_and_layer_scales_do_not_decay() -> None:
    """A relative MLP stands for a bias table; timm leaves it out of weight decay too."""
    model = make_model(relative_position="mlp", layer_scale_init=1e-6)
    decayed = {id(parameter) for parameter in make_param_groups(model, 0.05)[0]["params"]}
    others = [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if ".attention.bias." in name or name.endswith("gamma")
    ]
    assert len(others) == 2 * (4 + 2)
    assert not [name for name, parameter in others if id(parameter) in decayed]


def test_frozen_parameters_are_left_out() -> None:
    model = make_model()
    model.stem.requires_grad_(False)
    optimizer = make_optimizer(model, TrainConfig())
    optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert not optimized & {id(parameter) for parameter in model.stem.parameters()}
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0]
