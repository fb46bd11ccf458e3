"""trainer_dict: SOLVER.TRAINER -> class taking (experiment_name, distiller, train_loader, val_loader, cfg)."""

from .trainer import BaseTrainer

trainer_dict = {"base": BaseTrainer}
