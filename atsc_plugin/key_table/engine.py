"""Keys of the engine: number formats, compilation, how a batch is worked through, several ranks, loaders."""

from atsc_plugin.key_table.entry import Key

KEYS = (
    Key(
        "SOLVER.AMP",
        "auto",
        "number format of the step's networks; weights and losses stay fp32. auto: bf16 where a GPU has it",
        choices=("none", "auto", "bf16", "fp16"),
    ),
    Key(
        "SOLVER.COMPILE",
        "none",
        "compile the networks (torch.compile's mode); reduce-overhead and max-autotune record CUDA graphs, for GPUs. "
        "Evaluation runs uncompiled",
        choices=("none", "default", "reduce-overhead", "max-autotune"),
    ),
    Key(
        "SOLVER.ACCUMULATE",
        1,
        "parts that each batch is worked through in, one after another, their gradients added: less memory, the same "
        "step but for BN's statistics, which are those of the parts",
        minimum=1,
    ),
    Key("SOLVER.CLIP_NORM", 0.0, "largest norm of the whole gradient; longer ones are cut to it; 0: any", minimum=0.0),
    Key("SOLVER.SYNC_BN", False, "under torchrun on GPUs: BN statistics over all ranks' images, not each rank's own"),
    Key(
        "DATASET.LOADER",
        "auto",
        "of cifar100 and tiny_imagenet: device (images live on the device, augmented there), host (the host's "
        "DataLoader), or auto: device where the host's transforms are known and the images fit",
        choices=("auto", "device", "host"),
    ),
)
