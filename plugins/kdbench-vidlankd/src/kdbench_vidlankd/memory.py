"""The memory that CRD draws its negatives from: a state of length 1 for each slot, which follows what is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdbench.errors import KdbenchError
from kdbench_vidlankd.losses import log_normaliser, noise_contrastive, unit

__all__ = ["Memory", "draws"]


def draws(seed: int, indices: Tensor, count: int, *, blocks: int, places: int) -> Tensor:
    """Slots drawn evenly, with replacement, from those of all blocks but a block's own.

    Parameters
    ----------
    seed : equal seeds draw the same on every device.
    indices : ``[B]``, the numbers of the blocks.
    count : K.
    blocks, places : the memory has ``blocks * places`` slots.

    Returns
    -------
    Tensor
        ``[B, K]`` int64: ``block * places + place``.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint((blocks - 1) * places, (len(indices), count), generator=generator).to(indices.device)
    return drawn + places * (drawn >= places * indices[:, None])


class Memory(nn.Module):
    """A slot for each block, or for each token of each block (Wu et al. 2018, as Tian et al. 2020 use it).

    Slots start as random directions. In training mode the first call of :meth:`forward` fixes the normaliser Z, which
    stays; :meth:`update` moves slots toward what they stand for. Slots and Z are buffers, so a resumed run goes on with
    the same bits.

    Parameters
    ----------
    blocks : how many, 2 or more.
    places : slots a block: 1, or its length L.
    hidden : H.
    momentum : share of itself that a slot keeps in an update.

    Raises
    ------
    KdbenchError : one block leaves nothing to draw from.
    """

    bank: Tensor
    log_z: Tensor

    def __init__(self, blocks: int, places: int, hidden: int, momentum: float) -> None:
        super().__init__()
        if blocks < 2:
            raise KdbenchError(f"a memory of {blocks} block has no negatives", cure="train on two blocks or more")
        self.momentum = momentum
        self.register_buffer("bank", unit(torch.randn(blocks, places, hidden)))
        self.register_buffer("log_z", torch.tensor(torch.nan))

    @property
    def slots(self) -> int:
        """N."""
        return self.bank.shape[0] * self.bank.shape[1]

    def forward(self, features: Tensor, indices: Tensor, drawn: Tensor, mask: Tensor, temperature: float) -> Tensor:
        """One direction of CRD: features against their own slots and against those drawn.

        Parameters
        ----------
        features : ``[B, L, H]`` of the other network, of length 1.
        indices : ``[B]``.
        drawn : ``[B, K]``, from :func:`draws`.
        mask : ``[B, L]``.
        temperature : tau.

        Returns
        -------
        Tensor
            Nats; a scalar, see :func:`kdbench_vidlankd.losses.noise_contrastive`.
        """
        positive = (features * self.bank[indices]).sum(-1)
        negative = features @ self.bank.flatten(0, 1)[drawn].mT
        log_z = self.log_z
        if log_z.isnan():
            log_z = log_normaliser(positive, negative, slots=self.slots, temperature=temperature, mask=mask)
            if self.training:
                self.log_z.copy_(log_z)
        return noise_contrastive(positive, negative, log_z, slots=self.slots, temperature=temperature, mask=mask)

    @torch.no_grad()
    def update(self, features: Tensor, indices: Tensor, mask: Tensor) -> None:
        """Move slots toward their features: ``m slot + (1 - m) feature``, to length 1.

        Parameters
        ----------
        features : ``[B, L, H]`` of the network that the memory is of, of length 1. The slot of a block moves toward the
            mean over its real tokens, scaled to length 1.
        indices : ``[B]``, distinct.
        mask : ``[B, L]``; slots of padding stay.
        """
        if self.bank.shape[1] == 1:
            features = unit(features.masked_fill(~mask[..., None], 0.0).sum(1, keepdim=True))
            mask = mask.any(1, keepdim=True)
        slots = self.bank[indices]
        moved = unit(self.momentum * slots + (1 - self.momentum) * features)
        self.bank[indices] = torch.where(mask[..., None], moved, slots)
