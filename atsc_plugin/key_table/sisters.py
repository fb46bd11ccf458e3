"""Keys of two neighbouring methods, DIH and COTEACH."""

from atsc_plugin.key_table.entry import Key

_STAGES = "indices into the teacher's feats that get a head; empty: all but the first, which is the stem"

KEYS = (
    Key("DIH.TEMPERATURE", 5.0, "temperature of the divergence from each branch", minimum=0.1, symbol="tau"),
    Key(
        "DIH.ALPHA",
        0.1,
        "share of the divergence in a branch's loss, 0 to 1; the rest is CE",
        minimum=0.0,
        symbol="alpha",
    ),
    Key("DIH.STAGES", [], _STAGES),
    Key("DIH.HEADS.EPOCHS", 30, "epochs of training the heads, before the student and once for a teacher", minimum=1),
    Key("DIH.HEADS.BATCH_SIZE", 64, "their batch size", minimum=1),
    Key("DIH.HEADS.LR", 0.0003, "their learning rate (Adam, falling to zero along a cosine)", minimum=0.0),
    Key("DIH.HEADS.WEIGHT_DECAY", 0.0, "their weight decay", minimum=0.0),
    Key("COTEACH.SCRATCH_TEACHER", "", "network that learns beside the student; empty: DISTILLER.TEACHER's"),
    Key(
        "COTEACH.LOSS.LOGITS_WEIGHT",
        0.03,
        "weight of the squared distance to the scratch teacher's logits",
        minimum=0.0,
        symbol="gamma",
    ),
    Key(
        "COTEACH.LOSS.ATTENTION_WEIGHT",
        1000.0,
        "weight of the attention transfer from the expert",
        minimum=0.0,
        symbol="beta",
    ),
    Key(
        "COTEACH.STAGES",
        [],
        "pairs [expert, student] of indices into feats whose attention is compared, e.g. [[1, 1], [2, 3]]; empty: all "
        "but the stems, in order",
    ),
    Key(
        "COTEACH.SHARE_STEM",
        False,
        "the scratch teacher and the student share the layers before their first stage, which must be equal in shape",
    ),
)
