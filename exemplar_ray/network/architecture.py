"""How to get one network: what the registry, torchvision and a user's file all come to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from exemplar_ray.data.preprocess import Preprocess

StateDict = Mapping[str, Tensor]


@dataclass(frozen=True)
class Architecture:
    """How to get one network.

    `build` makes it with the weights that the random generators give (a user's factory: with
    whatever weights it sets). `pretrained` returns a trained state dict, or is None where
    `build` itself loads one. `preprocess` is None where the model brings none.
    """

    title: str
    build: Callable[[], nn.Module]
    pretrained: Callable[[], StateDict] | None
    preprocess: Preprocess | None
    load: Callable[[StateDict], nn.Module] | None = None
    """A library's own loader: makes the network that it gives with this state dict. Without one, `build` makes
    the network, and the state dict is loaded into it."""
    weights_names: tuple[str, ...] = ()
    """Weights that the library has under a name of theirs; `pretrained` returns those that were asked for."""
    why_no_preprocess: str = ""
    """Where its library prepares images, and yet `preprocess` is None: the reason."""
    source: Callable[[], str] | None = None
    """Of what a name does not tell: the hash of what was run up to now, or is configured, see `source_sha256`."""
    run_again: Callable[[int], Architecture] | None = None
    """Of a user's own file: the same of another run of the file, with this seed."""
    own_weights: str = "the factory's own weights"
    """What weights that `build` itself sets are called."""
    is_trained: bool = True
    """Whether those are, as far as can be seen."""

    @property
    def source_sha256(self) -> str | None:
        """Return the SHA-256 (hex) of a user's file, the factory's name, and the user's files that it imported; or of
        a model's configuration, where that is in a folder or a repository.

        None for a model of a registry. A factory may import more, so ask after the network was built.
        """
        return self.source() if self.source else None
