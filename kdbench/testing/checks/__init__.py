"""The conformance checks as pure functions: each returns its findings, sentences that name the fault and its cure.

No finding means that the check holds. :mod:`kdbench.testing.conformance` makes tests of them.
"""
