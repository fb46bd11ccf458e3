"""Joins the host's registries in place, and leaves them again.

`atsc_plugin.register()` and `unregister()` call this. The file is not named register.py: importing a submodule of that
name would replace the package's function `register` by the module.
"""

from atsc_plugin import host, keys
from atsc_plugin.engine.trainer import PluginTrainer
from atsc_plugin.errors import PluginError
from atsc_plugin.methods.atsc_multi import ATSCMulti
from atsc_plugin.methods.atsc_published import make_atsc
from atsc_plugin.methods.averkd import AverKD
from atsc_plugin.methods.coteach import COTEACH
from atsc_plugin.methods.dih import DIH
from atsc_plugin.methods.dkd_multi import DKDMulti
from atsc_plugin.methods.projected import ProjectedKD, ProjectedVanilla
from atsc_plugin.methods.simkd import SimKD
from atsc_plugin.methods.simkd_multi import SimKDMulti

DISTILLERS = {
    "SIMKD": SimKD,
    "ATSC": make_atsc,
    "PROJECTED_VANILLA": ProjectedVanilla,
    "PROJECTED_KD": ProjectedKD,
    "SIMKD_MULTI": SimKDMulti,
    "ATSC_MULTI": ATSCMulti,
    "AVERKD": AverKD,
    "DKD_MULTI": DKDMulti,
    "DIH": DIH,
    "COTEACH": COTEACH,
}
TRAINERS = {"plugin": PluginTrainer}
_added_keys = []


def register(leave=()):
    """Add every entry and key, or none: somebody else's entry under one of our names is an error that names both.

    Names in `leave` are left to the host, taken or not.
    """
    unknown = sorted(set(leave) - {*DISTILLERS, *TRAINERS})
    if unknown:
        raise PluginError(f"leave names {', '.join(unknown)}; expected names of ours: {', '.join(DISTILLERS)}, plugin.")
    for table, ours in _tables():
        for name, entry in ours.items():
            if name not in leave and table.get(name, entry) is not entry:
                raise PluginError(
                    f"The host's registry already has {name}: {_place(table[name])}; ours would be {_place(entry)}. "
                    f"Keep the host's with register(leave=['{name}']) or `launch --leave {name}`, or rename it."
                )
    _added_keys.extend(keys.add_keys(host.CFG))
    for table, ours in _tables():
        table.update({name: entry for name, entry in ours.items() if name not in leave})
    PluginTrainer.host_facts = {"host": host.NAME, "host_version": host.VERSION}


def unregister():
    """Remove our entries where they are still ours, and the keys we added."""
    for table, ours in _tables():
        for name, entry in ours.items():
            if table.get(name) is entry:
                del table[name]
    keys.remove_keys(host.CFG, _added_keys)
    _added_keys.clear()


def _tables():
    """(host's dict, our entries); a fork without a trainer registry has only the first."""
    tables = [(host.distiller_dict, DISTILLERS), (host.trainer_dict, TRAINERS)]
    return [(table, ours) for table, ours in tables if table is not None]


def _place(entry):
    return f"{getattr(entry, '__module__', '?')}.{getattr(entry, '__qualname__', repr(entry))}"
