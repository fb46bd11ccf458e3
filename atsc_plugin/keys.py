"""Every configuration key of ours, and how the keys join the host's own tree.

The tables are in `key_table`, one room a subject. `add_keys` joins them to the host's tree, so a config of ours also
loads by the host's plain merge; `remove_keys` takes them away again. A key's default fixes its type.
"""

from yacs.config import CfgNode

from atsc_plugin.errors import PluginError
from atsc_plugin.key_table import engine, methods, run, several, sisters, teacher

KEYS = (*run.KEYS, *engine.KEYS, *teacher.KEYS, *methods.KEYS, *several.KEYS, *sisters.KEYS)
DEFAULTS = {key.name: key.default for key in KEYS}


def find(cfg, name):
    """(node, leaf name) of a dotted key, or (None, None) where the tree has no such key."""
    *path, leaf = name.split(".")
    for step in path:
        cfg = cfg.get(step) if isinstance(cfg, CfgNode) else None
    return (cfg, leaf) if isinstance(cfg, CfgNode) and leaf in cfg else (None, None)


def add_keys(cfg):
    """Add what is missing and touch nothing that is there; a frozen tree stays frozen. Returns the names added."""
    frozen, added = cfg.is_frozen(), []
    for key in KEYS:
        node, leaf = find(cfg, key.name)
        if node is not None and type(node[leaf]) is not type(key.default):
            raise PluginError(
                f"The host's config already has {key.name} = {node[leaf]!r}; expected a {type(key.default).__name__} "
                "or no such key. Rename the other one, or use another host (ATSC_HOST=embedded)."
            )
    cfg.defrost()
    for key in KEYS:
        if find(cfg, key.name)[0] is None:
            *path, leaf = key.name.split(".")
            node = cfg
            for step in path:
                node = node.setdefault(step, CfgNode())
            node[leaf] = list(key.default) if isinstance(key.default, list) else key.default
            added.append(key.name)
    if frozen:
        cfg.freeze()
    return added


def remove_keys(cfg, names):
    """Take the named keys away again, and the nodes that are empty without them."""
    frozen = cfg.is_frozen()
    cfg.defrost()
    for name in names:
        path = name.split(".")
        nodes = [cfg]
        for step in path[:-1]:
            nodes.append(nodes[-1].get(step, CfgNode()))
        nodes[-1].pop(path[-1], None)
        for parent, step in reversed(list(zip(nodes, path[:-1], strict=False))):
            if step in parent and not parent[step]:
                parent.pop(step)
    if frozen:
        cfg.freeze()


def flatten(tree, prefix=""):
    """{dotted name: value} of a nested tree."""
    flat = {}
    for step, value in tree.items():
        flat |= flatten(value, f"{prefix}{step}.") if isinstance(value, dict) else {f"{prefix}{step}": value}
    return flat
