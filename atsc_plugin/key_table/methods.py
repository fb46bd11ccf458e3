"""Keys of the methods."""

from atsc_plugin.key_table.entry import Key

KEYS = (
    Key("SIMKD.LOSS.FEAT_WEIGHT", 1.0, "weight of mse(P(F_s), F_t)", minimum=0.0, symbol="beta (-b)"),
    Key("SIMKD.PROJECTOR.FACTOR", 2, "f: the projector's inner width is C_t / f", minimum=1, symbol="-f"),
    Key(
        "ATSC.UPDATE",
        "fused",
        "fused: one backward, one optimizer; published: the released code's two steps to rounding",
        choices=("fused", "published"),
    ),
    Key(
        "ATSC.LOSS.FEAT_WEIGHT",
        1.0,
        "weight of mse(P(F_s), F_t), which also moves the teacher's trunk",
        minimum=0.0,
        symbol="beta (-b)",
    ),
    Key("ATSC.LOSS.TEACHER_CE_WEIGHT", 1.0, "weight of the teacher's CE, which moves its classifier only", minimum=0.0),
    Key(
        "ATSC.LOSS.TRUNK_CE_WEIGHT",
        0.0,
        "weight of a CE that moves the teacher's trunk, so that it goes on learning its own task (ours)",
        minimum=0.0,
    ),
    Key(
        "ATSC.LOSS.FEAT_PULL",
        1.0,
        "share of the feature loss' gradient that reaches the teacher; 0: none (ours)",
        minimum=0.0,
    ),
    Key(
        "ATSC.LOSS.CE_WEIGHT",
        0.0,
        "weight of the student's CE through the shared classifier",
        minimum=0.0,
        symbol="cls (-c)",
    ),
    Key(
        "ATSC.LOSS.KD_WEIGHT",
        0.0,
        "weight of the student's KD through the shared classifier",
        minimum=0.0,
        symbol="div (-d)",
    ),
    Key("ATSC.LOSS.KD_TEMPERATURE", 4.0, "T of that KD", minimum=0.1, symbol="T"),
    Key("ATSC.PROJECTOR.FACTOR", 2, "f: the projector's inner width is C_t / f", minimum=1, symbol="-f"),
    Key(
        "ATSC.DRIFT.WEIGHT",
        10.0,
        "w: weight of sum ||theta - theta_0||^2 (released flag: 1 CIFAR, 10 ImageNet)",
        minimum=0.0,
        symbol="w (-w)",
    ),
    Key(
        "ATSC.DRIFT.PARAMS",
        "all",
        "weights that the drift term holds: all, or kernels (more than one dimension, as released)",
        choices=("all", "kernels"),
    ),
    Key(
        "ATSC.CLASSIFIER.PARAMS",
        "all",
        "what the teacher's CE moves: all of the classifier, or its bias (as released)",
        choices=("all", "bias"),
    ),
    Key("ATSC.TEACHER.LR_SCALE", 1.0, "the teacher's learning rate is SOLVER.LR times this", minimum=0.0),
    Key("ATSC.TEACHER.WEIGHT_DECAY", -1.0, "the teacher's weight decay; negative: SOLVER.WEIGHT_DECAY"),
    Key("ATSC.TEACHER.WARMUP_EPOCHS", 0, "epochs at the start with the teacher held still, as in SimKD", minimum=0),
    Key(
        "ATSC.TEACHER.LAST_EPOCH",
        0,
        "the last epoch in which the teacher learns, held still from then on, at SimKD's cost; 0: to the end (ours)",
        minimum=0,
    ),
    Key(
        "ATSC.TEACHER.AVERAGE",
        0.0,
        "the teacher is the average over the steps of a copy that learns, of itself it keeps this share a step "
        "(.99); it needs FEAT_PULL 0 and a TRUNK_CE_WEIGHT; 0: the teacher learns itself (ours)",
        minimum=0.0,
    ),
    Key(
        "ATSC.TEACHER.BN",
        "batch",
        "batch: statistics of the batch, as released; affine_frozen: the same with scales and shifts held; "
        "frozen: the teacher's own statistics too (a large rate can then blow up)",
        choices=("batch", "affine_frozen", "frozen"),
    ),
    Key(
        "ATSC.GUARD",
        "warn",
        "when the teacher collapses: warn, stop (the run ends with exit status 3), or none",
        choices=("warn", "stop", "none"),
    ),
    Key("ATSC.MONITOR.IMAGES", 2000, "evaluation images on which the teacher is watched", minimum=1),
)
