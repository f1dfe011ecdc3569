"""Tell whether tensors fit a module before they are loaded: torch says it in a line for each tensor."""

from collections.abc import Collection, Mapping

from torch import Tensor, nn


def describe_misfit(
    module: nn.Module, tensors: Mapping[str, Tensor], *, left_out: Collection[str] = ()
) -> str | None:
    """Name the first tensor that differs and both shapes; None if all fit. `left_out` may be missing."""
    own = module.state_dict()
    for name in sorted((own.keys() | tensors.keys()) - set(left_out)):
        found = tuple(tensors[name].shape) if name in tensors else "nothing"
        expected = tuple(own[name].shape) if name in own else "nothing"
        if found != expected:
            return f"{found} for {name!r} where the model has {expected}"
    return None
