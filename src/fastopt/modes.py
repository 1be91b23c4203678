"""Optimizers whose parameters are in one place while they are trained and in another when they are used."""

from __future__ import annotations

from fastopt.engine import Face


class TwoModes(Face):
    """What these have besides. The entry `train_mode` of a group says where its parameters are."""

    def train(self) -> None:
        """Bring the parameters to where they are trained, in place, in one pass; nothing if they are there."""
        self._move(True)

    def eval(self) -> None:
        """Bring the parameters to where they are used (evaluated, saved), in place, in one pass."""
        self._move(False)

    def _move(self, training: bool) -> None:
        with self._turn.to_step:
            engine = self._current_engine()
            engine.options()
            for owner, group in enumerate(self.param_groups):
                if bool(group["train_mode"]) is not training:
                    name, share = self.method.place_of_use(self.method.at(group, self.step_count))
                    slots = [slot for slot in engine.slots[owner] if engine.has_stepped(slot, name)]
                    ends = [engine.entry(slot)[name] for slot in slots]
                    self._lerp([engine.params[slot] for slot in slots], ends, 1 - share if training else 1 - 1 / share)
                    group["train_mode"] = training
