"""The plain trainer, registered as "base": one SGD over what the distiller offers, a validation after every epoch.

Writes under LOG.PREFIX/<experiment name>: worklog.txt, train.events (TensorBoard) and the checkpoints
latest, best, epoch_N   {"epoch", "model", "optimizer", "best_acc"}
student_latest, student_best, student_N   {"model"}, the bare student
Batches are (image, target, index) or, for contrastive methods, (image, target, index, contrastive_index).
"""

import os

import torch
from tqdm import tqdm

from ..distillers._base import StudentTrainer
from .utils import (
    AverageMeter,
    accuracy,
    adjust_learning_rate,
    load_checkpoint,
    log_msg,
    placement,
    save_checkpoint,
    validate,
)

_RULE = "-" * 25


class BaseTrainer:
    def __init__(self, experiment_name, distiller, train_loader, val_loader, cfg):
        self.cfg = cfg
        self.distiller = distiller
        self.train_loader = train_loader
        self.val_loader = val_loader
        self.unwrapped = distiller if isinstance(distiller, StudentTrainer) else distiller.module  # DataParallel's
        self.optimizer = torch.optim.SGD(
            self.unwrapped.get_learnable_parameters(),
            lr=cfg.SOLVER.LR,
            momentum=cfg.SOLVER.MOMENTUM,
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        )
        self.best_acc = -1
        self.log_path = os.path.join(cfg.LOG.PREFIX, experiment_name)
        os.makedirs(self.log_path, exist_ok=True)
        from tensorboardX import SummaryWriter  # a tenth of a second that no other trainer waits for

        self.tf_writer = SummaryWriter(os.path.join(self.log_path, "train.events"))

    def train(self, resume=False):
        first = self.restore() + 1 if resume else 1
        for epoch in range(first, self.cfg.SOLVER.EPOCHS + 1):
            self.train_epoch(epoch)
        print(log_msg(f"Best accuracy:{self.best_acc}", "EVAL"))
        self.append_worklog(f"best_acc\t{self.best_acc:.2f}\n")

    def restore(self):
        """Take up `latest`; returns the epoch it was written after."""
        state = load_checkpoint(os.path.join(self.log_path, "latest"))
        self.distiller.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best_acc = float(state["best_acc"])
        return state["epoch"]

    def train_epoch(self, epoch):
        lr = adjust_learning_rate(epoch, self.cfg, self.optimizer)
        meters = {name: AverageMeter() for name in ("losses", "top1", "top5")}
        self.distiller.train()
        with tqdm(total=len(self.train_loader)) as bar:
            for batch in self.train_loader:
                bar.set_description(log_msg(self.train_iter(batch, epoch, meters), "TRAIN"))
                bar.update()
        top1, top5, loss = validate(self.val_loader, self.distiller)
        figures = {
            "train_acc": meters["top1"].avg,
            "train_loss": meters["losses"].avg,
            "test_acc": top1,
            "test_acc_top5": top5,
            "test_loss": loss,
        }
        self.best_acc = max(self.best_acc, top1)
        self.log(lr, epoch, figures)
        self.save(epoch, is_best=top1 >= self.best_acc)

    def train_iter(self, batch, epoch, meters):
        """One step. Returns the line for the progress bar."""
        place = placement(self.distiller)
        image, target, *indices = batch
        image = image.to(**place, non_blocking=True)
        target = target.to(place["device"], non_blocking=True)
        names = ("index", "contrastive_index")
        extra = {name: value.to(place["device"]) for name, value in zip(names, indices, strict=False)}

        logits, losses = self.distiller(image=image, target=target, epoch=epoch, **extra)
        loss = sum(part.mean() for part in losses.values())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

        batch_size = target.shape[0]
        top1, top5 = accuracy(logits.detach(), target, topk=(1, 5))
        meters["losses"].update(loss.item(), batch_size)  # .item() waits for the device
        meters["top1"].update(top1.item(), batch_size)
        meters["top5"].update(top5.item(), batch_size)
        return (
            f"Epoch:{epoch}| Loss:{meters['losses'].avg:.4f}| Top-1:{meters['top1'].avg:.3f}| "
            f"Top-5:{meters['top5'].avg:.3f}"
        )

    def log(self, lr, epoch, figures):
        for name, value in figures.items():
            self.tf_writer.add_scalar(name, value, epoch)
        self.tf_writer.flush()
        lines = [_RULE, f"epoch: {epoch}", f"lr: {lr:g}", *(f"{k}: {v:.2f}" for k, v in figures.items()), _RULE]
        self.append_worklog("\n".join(lines) + "\n")

    def append_worklog(self, text):
        with open(os.path.join(self.log_path, "worklog.txt"), "a", encoding="utf-8") as worklog:
            worklog.write(text)

    def save(self, epoch, is_best):
        state = {
            "epoch": epoch,
            "model": self.distiller.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best_acc": self.best_acc,
        }
        student = {"model": self.unwrapped.student.state_dict()}
        names = [("latest", "student_latest")]
        if epoch % self.cfg.LOG.SAVE_CHECKPOINT_FREQ == 0:
            names.append((f"epoch_{epoch}", f"student_{epoch}"))
        if is_best:
            names.append(("best", "student_best"))
        for whole, bare in names:
            save_checkpoint(state, os.path.join(self.log_path, whole))
            save_checkpoint(student, os.path.join(self.log_path, bare))
