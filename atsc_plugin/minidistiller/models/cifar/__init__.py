"""The networks for small images: name -> (constructor taking num_classes=, path of the teacher's checkpoint or None).

Every network answers forward(x) with (logits, {"feats": [...], "preact_feats": [...], "pooled_feat": ...}); neither
MobileNetV2 has "preact_feats". Tiny-ImageNet's ShuffleV2 is a name only: asking for the network is an error. The
checkpoints are mdistiller's published teachers, unpacked in HOME; nothing is read or downloaded
until somebody asks for a teacher.
"""

from ... import HOME
from .mobilenetv2 import mobile_half
from .mv2_tinyimagenet import TinyImageNetMobileNetV2
from .resnet import resnet8, resnet8x4, resnet14, resnet20, resnet32, resnet32x4, resnet44, resnet56, resnet110
from .resnetv2 import ResNet18, ResNet50
from .ShuffleNetv1 import ShuffleV1
from .ShuffleNetv2 import ShuffleV2, shufflev2_tinyimagenet
from .vgg import vgg8_bn, vgg11_bn, vgg13_bn, vgg16_bn, vgg19_bn
from .wrn import wrn_16_1, wrn_16_2, wrn_40_1, wrn_40_2

_TEACHERS = {
    "resnet56": resnet56,
    "resnet110": resnet110,
    "resnet32x4": resnet32x4,
    "ResNet50": ResNet50,
    "wrn_40_2": wrn_40_2,
    "vgg13": vgg13_bn,
}
_STUDENTS = {
    "resnet8": resnet8,
    "resnet14": resnet14,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet44": resnet44,
    "resnet8x4": resnet8x4,
    "ResNet18": ResNet18,
    "wrn_16_1": wrn_16_1,
    "wrn_16_2": wrn_16_2,
    "wrn_40_1": wrn_40_1,
    "vgg8": vgg8_bn,
    "vgg11": vgg11_bn,
    "vgg16": vgg16_bn,
    "vgg19": vgg19_bn,
    "MobileNetV2": mobile_half,
    "ShuffleV1": ShuffleV1,
    "ShuffleV2": ShuffleV2,
}
_CHECKPOINTS = HOME / "download_ckpts"

cifar_model_dict = {
    **{
        name: (net, str(_CHECKPOINTS / "cifar_teachers" / f"{name}_vanilla" / "ckpt_epoch_240.pth"))
        for name, net in _TEACHERS.items()
    },
    **{name: (net, None) for name, net in _STUDENTS.items()},
}
tiny_imagenet_model_dict = {
    "ResNet18": (ResNet18, str(_CHECKPOINTS / "tiny_imagenet_teachers" / "ResNet18_vanilla" / "ti_res18")),
    "MobileNetV2": (TinyImageNetMobileNetV2, None),
    "ShuffleV2": (shufflev2_tinyimagenet, None),
}
