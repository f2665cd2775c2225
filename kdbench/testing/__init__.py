"""The conformance kit: what a plugin's own tests call to hold its parts against the framework's promises.

Each function raises ``AssertionError`` with a message that says what is wrong, where and by how much, so it serves any
test runner. Importing this page imports torch.
"""

from __future__ import annotations

from kdbench.testing.parity import assert_loss_parity

__all__ = ["assert_loss_parity"]
