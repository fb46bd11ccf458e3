"""What a configuration key of ours is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Key:
    """One key: where it stands, its default (whose type is the key's type), what it means, what is allowed."""

    name: str
    default: object
    meaning: str
    choices: tuple = ()
    minimum: float | None = None
    maximum: float | None = None  # of sizes and counts: memory is asked for by them
    symbol: str = ""  # its name in the paper or the released code
