"""Networks of timm, torchvision and packages of others: by name, with the host's outputs, taught, deployed, rebuilt."""

import json
import sys
import urllib.error

import numpy as np
import pytest
import torch
from deploy_files import write_student
from small_runs import QUICK, SMALL
from tiny import TinyNet, batch
from torch import nn

import atsc_plugin
from atsc_plugin import contract, host, students
from atsc_plugin.__main__ import main
from atsc_plugin.cards import name_deployed
from atsc_plugin.config import load_cfg
from atsc_plugin.engine import checkpoint
from atsc_plugin.errors import ModelRefused, PluginError
from atsc_plugin.export import verified
from atsc_plugin.host import CFG
from atsc_plugin.methods.host_methods import ReviewKD
from atsc_plugin.networks import named
from atsc_plugin.networks.adapter import Adapted, View, adapt, unwrapped
from atsc_plugin.networks.deployed import deployed_of, tensors_of
from atsc_plugin.networks.maps import teacher_map

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
SHALLOW = {"timm/test_resnet": ["layers=[1,1,1,1]"], "timm/test_vit": ["depth=1"]}
KINDS = {"CNN": "timm/test_resnet", "ViT": "timm/test_vit"}


def network(name, classes=10, size=32, **more):
    torch.manual_seed(0)
    return named.new_network("npz", name, classes, size, **more)


@pytest.fixture(scope="module")
def made():
    """One network of each kind; tests take copies."""
    pytest.importorskip("timm")
    return {name: network(name) for name in KINDS.values()}


@pytest.fixture
def their_package(tmp_path, monkeypatch):
    """A package of somebody's own; importing it leaves a mark."""
    (tmp_path / "their_nets.py").write_text(
        "from pathlib import Path\n"
        f"Path({str(tmp_path)!r}, 'ran').touch()\nfrom torch import nn\n"
        "class Small(nn.Sequential):\n"
        "    def __init__(self, num_classes, width=4):\n"
        "        conv = nn.Conv2d(3, width, 3, stride=4)\n"
        "        pool = nn.AdaptiveAvgPool2d(1), nn.Flatten()\n"
        "        super().__init__(conv, nn.ReLU(), *pool, nn.Linear(width, num_classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(named.ALLOW, "")
    yield tmp_path
    sys.modules.pop("their_nets", None)


# ---- names ----


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("resnet21", [], "got 'resnet21', expected one of .*did you mean resnet"),
        ("resnet20", ["drop=1"], "takes no arguments"),
        ("torchvision/resnet19", [], "has no 'resnet19'; did you mean resnet1.*list_models.. has all"),
        ("torchvision/resnet18", ["width"], "'width', expected NAME=VALUE"),
        ("torchvision/resnet18", ["weights=DEFAULT"], "weights, classes and files are not set by arguments"),
        ("keras/resnet", [], "expected one of the host's networks, timm/NAME"),
        ("os:system", [], "runs the code of os, .* If you trust it, say --allow os"),
    ],
)
def test_a_name_that_cannot_be_built_is_told_with_what_can(name, args, message):
    (problem,) = named.problems("DISTILLER.STUDENT", "cifar100", name, args)
    assert problem.startswith("DISTILLER.STUDENT: ")
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(problem)


def test_a_network_that_timm_does_not_have_is_told_with_those_it_has():
    pytest.importorskip("timm")
    (problem,) = named.problems("DISTILLER.STUDENT", "npz", "timm/test_resn")
    assert "has no 'test_resn'; did you mean test_resnet" in problem
    (problem,) = named.problems("DISTILLER.STUDENT", "npz", "timm/resnet18.a1_in1")
    assert "has no 'resnet18.a1_in1'; did you mean resnet18.a1_in1k" in problem
    (problem,) = named.problems("DISTILLER.STUDENT", "npz", "resnet18")
    assert problem.endswith("(others are written timm/NAME, torchvision/NAME or package.module:Name)")


