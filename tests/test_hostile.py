"""Hostile files: every one ends in success or in a short message, none in a traceback, a hang or a started program.

The drawn ones are a few here; `tools/torture.py fuzz --inputs 300` runs more of them.
"""

import os
import resource
import shutil

import pytest
from hostile import Hang, case, ended_well, fake_ghostscript, inside, shows_no_control_characters, time_limit

import atsc_plugin

INPUTS = int(os.environ.get("ATSC_FUZZ_INPUTS", 40))
FIRST = int(os.environ.get("ATSC_FUZZ_FIRST", 0))


@pytest.fixture(scope="module", autouse=True)
def _registered():
    atsc_plugin.register()


def test_drawn_hostile_files_end_in_success_or_a_message(tmp_path_factory):
    top = tmp_path_factory.mktemp("hostile")
    wrong, slowest = [], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with fake_ghostscript(top / "path") as trace:
        for seed in range(FIRST, FIRST + INPUTS):
            place = top / f"case_{seed}"
            place.mkdir()
            argv = ["could not be made"]
            try:
                with inside(place):
                    argv, allowed = case(seed, place)
                    with time_limit():
                        _, printed = ended_well(argv, allowed)
                assert shows_no_control_characters(printed), ascii(printed)
                assert not trace.exists(), "gs was started"
            except (Exception, Hang) as error:
                wrong.append(f"{seed}: {ascii(argv)}: {type(error).__name__}: {ascii(str(error))[:600]}")
                trace.unlink(missing_ok=True)
            shutil.rmtree(place)
    assert not wrong, f"{len(wrong)} of {INPUTS}:\n" + "\n".join(wrong)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - slowest
    assert grown < 3 << 20, f"{grown >> 10} MiB were taken"  # in KiB
