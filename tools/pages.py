#!/usr/bin/env python
"""Write the generated part of docs/configs.md (every key) and docs/methods.md (every method's docstring).

    python tools/pages.py            write
    python tools/pages.py --check    only compare; exit status 1 where a page differs

What stands above the marker in a page is written by hand and stays.
"""

import inspect
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

MARKER = "<!-- Below this line tools/pages.py writes. -->\n"


def keys_text():
    """A table of keys for each group."""
    from atsc_plugin.registration import all_keys

    groups = {}
    for key in all_keys():
        groups.setdefault(key.name.split(".")[0], []).append(key)
    text = ""
    for group, keys in groups.items():
        text += f"\n### {group}\n\n| key | default | symbol | meaning |\n|---|---|---|---|\n"
        for key in keys:
            default = f"`{key.default!r}`".replace("'", '"')
            meaning = key.meaning.replace("|", "\\|")
            text += f"| `{key.name}` | {default} | {key.symbol} | {meaning} |\n"
    return text


def methods_text():
    """Each method of ours with its docstring, its keys and where its published hyper-parameters are."""
    from atsc_plugin.contract import SEVERAL
    from atsc_plugin.methods.base import load_methods

    text = ""
    for name, kind in sorted(load_methods().items()):
        own = ", ".join(f"`{key.name}`" for key in kind.KEYS)
        keys = f"Keys: {own}." if own else "It has no keys of its own."
        teachers = " Several teachers (`DISTILLER.TEACHERS`)." if kind.TEACHERS == SEVERAL else ""
        hard = " It needs one class an image: no mixup, CutMix or smoothing." if kind.HARD_LABELS else ""
        text += f"\n## {name}: {kind.TITLE}\n\n```text\n{inspect.getdoc(kind)}\n```\n\n{keys}{teachers}{hard}\n"
    return text


PAGES = {"docs/configs.md": keys_text, "docs/methods.md": methods_text}


def main(check):
    different = []
    for name, generated in PAGES.items():
        page = ROOT / name
        before = page.read_text(encoding="utf-8")
        head, marker, _ = before.partition(MARKER)
        if not marker:
            sys.exit(f"{name} has lost its marker; put this line where the generated part begins:\n{MARKER}")
        after = head + MARKER + generated()
        if before != after:
            different.append(name)
        if not check:
            page.write_text(after, encoding="utf-8")
    if check and different:
        print(f"{', '.join(different)} differ; run tools/pages.py", file=sys.stderr)
    return int(check and bool(different))


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
