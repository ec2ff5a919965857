"""Pure tensor maths. Knows nothing of models, configs or recipes.

:mod:`~evolve.tensors.fused` is the pass over stored types, on any device. The modules beside it, for methods
that it does not cover, take float32 tensors on the CPU unless they say otherwise, of any shape (0-d, empty
and one-wide too), and return a new one, or change their first argument where the name ends with an
underscore. The bits of a result do not depend on the number of threads.
"""