def test_no_package_of_others_is_imported_unless_it_is_let_in(their_package, capsys):
    words = ["train", "--cfg", str(QUICK / "vanilla.yaml"), "--dry-run", *SMALL, "LOG.PREFIX", str(their_package)]
    words += ["DISTILLER.STUDENT", "their_nets:Small", "DISTILLER.STUDENT_ARGS", "[width=6]"]
    assert main(words) == 2 and "say --allow their_nets" in capsys.readouterr().err
    assert not (their_package / "ran").exists()
    assert main([*words, "--allow", "their_nets"]) == 0
    # 6 * 3 * 9 + 6 of the convolution, 6 * 100 + 100 of the classifier
    assert "their_nets:Small, 868 parameters" in capsys.readouterr().out


def test_a_card_imports_a_package_only_if_the_caller_lets_it_in(their_package):
    with named.letting_in(["their_nets"]):
        module = deployed_of(
            contract.of(host.distiller_dict["NONE"](network("their_nets:Small", args=["width=6"])), CFG)
        )
    card = {
        "student": "their_nets:Small",
        "student_args": ["width=6"],
        "dataset": "npz",
        "classes": 10,
        "image_size": 32,
        **module.facts(),
    }
    checkpoint.save_tensors(tensors_of(module), their_package / "deploy_last", card)
    sys.modules.pop("their_nets"), (their_package / "ran").unlink()
    with pytest.raises(PluginError, match="say --allow their_nets"):
        atsc_plugin.load_student(their_package / "deploy_last")
    assert not (their_package / "ran").exists()
    again = atsc_plugin.load_student(their_package / "deploy_last", allow=["their_nets"])
    image = batch()[0]
    assert torch.equal(again(image), module.eval()(image))


def test_a_network_that_cannot_take_these_images_is_refused_by_name():
    pytest.importorskip("timm")
    with pytest.raises(
        ModelRefused, match="timm/test_vit cannot be built for 10 .* on 32-pixel images with .'cheese=1"
    ):
        network("timm/test_vit", args=["cheese=1"])


def test_a_teachers_arguments_make_it_another_teacher_and_are_in_what_the_run_leaves(their_package, capsys):
    words = ["--cfg", str(QUICK / "simkd.yaml"), *SMALL, "--allow", "their_nets"]
    words += ["DISTILLER.TEACHER", "their_nets:Small", "TEACHER.EPOCHS", "1", "SOLVER.EPOCHS", "1"]
    words += ["LOG.PREFIX", str(their_package), "TEACHER.CACHE", str(their_package / "cache")]
    assert main(["train", *words, "DISTILLER.TEACHER_ARGS", "[width=6]"]) == 0
    # 6 * 3 * 9 + 6 of the convolution, 6 * 100 + 100 of the classifier
    assert "their_nets:Small, 868 parameters" in capsys.readouterr().out
    for width, there in ((6, "trained here before"), (4, "training it here")):
        assert main(["teachers", "--dry-run", *words, "DISTILLER.TEACHER_ARGS", f"[width={width}]"]) == 0
        assert there in capsys.readouterr().out
    (folder,) = their_package.glob("quickstart/*/seed_1")
    about, card = (json.loads((folder / name).read_text()) for name in ("about.json", "deploy_last.json"))
    assert about["teacher_args"] == card["teacher_args"] == ["width=6"]


