"""Find, load, isolate and list plugins. The only module that knows pluggy's manager.

Whatever is wrong with a plugin (it does not import, has a hook that does not exist, comes from another API level,
raises when asked, brings an id that is taken or something that is not what the hook is for) is kept as that plugin's
``problem``; the rest goes on. Two environment variables choose among installed plugins, by the name of the plugin or of
its distribution, with commas between them: ``KDBENCH_PLUGINS_ALLOW`` loads these only (empty: none but kdbench's own),
``KDBENCH_PLUGINS_BLOCK`` all but these.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec
import pluggy

from kdbench import hookspecs
from kdbench.admission import api_level, check_hooks, declared_level, missing, origin
from kdbench.component import load_object
from kdbench.errors import KdbenchError, unknown

if TYPE_CHECKING:
    import click

    from kdbench.bench.contender import Contender
    from kdbench.data.base import Dataset
    from kdbench.executors import ExecutorInfo
    from kdbench.metric import Metric
    from kdbench.networks.base import Network
    from kdbench.paper import Paper
    from kdbench.training import ObjectiveInfo

__all__ = ["ALLOW", "BLOCK", "NOUNS", "PluginInfo", "Registry", "registry"]

GROUP = "kdbench"
BUILTIN = "kdbench.builtin"
ALLOW, BLOCK = "KDBENCH_PLUGINS_ALLOW", "KDBENCH_PLUGINS_BLOCK"


class Noun(NamedTuple):
    """What one hook yields: its name in errors, the field that names each, and its type as an import path."""

    word: str
    key: str
    kind: str


NOUNS = {
    "papers": Noun("paper", "id", "kdbench.paper:Paper"),
    "networks": Noun("network", "name", "kdbench.networks.base:Network"),
    "datasets": Noun("data set", "id", "kdbench.data.base:Dataset"),
    "objectives": Noun("objective", "id", "kdbench.training:ObjectiveInfo"),
    "metrics": Noun("metric", "id", "kdbench.metric:Metric"),
    "executors": Noun("executor", "id", "kdbench.executors:ExecutorInfo"),
    "benchmark_contenders": Noun("contender", "id", "kdbench.bench.contender:Contender"),
}
"""Every hook ``kdbench_<noun>`` that yields descriptors."""


class PluginInfo(msgspec.Struct):
    """One installed plugin: where it comes from, what it brings, and what is wrong with it (empty: nothing).

    ``state`` is ``loaded``, ``blocked`` (by the environment) or ``not loaded`` (its problem says why). A loaded plugin
    may have a problem too: what of it works is used.
    """

    name: str
    module: str
    distribution: str
    version: str
    api: int | None = None
    state: Literal["loaded", "blocked", "not loaded"] = "not loaded"
    provides: dict[str, list[str]] = msgspec.field(default_factory=dict)
    problem: str = ""

    def blame(self, doing: str, error: BaseException) -> None:
        """Add what was raised to the problem."""
        kind = "" if isinstance(error, KdbenchError) else f"{type(error).__name__}: "
        text = f"{doing}: {kind}{error}"
        if text not in self.problem:
            self.problem = f"{self.problem}; {text}" if self.problem else text

    @property
    def complaint(self) -> str:
        """The problem in a sentence that names the plugin."""
        return f"plugin '{self.name}' {'has a problem' if self.state == 'loaded' else 'is not loaded'}: {self.problem}"


class Registry:
    """Everything that the installed plugins bring, by noun and id."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager("kdbench")
        self.manager.add_hookspecs(hookspecs)
        self.plugins: list[PluginInfo] = []
        self.found: dict[str, dict[str, Any]] = {noun: {} for noun in NOUNS}
        self.owners: dict[tuple[str, str], PluginInfo] = {}
        self._load(EntryPoint(BUILTIN, BUILTIN, GROUP))
        for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value)):
            self._load(entry)
        self.notes = _unmatched_switches(self.plugins)
        for noun in NOUNS:
            self._collect(noun)

    @property
    def papers(self) -> dict[str, Paper]:
        """Papers by id."""
        return self.found["papers"]

    @property
    def networks(self) -> dict[str, Network]:
        """Networks by name."""
        return self.found["networks"]

    @property
    def datasets(self) -> dict[str, Dataset]:
        """Data sets by id."""
        return self.found["datasets"]

    @property
    def objectives(self) -> dict[str, ObjectiveInfo]:
        """Objectives by id."""
        return self.found["objectives"]

    @property
    def metrics(self) -> dict[str, Metric]:
        """Metrics by id."""
        return self.found["metrics"]

    @property
    def executors(self) -> dict[str, ExecutorInfo]:
        """Executors by id."""
        return self.found["executors"]

    @property
    def contenders(self) -> dict[str, Contender]:
        """Benchmark contenders by id."""
        return self.found["benchmark_contenders"]

    def paper(self, name: str) -> Paper:
        """The paper of that id; the error for an unknown one also names plugins that could not be loaded."""
        found: Paper = self._get("papers", name)
        return found

    def dataset(self, name: str) -> Dataset:
        """The data set of that id."""
        found: Dataset = self._get("datasets", name)
        return found

    def executor(self, name: str) -> ExecutorInfo:
        """The executor of that id."""
        found: ExecutorInfo = self._get("executors", name)
        return found

    def contender(self, name: str) -> Contender:
        """The benchmark contender of that id."""
        found: Contender = self._get("benchmark_contenders", name)
        return found

    def owner(self, noun: str, name: str) -> PluginInfo:
        """The plugin that brought this paper, network, ..."""
        return self.owners[noun, name]

    def at_home(self, module: str) -> PluginInfo | None:
        """The plugin whose package a module belongs to."""
        package = module.partition(".")[0]
        if package == "kdbench":
            return self.plugins[0]
        return next((info for info in self.plugins if info.module.partition(".")[0] == package), None)

    def problems(self) -> list[PluginInfo]:
        """Plugins with something wrong."""
        return [info for info in self.plugins if info.problem]

    def register_commands(self, cli: click.Group) -> None:
        """Let every plugin add its commands."""
        hook = "kdbench_register_commands"
        for info, plugin in self._implementing(hook):
            before = dict(cli.commands)
            try:
                self._call(plugin, hook, cli=cli)
            except (Exception, SystemExit) as error:
                info.blame(hook, error)
            for name in _restore_taken(cli, before):
                taken = KdbenchError(f"the command '{name}' is already there", cure="give it a name of its own")
                info.blame(hook, taken)
            if added := sorted(set(cli.commands) - set(before)):
                info.provides["commands"] = added

    def _load(self, entry: EntryPoint) -> None:
        distribution, version = origin(entry)
        info = PluginInfo(name=entry.name, module=entry.value, distribution=distribution, version=version)
        taken = next((other for other in self.plugins if other.name == info.name), None)
        self.plugins.append(info)
        if _blocked(info):
            info.state = "blocked"
            return
        try:
            if taken:
                raise KdbenchError(
                    f"the name '{info.name}' is already that of a plugin of {taken.distribution}",
                    cure="uninstall one of the two",
                )
            module = self._import(entry, info)
            info.api = api_level(getattr(module, "KDBENCH_API", None))
            check_hooks(module)
            self.manager.register(module, name=entry.name)
            info.state = "loaded"
        except (Exception, SystemExit) as error:
            info.blame("import", error)

    def _import(self, entry: EntryPoint, info: PluginInfo) -> Any:
        try:
            return entry.load()
        except (Exception, SystemExit) as error:
            # A plugin from the future may well fail for what it imports from kdbench: then that is what must be said.
            api_level(declared_level(entry.module))
            if isinstance(error, ModuleNotFoundError):
                raise missing(error, info.module, info.distribution) from error
            raise

    def _collect(self, noun: str) -> None:
        hook, (word, key, path) = f"kdbench_{noun}", NOUNS[noun]
        into = self.found[noun]
        for info, plugin in self._implementing(hook):
            try:
                kind = load_object(path)
                for item in self._call(plugin, hook) or ():
                    if not isinstance(item, kind):
                        raise TypeError(f"a {kind.__name__} is expected, this is a {type(item).__name__}: {item!r:.80}")
                    name = getattr(item, key)
                    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.+-]*", name, flags=re.ASCII):
                        raise ValueError(f"{name!r} is no {key}: letters, digits and . _ + - make one")
                    if name in into:
                        info.blame(hook, _taken(word, name, self.owners[noun, name]))
                        continue
                    self.owners[noun, name] = info
                    into[name] = item
                    info.provides.setdefault(noun, []).append(name)
            except (Exception, SystemExit) as error:
                info.blame(hook, error)

    def _implementing(self, hook: str) -> Iterable[tuple[PluginInfo, Any]]:
        for info in self.plugins:
            if info.state == "loaded":
                plugin = self.manager.get_plugin(info.name)
                if hasattr(plugin, hook):
                    yield info, plugin

    def _call(self, plugin: Any, hook: str, **arguments: Any) -> Any:
        # One plugin at a time, so that what one of them raises is blamed on it and stops no other.
        others = [other for other in self.manager.get_plugins() if other is not plugin]
        caller = self.manager.subset_hook_caller(hook, others)
        results = caller(**arguments)
        return results[0] if results else None

    def _get(self, noun: str, name: str) -> Any:
        known = self.found[noun]
        if name in known:
            return known[name]
        error = unknown(NOUNS[noun].word, name, known)
        reasons = [info.complaint for info in self.problems()]
        blocked = [f"'{info.name}'" for info in self.plugins if info.state == "blocked"]
        reasons += [f"blocked by the environment: {', '.join(blocked)}"] if blocked else []
        raise KdbenchError(error.what, cure=". ".join(filter(None, [error.cure, "; ".join(reasons)])))


