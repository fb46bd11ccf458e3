"""The same under Hugging Face Accelerate: `accelerate launch examples/accelerate_loop.py`, or plain python.

Accelerate wraps the distiller in DDP where there are several processes; the loop calls the wrapper, and asks the
distiller itself for everything else.
"""

import digits
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

import atsc_plugin


def train(student, teacher, batches, epochs=1, image_size=digits.SIZE, lr=0.05, accumulate=1, method="ATSC", **options):
    """The distiller after the loop; `student` has learnt in place."""
    d = atsc_plugin.distiller(student, teacher, method, image_size=image_size, **options)
    optimizer = torch.optim.SGD(d.param_groups(lr), momentum=0.9, weight_decay=1e-4)
    idle = DistributedDataParallelKwargs(find_unused_parameters=d.idle_parameters)
    accelerator = Accelerator(gradient_accumulation_steps=accumulate, kwargs_handlers=[idle])
    model, optimizer, batches = accelerator.prepare(d, optimizer, batches)
    for epoch in range(1, epochs + 1):
        for x, y in batches:
            with accelerator.accumulate(model):
                out = model(x, y, epoch=epoch)
                accelerator.backward(out.loss)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                d.after_step()
    return d


if __name__ == "__main__":
    torch.manual_seed(0)
    batches, validation = digits.loaders()
    d = train(digits.Net(), digits.trained_teacher(batches), batches, epochs=5, method="SIMKD")
    print(f"student {d.report(validation)['top1']:.1f}")
