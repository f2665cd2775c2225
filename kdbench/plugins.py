"""Find, load, isolate and list plugins. The only module that knows pluggy's manager.

Whatever is wrong with a plugin (it does not import, has a hook that does not exist, comes from a newer API level,
raises when asked, or brings an id that is taken) is kept as that plugin's ``problem``; the rest goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import msgspec
import pluggy

from kdbench import hookspecs
from kdbench.errors import KdbenchError, unknown

if TYPE_CHECKING:
    import click

    from kdbench.bench.contender import Contender
    from kdbench.data.base import Dataset
    from kdbench.executors import ExecutorInfo
    from kdbench.networks.base import Network
    from kdbench.paper import Paper

__all__ = ["PluginInfo", "Registry", "registry"]

GROUP = "kdbench"
BUILTIN = "kdbench.builtin"


class PluginInfo(msgspec.Struct):
    """One installed plugin: where it comes from, what it brings, and what is wrong with it (empty: nothing)."""

    name: str
    module: str
    distribution: str
    version: str
    provides: dict[str, list[str]] = msgspec.field(default_factory=dict)
    problem: str = ""


class Registry:
    """Everything that the installed plugins bring, by noun and id."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager("kdbench")
        self.manager.add_hookspecs(hookspecs)
        self.plugins: list[PluginInfo] = []
        self.papers: dict[str, Paper] = {}
        self.networks: dict[str, Network] = {}
        self.datasets: dict[str, Dataset] = {}
        self.executors: dict[str, ExecutorInfo] = {}
        self.contenders: dict[str, Contender] = {}
        self._load(EntryPoint(BUILTIN, BUILTIN, GROUP))
        for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
            self._load(entry)
        self._collect("papers", self.papers, lambda paper: paper.id)
        self._collect("networks", self.networks, lambda network: network.name)
        self._collect("datasets", self.datasets, lambda dataset: dataset.id)
        self._collect("executors", self.executors, lambda info: info.id)
        self._collect("benchmark_contenders", self.contenders, lambda contender: contender.id)

    def paper(self, name: str) -> Paper:
        """The paper of that id; the error for an unknown one also names plugins that could not be loaded."""
        found: Paper = self._get("paper", self.papers, name)
        return found

    def dataset(self, name: str) -> Dataset:
        """The data set of that id."""
        found: Dataset = self._get("data set", self.datasets, name)
        return found

    def executor(self, name: str) -> ExecutorInfo:
        """The executor of that id."""
        found: ExecutorInfo = self._get("executor", self.executors, name)
        return found

    def contender(self, name: str) -> Contender:
        """The benchmark contender of that id."""
        found: Contender = self._get("contender", self.contenders, name)
        return found

    def problems(self) -> list[PluginInfo]:
        """Plugins with something wrong."""
        return [info for info in self.plugins if info.problem]

    def register_commands(self, cli: click.Group) -> None:
        """Let every plugin add its commands."""
        for info, plugin in self._implementing("kdbench_register_commands"):
            before = dict(cli.commands)
            with _Blame(info, "kdbench_register_commands"):
                self._call(plugin, "kdbench_register_commands", cli=cli)
                _refuse_taken(cli, before)
            info.provides["commands"] = sorted(set(cli.commands) - set(before))

    def _load(self, entry: EntryPoint) -> None:
        source = entry.dist
        info = PluginInfo(
            name=entry.name,
            module=entry.value,
            distribution=source.name if source else "kdbench",
            version=source.version if source else "",
        )
        self.plugins.append(info)
        with _Blame(info, "import"):
            module = entry.load()
            level = getattr(module, "KDBENCH_API", hookspecs.API_LEVEL)
            if level > hookspecs.API_LEVEL:
                raise KdbenchError(
                    f"it needs API level {level}, this kdbench has {hookspecs.API_LEVEL}", cure="upgrade kdbench"
                )
            wrong = _wrong_hooks(module)
            if wrong:
                raise unknown("hook", wrong[0], _hooks())
            self.manager.register(module, name=entry.name)

    def _collect(self, noun: str, into: dict[str, Any], key: Callable[[Any], str]) -> None:
        hook = f"kdbench_{noun}"
        owner: dict[str, str] = {}
        for info, plugin in self._implementing(hook):
            with _Blame(info, hook):
                for item in self._call(plugin, hook) or ():
                    name = key(item)
                    if name in owner:
                        what = noun.rstrip("s").replace("_", " ")
                        raise KdbenchError(
                            f"the {what} '{name}' is already provided by plugin '{owner[name]}'",
                            cure="uninstall one of the two",
                        )
                    owner[name] = info.name
                    into[name] = item
                    info.provides.setdefault(noun, []).append(name)

    def _implementing(self, hook: str) -> Iterable[tuple[PluginInfo, Any]]:
        for info in self.plugins:
            plugin = self.manager.get_plugin(info.name)
            if plugin is not None and hasattr(plugin, hook):
                yield info, plugin

    def _call(self, plugin: Any, hook: str, **arguments: Any) -> Any:
        # One plugin at a time, so that what one of them raises is blamed on it and stops no other.
        others = [other for other in self.manager.get_plugins() if other is not plugin]
        caller = self.manager.subset_hook_caller(hook, others)
        results = caller(**arguments)
        return results[0] if results else None

    def _get(self, noun: str, known: dict[str, Any], name: str) -> Any:
        if name in known:
            return known[name]
        error = unknown(noun, name, known)
        broken = "; ".join(f"plugin '{info.name}' is not loaded: {info.problem}" for info in self.problems())
        raise KdbenchError(error.what, cure=f"{error.cure}. {broken}" if broken else error.cure)


@cache
def registry() -> Registry:
    """The plugins of this process, loaded once."""
    return Registry()


class _Blame:
    """Keeps whatever is raised inside as the plugin's problem."""

    def __init__(self, info: PluginInfo, doing: str) -> None:
        self.info = info
        self.doing = doing

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, (Exception, SystemExit)):
            return False
        name = "" if isinstance(error, KdbenchError) else f"{type(error).__name__}: "
        text = f"{self.doing}: {name}{error}"
        self.info.problem = f"{self.info.problem}; {text}" if self.info.problem else text
        return True


def _refuse_taken(cli: click.Group, before: dict[str, click.Command]) -> None:
    """Undo and name a command that kdbench itself or an earlier plugin already has."""
    taken = [name for name, command in before.items() if cli.commands.get(name) is not command]
    taken += [name for name in getattr(cli, "builtin", ()) if name in cli.commands]
    for name in taken:
        if name in before:
            cli.commands[name] = before[name]
        else:
            del cli.commands[name]
    if taken:
        raise KdbenchError(f"the command '{taken[0]}' is already there", cure="give it a name of its own")


def _hooks() -> list[str]:
    return [name for name in vars(hookspecs) if name.startswith("kdbench_")]


def _wrong_hooks(module: Any) -> list[str]:
    """Functions marked as hooks, or named like one, that no specification knows."""
    known = set(_hooks())
    return [
        name
        for name, value in vars(module).items()
        if callable(value)
        and name not in known
        and (name.startswith("kdbench_") or hasattr(value, "kdbench_impl"))
        and getattr(value, "__module__", None) == module.__name__
    ]
