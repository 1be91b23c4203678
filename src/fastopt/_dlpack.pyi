from typing import Any

from fastopt._core import Plan

def exchange_by_asking(dtypes: dict[Any, tuple[int, int]]) -> Any: ...

class Watch:
    moved: bool
    @property
    def missing(self) -> int: ...
    def __init__(self, exchange: Any, plan: Plan, params: list[Any], sparse: bool) -> None: ...
    def release(self, tensor: int) -> None: ...
    def hold(
        self,
        tensor: int,
        param: Any,
        entry: dict[str, Any] | None,
        names: tuple[str, ...],
        states: list[Any],
        beside: dict[str, Any],
    ) -> None: ...
    def look(self, grads: list[Any], state: dict[Any, Any], given: bool = ...) -> list[int]: ...
