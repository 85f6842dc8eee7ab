"""Memory that is used again."""

import torch

from mage_diffsim.envs.warp.blocks import KEPT, LEAST, Blocks


def test_the_memory_of_a_freed_tensor_goes_to_the_next_one():
    blocks = Blocks(torch.float64)
    first = blocks.empty(8, LEAST // 64)
    address, part = first.data_ptr(), first[3:]
    assert address % 64 == 0 and first.dtype == torch.float64 and first.shape == (8, LEAST // 64)
    del first
    assert not blocks.free, "a view of the tensor lives"
    del part
    second, third = blocks.empty(LEAST // 8), blocks.empty(LEAST // 8)
    assert second.data_ptr() == address != third.data_ptr()


def test_blocks_that_are_too_large_or_too_many_are_not_kept_in_use():
    blocks = Blocks(torch.float32)
    tensors = [blocks.empty(LEAST * n) for n in (1, 1, 1, 8)]
    largest = tensors[-1].data_ptr()
    del tensors
    assert len(blocks.free) == KEPT
    assert blocks.empty(LEAST).data_ptr() != largest
    small = blocks.empty(4)
    del small
    assert len(blocks.free) <= KEPT


def test_blocks_that_come_back_meanwhile_are_not_taken_for_another():
    blocks = Blocks(torch.float64)

    class Looked(torch.Tensor):
        """A block; while it is looked at, two small ones are freed."""

        def numel(self):
            for _ in range(2):
                blocks._give_back(torch.empty(1))
            return super().numel()

    block = torch.empty(LEAST).as_subclass(Looked)
    blocks.free.append(block)
    assert blocks._taken(LEAST) is block and [len(x) for x in blocks.free] == [1, 1]
