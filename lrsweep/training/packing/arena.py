"""The slots' memory: weights and gradients of K trials as rows of two flat buffers, and one torch optimizer per row.

A fused torch optimizer reads a row once; AdamW written in torch operations over [K, N] reads it about twelve times, and
was half as fast when measured. Torch's optimizers also keep their own arithmetic, and work with its schedules.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lrsweep.training.packing.columns import BLOCK, Columns
from lrsweep.training.packing.working_copy import View, WorkingCopy

Weights = Mapping[str, Tensor]
Groups = list[dict[str, Any]]
MakeOptimizer = Callable[[Groups], torch.optim.Optimizer]
_ONE_RATE: Mapping[str, float] = {}


class Arena:
    """Weights and gradients of K slots. A slot is free, or holds a trial with its optimizer.

    Rows are independent: nothing done to one slot changes a bit of another. The columns with weight decay come first.
    Elements that a trial does not fill (its rank is below the pack's) are zero.

    LoRA multiplies its output by a factor. With the factor in the working copy of B, no layer multiplies by it.

    Args:
        shapes: The shape of each parameter of a trial, by name.
        slots: The number of slots K.
        undecayed: The names of the parameters without weight decay.
        scaled: The names of the parameters whose working copy is multiplied by the slot's scale.
        frozen: The rows of parameters that get no gradient, by name: pairs of the first and the one after the last.
        stacks: Parameters that are also one: names of neighbours in `shapes`, by the name of their concatenation along
            the first axis.
        dtype: The dtype of weights and gradients. Default float32.
        compute: The dtype of the products; None for `dtype`.
        device: The device; None for torch's default.

    Attributes:
        slots: The number of slots K.
        shapes: The shape of each parameter, by name, in the order of the columns.
        weights: The weights [K, N].
        grads: The gradients [K, N] since each slot's last step.
        scales: The slots' scales [K, 1].
    """

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        slots: int,
        *,
        undecayed: Collection[str] = (),
        scaled: Collection[str] = (),
        frozen: Mapping[str, Sequence[tuple[int, int]]] | None = None,
        stacks: Mapping[str, Sequence[str]] | None = None,
        dtype: torch.dtype = torch.float32,
        compute: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.slots = slots
        self._columns = Columns.of(shapes, undecayed, scaled, stacks or {})
        self.shapes = self._columns.shapes
        ranges = (frozen or {}).items()
        self._frozen = [self._columns.of_rows(name, *rows) for name, pairs in ranges for rows in pairs]
        self.weights = torch.zeros(slots, self._columns.count, dtype=dtype, device=device)
        self.grads = torch.zeros_like(self.weights)
        self.scales = torch.ones(slots, 1, dtype=dtype, device=device)
        self.compute_dtype = compute or dtype
        self._copy = self._working_copy()
        self._max_norms = torch.full((slots,), torch.inf, dtype=dtype, device=device)
        self._optimizers: list[torch.optim.Optimizer | None] = [None] * slots
        self._flat, self._lr_factors = [True] * slots, [_ONE_RATE] * slots
        self._filled: list[dict[str, torch.Size]] = [{} for _ in range(slots)]

    def views(self, start: int, stop: int) -> Mapping[str, View]:
        """The parameters of the slots start..stop, and their stacks, by name; their `compute` copies are refreshed."""
        return self._copy.views(start, stop)

    @torch.no_grad()
    def admit(
        self,
        slot: int,
        weights: Weights,
        make_optimizer: MakeOptimizer,
        *,
        max_norm: float = 0.0,
        flat: bool = True,
        lr_factors: Mapping[str, float] = _ONE_RATE,
    ) -> torch.optim.Optimizer:
        """Puts a trial into a free slot.

        Args:
            slot: The slot.
            weights: The trial's weights, by name. One that is smaller than its place fills the leading corner.
            make_optimizer: Builds the trial's optimizer over parameter groups: with weight decay, and without. A group
                with a rate of its own has the key `lr_factor`.
            max_norm: The trial's gradient clipping; 0 is off.
            flat: Gives the optimizer one long tensor for each parameter group: the fastest way, and right for every
                optimizer that works element by element. If False, it gets each parameter in its true shape.
            lr_factors: The learning rates of parameters over the optimizer's, by name; 1 for others.

        Returns:
            The optimizer.

        Raises:
            ValueError: The slot is taken, or the names differ from the arena's.
        """
        if self._optimizers[slot] is not None:
            raise ValueError(f"slot {slot} is taken")
        if weights.keys() != self.shapes.keys():
            raise ValueError(f"weights do not fit the arena: {sorted(weights.keys() ^ self.shapes.keys())[:3]}")
        self._clear(slot)
        self._filled[slot] = {name: weight.shape for name, weight in weights.items()}
        for name, place in self.read(slot).items():
            place.copy_(weights[name])
        self._flat[slot], self._lr_factors[slot] = flat, lr_factors
        optimizer = make_optimizer(self._groups(slot))
        self._optimizers[slot] = optimizer
        self._max_norms[slot] = max_norm if max_norm > 0 else torch.inf
        return optimizer

    def evict(self, slot: int) -> None:
        """Frees a slot and zeroes its row."""
        self._optimizers[slot] = None
        self._clear(slot)

    def move(self, source: int, target: int) -> None:
        """Moves a trial to a free slot. Its optimizer stays the same object, so that its schedule still applies to it.

        Raises:
            ValueError: The source is free, or the target is taken.
        """
        optimizer = self._optimizers[source]
        if optimizer is None or self._optimizers[target] is not None:
            raise ValueError(f"cannot move slot {source} to {target}: the first must be taken, the second free")
        for buffer in (self.weights, self.grads, self._max_norms, self.scales):
            buffer[target] = buffer[source]
        self._filled[target] = self._filled[source]
        self._flat[target], self._lr_factors[target] = self._flat[source], self._lr_factors[source]
        self._optimizers[target] = optimizer
        self._rebind(target)
        self.evict(source)

    @torch.no_grad()
    def shrink(self, slots: int) -> None:
        """Keeps the first slots only, and gives back the memory of the others, which must be free.

        Gradients are zeroed. A trial's optimizer stays the same object.

        Args:
            slots: The new number of slots.

        Raises:
            ValueError: One of the other slots is taken.
        """
        if any(self._optimizers[slots:]):
            raise ValueError(f"cannot shrink to {slots} slots: a slot above is taken")
        self.slots = slots
        del self._optimizers[slots:], self._flat[slots:], self._lr_factors[slots:], self._filled[slots:]
        # All that is not copied goes first, to make room for the copy.
        del self._copy
        for optimizer in self._optimizers:
            for group in [] if optimizer is None else optimizer.param_groups:
                for weight in group["params"]:
                    weight.grad = None
        self.grads = self.weights.new_empty(0)
        self.weights = self.weights[:slots].clone()
        self._max_norms = self._max_norms[:slots].clone()
        self.scales = self.scales[:slots].clone()
        self.grads = torch.zeros_like(self.weights)
        self._copy = self._working_copy()
        for slot in range(slots):
            self._rebind(slot)

    def read(self, slot: int) -> dict[str, Tensor]:
        """The weights of a slot's trial in their true shapes, by name; views, not copies."""
        return {name: self._corner(self.weights, slot, name) for name in self._filled[slot]}

    def state(self, slot: int) -> dict[str, Any]:
        """A copy of everything in the arena that the rest of a slot's trial depends on.

        Raises:
            ValueError: The slot is free.
        """
        optimizer = self._optimizers[slot]
        if optimizer is None:
            raise ValueError(f"slot {slot} is free")
        own = self.read(slot)
        weights = {name: own[name].clone() for name in self.shapes}
        tensors = optimizer.state_dict()
        tensors["state"] = {
            index: {key: value.clone() if isinstance(value, Tensor) else value for key, value in entry.items()}
            for index, entry in tensors["state"].items()
        }
        return {"weights": weights, "optimizer": tensors, "width": self.weights.shape[1]}

    def restore(
        self,
        slot: int,
        state: Mapping[str, Any],
        make_optimizer: MakeOptimizer,
        *,
        max_norm: float = 0.0,
        flat: bool = True,
        lr_factors: Mapping[str, float] = _ONE_RATE,
    ) -> torch.optim.Optimizer:
        """Puts a trial with a saved state into any free slot of an arena with the same layout.

        Args:
            slot: The slot.
            state: What `state` returned.
            make_optimizer: As for `admit`.
            max_norm: As for `admit`.
            flat: As for `admit`.
            lr_factors: As for `admit`.

        Returns:
            The optimizer, with its state restored.

        Raises:
            ValueError: The layout differs, or the slot is taken.
        """
        if state["width"] != self.weights.shape[1]:
            raise ValueError(
                f"the state is of an arena {state['width']} columns wide; this one has {self.weights.shape[1]} columns"
            )
        optimizer = self.admit(
            slot, state["weights"], make_optimizer, max_norm=max_norm, flat=flat, lr_factors=lr_factors
        )
        optimizer.load_state_dict(self._columns.rearranged(state, flat, lr_factors))
        return optimizer

    @torch.no_grad()
    def step(self, slots: Iterable[int]) -> Tensor:
        """Clips the gradients of these slots, does one optimizer step, and zeroes the gradients. Others keep theirs.

        Args:
            slots: The slots, ascending.

        Returns:
            The gradient norms before clipping [len(slots)], on the device.

        Raises:
            ValueError: One of the slots is free.
        """
        taken = list(slots)
        norms = torch.cat([self._finish_gradients(start, stop) for start, stop in runs(taken)])
        for slot in taken:
            optimizer = self._optimizers[slot]
            if optimizer is None:
                raise ValueError(f"slot {slot} is free")
            optimizer.step()
        for start, stop in runs(taken):
            self.grads[start:stop].zero_()
        return norms

    def _finish_gradients(self, start: int, stop: int) -> Tensor:
        """Makes the gradients of start..stop those of the weights, and clips each row; returns their norms before [k].

        Clipping is torch.nn.utils.clip_grad_norm_'s.
        """
        grads = self.grads[start:stop]
        for columns in self._frozen:
            grads[:, columns].zero_()
        scaled = self._columns.scaled
        if scaled.start < scaled.stop:
            grads[:, scaled].mul_(self.scales[start:stop])
        blocks = torch.linalg.vector_norm(grads.view(stop - start, -1, BLOCK), dim=2)
        norms: Tensor = torch.linalg.vector_norm(blocks, dim=1)
        max_norms = self._max_norms[start:stop]
        # Without a limit, a norm that is not finite must leave the gradients as they are.
        factors = torch.where(max_norms.isinf(), 1.0, (max_norms / (norms + 1e-6)).clamp(max=1.0))
        grads.mul_(factors[:, None])
        return norms

    def _rebind(self, slot: int) -> None:
        """Gives a slot's optimizer the weights that are in the slot now; its state goes with them."""
        optimizer = self._optimizers[slot]
        if optimizer is None:
            return
        for group, moved in zip(optimizer.param_groups, self._groups(slot), strict=True):
            for old, new in zip(group["params"], moved["params"], strict=True):
                if old in optimizer.state:
                    optimizer.state[new] = optimizer.state.pop(old)
            group["params"] = moved["params"]

    def _clear(self, slot: int) -> None:
        self.weights[slot].zero_()
        self.grads[slot].zero_()
        self._filled[slot] = {}

    def _working_copy(self) -> WorkingCopy:
        return WorkingCopy(self._columns, self.weights, self.grads, self.scales, self.compute_dtype)

    def _corner(self, buffer: Tensor, slot: int, name: str) -> Tensor:
        """The part of a parameter's place that the slot's trial fills."""
        place = buffer[slot, self._columns.places[name]].view(self.shapes[name])
        return place[tuple(slice(size) for size in self._filled[slot][name])]

    def _groups(self, slot: int) -> Groups:
        """The slot's parameter groups: with weight decay, and without."""
        groups: Groups = []
        for parts in self._columns.groups(self._lr_factors[slot]):
            if self._flat[slot]:
                pairs = [(self.weights[slot, part.columns], self.grads[slot, part.columns]) for part in parts]
            else:
                names = [name for part in parts for name in self._columns.within(part)]
                pairs = [
                    (self._corner(self.weights, slot, name), self._corner(self.grads, slot, name)) for name in names
                ]
            for weight, grad in pairs:
                weight.requires_grad_().grad = grad
            group: dict[str, Any] = {"params": [weight for weight, _ in pairs]}
            if not parts[0].decays:
                group["weight_decay"] = 0.0
            if parts[0].lr_factor != 1:
                group["lr_factor"] = parts[0].lr_factor
            groups.append(group)
        return groups


def runs(slots: Sequence[int], longest: int | None = None) -> list[tuple[int, int]]:
    """Splits slots into ranges without gaps.

    Args:
        slots: The slots, ascending.
        longest: The most slots of a range; None for no limit.

    Returns:
        The ranges as pairs (start, stop), `stop` not included.
    """
    found: list[tuple[int, int]] = []
    for slot in slots:
        if found and found[-1][1] == slot and slot - found[-1][0] != longest:
            found[-1] = (found[-1][0], slot + 1)
        else:
            found.append((slot, slot + 1))
    return found
