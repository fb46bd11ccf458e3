"""What can be said against an ATSC configuration before any network is built, and against its networks afterwards.

`load_cfg` tells all of the former at once.
"""

from atsc_plugin.errors import ModelRefused, PluginError

# Keys that the released step does not have, with the value at which they do nothing.
NOT_IN_THE_RELEASED_STEP = {
    "ATSC.TEACHER.LR_SCALE": 1.0,
    "ATSC.TEACHER.WEIGHT_DECAY": -1.0,
    "ATSC.TEACHER.WARMUP_EPOCHS": 0,
    "ATSC.TEACHER.LAST_EPOCH": 0,
    "ATSC.TEACHER.AVERAGE": 0.0,
    "ATSC.TEACHER.BN": "batch",
    "ATSC.CLASSIFIER.PARAMS": "bias",
    "ATSC.LOSS.TRUNK_CE_WEIGHT": 0.0,
    "ATSC.LOSS.FEAT_PULL": 1.0,
}


def stiffness_limit(momentum):
    """SGD on a quadratic of curvature h diverges at rate * h >= 2 (1 + momentum); the drift term's h is 2 * DRIFT."""
    return 2 * (1 + momentum)


def atsc_problems(cfg):
    """Mistakes of an ATSC configuration whose keys each have an allowed value, as a list of sentences."""
    problems = []
    product = cfg.SOLVER.LR * cfg.ATSC.TEACHER.LR_SCALE * 2 * cfg.ATSC.DRIFT.WEIGHT
    limit = stiffness_limit(cfg.SOLVER.MOMENTUM)
    if not product < limit:
        problems.append(
            f"SOLVER.LR * ATSC.TEACHER.LR_SCALE * 2 * ATSC.DRIFT.WEIGHT is {product:g}; SGD with momentum "
            f"{cfg.SOLVER.MOMENTUM:g} diverges at {limit:g} and beyond. Lower ATSC.DRIFT.WEIGHT or the rate."
        )
    problems += never_learns(cfg) + average_problems(cfg.ATSC)
    if cfg.ATSC.GUARD == "stop" and cfg.SOLVER.TRAINER != "plugin":
        problems.append(
            f"ATSC.GUARD is stop, but SOLVER.TRAINER {cfg.SOLVER.TRAINER} asks no guard. Use SOLVER.TRAINER plugin, or "
            "ATSC.GUARD none."
        )
    if cfg.ATSC.UPDATE != "published":
        return problems
    if cfg.DISTILLER.TYPE == "ATSC_MULTI":
        return [*problems, "ATSC.UPDATE is published, but no step for several teachers was released. Use fused."]
    if cfg.SOLVER.TRAINER != "plugin":
        problems.append(
            f"ATSC.UPDATE published makes two steps a batch; SOLVER.TRAINER {cfg.SOLVER.TRAINER} makes one. Use "
            "SOLVER.TRAINER plugin, or ATSC.UPDATE fused."
        )
    for key, neutral in NOT_IN_THE_RELEASED_STEP.items():
        value = cfg
        for step in key.split("."):
            value = value[step]
        if value != neutral:
            problems.append(f"{key} is {value}; the released step has no such thing. Use {neutral}, or UPDATE fused.")
    return problems


def never_learns(cfg):
    """A teacher that no epoch would let learn; rate 0 alone is asked for on purpose, to see what BN alone does."""
    warmup, last = cfg.ATSC.TEACHER.WARMUP_EPOCHS, cfg.ATSC.TEACHER.LAST_EPOCH
    if 0 < last <= warmup:
        return [
            f"ATSC.TEACHER.LAST_EPOCH is {last} and WARMUP_EPOCHS {warmup}, so the teacher would never learn. Raise "
            "LAST_EPOCH, or use 0 (to the end); for a frozen teacher use DISTILLER.TYPE SIMKD."
        ]
    if warmup and warmup >= cfg.SOLVER.EPOCHS:
        return [
            f"ATSC.TEACHER.WARMUP_EPOCHS is {warmup} and SOLVER.EPOCHS {cfg.SOLVER.EPOCHS}, so the teacher would never "
            "learn. Lower WARMUP_EPOCHS; for a frozen teacher use DISTILLER.TYPE SIMKD."
        ]
    return []


def average_problems(node):
    """What is wrong with a teacher that is an average: the feature loss meets the average, which learns nothing."""
    keep = node.TEACHER.AVERAGE
    if keep == 0:
        return []
    problems = []
    if not keep < 1:
        problems.append(f"ATSC.TEACHER.AVERAGE is {keep:g}; expected below 1, e.g. .99, or 0 for no average.")
    if node.TEACHER.LR_SCALE == 0:
        problems.append(
            f"ATSC.TEACHER.AVERAGE is {keep:g} with TEACHER.LR_SCALE 0, so there is nothing to average. Raise LR_SCALE."
        )
    if node.LOSS.FEAT_PULL != 0 or node.LOSS.TRUNK_CE_WEIGHT == 0:
        problems.append(
            f"ATSC.TEACHER.AVERAGE is {keep:g} with LOSS.FEAT_PULL {node.LOSS.FEAT_PULL:g} and TRUNK_CE_WEIGHT "
            f"{node.LOSS.TRUNK_CE_WEIGHT:g}, but the student is matched with the average, so the feature loss cannot "
            "move what learns. Use ATSC.LOSS.FEAT_PULL 0.0 and ATSC.LOSS.TRUNK_CE_WEIGHT 1.0."
        )
    return problems


def refuse_without_bias(classifiers, titles, node):
    """The released step trains the bias of the teacher's classifier, and PARAMS bias nothing else of it."""
    if node.UPDATE != "published" and node.CLASSIFIER.PARAMS != "bias":
        return
    without = [title for title, classifier in zip(titles, classifiers, strict=True) if classifier.bias is None]
    if without:
        raise ModelRefused(
            f"The classifier of {' and of '.join(without)} has no bias, and ATSC.UPDATE {node.UPDATE} with "
            f"CLASSIFIER.PARAMS {node.CLASSIFIER.PARAMS} trains it. Use ATSC.UPDATE fused and CLASSIFIER.PARAMS all."
        )


def refuse_replica(distiller):
    """torch.nn.DataParallel over several GPUs runs copies without parameters, which cannot be held or averaged."""
    if getattr(distiller, "_is_replica", False):
        raise PluginError(
            "ATSC is run by torch.nn.DataParallel over several GPUs, whose copies of the teacher have no parameters to "
            "hold; expected one. Set CUDA_VISIBLE_DEVICES to one GPU, or use SOLVER.TRAINER plugin under torchrun."
        )
