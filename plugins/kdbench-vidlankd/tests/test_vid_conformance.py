"""The paper held against the framework's promises, as any third party's is."""

from kdbench.testing.conformance import *  # noqa: F403

KDBENCH_PAPERS = ["vidlankd"]
