"""What can be said against REVIEWKD's lists once the teacher is there: they name each of its maps, one by one."""

import torch

from atsc_plugin.networks.maps import evaluating


def review_problems(node, teacher, image_size, name):
    """Mistakes of REVIEWKD's OUT_SHAPES and OUT_CHANNELS for this teacher, as a list of sentences.

    Its maps are relu-free: preact_feats from the second on, then the pooled features as a map of one pixel. OUT_SHAPES
    lists their sides deepest first, OUT_CHANNELS their channels shallowest first.
    """
    with evaluating(teacher), torch.no_grad():
        feats = teacher(torch.zeros(2, 3, image_size, image_size))[1]
    if not feats.get("preact_feats"):
        return [f"teacher {name} has no pre-activation maps, which REVIEWKD compares. Use another teacher or method."]
    maps = [*feats["preact_feats"][1:], feats["pooled_feat"][:, :, None, None]]
    fitting = {"OUT_SHAPES": [m.shape[-1] for m in maps][::-1], "OUT_CHANNELS": [m.shape[1] for m in maps]}
    return [
        f"REVIEWKD.{key} is {list(node[key])}, but the maps of teacher {name} have {wanted}. Set it to that."
        for key, wanted in fitting.items()
        if list(node[key]) != wanted
    ]
