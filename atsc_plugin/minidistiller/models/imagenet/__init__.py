"""The networks for ImageNet: name -> constructor taking pretrained=False, which an ImageNet teacher is built with True.

Every network answers forward(x) as the small-image ones do. Their maps and numbers are mdistiller's at 224 pixels, the
only size at which its networks run; these pool globally and take other sizes too.
"""

from functools import partial

from .mobilenetv1 import MobileNetV1


def _resnet(name, *arguments, **options):
    from . import resnet  # torchvision: two seconds of imports that no other network waits for

    return getattr(resnet, name)(*arguments, **options)


imagenet_model_dict = {
    "ResNet18": partial(_resnet, "resnet18"),
    "ResNet34": partial(_resnet, "resnet34"),
    "ResNet50": partial(_resnet, "resnet50"),
    "ResNet101": partial(_resnet, "resnet101"),
    "MobileNetV1": MobileNetV1,
}
