"""torch's way to watch every operation of a network, without the compiler that torch imports for it."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class DispatchMode(TorchDispatchMode):
    """What `TorchDispatchMode` is.

    torch keeps its compiler from looking into `__torch_dispatch__`, and imports it only to tell it so, which takes 1 s
    in every process. Here it is told if it is there: else there is nothing that would look.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        plain = cls.__torch_dispatch__
        unseen = torch._disable_dynamo(plain)

        def dispatch(self: Any, *args: Any, **kwargs: Any) -> Any:
            return (unseen if sys.modules.get("torch._dynamo") else plain)(self, *args, **kwargs)

        cls.__torch_dispatch__ = dispatch  # type: ignore[method-assign]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
