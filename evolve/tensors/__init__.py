"""Pure tensor maths. Knows nothing of models, configs or recipes.

Every function takes float32 tensors on the CPU, of any shape (0-d, empty and one-wide ones too), and returns
a new one, or changes its first argument where its name ends with an underscore. The work is done block by
block in numpy, by single additions and multiplications, so the bits do not depend on the number of threads.
"""
