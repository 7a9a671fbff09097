"""Which modules `include` and `exclude` choose."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from .._messages import shown

Selector = str | type[nn.Module]


def names_of_modules(model: nn.Module) -> dict[int, list[str]]:
    """All names of each module, by its identity: a module that is used in two places has two."""
    names: dict[int, list[str]] = {}

    def walk(module: nn.Module, name: str, parents: tuple[nn.Module, ...]) -> None:
        names.setdefault(id(module), []).append(name)
        for key, child in module._modules.items():
            if child is not None and not any(child is parent for parent in parents):
                walk(child, f"{name}.{key}" if name else key, (*parents, child))

    walk(model, "", (model,))
    return names


class Selection:
    """Modules chosen by name patterns and classes."""

    def __init__(
        self, argument: str, wanted: Selector | Iterable[Selector], model: nn.Module, names: dict[int, list[str]]
    ):
        """Take down what is wanted.

        Args:
            argument: "include" or "exclude".
            wanted: what was given for it.
            model: the model.
            names: of its modules.

        Raises:
            TypeError: something is neither a name nor a module class.
            ValueError: a pattern matches no module.
        """
        self.argument, self.model, self.names = argument, model, names
        self.selectors = tuple(map(self._checked, self._items(wanted)))

    def _items(self, wanted: object) -> Iterable[object]:
        if isinstance(wanted, str | type):
            return [wanted]
        if not isinstance(wanted, nn.Module | Tensor):  # some are iterable, but not what is meant
            try:
                return iter(wanted)
            except TypeError:
                pass
        raise TypeError(self._unexpected(wanted))

    def _checked(self, item: object) -> Selector:
        if isinstance(item, str):
            if not any(_matches(name, item) for aliases in self.names.values() for name in aliases):
                raise ValueError(
                    f"patch: {self.argument}: expected a pattern that matches some module, got {shown(item)}"
                )
        elif not isinstance(item, type) or not issubclass(item, nn.Module):
            raise TypeError(self._unexpected(item))
        return item

    def _unexpected(self, got: object) -> str:
        instead = ": give its name or its class" if isinstance(got, nn.Module) else ""
        return f"patch: {self.argument}: expected names or module classes, got {shown(got)}{instead}"

    def _chosen(self, selector: Selector, module: nn.Module) -> bool:
        if isinstance(selector, str):
            return any(_matches(name, selector) for name in self.names[id(module)])
        return isinstance(module, selector)

    def matched_by(self, module: nn.Module) -> str:
        """What of the selection a module of the model matches; empty where it matches nothing."""
        for selector in self.selectors:
            if self._chosen(selector, module):
                return shown(selector) if isinstance(selector, str) else selector.__name__
        return ""

    def hints(self, attention: list[nn.Module]) -> Iterator[str]:
        """Where a selector matches only what contains attention modules: what would match these.

        Args:
            attention: the model's attention modules, chosen or not.
        """
        unmatched = {id(module) for module in attention if not self.matched_by(module)}
        for selector in self.selectors:
            if any(self._chosen(selector, module) for module in attention):
                continue
            containers = [module for module in self.model.modules() if self._chosen(selector, module)]
            inside = {id(part): part for module in containers for part in module.modules() if id(part) in unmatched}
            if not inside:
                continue
            if isinstance(selector, str):
                what, instead = shown(selector), f"match {shown(f'{selector}.*' if selector else '*')}"
            else:
                what, instead = selector.__name__, f"are of {shown(type(next(iter(inside.values()))))}"
            yield f"{self.argument} {what} matches containers only; the attention modules in them {instead}"


def _matches(name: str, pattern: str) -> bool:
    # Most patterns are plain names; the regular expression of a very long one would take long to compile.
    return fnmatch.fnmatchcase(name, pattern) if any(mark in pattern for mark in "*?[") else name == pattern
