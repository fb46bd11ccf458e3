"""Joins the host's registries in place, and leaves them again.

`atsc_plugin.register()` and `unregister()` call this. The file is not named register.py: importing a submodule of that
name would replace the package's function `register` by the module.
"""

from __future__ import annotations

from collections.abc import Iterable

from atsc_plugin import host, keys
from atsc_plugin.engine.trainer import PluginTrainer
from atsc_plugin.errors import PluginError
from atsc_plugin.keys import COMMON_KEYS, Key
from atsc_plugin.methods.base import Method, load_methods

TRAINERS = {"plugin": PluginTrainer}
_added_keys: list[str] = []
_gave_way: list[str] = []


def register(leave: Iterable[str] = ()) -> None:
    """Add every entry and key, or none; calling it again changes nothing.

    Where the host has one of our names already, SimKD's and ATSC's are an error that names both, unless `leave` lists
    them; every other method of ours gives way, and one line says so.
    """
    methods, leave = load_methods(), set(leave)
    if unknown := sorted(leave - {*methods, *TRAINERS}):
        raise PluginError(f"leave names {', '.join(unknown)}; expected names of ours: {', '.join(methods)}, plugin.")
    for table, ours in _tables(methods):
        for name, entry in ours.items():
            if name in leave or table.get(name, entry) is entry:
                continue
            if getattr(entry, "GIVES_WAY", False):
                leave.add(name)
                if name not in _gave_way:
                    _gave_way.append(name)
                    print(
                        f"atsc_plugin: {name} stays the host's ({_place(table[name])}); ours is not added", flush=True
                    )
                continue
            raise PluginError(
                f"The host's registry already has {name}: {_place(table[name])}; ours would be {_place(entry)}. "
                f"Keep the host's with register(leave=['{name}']) or `launch --leave {name}`, or rename it."
            )
    _added_keys.extend(keys.add_keys(host.CFG, all_keys()))
    for table, ours in _tables(methods):
        table.update({name: entry for name, entry in ours.items() if name not in leave})


def unregister() -> None:
    """Remove our entries where they are still ours, and the keys we added."""
    for table, ours in _tables(load_methods()):
        for name, entry in ours.items():
            if table.get(name) is entry:
                del table[name]
    keys.remove_keys(host.CFG, _added_keys)
    _added_keys.clear()
    _gave_way.clear()


def all_keys() -> list[Key]:
    """Every key of ours; a method that gave way brings none."""
    own = [key for name, kind in load_methods().items() if name not in _gave_way for key in kind.KEYS]
    return [*COMMON_KEYS, *own]


def _tables(methods: dict[str, type[Method]]):
    """(host's dict, our entries); a fork without a trainer registry has only the first."""
    tables = [(host.distiller_dict, methods), (host.trainer_dict, TRAINERS)]
    return [(table, ours) for table, ours in tables if table is not None]


def _place(entry) -> str:
    return f"{getattr(entry, '__module__', '?')}.{getattr(entry, '__qualname__', repr(entry))}"
