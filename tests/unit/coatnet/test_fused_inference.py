"""Fusing changes how the logits are computed, not what they are."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from coatnet import CoAtNet
from coatnet.ema import Ema
from coatnet.fused_inference import FusedConvolution
from tests.known_weights import known_state
from tests.tiny_coatnet import TINY


def make_model(**overrides: Any) -> CoAtNet:
    model = CoAtNet(replace(TINY, **overrides))
    model.load_state_dict(known_state({name: tensor.shape for name, tensor in model.state_dict().items()}))
    return model.eval()


def plain(model: nn.Module, images: Tensor) -> Tensor:
    """With gradients enabled nothing is fused."""
    with torch.enable_grad():
        return model(images).detach()


def with_hooks(model: CoAtNet) -> CoAtNet:
    """A copy that fuses nothing without gradients either: somebody listens to every layer."""
    model = copy.deepcopy(model)
    for module in model.modules():
        module.register_forward_hook(lambda *_: None)
    return model


def num_calls(model: nn.Module, images: Tensor, kind: type[nn.Module]) -> int:
    """Count the calls of plain modules; hooks would keep them from being fused."""
    calls: list[nn.Module] = []
    with pytest.MonkeyPatch.context() as patch:
        forward: Callable[..., Tensor] = kind.forward

        def counted(self: nn.Module, *arguments: Tensor) -> Tensor:
            calls.append(self)
            return forward(self, *arguments)

        patch.setattr(kind, "forward", counted)
        with torch.no_grad():
            model(images)
    return len(calls)


@pytest.mark.parametrize(
    ("overrides", "norms_left"),
    [
        ({}, 0),
        ({"downsample_on": "depthwise", "stem_bias": False}, 0),
        ({"downsample_on": "pool"}, 0),
        ({"stem_depth": 1}, 0),
        ({"conv_activation": "relu"}, 0),
        ({"pre_norm_activation": True, "conv_activation": "silu"}, 4),
        ({"se_place": "before_norm"}, 4),
        ({"norm": "layer"}, 0),
    ],
)
def test_logits_stay_and_norms_go(overrides: dict[str, Any], norms_left: int) -> None:
    model = make_model(**overrides)
    for size in ((32, 32), (33, 47)):
        images = torch.randn(3, 3, *size)
        for context in (torch.no_grad(), torch.inference_mode()):
            with context:
                torch.testing.assert_close(model(images), plain(model, images), atol=1e-4, rtol=1e-4)
    assert num_calls(model, torch.randn(1, 3, 32, 32), nn.BatchNorm2d) == norms_left


@torch.no_grad()
def test_what_was_folded_follows_the_weights() -> None:
    """A convolution folded once would be served after an EMA swap or after the next weights were loaded."""
    model, images = make_model(), torch.randn(2, 3, 32, 32)
    changes: list[Callable[[], object]] = [
        lambda: model.stem[0].weight.mul_(1.5),  # pyright: ignore
        lambda: model.stem[1].running_mean.add_(0.5),  # pyright: ignore
        lambda: model.stages[0][0].pre_norm.bias.add_(0.5),  # pyright: ignore
        lambda: model.stages[0][0].pre_norm.weight.data.mul_(1.5),  # pyright: ignore
        lambda: setattr(model.stages[0][0].expand_norm, "eps", 0.5),
        lambda: model.stages[0][0].depthwise_norm.running_var.mul_(3.0),  # pyright: ignore
        lambda: model.load_state_dict({name: 0.7 * value for name, value in model.state_dict().items()}),
        lambda: setattr(model.stem[0].weight, "data", model.stem[0].weight.data.flip(0)),
        lambda: setattr(model.stem[0].weight, "data", model.stem[0].weight.data.flip(0)),
        lambda: setattr(model.stages[0][0], "expand", copy.deepcopy(model.stages[0][1].expand)),  # pyright: ignore
    ]
    for change in changes:
        before = model(images)
        change()
        assert not torch.allclose(model(images), before, atol=1e-6)
        torch.testing.assert_close(model(images), plain(model, images), atol=1e-4, rtol=1e-4)


def test_training_after_inference_and_back() -> None:
    """BatchNorm's training kernel writes its statistics without counting the write as one."""
    model, images = make_model(), torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        model(images)
    model.train()(images).square().sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())
    model.eval()
    with torch.inference_mode():
        torch.testing.assert_close(model(images), plain(model, images), atol=1e-4, rtol=1e-4)


def test_a_moving_average_is_followed() -> None:
    model, images = make_model(), torch.randn(4, 3, 32, 32)
    ema = Ema(model, decay=0.5)
    for num_updates in range(3):
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.1)
            ema.update(num_updates)
            found = ema.model.eval()(images)
        torch.testing.assert_close(found, plain(ema.model, images), atol=1e-4, rtol=1e-4)


LEAVES = [name for name, module in CoAtNet(TINY).named_modules() if not list(module.children())]


