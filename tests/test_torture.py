"""The torture tool compares all of a run but its times; nothing here is killed."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import torture


def names(tree):
    """Every key of a nested dict."""
    return set(tree) | {name for entry in tree.values() if isinstance(entry, dict) for name in names(entry)}


def test_no_time_and_no_memory_is_compared_and_everything_else_is(finished):
    recorded = [json.loads((finished / "result.json").read_text())]
    recorded += [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    for record in recorded:
        left_out = names(record) - names(torture.without_timing(record))
        assert {"seconds", "checkpoint_seconds", "images_per_second"} <= left_out
        assert all("second" in name or "memory" in name for name in left_out)
        assert not [name for name in names(torture.without_timing(record)) if "second" in name or "memory" in name]
