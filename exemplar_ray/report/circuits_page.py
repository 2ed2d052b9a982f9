"""A page of the circuits of a network that no run has: kernels drawn, in a file that needs nothing else."""

from __future__ import annotations

import html
from itertools import chain, islice

from exemplar_ray.results.circuit import Circuits
from exemplar_ray.runs.run_folder import RunFolder
from exemplar_ray.storage.folder import Folder

PAGE = "circuits.html"
_MOST = 100
_STYLE = "body{font:15px/1.4 system-ui,sans-serif;margin:24px;max-width:1100px}body>div{margin:20px 0}"


def write_circuits_page(uri: str) -> str:
    """Draw what the channels in a folder of the job `circuits` are made of; the first hundred, where there are more.

    Returns:
        The page's URI.
    """
    circuits = Circuits(RunFolder(uri))
    network = circuits.network
    found = chain.from_iterable(circuits.of_layer(layer.name) for layer in network.layers)
    shown = list(islice((one for one in found if one.row), _MOST))
    channels = sum(len(layer.channels) for layer in network.layers)
    more = f"<p>and {channels - len(shown)} more channels</p>" if channels > len(shown) else ""
    title = html.escape(network.title)
    body = "".join(circuit._repr_html_() for circuit in shown)
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Circuits · {title}</title><style>{_STYLE}</style><h1>{title}</h1>{body}{more}</html>"
    )
    Folder(uri).write(PAGE, page.encode())
    return f"{uri.rstrip('/')}/{PAGE}"
