"""What a layer is called elsewhere: by lucent, and by torchvision's `create_feature_extractor`."""

from __future__ import annotations

import re
import warnings
from contextlib import suppress

from torch import nn

from exemplar_ray.network.pre_relu import SUFFIX


def explained(name: str, module: nn.Module) -> str | None:
    """Say what a name that no module has means elsewhere, and what to name here; None if it means nothing there."""
    modules = [path for path, _ in module.named_modules() if path]
    return _of_lucent(name, modules) or _of_torchvision(name, module, modules)


def _of_lucent(name: str, modules: list[str]) -> str | None:
    """Lucent writes a module's path with underscores."""
    layer, suffix = (name.removesuffix(SUFFIX), SUFFIX) if name.endswith(SUFFIX) else (name, "")
    same = [path for path in modules if path.replace(".", "_") == layer]
    return f"that is what lucent calls '{same[0]}{suffix}'; name it so" if len(same) == 1 else None


def _of_torchvision(name: str, module: nn.Module, modules: list[str]) -> str | None:
    """torchvision names the nodes of a traced graph: modules, and the operations between them."""
    from torchvision.models.feature_extraction import get_graph_node_names

    nodes: list[str] = []
    # Whatever a network raises that cannot be traced: it has no such names.
    with suppress(Exception), warnings.catch_warnings(action="ignore"):
        nodes = get_graph_node_names(module)[1]
    if name not in nodes:
        return None
    node = "a node of torchvision's create_feature_extractor"
    again = re.fullmatch(r"(.*)_\d+", name)
    if again and again[1] in modules and not name.endswith("_0"):
        node = f"a later run of '{again[1]}', by the names of torchvision's create_feature_extractor"
    within = [path for path in modules if name.startswith(f"{path}.")]
    if not within:
        return (
            f"that is {node}, which is computed between modules, and a layer is a module here; name one before or after"
        )
    ends = [path for path in within if [one for one in nodes if one.startswith(f"{path}.")][-1] == name]
    if ends:
        # Of several that end in it, the outermost is the one that people name.
        return f"that is {node}; '{min(ends, key=len)}' ends in it: name that"
    return f"that is {node} within '{max(within, key=len)}', and a layer is a module here; name one before or after"
