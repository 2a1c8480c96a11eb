"""One training in several processes that share each batch, so that they do what one process would have done.

Every process prepares the whole batch with the same random numbers and takes its share of the rows. Statistics of batch
normalisation are those of the whole batch (Ioffe and Szegedy, ICML 2015, defined over it).
"""

from __future__ import annotations

import os
from typing import Any, cast

import torch
import torch.distributed.nn.functional as reduced
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor, nn


def is_main() -> bool:
    """Whether this process is the one that logs and prints; true where there is only one."""
    return int(os.environ.get("RANK", "0")) == 0


def share(device: Accelerator, count: int) -> slice:
    """The rows of a batch of `count` that this process works on; the sizes differ by one at most."""
    rank, processes = device.process_index, device.num_processes
    return slice(rank * count // processes, (rank + 1) * count // processes)


def joined(device: Accelerator, parts: list[Tensor]) -> Tensor:
    """This process's rows of each batch -> the rows of all batches and processes in their order, on the CPU."""
    if device.num_processes == 1:
        return torch.cat(parts).cpu()
    every = gather_object([[part.cpu() for part in parts]])
    return torch.cat([rows for batch in zip(*every, strict=True) for rows in batch])


def summed(device: Accelerator, value: Tensor) -> Tensor:
    """The sum of a tensor over the processes, on its device."""
    if device.num_processes == 1:
        return value
    total = value.clone()
    torch.distributed.all_reduce(total)
    return total


def least(device: Accelerator, number: int) -> int:
    """The least of a number over the processes."""
    return int(min(gather_object([number]))) if device.num_processes > 1 else number


def from_main(device: Accelerator, value: Any) -> Any:
    """What the main process holds."""
    return broadcast_object_list([value])[0] if device.num_processes > 1 else value


def wrap(network: nn.Module, device: Accelerator) -> nn.Module:
    """Make gradients the mean over the processes, if there are several."""
    if device.num_processes == 1:
        return network
    return nn.parallel.DistributedDataParallel(
        network, [device.local_process_index] if device.device.type == "cuda" else None, broadcast_buffers=False
    )


def share_batch_norm(network: nn.Module, device: Accelerator) -> None:
    """Replace batch normalisation by one over all processes, if there are several; weights keep their names."""
    if device.num_processes > 1:
        _replace(network)


def _replace(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, _SharedBatchNorm(child))
        else:
            _replace(child)


class _SharedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over all processes, on any device, also where a process has no rows.

    torch's own works on GPUs only, and there not with an empty share in half precision.
    """

    def __init__(self, of: nn.BatchNorm2d) -> None:
        super().__init__(of.num_features, of.eps, of.momentum)
        self.__dict__["_parameters"], self.__dict__["_buffers"] = of._parameters, of._buffers
        # timm's layers hold what comes after the normalisation.
        self.after = nn.Sequential(*(getattr(of, name) for name in ("drop", "act") if hasattr(of, name)))

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return cast(Tensor, self.after(super().forward(images)))
        assert self.running_mean is not None  # BatchNorm2d as timm makes it
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        axes, exact = (0, 2, 3), images.float()
        count = exact.new_tensor([exact[:, 0].numel()])
        totals = _sum(torch.cat([exact.sum(axes), count]))
        mean = totals[:-1] / totals[-1]
        centred = exact - mean[:, None, None]
        variance = _sum(centred.square().sum(axes)) / totals[-1]
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * totals[-1] / (totals[-1] - 1), self.momentum)
        scale = self.weight / (variance + self.eps).sqrt()
        normal = centred * scale[:, None, None] + self.bias[:, None, None]
        return cast(Tensor, self.after(normal.to(images.dtype)))


def _sum(value: Tensor) -> Tensor:
    """Over the processes, with a gradient."""
    total: Tensor = reduced.all_reduce(value)  # type: ignore[no-untyped-call]
    return total
