"""The losses of distillation, one file each; :data:`evolve.registry.LOSSES` lists them."""
