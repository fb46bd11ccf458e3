"""One seed, many independent random streams.

Initialisation, order of the images and augmentation each draw from a stream of their own, named here, so that two
methods run with the same seed see the same student, the same batches and the same crops.
"""

import hashlib


def stream(seed, *names):
    """A 63-bit seed for one stream of a run: stream(1, "order", 7) has nothing to do with stream(1, "crop", 7)."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
