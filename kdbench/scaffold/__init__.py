"""The first version of a plugin, written for its author: ``kdbench new-plugin``.

What is written is a distribution that installs, passes its own tests and reproduces at tier smoke before anything in it
is changed. Numbers of the paper are left blank: nobody has read it yet.
"""

from kdbench.scaffold.names import NewPlugin, describe
from kdbench.scaffold.writing import FILES, render, write

__all__ = ["FILES", "NewPlugin", "describe", "render", "write"]
