"""Batch normalisation over two processes, here two threads; tests/multiprocess has real ones."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detector.core import distributed
from detector.models.batch_norm import SharedBatchNorm2d


class Exchange:
    """Two threads as two processes: what each gives to a collective goes to both."""

    def __init__(self) -> None:
        self.meet = threading.Barrier(2)
        self.given: dict[int, Tensor] = {}
        self.place = threading.local()

    def gathered(self, values: Tensor) -> Tensor:
        self.given[self.place.rank] = values
        self.meet.wait()
        every = torch.stack([self.given[0], self.given[1]])
        self.meet.wait()
        return every

    def summed(self, values: Tensor) -> Tensor:
        return self.gathered(values).sum(dim=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_two_shares_give_what_the_whole_batch_gives(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(1)
    values = (3 + 2 * torch.randn(6, 5, 4, 3, generator=generator)).to(dtype)
    wanted = torch.randn(6, 5, 4, 3, generator=generator).to(dtype)
    whole = nn.BatchNorm2d(5).to(dtype)
    nn.init.uniform_(whole.weight, 0.5, 2.0)
    nn.init.uniform_(whole.bias)
    layers = [SharedBatchNorm2d(5).to(dtype) for _ in range(2)]
    for layer in layers:
        layer.load_state_dict(whole.state_dict())
    inputs = values.clone().requires_grad_()
    output = whole(inputs)
    (output * wanted).sum().backward()

    exchange = Exchange()
    results: dict[int, tuple[Tensor, Tensor]] = {}
    for name in ("gathered", "summed"):
        monkeypatch.setattr(distributed, name, getattr(exchange, name))
    monkeypatch.setattr(distributed, "world_size", lambda: 2)

    def work(rank: int) -> None:
        exchange.place.rank = rank
        part = values[3 * rank : 3 * rank + 3].clone().requires_grad_()
        found = layers[rank](part)
        (
            found * wanted[3 * rank : 3 * rank + 3]
        ).sum().backward()  # CPU gradients are computed in this thread
        assert part.grad is not None
        results[rank] = found.detach(), part.grad

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    near: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
    if dtype == torch.float64:
        near = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(torch.cat([results[0][0], results[1][0]]), output.detach(), **near)
    torch.testing.assert_close(torch.cat([results[0][1], results[1][1]]), inputs.grad, **near)
    for name in ("weight", "bias"):
        own = sum(getattr(layer, name).grad for layer in layers)
        torch.testing.assert_close(own, getattr(whole, name).grad, **near)
    for layer in layers:
        torch.testing.assert_close(layer.running_mean, whole.running_mean, **near)
        torch.testing.assert_close(layer.running_var, whole.running_var, **near)
