"""Makes a worker multiply in bf16 on any device, as it does on GPUs: Python imports this when it starts."""

import torch
from templar_torch import engine

engine.choose_dtype = lambda device: torch.bfloat16
