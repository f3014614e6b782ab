"""Finds plugins, loads those that are asked for, and never replaces one that breaks by another.

Two groups of entry points, each entry naming a module with hook implementations:

    engine.platforms   a platform under its own name; loaded when `--device` asks for it
    engine.plugins     everything else: operations, checks, commands; loaded before a hook is called

The environment variable ENGINE_PLUGINS, a comma-separated list of names, narrows both groups to
the names it gives. It is read once, when a `PluginManager` is made.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pluggy

from engine import garbage, hooks
from engine.config import DeviceChoice, EngineConfig
from engine.errors import ConfigError, EngineError, PluginError
from engine.hookcalls import HookCalls, blaming
from engine.platform.base import API_VERSION, Availability, Platform, PlatformSpec

PLATFORMS = "engine.platforms"
PLUGINS = "engine.plugins"
ONLY = "ENGINE_PLUGINS"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one installed platform: a spec that answered its probe, or an error.

    `spec` may be known beside an error: the plugin was loaded, then its probe broke.
    """

    name: str
    package: str  # "engine-acme-npu 1.2"
    spec: PlatformSpec | None = None
    availability: Availability = field(default_factory=lambda: Availability(0))
    error: PluginError | None = None


class PluginManager:
    """Knows every installed plugin, and loads one when it is asked for.

    `failed` holds the general plugins that `load_plugins` could not load.

    Raises:
        PluginError: ENGINE_PLUGINS names a plugin that is not installed.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._plugins = pluggy.PluginManager("engine")
        self._plugins.add_hookspecs(hooks)
        self._hooks = HookCalls(self._plugins)
        self.failed: dict[str, PluginError] = {}
        self._installed = entry_points()
        self._only = [name.strip() for name in environment.get(ONLY, "").split(",") if name.strip()]
        self._findings: dict[str, Finding] = {}
        self._check_only()
        self._pending = self._names(PLUGINS)

    def platforms(self) -> list[Finding]:
        """Every installed platform, by name. Loads and probes them all."""
        return [self.find(name) for name in self._names(PLATFORMS)]

    def find(self, name: str) -> Finding:
        """Load and probe the platform of that name. What breaks is told in the finding.

        Raises:
            ConfigError: no platform of that name is installed.
        """
        if name not in self._findings:
            entries = self._entries(PLATFORMS, name)
            if not entries:
                raise ConfigError(self._unknown(name))
            self._findings[name] = self._examine(name, entries)
        return self._findings[name]

    def select(self, device: DeviceChoice | str) -> PlatformSpec:
        """The platform that `--device` asks for. "auto": the available one of highest priority,
        the first by name among equals.

        A broken platform is never passed over in silence. Asked for by name, it is an error. With
        "auto" it is an error as well when it might have been the one to use: its priority is
        unknown, because it could not be loaded, or at least that of the best available one. The
        user then goes on by naming a device. A broken one of lower priority is warned about.

        Raises:
            ConfigError: the device is unknown, unavailable, or has no such index.
            PluginError: its plugin is broken.
        """
        choice = DeviceChoice.parse(device) if isinstance(device, str) else device
        found = self._best() if choice.name == "auto" else self.find(choice.name)
        if found.error is not None:
            raise found.error
        assert found.spec is not None
        if not found.availability:
            raise ConfigError(
                f"device {found.name!r} is not available:"
                f" {found.availability.detail or 'its plugin gives no reason'}"
            )
        _check_indices(choice, found)
        _check_words(choice, found.spec)
        return found.spec

    def create_platform(self, spec: PlatformSpec, config: EngineConfig, rank: int) -> Platform:
        """The platform of one rank.

        Raises:
            PluginError: the plugin broke; the cause is attached.
            EngineError: whatever the plugin refused on purpose.
        """
        what = "said it was available, but could not be created"
        with (
            garbage.kept_for_later(),
            blaming(f"platform {spec.name!r}", what, passing=EngineError),
        ):
            platform = spec.create(config, rank)  # imports torch
            if not isinstance(platform, Platform):
                raise TypeError(f"it made {platform!r} instead of a Platform")
        return platform

    def defaults(self, spec: PlatformSpec) -> Mapping[str, Any]:
        """The settings that the platform prefers. Raises PluginError when it breaks."""
        with blaming(f"platform {spec.name!r}", "broke in defaults()"):
            return dict(spec.defaults())

    def environment(self, spec: PlatformSpec, rank: int) -> Mapping[str, str]:
        """Variables to set before a rank imports torch. Raises PluginError when it breaks."""
        with blaming(f"platform {spec.name!r}", "broke in environment()"):
            return dict(spec.environment(rank))

    @property
    def hook(self) -> HookCalls:
        """To call the hooks of everything loaded; the general plugins are, when it is asked for."""
        self.load_plugins()
        return self._hooks

    def load_plugins(self) -> None:
        """Load the general plugins (group engine.plugins). Does nothing the second time.

        One that cannot be loaded is warned about and kept in `failed`; the others work.

        Raises:
            PluginError: it cannot be loaded, and ENGINE_PLUGINS names it.
        """
        names, self._pending = self._pending, []
        for name in names:
            try:
                self._load(PLUGINS, name, self._entries(PLUGINS, name))
            except PluginError as error:
                if name in self._only:
                    raise
                self.failed[name] = error
                log.warning("%s; going on without it", error)

    def _best(self) -> Finding:
        findings = self.platforms()
        available = [found for found in findings if found.spec and found.availability]
        best = max(available, key=_priority, default=None)
        for broken in (found for found in findings if found.error is not None):
            if best is None or broken.spec is None or _priority(broken) >= _priority(best):
                raise PluginError(_might_have_been(broken, available)) from broken.error
            log.warning("%s; going on with platform %r", broken.error, best.name)
        if best is None:
            reasons = "".join(f"\n  {f.name}: {f.availability.detail}" for f in findings)
            raise ConfigError(f"no device is available; platforms installed:{reasons or ' none'}")
        return best

    def _examine(self, name: str, entries: Sequence[EntryPoint]) -> Finding:
        package = " and ".join(_package(entry) for entry in entries)
        try:
            plugin = self._load(PLATFORMS, name, entries)
            spec = self._spec(name, package, plugin)
        except PluginError as error:
            return Finding(name, package, error=error)
        try:
            with blaming(f"platform {name!r} ({package})", "broke in probe()"):
                availability = spec.probe()
                if not isinstance(availability, Availability):
                    raise TypeError(f"it returned {availability!r} instead of an Availability")
        except PluginError as error:
            return Finding(name, package, spec, error=error)
        return Finding(name, package, spec, availability)

    def _spec(self, name: str, package: str, plugin: object) -> PlatformSpec:
        who = f"platform {name!r} ({package})"
        with blaming(who, "broke in engine_platforms()"):
            offers = self._hooks.of(plugin, "engine_platforms")
            specs = [spec for offer in offers for spec in offer]
        for spec in specs:
            if not isinstance(spec, PlatformSpec):
                raise PluginError(f"{who} offers {spec!r}, which is no PlatformSpec")
            if spec.name == name:
                _check_api(spec, package)
                return spec
        raise PluginError(
            f"{who} offers no platform of its entry point's name, only"
            f" {sorted(spec.name for spec in specs)}; it needs a function engine_platforms, marked"
            f" @hookimpl, that returns a PlatformSpec named {name!r}"
        )

    def _load(self, group: str, name: str, entries: Sequence[EntryPoint]) -> object:
        """Import and register one plugin. A module that stands in both groups is one plugin."""
        if len(entries) > 1:
            packages = " and ".join(_package(entry) for entry in entries)
            raise PluginError(
                f"{name!r} in {group} is offered by more than one package: {packages};"
                " uninstall all but one"
            )
        [entry] = entries
        who = f"plugin {name!r} ({_package(entry)})"
        with blaming(who, f"could not be loaded from {entry.value}"):
            plugin: object = entry.load()
        if not self._plugins.is_registered(plugin):
            self._register(plugin, f"{group}:{name}", who)
        return plugin

    def _register(self, plugin: object, key: str, who: str) -> None:
        try:
            self._plugins.register(plugin, key)
            self._plugins.check_pending()
        except pluggy.PluginValidationError as error:
            self._plugins.unregister(name=key)
            known = sorted(name for name in vars(hooks) if name.startswith("engine_"))
            reason = "; ".join(str(error).splitlines())
            raise PluginError(
                f"{who} implements a hook wrongly: {reason}; the hooks are {', '.join(known)}"
            ) from error

    def _entries(self, group: str, name: str | None = None) -> list[EntryPoint]:
        """Installed entries that ENGINE_PLUGINS lets through, by name."""
        found = sorted(self._installed.select(group=group), key=lambda entry: entry.name)
        allowed = [e for e in found if not self._only or e.name in self._only]
        return [e for e in allowed if name is None or e.name == name]

    def _names(self, group: str) -> list[str]:
        return list(dict.fromkeys(entry.name for entry in self._entries(group)))

    def _check_only(self) -> None:
        installed = {entry.name for entry in self._installed.select(group=PLATFORMS)}
        installed |= {entry.name for entry in self._installed.select(group=PLUGINS)}
        if missing := [name for name in self._only if name not in installed]:
            raise PluginError(
                f"{ONLY} names {', '.join(missing)}, which is not installed; there are:"
                f" {', '.join(sorted(installed)) or 'no plugins'}"
            )

    def _unknown(self, name: str) -> str:
        if self._installed.select(group=PLATFORMS, name=name):
            return f"device {name!r} is installed, but {ONLY}={','.join(self._only)} leaves it out"
        names = self._names(PLATFORMS)
        near = get_close_matches(name, names, n=1)
        guess = f" Did you mean {near[0]!r}?" if near else ""
        return (
            f"unknown device {name!r}; installed platforms: {', '.join(names) or 'none'}.{guess}"
            " `engine platforms` tells what each of them can use"
        )


def _priority(found: Finding) -> int:
    assert found.spec is not None
    return found.spec.priority


def _might_have_been(broken: Finding, available: Sequence[Finding]) -> str:
    others = " or ".join(f"--device {found.name}" for found in available)
    return (
        f"--device auto: {broken.error}. It might have been the platform to use, so nothing else"
        f" is chosen in its place; repair or uninstall {broken.package}"
        f"{', or say ' + others if others else ''}"
    )


def _check_api(spec: PlatformSpec, package: str) -> None:
    ours = ".".join(map(str, API_VERSION))
    match spec.api:
        case (int(major), int(minor)):
            theirs = f"{major}.{minor}"
        case _:
            raise PluginError(
                f"platform {spec.name!r} ({package}) states the contract version {spec.api!r};"
                " it must be a literal pair of whole numbers, like (1, 0)"
            )
    if (major, minor) == API_VERSION or (major == API_VERSION[0] and minor < API_VERSION[1]):
        return
    newer = (major, minor) > API_VERSION
    advice = "upgrade engine, or install an older" if newer else "install a newer"
    raise PluginError(
        f"platform {spec.name!r} ({package}) was written for version {theirs} of the platform"
        f" contract; this engine speaks {ours}: {advice} {package.partition(' ')[0]}"
    )


def _check_indices(choice: DeviceChoice, found: Finding) -> None:
    count = found.availability.devices
    if choice.name == "auto" and (choice.indices or choice.words):
        raise ConfigError("--device auto takes no index; name the platform: NAME:INDEX,INDEX…")
    if len(set(choice.indices)) < len(choice.indices):
        raise ConfigError(f"--device {choice.name} names an index twice: {choice.indices}")
    if beyond := [index for index in choice.indices if index >= count]:
        raise ConfigError(
            f"--device {choice.name} has no index {', '.join(map(str, beyond))}: it has"
            f" {count} device{'s' if count > 1 else ''}, {'0 to ' if count > 1 else ''}{count - 1}"
            f" ({found.availability.detail})"
        )


def _check_words(choice: DeviceChoice, spec: PlatformSpec) -> None:
    with blaming(f"platform {spec.name!r}", "broke in refuses()"):
        reason = spec.refuses(choice.words)
    if reason:
        raise ConfigError(f"--device {choice.name}:{','.join(choice.words)}: {reason}")


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown package"
