"""Hooks on a network's layers, in its own forward pass. Gradients flow through them if they are on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, NoReturn

from torch import Tensor, nn

from exemplar_ray.network.inputs import Input
from exemplar_ray.network.pre_relu import SUFFIX, ReluInputs, split_name

SeenLayer = Callable[[str, Any, Any], bool]
"""Called with a layer's name, its output, and what that was before its ReLU; true ends the forward pass. A layer that
gives one tensor in a tuple or mapping, and else None, has this tensor for its output."""


class _EverythingSeenError(Exception):
    """Raised inside a forward pass to end it: nothing that follows is wanted."""


def forward(module: nn.Module, given: Input) -> None:
    """Run a forward pass, to its end or until a hook has seen all that is wanted."""
    with suppress(_EverythingSeenError):
        given.given_to(module)


def end_forward() -> NoReturn:
    """End the forward pass that a hook is called in: nothing that follows is wanted."""
    raise _EverythingSeenError


def only_tensor(returned: Any) -> Any:
    """Return the tensor of a module that gives one and nothing else, as in (tensor, None); of others what they give."""
    parts = list(returned.values()) if isinstance(returned, Mapping) else returned
    if not isinstance(parts, (list, tuple)):
        return returned
    given = [part for part in parts if part is not None]
    return given[0] if len(given) == 1 and isinstance(given[0], Tensor) else returned


@contextmanager
def hooked(module: nn.Module, names: Sequence[str], seen: SeenLayer, with_pre_relu: bool = False) -> Iterator[None]:
    """While inside, call `seen` for each named layer whenever it has run. The hooks go when the block ends.

    Args:
        names: modules' names, as `module.named_modules()` spells them, or with `_pre_relu` behind.
        with_pre_relu: find out what each output was before its ReLU; `seen` gets None where it has none. Without
            this `seen` always gets None.
    """
    # Going through all of a network's modules takes longer than some of its layers.
    modules = [name for name, _ in module.named_modules()] if any(name.endswith(SUFFIX) for name in names) else names
    wanted = {name: split_name(name, modules) for name in names}
    needs_inputs = with_pre_relu or any(pre_relu for _, pre_relu in wanted.values())
    relu_inputs = ReluInputs()
    with relu_inputs if needs_inputs else nullcontext():

        def hook(name: str, pre_relu: bool) -> Callable[..., None]:
            def forward_hook(_module: nn.Module, _inputs: object, returned: object) -> None:
                output = only_tensor(returned)
                input_ = relu_inputs.before(output) if pre_relu or with_pre_relu else None
                if seen(name, input_, None) if pre_relu else seen(name, output, input_):
                    end_forward()

            return forward_hook

        handles = [
            module.get_submodule(submodule).register_forward_hook(hook(name, pre_relu))
            for name, (submodule, pre_relu) in wanted.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
