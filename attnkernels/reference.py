"""The pure-PyTorch twin of every function, with the same signature: the specification, readable and differentiable."""

from .backends import OPS

__all__ = sorted(OPS)

globals().update({name: op.reference() for name, op in OPS.items()})
