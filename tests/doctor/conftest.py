from .world import kube, world

__all__ = ["kube", "world"]
