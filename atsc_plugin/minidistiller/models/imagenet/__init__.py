"""The networks for ImageNet: name -> constructor taking pretrained=False, which an ImageNet teacher is built with True.

Every network answers forward(x) as the small-image ones do. Their maps and numbers are mdistiller's at 224 pixels, the
only size at which its networks run; these pool globally and take other sizes too.
"""

from .mobilenetv1 import MobileNetV1
from .resnet import resnet18, resnet34, resnet50, resnet101

imagenet_model_dict = {
    "ResNet18": resnet18,
    "ResNet34": resnet34,
    "ResNet50": resnet50,
    "ResNet101": resnet101,
    "MobileNetV1": MobileNetV1,
}
