"""Keys of the methods that learn from several teachers."""

from atsc_plugin.key_table.entry import Key

KEYS = (
    Key(
        "DISTILLER.TEACHERS",
        [],
        "several teachers by name, e.g. [resnet32x4, wrn_40_2, vgg13], for ATSC_MULTI, SIMKD_MULTI, AVERKD and "
        "DKD_MULTI; empty: DISTILLER.TEACHER alone",
    ),
    Key(
        "DISTILLER.TEACHER_CKPTS",
        [],
        "a file for each of DISTILLER.TEACHERS, '' for one that is looked for or trained; empty: all of them are",
    ),
    Key(
        "TEACHER.SEEDS",
        [],
        "a seed for each of DISTILLER.TEACHERS that is trained here; empty: TEACHER.SEED, TEACHER.SEED + 1, ...",
    ),
    Key(
        "ATSC.ENSEMBLE",
        "logits",
        "ATSC_MULTI's prediction: mean of the logits through each teacher's projector and classifier, or of the probs",
        choices=("logits", "probs"),
    ),
    Key(
        "SIMKD.ENSEMBLE",
        "logits",
        "SIMKD_MULTI's prediction: mean of the logits, or of the probs",
        choices=("logits", "probs"),
    ),
    Key(
        "SIMKD.PROJECTOR.COUNT",
        1,
        "projectors a teacher, each with its own initial weights, all behind that teacher's classifier: with one "
        "teacher the control for several (SIMKD_MULTI only)",
        minimum=1,
    ),
    Key(
        "AVERKD.MODE",
        "losses",
        "losses: mean of the K teachers' KD losses, as CA-MKD's code has it; logits: KD from their mean logits (ours)",
        choices=("losses", "logits"),
    ),
    Key("AVERKD.LOSS.CE_WEIGHT", 1.0, "weight of the student's CE", minimum=0.0, symbol="gamma (-r)"),
    Key("AVERKD.LOSS.KD_WEIGHT", 1.0, "weight of the averaged KD", minimum=0.0, symbol="alpha (-a)"),
    Key("AVERKD.TEMPERATURE", 4.0, "T of that KD", minimum=0.1, symbol="kd_T"),
)
