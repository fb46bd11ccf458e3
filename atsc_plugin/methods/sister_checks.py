"""What can be said against a DIH or COTEACH configuration before any network is built."""


def _index(entry):
    return type(entry) is int and entry >= 0


def dih_problems(cfg):
    """Mistakes of a DIH configuration, as a list of sentences."""
    node, problems = cfg.DIH, []
    if not 0 <= node.ALPHA <= 1:
        problems.append(f"DIH.ALPHA: got {node.ALPHA}, expected a share from 0 to 1, e.g. 0.1.")
    if not all(map(_index, node.STAGES)) or len(set(node.STAGES)) < len(node.STAGES):
        problems.append(f"DIH.STAGES: got {node.STAGES}, expected different whole numbers from 0, e.g. [1, 2, 3].")
    if not node.HEADS.LR > 0:
        problems.append(f"DIH.HEADS.LR: got {node.HEADS.LR}, expected a rate above 0, e.g. 0.0003.")
    return problems


def coteach_problems(cfg):
    """Mistakes of a COTEACH configuration, as a list of sentences."""
    stages = cfg.COTEACH.STAGES
    if all(isinstance(pair, (list, tuple)) and len(pair) == 2 and all(map(_index, pair)) for pair in stages):
        return []
    return [f"COTEACH.STAGES: got {stages}, expected pairs [expert, student] of indices, e.g. [[1, 1], [2, 3]], or []."]
