"""The config tree: mdistiller's keys, defaults and types, so that a YAML file made for one host loads on the other.

CFG is one mutable tree for the process, as in mdistiller: merge a file, merge a list, freeze. yacs is strict about
types (a default 4 refuses 2.5), so a default's type is part of the contract. One default differs: LOG.WANDB is False.
The nodes of methods that are not here (AT, RKD, FITNET, KDSVD, OFD, NST, PKT, SP, VID, CRD, SOLVER.DOT) are kept so
that such files load.
"""

from yacs.config import CfgNode

_DEFAULTS = {
    "EXPERIMENT": {
        "PROJECT": "distill",
        "NAME": "",  # empty: the tag and the overrides make the name
        "TAG": "default",
    },
    "DATASET": {"TYPE": "cifar100", "NUM_WORKERS": 2, "TEST": {"BATCH_SIZE": 64}},
    "DISTILLER": {
        "TYPE": "NONE",  # a key of distiller_dict; NONE trains the student on labels alone
        "TEACHER": "ResNet50",
        "STUDENT": "resnet32",
    },
    "SOLVER": {
        "TRAINER": "base",  # a key of trainer_dict
        "BATCH_SIZE": 64,
        "EPOCHS": 240,
        "LR": 0.05,
        "LR_DECAY_STAGES": [150, 180, 210],  # the rate falls in the epoch after each of these
        "LR_DECAY_RATE": 0.1,
        "WEIGHT_DECAY": 0.0001,
        "MOMENTUM": 0.9,
        "TYPE": "SGD",
        "DOT": {"DELTA": 0.075},  # momentum gap of the "dot" trainer
    },
    "LOG": {
        "TENSORBOARD_FREQ": 500,  # read nowhere in mdistiller either: events are written once an epoch
        "SAVE_CHECKPOINT_FREQ": 40,  # epochs between the numbered checkpoints, which are kept
        "PREFIX": "./output",
        "WANDB": False,  # mdistiller's default is True; the embedded trainer has no wandb
    },
    "KD": {"TEMPERATURE": 4, "LOSS": {"CE_WEIGHT": 0.1, "KD_WEIGHT": 0.9}},
    "AT": {
        "P": 2,  # the power over which channels are summed into an attention map
        "LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 1000.0},
    },
    "RKD": {
        "DISTANCE_WEIGHT": 25,
        "ANGLE_WEIGHT": 50,
        "LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 1.0},
        "PDIST": {"EPSILON": 1e-12, "SQUARED": False},
    },
    "FITNET": {
        "HINT_LAYER": 2,  # index into "feats"
        "INPUT_SIZE": (32, 32),
        "LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 100.0},
    },
    "KDSVD": {
        "K": 1,  # singular vectors kept
        "LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 1.0},
    },
    "OFD": {"LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 0.001}, "CONNECTOR": {"KERNEL_SIZE": 1}},
    "NST": {"LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 50.0}},
    "PKT": {"LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 30000.0}},
    "SP": {"LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 3000.0}},
    "VID": {
        "LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 1.0},
        "EPS": 1e-5,  # floor of the predicted variance
        "INIT_PRED_VAR": 5.0,
        "INPUT_SIZE": (32, 32),
    },
    "CRD": {
        "MODE": "exact",  # the positive is the image itself; "relax" takes any image of its class
        "FEAT": {"DIM": 128, "STUDENT_DIM": 256, "TEACHER_DIM": 256},
        "LOSS": {"CE_WEIGHT": 1.0, "FEAT_WEIGHT": 0.8},
        "NCE": {"K": 16384, "MOMENTUM": 0.5, "TEMPERATURE": 0.07},  # K negatives an image
    },
    "REVIEWKD": {
        "CE_WEIGHT": 1.0,
        "REVIEWKD_WEIGHT": 1.0,
        "WARMUP_EPOCHS": 20,  # the loss fades in linearly over these
        "SHAPES": [1, 8, 16, 32],  # side length of the student's maps, deepest first; 1 is the pooled feature
        "OUT_SHAPES": [1, 8, 16, 32],  # the teacher's
        "IN_CHANNELS": [64, 128, 256, 256],  # the student's channels, shallowest first
        "OUT_CHANNELS": [64, 128, 256, 256],  # the teacher's
        "MAX_MID_CHANNEL": 512,  # without effect in mdistiller, hence here: the bound is always 512
        "STU_PREACT": False,  # take the student's maps before their ReLU
    },
    "DKD": {
        "CE_WEIGHT": 1.0,
        "ALPHA": 1.0,  # weight of "label or not"
        "BETA": 8.0,  # weight of "which of the others"
        "T": 4.0,
        "WARMUP": 20,  # epochs over which the loss fades in linearly
    },
}

CFG = CfgNode(_DEFAULTS)
