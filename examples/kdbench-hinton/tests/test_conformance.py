"""The promises that kdbench makes about every plugin, held for this one."""

from kdbench.testing.conformance import *  # noqa: F403
