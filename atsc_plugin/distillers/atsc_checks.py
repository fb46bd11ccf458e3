"""What can be said against an ATSC configuration before any network is built; `load_cfg` tells all of it at once."""

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
    warmup, last = cfg.ATSC.TEACHER.WARMUP_EPOCHS, cfg.ATSC.TEACHER.LAST_EPOCH
    if 0 < last <= warmup:
        problems.append(
            f"ATSC.TEACHER.LAST_EPOCH is {last} and WARMUP_EPOCHS {warmup}, so the teacher would never learn. Raise "
            "LAST_EPOCH, or use 0 (to the end); for a frozen teacher use DISTILLER.TYPE SIMKD."
        )
    problems += average_problems(cfg.ATSC)
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


def average_problems(node):
    """What is wrong with a teacher that is an average: the feature loss meets the average, which learns nothing."""
    keep = node.TEACHER.AVERAGE
    if keep == 0:
        return []
    problems = []
    if not keep < 1:
        problems.append(f"ATSC.TEACHER.AVERAGE is {keep:g}; expected below 1, e.g. .99, or 0 for no average.")
    if node.LOSS.FEAT_PULL != 0 or node.LOSS.TRUNK_CE_WEIGHT == 0:
        problems.append(
            f"ATSC.TEACHER.AVERAGE is {keep:g} with LOSS.FEAT_PULL {node.LOSS.FEAT_PULL:g} and TRUNK_CE_WEIGHT "
            f"{node.LOSS.TRUNK_CE_WEIGHT:g}, but the student is matched with the average, so the feature loss cannot "
            "move what learns. Use ATSC.LOSS.FEAT_PULL 0.0 and ATSC.LOSS.TRUNK_CE_WEIGHT 1.0."
        )
    return problems