@cache
def registry() -> Registry:
    """The plugins of this process, loaded once."""
    return Registry()


def _taken(word: str, name: str, owner: PluginInfo) -> KdbenchError:
    return KdbenchError(
        f"the {word} '{name}' is already provided by plugin '{owner.name}'", cure="uninstall one of the two"
    )


def _switch(variable: str) -> set[str] | None:
    text = os.environ.get(variable)
    return None if text is None else {_plain(part) for part in text.split(",") if part.strip()}


def _plain(name: str) -> str:
    """Names as packaging compares them: ``KDBench_Mine`` is ``kdbench-mine``."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _blocked(info: PluginInfo) -> bool:
    if info.name == BUILTIN:
        return False
    names = {_plain(info.name), _plain(info.distribution)}
    allowed, blocked = _switch(ALLOW), _switch(BLOCK)
    return (allowed is not None and not names & allowed) or (blocked is not None and bool(names & blocked))


def _unmatched_switches(plugins: Iterable[PluginInfo]) -> list[str]:
    """What the environment's switches name in vain: kdbench's own part, or a plugin that is not installed."""
    own = {_plain(BUILTIN), "kdbench"}
    known = {_plain(name) for info in plugins for name in (info.name, info.distribution) if info.name != BUILTIN}
    notes = [f"{BLOCK}: what kdbench itself brings cannot be blocked"] if own & (_switch(BLOCK) or set()) else []
    return notes + [
        f"{variable}: {unknown('plugin', name, known)}"
        for variable in (ALLOW, BLOCK)
        for name in sorted((_switch(variable) or set()) - known - own)
    ]


def _restore_taken(cli: click.Group, before: Mapping[str, click.Command]) -> list[str]:
    """Undo what replaced a command that kdbench itself or an earlier plugin already had; returns their names."""
    taken = [name for name, command in before.items() if cli.commands.get(name) is not command]
    taken += [name for name in getattr(cli, "builtin", ()) if name in cli.commands]
    for name in taken:
        if name in before:
            cli.commands[name] = before[name]
        else:
            del cli.commands[name]
    return taken
