"""Habits of mdistiller's forks, levelled in one place: docs/hosts.md has the table.

`adapted` makes the base class of our distillers from a host's `Distiller`: whatever that one's constructor wants, and
however a fork hands over images, our methods see a student, a teacher and one batch of images. `views_for` does the
converse for our trainer: a fork's own method gets its weak and strong views under the names it asks for.
"""

import inspect

from torch import nn

from atsc_plugin.errors import HostError

WEAK, STRONG = "image_weak", "image_strong"


def adapted(base, default_cfg):
    """A subclass of a host's Distiller with mdistiller's own contract: (student, teacher), forward(image=, target=)."""

    class Distiller(base):
        takes_one_view = True

        def __init__(self, student, teacher, cfg=None):
            super().__init__(*base_arguments(base, student, teacher, cfg or default_cfg))
            self.student, self.teacher = student, teacher  # a fork may have kept them in a list, or elsewhere

        def train(self, mode=True):
            """The teacher stays in eval mode; a fork's own train() may expect a list of teachers."""
            nn.Module.train(self, mode)
            self.teacher.eval()
            return self

        def forward(self, **inputs):
            inputs = one_view(inputs)
            return self.forward_train(**inputs) if self.training else self.forward_test(inputs["image"])

    Distiller.__doc__ = base.__doc__
    return Distiller


def base_arguments(base, student, teacher, cfg):
    """What a host's Distiller is constructed with: student, teacher, and where it demands a third, the config."""
    parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    demanded = [p for p in positional if p.default is p.empty]
    if len(demanded) > 3 or (len(positional) < 2 and not any(p.kind is p.VAR_POSITIONAL for p in parameters)):
        names = ", ".join(p.name for p in parameters)
        raise HostError(
            f"{base.__module__}.{base.__name__} is constructed with ({names}); expected (student, teacher) or "
            "(student, teacher, cfg). ATSC_HOST=embedded runs on the embedded host instead."
        )
    many = len(positional) > 1 and positional[1].name.endswith("s")  # teachers, model_teachers
    listed = [teacher] if many and not isinstance(teacher, nn.ModuleList) else teacher
    return (student, listed, cfg)[: max(2, len(demanded))]


def one_view(inputs):
    """The inputs with one batch of images: of a (weak, strong) pair the weak view, which is the usual augmentation."""
    if WEAK in inputs:
        others = {name: value for name, value in inputs.items() if name not in (WEAK, STRONG)}
        return {**others, "image": inputs[WEAK]}
    if isinstance(inputs.get("image"), (list, tuple)):
        return {**inputs, "image": inputs["image"][0]}
    return inputs


def views_for(distiller, inputs):
    """The inputs as this distiller takes them: our methods one view, a fork's by the names of its forward_train."""
    if not isinstance(inputs.get("image"), (list, tuple)):
        return inputs
    if getattr(distiller, "takes_one_view", False):
        return one_view(inputs)
    forward_train = getattr(distiller, "forward_train", None)
    if forward_train is None or WEAK not in inspect.signature(forward_train).parameters:
        return inputs
    weak, strong = inputs["image"]
    others = {name: value for name, value in inputs.items() if name != "image"}
    return {**others, WEAK: weak, STRONG: strong}
