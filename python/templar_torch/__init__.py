"""Templar's training engine on PyTorch.

A Templar node starts ``python -m templar_torch`` and talks to it in the protocol of ``docs/spec/worker.md``.

| what | module |
|---|---|
| shape of the model, settings of the inner optimiser | :mod:`templar_torch.spec` |
| which attention a device uses | :mod:`templar_torch.attention` |
| the decoder | :mod:`templar_torch.model` |
| schedule, clipping, AdamW, Muon | :mod:`templar_torch.optim` |
| batches, micro-batches, ranks: one inner step | :mod:`templar_torch.engine` |
| several processes as one | :mod:`templar_torch.ranks` |
| tensors in shared files | :mod:`templar_torch.tensors` |
| how much of the device is used | :mod:`templar_torch.flops` |
| the protocol | :mod:`templar_torch.worker` |
| speed on a device | :mod:`templar_torch.bench` |
| where the time of a step goes; what a device can do at most | :mod:`templar_torch.profile`, :mod:`templar_torch.probe` |
"""

import os

# Set before PyTorch reads it: memory that is almost full must not be lost to fragmentation.
os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

__version__ = "0.1.0"
