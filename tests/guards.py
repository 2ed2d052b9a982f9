"""Takes one guard out of the package, for a run of tests that should then go red.

    GUARD=... pytest -p guards tests/...

A guard is a function that refuses something, or an order in which something is done. It is taken out by putting
another function in its place, so that it does not matter how the package is written.
"""

import os
from dataclasses import replace

from exemplar_ray.exemplars import gather
from exemplar_ray.network import shard_images
from exemplar_ray.runs import run_folder
from exemplar_ray.runs.records import StoredFile
from exemplar_ray.runs.run_folder import RunFolder


def refuse_nothing(*_):
    """Stands in for a function that refuses what must not be."""


def commit_record_first(self, position, files, record):
    """Stands in for `RunFolder.commit`: the same, in the wrong order."""
    stored = {ending: StoredFile(len(content), run_folder.sha256(content)) for ending, content in files.items()}
    record = replace(record, files=stored)
    self.write_json(f"parts/{position:06d}.json", record.to_json())
    self.write_all({f"parts/{position:06d}.{ending}": content for ending, content in files.items()})
    self.remove(f"failed/{position:06d}.json")
    return record


# name -> (where it is, what it is called, what stands in for it)
GUARDS = {
    "the completion record is written last": (RunFolder, "commit", commit_record_first),
    "a record counts for its own run only": (run_folder, "is_of_run", lambda record, fingerprint: True),
    "rows are scored or skipped": (shard_images, "refuse_lost_rows", refuse_nothing),
    "a part is what its record says": (run_folder, "refuse_torn", refuse_nothing),
    "gather recomputes what the scan recorded": (gather, "refuse_mix_up", refuse_nothing),
}


def pytest_configure(config):
    """Take out the guard that `GUARD` names."""
    owner, name, stand_in = GUARDS[os.environ["GUARD"]]
    assert hasattr(owner, name), f"there is no {name} to take out"
    setattr(owner, name, stand_in)
