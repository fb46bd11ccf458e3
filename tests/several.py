"""Small students and teachers of different widths and map sizes, for the tests of several teachers."""

import torch
from tiny import TinyNet
from torch import nn

import atsc_plugin
from atsc_plugin.host import CFG

K = 3


def multi_config():
    atsc_plugin.register()
    cfg = CFG.clone()
    cfg.merge_from_list(["DISTILLER.TYPE", "ATSC_MULTI", "SOLVER.TRAINER", "plugin", "SOLVER.LR", 0.01])
    return cfg


def tiny(width=4, stride=4, classes=10):
    """A TinyNet whose map of a 32-pixel image has 32 / stride pixels a side (stride 7: five)."""
    network = TinyNet(classes, width)
    network.conv = nn.Conv2d(3, width, 3, padding=1, stride=stride, bias=False)
    return network


def student_and_teachers(seed=0):
    """A student with an 8 x 8 map of 4 channels, teachers with 8 x 8 x 6, 4 x 4 x 5 and 16 x 16 x 7."""
    torch.manual_seed(seed)
    return tiny(4, 4), [tiny(6, 4), tiny(5, 8), tiny(7, 2)]


def multi(kind, cfg):
    """A method for several teachers that has begun, in double precision; ATSC's teachers a little away from theta_0."""
    student, teachers = student_and_teachers()
    distiller = kind(student, teachers, cfg).double()
    distiller.begin()
    with torch.no_grad():
        for number, teacher in enumerate(distiller.teacher):
            draw = torch.Generator().manual_seed(number)
            for parameter in teacher.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=draw).double()
    return distiller.train()
