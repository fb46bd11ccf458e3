"""Distillation in a plain PyTorch loop. `python examples/plain_loop.py` takes some seconds on a CPU."""

import digits
import torch

import atsc_plugin


def train(student, teacher, batches, epochs=1, image_size=digits.SIZE, lr=0.05, method="ATSC", **options):
    """The distiller after the loop; `student` has learnt in place."""
    d = atsc_plugin.distiller(student, teacher, method, image_size=image_size, **options)
    optimizer = torch.optim.SGD(d.param_groups(lr), momentum=0.9, weight_decay=1e-4)
    for epoch in range(1, epochs + 1):
        for x, y in batches:
            out = d(x, y, epoch=epoch)
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
            d.after_step()
    return d


if __name__ == "__main__":
    torch.manual_seed(0)
    batches, validation = digits.loaders()
    teacher = digits.trained_teacher(batches)
    d = train(digits.Net(), teacher, batches, epochs=5, method="ATSC", loss_feat_weight=10.0)
    report = d.report(validation)
    print(f"student {report['top1']:.1f}, ECE {report['ece']:.3f}, NLL {report['nll']:.3f}")
    print(f"teacher {report['teacher_top1_before']:.1f} -> {report['teacher_top1_after']:.1f}")
    d.save("output/library/student")
    student = atsc_plugin.load_student("output/library/student", allow=["digits"])
    print("saved, and loaded again:", tuple(student(torch.zeros(1, 3, digits.SIZE, digits.SIZE)).shape))
