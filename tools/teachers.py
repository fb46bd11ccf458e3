"""`python tools/teachers.py ...` is `python -m atsc_plugin teachers ...`; --help tells more."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works in a clone that is not installed, too

from atsc_plugin.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["teachers", *sys.argv[1:]]))
