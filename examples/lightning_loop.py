"""The same under Lightning: `python examples/lightning_loop.py`."""

import digits
import lightning
import torch

import atsc_plugin


class Distilled(lightning.LightningModule):
    """The distiller as a part of a LightningModule; the checkpoints have all that it needs to continue."""

    def __init__(self, d, lr):
        super().__init__()
        self.d, self.lr = d, lr

    def training_step(self, batch, _):
        return self.d(*batch, epoch=self.current_epoch + 1).loss

    def validation_step(self, batch, _):
        x, y = batch
        self.log("top1", 100 * (self.d(x).argmax(1) == y).float().mean(), on_epoch=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.d.param_groups(self.lr), momentum=0.9, weight_decay=1e-4)

    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)
        self.d.after_step()


def train(
    student, teacher, batches, epochs=1, image_size=digits.SIZE, lr=0.05, validation=None, method="ATSC", **options
):
    """The distiller after the loop; `student` has learnt in place."""
    d = atsc_plugin.distiller(student, teacher, method, image_size=image_size, **options)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    lightning.Trainer(max_epochs=epochs, **quiet).fit(Distilled(d, lr), batches, validation)
    return d


if __name__ == "__main__":
    torch.manual_seed(0)
    batches, validation = digits.loaders()
    d = train(digits.Net(), digits.trained_teacher(batches), batches, epochs=5, validation=validation, method="SIMKD")
    print(f"student {d.report(validation)['top1']:.1f}")
