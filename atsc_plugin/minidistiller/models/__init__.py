"""The three tables of networks, under the names that configs use (DISTILLER.STUDENT, DISTILLER.TEACHER).

An entry of the CIFAR and Tiny-ImageNet tables is (constructor taking num_classes=, teacher checkpoint or None).
"""

from .cifar import cifar_model_dict, tiny_imagenet_model_dict

# The Tiny-ImageNet (in .cifar) and ImageNet networks come in a later change; until then their names are unknown here.
imagenet_model_dict = {}

__all__ = ["cifar_model_dict", "imagenet_model_dict", "tiny_imagenet_model_dict"]