def test_a_tail_is_rebuilt_from_a_teacher_with_arguments(tmp_path):
    pytest.importorskip("timm")
    atsc_plugin.register()
    cfg, args = CFG.clone(), ["depths=[1,1,1,1]", "dims=[8,8,8,12]"]
    cfg.merge_from_list(["DISTILLER.TYPE", "SIMKD", "DISTILLER.TEACHER", "timm/test_convnext"])
    distiller = host.distiller_dict["SIMKD"](TinyNet(), network("timm/test_convnext", args=args), cfg)
    (head,) = deployed_of(contract.of(distiller, cfg)).facts()["heads"]
    assert (head["channels_out"], head["tail"]["args"]) == (12, args)
    tail = students._tail(head, {"dataset": "npz", "classes": 10})
    assert tail[0].weight.shape == (12,) and tail[1].weight.shape == (10, 12)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["DISTILLER.TEACHER_ARGS", "[width=6]"], "DISTILLER.TEACHER: the host's resnet20 takes no arguments"),
        (["DISTILLER.TEACHER", "torchvision/resnet18", "DISTILLER.TEACHER_ARGS", "[6]"], "expected NAME=VALUE"),
        (["DISTILLER.TYPE", "AVERKD", "DISTILLER.TEACHERS", "[resnet20, resnet8]", "DISTILLER.TEACHER_ARGS", "[a=1]"],
         "there are 2 teachers"),
    ],
)  # fmt: skip
def test_arguments_that_no_teacher_takes_are_refused(words, message, tmp_path, capsys):
    assert main(["train", "--cfg", str(QUICK / "kd.yaml"), "--dry-run", *words, "LOG.PREFIX", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_a_deployed_teacher_takes_no_arguments(tmp_path):
    write_student(tmp_path / "deploy_last")
    cfg = CFG.clone()
    cfg.merge_from_list(["DISTILLER.TEACHER_CKPT", str(tmp_path), "DISTILLER.TEACHER_ARGS", ["width=6"]])
    (problem,) = name_deployed(cfg)
    assert problem.endswith("is a deployed resnet8, which its card builds. Leave it out.")


def test_commas_in_brackets_do_not_divide_arguments():
    atsc_plugin.register()
    cfg = load_cfg(QUICK / "kd.yaml", ["DISTILLER.STUDENT", "torchvision/shufflenet_v2_x0_5", "DISTILLER.STUDENT_ARGS",
                                       "[stages_repeats=[4,8,4], width=(1,2)]"])  # fmt: skip
    assert cfg.DISTILLER.STUDENT_ARGS == ["stages_repeats=[4,8,4]", "width=(1,2)"]


# ---- the host's outputs ----


def test_a_network_in_a_wrapper_has_the_maps_it_has_without(made):
    class Wrapped(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x)

    image, _ = batch()
    for name in KINDS.values():
        bare = unwrapped(made[name])
        shapes = [
            [tuple(each.shape) for each in adapt(net.eval(), 32)(image)[1]["feats"]] for net in (bare, Wrapped(bare))
        ]
        assert shapes[0] == shapes[1] and len(shapes[0]) > 1


def test_a_vits_maps_have_no_prefix_tokens_and_its_vector_feeds_the_classifier(made):
    adapted, (image, _) = made[KINDS["ViT"]].eval(), batch()
    logits, feats = adapted(image)
    assert [tuple(each.shape[1:]) for each in feats["feats"]] == [(64, 2, 2)] * 4  # 32 pixels, patches of 16
    with torch.no_grad():
        assert torch.equal(logits, adapted.network(image))
        tokens = adapted.network.forward_features(image)
        torch.testing.assert_close(feats["feats"][-1].flatten(2), tokens[:, 1:].transpose(1, 2))
        torch.testing.assert_close(feats["pooled_feat"], tokens[:, 0])


def test_a_cnns_maps_are_its_stages_and_last_the_one_whose_mean_is_classified(made):
    adapted, (image, _) = made[KINDS["CNN"]].eval(), batch(size=64)
    logits, feats = adapted(image)
    assert [each.shape[-1] for each in feats["feats"]] == [32, 16, 8, 4, 2]
    torch.testing.assert_close(adapted.network.fc(feats["feats"][-1].mean((2, 3))), logits)


def test_the_hidden_layer_of_a_mobilenetv3_is_in_its_tail():
    facts = teacher_map(network("torchvision/mobilenet_v3_small"), 32, "mobilenet")
    assert (facts.channels, facts.vector, facts.tail) == (576, False, (("network.classifier", 2),))


def test_norm_and_classifier_behind_the_mean_of_a_convnexts_map_are_its_tail():
    pytest.importorskip("timm")
    facts = teacher_map(network("timm/test_convnext"), 32, "convnext")
    assert not facts.vector and [path for path, _ in facts.tail] == ["network.head.norm", "network.head.fc"]


def test_a_network_with_the_hosts_outputs_is_left_as_it_is():
    from atsc_plugin.networks.adapter import adapt

    tiny = TinyNet()
    assert adapt(tiny, 32) is tiny


def test_a_view_gives_a_network_its_own_normalisation_and_size():
    view = View(4, ([0.5] * 3, [0.25] * 3), ([0.25] * 3, [0.5] * 3))
    # a pixel of 0.75 is (0.75 - 0.5) / 0.25 = 1 in these data, and (0.75 - 0.25) / 0.5 = 1 there; 0.5 is 0, and 0.5
    assert torch.equal(view(torch.ones(1, 3, 4, 4)), torch.ones(1, 3, 4, 4))
    assert torch.equal(view(torch.zeros(1, 3, 2, 2)), torch.full((1, 3, 4, 4), 0.5))


def test_what_is_measured_or_trained_on_a_network_is_kept_for_the_view_it_has():
    """The top-1 of a teacher and DIH's heads: a view is in no checkpoint, so equal weights are not equal networks."""
    plain, seeing = TinyNet(), TinyNet()
    seeing.load_state_dict(plain.state_dict())
    seeing.view = View(32, ([0.5] * 3, [0.25] * 3), ([0.25] * 3, [0.5] * 3))
    assert checkpoint.digest(seeing.state_dict()) == checkpoint.digest(plain.state_dict())
    assert checkpoint.digest_of(seeing) != checkpoint.digest_of(plain) == checkpoint.digest(plain.state_dict())


# ---- all four directions ----


@pytest.mark.parametrize("teacher", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("student", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("method", ["KD", "SIMKD", "ATSC"])
def test_every_direction_takes_a_step_and_what_is_deployed_is_rebuilt_by_name(tmp_path, method, teacher, student):
    pytest.importorskip("timm")
    atsc_plugin.register()
    cfg = CFG.clone()
    cfg.merge_from_list(["DISTILLER.TYPE", method, "DISTILLER.TEACHER", teacher, "DISTILLER.STUDENT", student])
    cfg.merge_from_list(["DATASET.TYPE", "npz", "DISTILLER.STUDENT_ARGS", SHALLOW[student]])
    networks = [network(name, args=SHALLOW[name]) for name in (student, teacher)]
    distiller = host.distiller_dict[method](*networks, cfg)
    asked, (image, target) = contract.of(distiller, cfg), batch()
    asked.begin()
    optimizer = torch.optim.SGD(asked.get_learnable_parameters(), lr=0.01)
    sum(distiller.train()(image=image, target=target, epoch=1)[1].values()).backward()
    assert all(p.grad is not None for p in asked.student.parameters() if p.requires_grad)
    before = [p.detach().clone() for p in asked.student.parameters()]
    optimizer.step()
    assert any(not torch.equal(*pair) for pair in zip(before, asked.student.parameters(), strict=True))
    module = deployed_of(asked).eval()
    wanted = module(image)
    card = {**named.card_facts(cfg.DISTILLER), "dataset": "npz", "classes": 10, "image_size": 32, **module.facts()}
    card |= {"mean": [0.5] * 3, "std": [0.25] * 3}
    checkpoint.save_tensors(tensors_of(module), tmp_path / "deploy_last", card)
    again, card = students.load(tmp_path / "deploy_last")
    torch.testing.assert_close(again(image), wanted)
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in distiller.parameters())
    formats = ["torch"] if method == "SIMKD" else []  # tools/networks.py --onnx exports all of them in both formats
    for kind in [*formats, *(["onnx"] if formats and teacher == student == KINDS["ViT"] else [])]:
        _, compared = verified.verified_export(again, card, tmp_path / "student", kind, PIXELS)
        assert compared.same_top1 == len(PIXELS) and compared.max_difference < 1e-4


def test_reviewkds_lists_are_read_off_the_networks_or_the_pair_is_refused_by_name(made):
    cnn, vit = (made[name] for name in KINDS.values())
    cfg = CFG.clone()
    cfg.merge_from_list(["DISTILLER.STUDENT", KINDS["CNN"], "DISTILLER.TEACHER", KINDS["CNN"]])
    lists = ReviewKD.derived(cfg, cnn, [cnn], 64)
    assert lists["REVIEWKD.SHAPES"] == [1, 2, 4, 8, 16]
    assert len(lists["REVIEWKD.IN_CHANNELS"]) == 5
    cfg.DISTILLER.TEACHER = KINDS["ViT"]
    with pytest.raises(ModelRefused, match="timm/test_resnet has 4 behind its stem, timm/test_vit 3"):
        ReviewKD.derived(cfg, cnn, [vit], 64 // 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Number", "it is a int, expected an nn.Module with parameters"),
        ("Labelled", "its forward gives a dict, expected logits"),
        ("Missing", "cannot be imported .module .* has no attribute.* expected package.module:Name of what is called"),
    ],
)
def test_what_is_no_network_of_images_and_logits_is_told_as_that(their_package, name, message):
    with (their_package / "their_nets.py").open("a") as file:
        file.write(
            "def Number(num_classes): return 3\n"
            "class Labelled(Small):\n"
            "    def forward(self, x): return {'logits': super().forward(x)}\n"
        )
    with named.letting_in(["their_nets"]), pytest.raises(PluginError, match=message):
        network(f"their_nets:{name}")


def test_googlenet_is_built_as_its_weights_are_without_auxiliary_classifiers():
    built = network("torchvision/googlenet", size=64, view=View(64, *[([0.5] * 3, [0.25] * 3)] * 2))
    assert (
        not [key for key in unwrapped(built).state_dict() if key.startswith("aux")] and unwrapped(built).transform_input
    )


# ---- weights from the libraries' caches ----


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """torchvision's cache, and no network."""

    def unreachable(*_args, **_keywords):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    return tmp_path / "hub" / "checkpoints"


NAME = "torchvision/shufflenet_v2_x0_5"


def test_weights_come_from_the_cache_and_are_seen_in_their_own_size(cache):
    torch.manual_seed(7)
    from torchvision.models import get_model

    there = get_model("shufflenet_v2_x0_5").state_dict()
    torch.save(there, cache / "shufflenetv2_x0.5-f707e7126e.pth")
    weights = named.weights_of(NAME)
    assert (weights.classes, weights.size) == (1000, 224)
    view = View(weights.size, ([0.5] * 3, [0.25] * 3), (weights.mean, weights.std))
    teacher = network(NAME, weights.classes, view=view)
    checkpoint.fill(teacher, named.pretrained(NAME), "the cache", NAME, 1000)
    assert all(torch.equal(tensor, there[name]) for name, tensor in unwrapped(teacher).state_dict().items())
    seen = []
    teacher.network.register_forward_pre_hook(lambda _m, args: seen.append(args[0].shape))
    assert isinstance(teacher, Adapted) and teacher.eval()(batch(2)[0])[0].shape == (2, 1000)
    assert seen == [(2, 3, 224, 224)]


def test_a_layer_that_demands_its_version_is_filled_with_bare_tensors():
    """torchvision's MNASNet refuses a state without one; safetensors files have none."""
    there, wanted = (network("torchvision/mnasnet0_5") for _ in range(2))
    checkpoint.load_bare(there, {name: tensor.clone() for name, tensor in wanted.state_dict().items()})
    assert all(torch.equal(tensor, wanted.state_dict()[name]) for name, tensor in there.state_dict().items())
    with pytest.raises(RuntimeError, match="Missing key"):
        checkpoint.load_bare(there, {})


def test_weights_that_are_not_there_are_told_with_the_command_that_fetches_them(cache):
    with pytest.raises(PluginError, match="not in the cache.*run: python -c .*get_model"):
        named.pretrained(NAME)


def test_a_teacher_of_other_classes_is_refused_by_a_method_that_uses_its_logits(tmp_path, capsys):
    words = ["train", "--cfg", str(QUICK / "kd.yaml"), *SMALL, "DISTILLER.TEACHER", NAME, "LOG.PREFIX", str(tmp_path)]
    assert main([*words, "DISTILLER.TEACHER_PRETRAINED", "True"]) == 2
    said = capsys.readouterr().err
    assert f"{NAME} tells 1000 classes apart, the data 100, and KD uses its logits." in said
    assert "teachers --fine-tune --cfg" in said


def test_reviewkd_takes_such_a_teacher_and_the_plan_says_how_it_sees_the_images(tmp_path, capsys):
    words = ["train", "--cfg", str(QUICK / "reviewkd.yaml"), *SMALL, "--dry-run", "LOG.PREFIX", str(tmp_path)]
    words += ["DISTILLER.TEACHER", NAME, "DISTILLER.STUDENT", NAME, "DISTILLER.TEACHER_PRETRAINED", "True"]
    assert main(words) == 0
    assert "ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1, seen at 224 px with mean [0.485" in capsys.readouterr().out
