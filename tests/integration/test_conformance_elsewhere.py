"""The interpreter that plans a paper once more: whom it blames for torch, and that another's import stops nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from distributions import GOOD, distribution
from in_process import installed

from kdbench.testing.checks import elsewhere, planning
from kdbench.testing.checks.subject import Subject

BORROWS = """\
from kdbench import hookimpl
from kdbench_toy.facts import paper

@hookimpl
def kdbench_papers():
    yield paper("toynan")
"""


@pytest.mark.parametrize(
    ("name", "file", "old", "new"),
    [
        ("heavy", "networks.py", "from kdbench.networks", "import torch\nfrom kdbench.networks"),
        ("naming", "networks.py", '        return "toy', '        import torch\n        return "toy'),
        ("telling", "facts.py", "from kdbench.paper", "import torch\nfrom kdbench.paper"),
    ],
)
def test_a_paper_is_planned_with_parts_of_another_plugin_that_import_torch(
    tmp_path: Path, name: str, file: str, old: str, new: str
) -> None:
    """Each under a name of its own: a process reads the code of a package once."""
    files = {**GOOD, file: GOOD[file].replace(old, new)}
    assert files != GOOD
    package = f"kdbench_{name}"
    distribution(
        tmp_path, f"kdbench-{name}", {key: text.replace("kdbench_toy", package) for key, text in files.items()}
    )
    distribution(tmp_path, f"kdbench-{name}-borrower", BORROWS.replace("kdbench_toy", package))
    with installed(tmp_path):
        innocent = elsewhere.report("toynan", f"{package}_borrower")
        guilty = elsewhere.report("toyline", package)
        assert (innocent.error, innocent.torch) == ("", [])
        assert planning.stable(Subject("toynan"), innocent) == []
        (finding,) = planning.light(Subject("toyline"), guilty)
        assert finding.startswith(f"{package}/{file}:")
