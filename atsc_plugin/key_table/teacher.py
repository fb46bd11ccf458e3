"""Keys of teachers: where they are found, how a missing one is trained."""

from atsc_plugin.key_table.entry import Key

KEYS = (
    Key("DISTILLER.TEACHER_CKPT", "", "file with the teacher's weights; empty: the host's checkpoint folder"),
    Key("TEACHER.TRAIN_IF_MISSING", False, "train the teacher here when no checkpoint is found, and keep it"),
    Key("TEACHER.CACHE", "./output/teachers", "folder of teachers trained here, one file a recipe"),
    Key("TEACHER.SEED", 1, "seed of a teacher trained here", minimum=0, maximum=2**63),
    Key("TEACHER.EPOCHS", 240, "epochs of a teacher trained here; independent of SOLVER", minimum=1),
    Key("TEACHER.BATCH_SIZE", 64, "its batch size", minimum=1),
    Key("TEACHER.LR", 0.05, "its learning rate", minimum=0.0),
    Key("TEACHER.LR_DECAY_STAGES", [150, 180, 210], "epochs after which its rate is multiplied by LR_DECAY_RATE"),
    Key("TEACHER.LR_DECAY_RATE", 0.1, "factor at each decay stage", minimum=0.0),
    Key("TEACHER.WEIGHT_DECAY", 0.0005, "its weight decay", minimum=0.0),
)
