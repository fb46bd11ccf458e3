"""What can be said against the engine's keys before anything is built; `load_cfg` tells all of it at once."""

import os

# The engine's keys with the value at which they do nothing; trainers of the host read none of them.
NEUTRAL = {"AMP": ("auto", "none"), "COMPILE": ("none",), "ACCUMULATE": (1,), "CLIP_NORM": (0.0,), "SYNC_BN": (False,)}


def solver_problems(cfg):
    """Mistakes among SOLVER's keys, as a list of sentences."""
    solver, problems = cfg.SOLVER, []
    used = [key for key, neutral in NEUTRAL.items() if solver[key] not in neutral]
    if solver.TRAINER != "plugin":
        problems += [
            f"SOLVER.{key} is {solver[key]}; SOLVER.TRAINER {solver.TRAINER} does not read it. Use SOLVER.TRAINER "
            f"plugin, or {NEUTRAL[key][-1]}."
            for key in used
        ]
    if cfg.DISTILLER.TYPE == "ATSC" and cfg.ATSC.UPDATE == "published":
        problems += [
            f"SOLVER.{key} is {solver[key]}; the released step (ATSC.UPDATE published) has no such thing. Use "
            f"{NEUTRAL[key][-1]}, or ATSC.UPDATE fused."
            for key in used
        ]
    if solver.ACCUMULATE > solver.BATCH_SIZE >= 1:
        problems.append(
            f"SOLVER.ACCUMULATE is {solver.ACCUMULATE}, but a batch has {solver.BATCH_SIZE} images; expected at most "
            "one part an image."
        )
    if solver.COMPILE in ("reduce-overhead", "max-autotune") and solver.ACCUMULATE > 1:
        problems.append(
            f"SOLVER.COMPILE {solver.COMPILE} records CUDA graphs, whose gradients do not outlive a second pass; "
            "with SOLVER.ACCUMULATE above 1 use COMPILE default or none."
        )
    return problems + _ranks_problems(cfg, int(os.environ.get("WORLD_SIZE", 1)))


def _ranks_problems(cfg, ranks):
    """What several ranks (torchrun's WORLD_SIZE) demand."""
    problems, solver = [], cfg.SOLVER
    if ranks == 1:
        return problems
    if solver.TRAINER != "plugin":
        problems.append(f"torchrun started {ranks} ranks; SOLVER.TRAINER {solver.TRAINER} knows one. Use plugin.")
    if cfg.DISTILLER.TYPE == "ATSC" and cfg.ATSC.UPDATE == "published":
        problems.append(f"ATSC.UPDATE published is the released step on one device; torchrun started {ranks} ranks.")
    if solver.BATCH_SIZE % ranks:
        below = solver.BATCH_SIZE // ranks * ranks
        problems.append(
            f"SOLVER.BATCH_SIZE is {solver.BATCH_SIZE}, the batch of all ranks together; torchrun started {ranks}, "
            f"which does not divide it. Use {below or ranks} or {below + ranks}."
        )
    return problems