@pytest.mark.parametrize("name", [name for name in LEAVES if not name.endswith("attention.bias")])
def test_a_hook_on_any_layer_is_called(name: str) -> None:
    """Whoever asks for a layer's output must get it; FSDP gathers weights in such hooks."""
    model, images, seen = make_model(), torch.randn(2, 3, 32, 32), list[str]()
    model.get_submodule(name).register_forward_hook(lambda *_: seen.append(name))
    with torch.no_grad():
        found = model(images)
    assert seen
    assert set(seen) == {name}
    torch.testing.assert_close(found, plain(model, images), atol=1e-4, rtol=1e-4)


def test_a_hook_on_all_modules_is_called() -> None:
    model, kinds = make_model(), set[type[nn.Module]]()
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: kinds.add(type(module)))
    try:
        with torch.no_grad():
            model(torch.randn(2, 3, 32, 32))
    finally:
        handle.remove()
    assert {nn.BatchNorm2d, nn.GELU, nn.Linear} <= kinds


class DoubledLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class DoubledConvolution(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def _double_a_linear(model: CoAtNet) -> None:
    model.stages[2][0].attention.qkv.__class__ = DoubledLinear  # pyright: ignore


def _double_a_convolution(model: CoAtNet) -> None:
    model.stages[0][0].expand.__class__ = DoubledConvolution  # pyright: ignore


def _pad_by_reflection(model: CoAtNet) -> None:
    old = model.stages[0][0].depthwise  # pyright: ignore
    new = nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False, padding_mode="reflect")
    new.weight = old.weight  # pyright: ignore
    model.stages[0][0].depthwise = new  # pyright: ignore


def _widen_the_expansion(model: CoAtNet) -> None:
    model.stages[0][0].expand = nn.Conv2d(8, 32, 3, padding=1, bias=False)  # pyright: ignore


def _other_activation(model: CoAtNet) -> None:
    model.stages[0][0].activation = nn.LeakyReLU()  # pyright: ignore


def _synchronise(model: CoAtNet) -> None:
    nn.SyncBatchNorm.convert_sync_batchnorm(model)


def _lengthen_the_stem(model: CoAtNet) -> None:
    model.stem.append(nn.Conv2d(8, 8, 1))


def _drop_a_norm(model: CoAtNet) -> None:
    model.stages[0][0].expand_norm = nn.Identity()  # pyright: ignore


@pytest.mark.parametrize(
    "change",
    [
        _double_a_linear,
        _double_a_convolution,
        _pad_by_reflection,
        _widen_the_expansion,
        _other_activation,
        _synchronise,
        _lengthen_the_stem,
        _drop_a_norm,
    ],
)
def test_replaced_layers_are_respected(change: Callable[[CoAtNet], None]) -> None:
    """LoRA, quantisation and surgery replace layers; their `forward` was left out or asserted on."""
    model, images = make_model(), torch.randn(2, 3, 32, 32)
    change(model)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(images), plain(model, images), atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_tracing_takes_the_plain_path() -> None:
    model, images = make_model(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        traced = torch.jit.trace(model, images)
        torch.testing.assert_close(traced(images), plain(model, images), atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # torch's own
def test_onednn_can_be_switched_off() -> None:
    model, images = make_model(), torch.randn(2, 3, 32, 32)
    with torch.backends.mkldnn.flags(enabled=False):
        assert num_calls(model, images, nn.BatchNorm2d) > 0


def test_training_frees_what_was_folded() -> None:
    model = make_model()
    with torch.no_grad():
        model(torch.randn(2, 3, 32, 32))
    model.train()
    folded = [value for module in model.modules() for value in vars(module).values()]
    kept = [value for value in folded if isinstance(value, FusedConvolution)]
    assert kept
    assert all(value._folded is None and not value._kept for value in kept)  # pyright: ignore[reportPrivateUsage]


def test_copies_and_pickles_leave_what_was_folded_behind() -> None:
    model, images = make_model(), torch.randn(1, 3, 32, 32)
    size = len(pickle.dumps(model))
    with torch.no_grad():
        expected = model(images)
        assert len(pickle.dumps(model)) == size
        torch.testing.assert_close(copy.deepcopy(model)(images), expected)


def test_a_model_made_in_inference_mode_runs() -> None:
    """Its tensors do not count their writes, so nothing may be kept of them."""
    with torch.inference_mode():
        model, images = make_model(), torch.randn(1, 3, 32, 32)
        before = model(images)
        model.stem[0].weight.mul_(1.5)  # pyright: ignore
        assert not torch.allclose(model(images), before, atol=1e-6)


def test_flops_are_counted_as_those_of_the_plain_model() -> None:
    model, images = make_model(), torch.randn(2, 3, 32, 32)
    with FlopCounterMode(display=False) as fused, torch.no_grad():
        model(images)
    with FlopCounterMode(display=False) as unfused, torch.no_grad():
        with_hooks(model)(images)
    assert fused.get_total_flops() == unfused.get_total_flops() > 0


def test_other_precisions_are_not_fused() -> None:
    model, images = make_model(), torch.randn(2, 3, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert model(images).dtype == torch.bfloat16
    with torch.no_grad():
        assert model.double()(images.double()).dtype == torch.float64
