"""The three tables of networks, under the names that configs use (DISTILLER.STUDENT, DISTILLER.TEACHER).

An entry of the CIFAR and Tiny-ImageNet tables is (constructor taking num_classes=, teacher checkpoint or None),
one of the ImageNet table the constructor alone, taking pretrained=.
"""

from .cifar import cifar_model_dict, tiny_imagenet_model_dict
from .imagenet import imagenet_model_dict

__all__ = ["cifar_model_dict", "imagenet_model_dict", "tiny_imagenet_model_dict"]
