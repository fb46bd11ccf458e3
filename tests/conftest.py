"""Settings every test shares. On two cores, threads that spin while they wait cost ten times what they gain."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported, hence first

import torch  # noqa: E402

torch.set_num_threads(2)
